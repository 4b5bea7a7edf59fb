"""The report: one HTML file that shows what was annotated, how well each method does, and on which cases it fails."""
