"""What is said of an operator that is not here."""


def left_out(name: str) -> str:
    """Return the sentence: the operator, which build of mmcv has it, and how to get that build."""
    return (
        f'mmcv is installed without its compiled operators, and dskd_mm.mmcv_ops has no replacement of {name}; an mmcv '
        'compiled for your torch has it: `make env COMPILE=1` in a clone of dskd_mm, or, with a C++ compiler (and nvcc for '
        "CUDA), `pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps onedl-mmcv` (of OpenMMLab's own "
        'releases: mmcv==2.1.0).'
    )
