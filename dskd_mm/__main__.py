"""`python -m dskd_mm`, for where the command `dskd` is not on the path."""

from dskd_mm.cli.main import main

if __name__ == '__main__':
    main()
