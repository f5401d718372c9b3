"""What was recorded of the runs, and what every record says of its origin."""

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from settings import ROOT

RESULTS = ROOT / 'benchmarks' / 'results' / 'accuracy.jsonl'


def records(path: Path | None = None) -> list[dict]:
    """All recorded results."""
    path = path or RESULTS
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def commit() -> str:
    """The commit that is checked out, marked if the tree differs from it."""
    git = ['git', '-C', str(ROOT)]
    head = subprocess.run([*git, 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, 'status', '--porcelain', 'dskd_mm', 'configs'], capture_output=True, text=True).stdout
    return head + ('+changes' if changed.strip() else '')


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    found = dict(python=platform.python_version())
    packages = ('mmengine', 'mmpretrain', 'mmdet', 'mmdetection', 'mmsegmentation')
    for name in ('torch', *(prefix + package for package in packages for prefix in ('onedl-', ''))):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
