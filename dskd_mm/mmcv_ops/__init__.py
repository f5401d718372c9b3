"""mmcv's compiled operators in PyTorch and torchvision, for an mmcv that was installed without compiling.

mmcv looks for them in its module `mmcv._ext`. ``python -m dskd_mm.mmcv_ops install`` puts a file there that takes them from
here; `ext` is what mmcv sees. Nothing here imports mmcv, mmengine or the rest of dskd_mm: mmcv loads it while it is itself
being imported.
"""
