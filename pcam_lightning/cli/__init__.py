"""The command line: parse the arguments, call a function, print its result, return an exit status."""
