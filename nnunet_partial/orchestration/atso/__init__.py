"""The loop of ATSO."""
