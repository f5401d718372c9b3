"""Check a config before any epoch is spent; the same as `dskd check`."""

from dskd_mm.cli.check import main

if __name__ == '__main__':
    main()
