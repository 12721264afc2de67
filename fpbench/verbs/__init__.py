"""The verbs of the command line, one a file: its help, its arguments, and what it does."""
