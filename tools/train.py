"""Train a model, distilled or plain; the same as `dskd train`."""

from dskd_mm.cli.train import main

if __name__ == '__main__':
    main()
