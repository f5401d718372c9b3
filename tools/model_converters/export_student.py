"""Export the plain student of a checkpoint; the same as `dskd export`."""

from dskd_mm.cli.export import main

if __name__ == '__main__':
    main()
