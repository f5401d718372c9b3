"""Test a student; the same as `dskd test`."""

from dskd_mm.cli.test import main

if __name__ == '__main__':
    main()
