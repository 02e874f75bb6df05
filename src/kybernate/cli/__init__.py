"""The command line: a thin shell over the client. Commands are imported when they are used, so `--help` is quick."""
