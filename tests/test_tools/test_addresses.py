"""Configs of this package by their address, `dskd_mm::...`, in every tool: in `_base_`, as a teacher, on the command line."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS

from dskd_mm.cli.main import main
from dskd_mm.utils.config import load_config, model_config
from support import plain_run_config, run_script
from support.tools import named

TOOLS = Path(__file__).parents[2] / 'tools'
TEACHER = 'dskd_mm::plain/resnet8-w16_cifar100-subset.py'  # as small as the student, for time
CONFIG = """_base_ = 'dskd_mm::dskd/resnet8-w16_r14-w32_cifar100-subset.py'
custom_imports = dict(imports=['support.runs'])
model = dict(warmup=0, teacher=dict(config={teacher!r}, checkpoint={checkpoint!r}))
data = {data!r}
train_dataloader = dict(_delete_=True, **data)
val_dataloader = test_dataloader = dict(_delete_=True, **data)
train_cfg = dict(max_epochs=1)
del data
"""


@pytest.fixture(scope='module')
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config that inherits one of ours by its address, on small images."""
    folder = tmp_path_factory.mktemp('addresses')
    checkpoint = str(folder / 'teacher.pth')
    torch.save(dict(state_dict=MMENGINE_MODELS.build(model_config(load_config(TEACHER))).state_dict()), checkpoint)
    data = plain_run_config(str(folder)).train_dataloader.to_dict()
    path = folder / 'mine.py'
    path.write_text(CONFIG.format(teacher=TEACHER, checkpoint=checkpoint, data=data))
    return path


def test_it_is_checked_trained_and_tested(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_script(TOOLS / 'misc/check_config.py', config)
    printed = capsys.readouterr().out
    assert caught.value.code == 0, printed
    options = ['--work-dir', tmp_path, '--cfg-options']
    run_script(TOOLS / 'train.py', config, *options, *named('address_train'))
    student = tmp_path / 'student_last.pth'
    run_script(TOOLS / 'test.py', config, student, '--out', tmp_path / 'out.pkl', *options, *named('address_test'))
    assert (tmp_path / 'out.pkl').is_file()


def test_distill_writes_the_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / 'out.py'
    with pytest.raises(SystemExit):  # neither data nor teacher are here
        main(['distill', TEACHER, '--teacher', TEACHER, '--teacher-checkpoint', 'none.pth', '--out', str(out)])
    assert f'_base_ = {TEACHER!r}' in out.read_text()
    assert Config.fromfile(out).model.student == load_config(TEACHER).model
