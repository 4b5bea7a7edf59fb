"""What a project file means for the data that are there: checks before anything is written, and a first file from folders."""
