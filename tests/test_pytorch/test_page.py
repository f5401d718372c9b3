"""What docs/en/pytorch.md prints runs, and so do the examples."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/en/pytorch.md').read_text(encoding='utf-8'), re.DOTALL)


def test_the_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a loader of one batch, for two epochs; every distiller on it takes a step."""
    models = pytest.importorskip('torchvision').models
    pytest.importorskip('timm')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    torch.save(models.resnet34(num_classes=10).state_dict(), 'teacher.pth')
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    space: dict = dict(loader=[(images, labels)])
    assert len(BLOCKS) == 4
    for block in BLOCKS:
        exec(block.replace('range(100)', 'range(2)'), space)
        assert torch.isfinite(space['distiller'](images, labels))
    deployed = models.resnet18(num_classes=10)
    deployed.load_state_dict(torch.load('student.pth', weights_only=True))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['torchvision_resnet', 'timm_resnet'])
def test_the_examples_run(name: str) -> None:
    pytest.importorskip(name.split('_')[0])
    pytest.importorskip('sklearn')
    command = [sys.executable, '-W', 'ignore', '-m', f'examples.pytorch.{name}', '--epochs', '1']
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert re.fullmatch(r'(?s)teacher +[\d.]+ %\nplain +[\d.]+ %\ndistilled +[\d.]+ %\n', result.stdout)


def test_no_host_is_needed() -> None:
    """With mmcv, mmpretrain, mmdet and mmseg out of reach."""
    body = """
import sys
for name in ('mmcv', 'mmpretrain', 'mmdet', 'mmseg'):
    sys.modules[name] = None
import torch
from torch import nn
import dskd_mm

def net(width):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))

for method in ('dskd', 'kd', 'vkd', 'diffkd'):
    dskd_mm.distil(net(4), net(6), method=method)(torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])).backward()
"""
    subprocess.run([sys.executable, '-W', 'ignore', '-c', body], cwd=ROOT, check=True)
