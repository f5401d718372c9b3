"""Put mmcv's operators in place without compiling: ``python -m dskd_mm.mmcv_ops install``, ``remove`` or ``status``."""

import argparse
import sys

from dskd_mm.mmcv_ops.place import PlaceError, install, remove, report

ACTIONS = dict(install=install, remove=remove, status=report)


def main() -> int:
    parser = argparse.ArgumentParser(prog='python -m dskd_mm.mmcv_ops', description=__doc__)
    parser.add_argument('action', choices=ACTIONS, help='put the file mmcv/_ext.py there, take it away, or tell what is there')
    action = parser.parse_args().action
    try:
        print(ACTIONS[action]())
    except PlaceError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
