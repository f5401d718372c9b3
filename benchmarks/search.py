"""Give every method the same small search on held-out images: all that pulls the student × 0.1, 0.3, 1 and 3.

    python benchmarks/search.py --dataset cifar100-subset-15k --epochs 8
    python benchmarks/search.py --dataset dsb2018-fcn --methods kd,cwd,dskd --epochs 10

The runs are those of benchmarks/accuracy.py, variants such as ``kd-x0.3``, and are recorded and resumed as there. The images
are those that ``--holdout`` holds out. At its end it prints the table and the names to compare on the test images.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # called as a script, which sees its own folder only
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import accuracy
from benchmarks.records import RESULTS
from benchmarks.report import chosen, search_table
from benchmarks.settings import SETTINGS, applicable
from benchmarks.variants import FACTORS, METHODS, scaled


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--dataset', choices=list(SETTINGS), required=True)
    parser.add_argument('--methods', default='all', help='of which the weight is searched; default: all of the data set')
    parser.add_argument('--factors', default=','.join(FACTORS), help='default: %(default)s')
    parser.add_argument('--seeds', default='0', help='comma separated')
    parser.add_argument('--epochs', type=int, help='budget of every student; default: that of the data set')
    parser.add_argument('--results', type=Path, default=RESULTS, help='file to append to; default: %(default)s')
    parser.add_argument('--work-dir', default='work_dirs/benchmarks')
    args = parser.parse_args(argv)
    setting = SETTINGS[args.dataset]
    taught = [name for name in applicable(setting) if name in METHODS and name != 'plain']
    methods = taught if args.methods == 'all' else args.methods.split(',')
    if not set(methods) <= set(taught):
        parser.error(f'--methods knows {", ".join(taught)} or all for {args.dataset}, but got {args.methods!r}')
    names = ['plain', *(scaled(method, factor) for method in methods for factor in args.factors.split(','))]
    epochs = args.epochs or setting.epochs
    call = ['--dataset', args.dataset, '--methods', ','.join(names), '--seeds', args.seeds, '--epochs', str(epochs)]
    call += ['--results', str(args.results), '--work-dir', args.work_dir, '--holdout']
    failed: object = None
    try:
        accuracy.main(call)
    except SystemExit as error:  # some runs failed: the others are worth a table
        failed = error.code
    where = args.dataset, 'holdout', epochs, args.results
    print(f'\n{search_table(*where)}\n\nchosen: {",".join(chosen(*where).values())}')
    if failed:
        sys.exit(1)


if __name__ == '__main__':
    main()
