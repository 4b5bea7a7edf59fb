"""The page of ATSO's generations and the figures on it."""
