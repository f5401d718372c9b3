"""The command line: one file for each command of `dskd`. The scripts in ``tools/`` run the same code."""
