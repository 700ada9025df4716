"""The command line: one thin module a command. Parse, call, print, exit code."""
