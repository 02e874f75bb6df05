"""One pause, one resume, and what is true after one that failed."""
