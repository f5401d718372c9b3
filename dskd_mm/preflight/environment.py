"""Are the libraries there that a config needs?"""

import importlib
import importlib.util

from mmengine.utils import digit_version

from dskd_mm.preflight.report import Report, explain
from dskd_mm.utils.config import nodes, type_module

MINIMUM = dict(mmengine='0.10.7', mmcv='2.0.1', mmpretrain='1.2.0', mmdet='3.3.0', mmseg='1.2.2')
"""The oldest versions of the hosts that are supported, by import name."""
EXTRAS = dict(mmpretrain='cls', mmdet='det', mmseg='seg')
"""Which extra of this package installs a host."""


def check_environment(report: Report) -> None:
    """Check that the hosts which the config needs are there, in versions that are supported."""
    cfg = report.cfg
    scopes = {str(cfg.get('default_scope')), *(type_module(node) for node in nodes(cfg.get('model')))}
    teachers = (cfg.get('model') or {}).get('teacher') or {}
    for teacher in teachers if isinstance(teachers, (list, tuple)) else [teachers]:
        if isinstance(teacher.get('config'), str) and '::' in teacher['config']:
            scopes.add(teacher['config'].partition('::')[0])
    for package in ('mmengine', 'mmcv', *sorted(scopes & set(EXTRAS))):
        check_package(report, package)


def check_package(report: Report, package: str) -> None:
    """Check that a package can be imported and is not too old."""
    mend = f"pip install 'dskd_mm[{EXTRAS.get(package, 'cls')}]' (OneDL's packages), or '[openmmlab-...]' (OpenMMLab's)."
    try:
        is_installed = importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # made unimportable
        is_installed = False
    if not is_installed:
        report.fault(package, f'Expected {package} {MINIMUM[package]} or newer, but it is not installed: {mend}')
        return
    try:
        version = importlib.import_module(package).__version__
    except Exception as error:  # mmdet and others refuse versions of mmcv by an assertion
        report.fault(package, f'Expected {package} to be importable, but it says: {explain(error)} Install what fits: {mend}')
        return
    if digit_version(version) < digit_version(MINIMUM[package]):
        report.fault(package, f'Expected version {MINIMUM[package]} or newer, but {version} is installed: {mend}')
    else:
        report.note(package, version)
