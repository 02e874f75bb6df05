"""One module a group of commands; main.py imports them by name when they are called."""
