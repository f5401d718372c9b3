"""What is given to others: an ONNX graph, and a published student."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import mmengine
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn

from dskd_mm.cli.main import main
from dskd_mm.cli.onnx import Graph, export_checked
from dskd_mm.testing import classifier_config, random_teacher
from dskd_mm.utils.checkpoint import load_checkpoint_file, load_plain_model
from support import detector_config, distiller_run_config, segmentor_config, toy_runner


def write_model(model: ConfigDict, folder: Path) -> tuple[str, str, Any]:
    """Write a config and random weights of a plain model; return their paths and the model."""
    cfg = Config(dict(model=model, default_scope=model.get('_scope_', 'mmpretrain')))
    cfg.dump(str(folder / 'plain.py'))
    built = MMENGINE_MODELS.build(cfg.model).eval()
    torch.save(dict(meta={}, state_dict=built.state_dict()), folder / 'plain.pth')
    return str(folder / 'plain.py'), str(folder / 'plain.pth'), built


@pytest.mark.parametrize(
    ('model', 'size', 'outputs'),
    [
        (classifier_config, (16, 16), ['output (batch, 5)']),
        (lambda: segmentor_config('fcn'), (32, 64), ['output (batch, 3, 4, 8)']),
        (lambda: detector_config('retinanet'), (64, 96), ['output_0_0 (batch, 27, 8, 12)', 'output_1_4 (batch, 36, 1, 1)']),
    ],
    ids=['cls', 'seg', 'det'],
)
def test_onnx_gives_what_the_host_gives(
    model: Any, size: tuple[int, int], outputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnx')
    config, checkpoint, built = write_model(ConfigDict(model()), tmp_path)
    out = tmp_path / 'new' / 'student.onnx'
    main(['onnx', config, checkpoint, '--out', str(out), '--size', *map(str, size)])
    printed = capsys.readouterr().out
    assert [name for name in outputs if name not in printed] == [], printed
    told = float(re.search(r'differs from PyTorch by (\S+) at most', printed)[1])
    assert told < 1e-4
    # Three images, where the graph was traced with two; and the preprocessing that is printed is the host's.
    raw = [torch.randint(256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    steps = re.findall(r'channel (\d) \* (\S+) ([+-]\S+?)[,.]?(?=[ \n])', printed)
    images = torch.stack([torch.stack([x[int(c)] * float(a) + float(b) for c, a, b in steps]) for x in raw])
    expected_images = built.data_preprocessor(dict(inputs=raw, data_samples=None), False)['inputs']
    torch.testing.assert_close(images, expected_images[..., : size[0], : size[1]], rtol=1e-4, atol=1e-4)
    found = onnxruntime.InferenceSession(str(out)).run(None, {'inputs': images.numpy()})
    with torch.no_grad():
        expected = built(images, mode='tensor')
    flat = [expected] if torch.is_tensor(expected) else [level for part in expected for level in part]
    for ours, theirs in zip(found, flat, strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-3, atol=1e-4)


def test_onnx_of_a_model_that_needs_proposals_is_refused(tmp_path: Path) -> None:
    pytest.importorskip('onnx')
    config, checkpoint, _ = write_model(detector_config('faster_rcnn'), tmp_path)
    with pytest.raises(SystemExit, match=r'FasterRCNN expects more than images for its heads.*mmdeploy.*`dskd export`'):
        main(['onnx', config, checkpoint, '--out', str(tmp_path / 'x.onnx'), '--size', '64'])
    assert not (tmp_path / 'x.onnx').exists()


class Counting(nn.Module):
    """Multiplies by how many images there are, which a tracer takes for a constant; or draws, which no graph repeats."""

    def __init__(self, draws: bool = False) -> None:
        super().__init__()
        self.conv, self.draws = nn.Conv2d(3, 4, 1), draws

    def forward(self, images: torch.Tensor, mode: str) -> torch.Tensor:
        pooled = self.conv(images).mean(dim=(2, 3)) * len(images)
        return pooled + torch.rand(4) if self.draws else pooled


def test_onnx_of_code_that_counts_images_is_for_one(tmp_path: Path) -> None:
    pytest.importorskip('onnx')
    images, path = torch.rand(2, 3, 8, 8), str(tmp_path / 'x.onnx')
    names, difference, _ = export_checked(Graph(Counting()).eval(), images, path, 17)
    assert names == ['inputs (1, 3, 8, 8)', 'output (1, 4)'] and difference < 1e-5
    with pytest.raises(ValueError, match=r'those of Counting differ: its code cannot be traced\. Export it with mmdeploy'):
        export_checked(Graph(Counting(draws=True)).eval(), images, path, 17)
    assert not Path(path).exists(), 'a graph that is known to be wrong'
    with pytest.raises(ValueError, match=r"ONNX's version 99 is expected to have all operators of Counting.*another --opset"):
        export_checked(Graph(Counting()).eval(), images, path, 99)


def test_onnx_without_the_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__('sys').modules, 'onnx', None)
    config, checkpoint, _ = write_model(ConfigDict(classifier_config()), tmp_path)
    with pytest.raises(SystemExit, match=r"pip install 'dskd_mm\[onnx\]'"):
        main(['onnx', config, checkpoint, '--size', '16'])


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a distillation of one epoch."""
    folder = tmp_path_factory.mktemp('trained')
    cfg = distiller_run_config(str(folder), random_teacher(str(folder)))
    cfg.train_cfg.max_epochs = 1
    cfg.param_scheduler = None
    toy_runner(cfg).train()
    return folder


def test_published_is_the_student_with_its_hash_and_its_record(trained: Path, tmp_path: Path) -> None:
    (tmp_path / 'metrics.json').write_text(json.dumps({'accuracy/top1': 56.25}))
    name = tmp_path / 'shop' / 'toy'
    main(['publish', str(trained / 'epoch_1.pth'), str(name), '--metrics', str(tmp_path / 'metrics.json')])
    (weights,) = name.parent.glob('*.pth')
    assert weights.name == f'toy-{hashlib.sha256(weights.read_bytes()).hexdigest()[:8]}.pth'
    assert {path.name for path in name.parent.iterdir()} == {weights.with_suffix(end).name for end in ('.pth', '.py', '.yml')}
    # The three files are enough for the host.
    model = MMENGINE_MODELS.build(Config.fromfile(weights.with_suffix('.py')).model)
    load_plain_model(model, str(weights))
    (entry,) = mmengine.load(weights.with_suffix('.yml'))['Models']
    assert entry['Weights'] == weights.name and entry['Results'][0]['Metrics'] == {'accuracy/top1': 56.25}
    made_by = load_checkpoint_file(str(weights))['meta']['published']
    assert made_by == {key: entry[key] for key in ('Metadata', 'Results')}
    told = made_by['Metadata']
    assert told['Techniques'] == ['DSKDDistiller'] and told['Training Data'] == 'RandomPatterns' and told['Epochs'] == 1
    assert told['Teachers'][0]['checkpoint'] == str(trained / 'teacher.pth')
    assert told['Parameters'] == sum(parameter.numel() for parameter in model.state_dict().values()) - sum(
        key.endswith('num_batches_tracked') for key in model.state_dict()
    )


def test_a_config_of_a_package_is_exported(trained: Path, tmp_path: Path) -> None:
    config = 'dskd_mm::dskd/resnet8-w8_r14-w16_fashion-mnist.py'
    main(['export', str(trained / 'epoch_1.pth'), str(tmp_path / 'student.pth'), '--config', config])
    assert Config.fromfile(tmp_path / 'student.py').model.type == 'ImageClassifier'


def test_what_cannot_be_published_is_one_line(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r'give the checkpoint that training wrote \(epoch_\*\.pth\)\.'):
        student = tmp_path / 'student.pth'
        main(['export', str(trained / 'epoch_1.pth'), str(student)])
        torch.save(dict(torch.load(student), meta=dict(cfg="model = dict(type='X')")), student)
        main(['publish', str(student), str(tmp_path / 'x')])
    with pytest.raises(SystemExit, match='Expected a checkpoint at'):
        main(['publish', str(tmp_path / 'none.pth'), str(tmp_path / 'x')])
