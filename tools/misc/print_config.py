"""Print a whole config; the same as `dskd config`."""

from dskd_mm.cli.config import main

if __name__ == '__main__':
    main()
