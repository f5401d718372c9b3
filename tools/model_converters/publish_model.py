"""Write the plain student for others; the same as `dskd publish`."""

from dskd_mm.cli.publish import main

if __name__ == '__main__':
    main()
