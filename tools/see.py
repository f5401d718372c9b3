"""Draw what distillation does to images; the same as `dskd see`."""

from dskd_mm.cli.see import main

if __name__ == '__main__':
    main()
