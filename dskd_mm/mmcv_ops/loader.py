"""mmcv's operators in PyTorch and torchvision, taken from dskd_mm.

Written by `python -m dskd_mm.mmcv_ops install`; `python -m dskd_mm.mmcv_ops remove` takes it away. A compiled `_ext` beside
this file comes before it.
"""

try:
    from dskd_mm.mmcv_ops.ext import *  # noqa: F403
    from dskd_mm.mmcv_ops.ext import __getattr__  # noqa: F401
except ImportError as error:
    raise ImportError(
        f'mmcv is installed without its compiled operators, and {__file__} takes them from dskd_mm, which does not load here '
        f'({error}). Install dskd_mm in this environment (`pip install -e .` in its clone), or delete that file and compile '
        'mmcv: `pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps onedl-mmcv`.'
    ) from error
