"""No file of others runs code, no string of a config is executed, nothing is installed by itself."""

import ast
import os
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mmengine.runner.checkpoint as mmengine_checkpoint
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from dskd_mm.utils.checkpoint import load_checkpoint_file, load_safely_everywhere
from support import distiller_run_config, run_script

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ('dskd_mm', 'tools', 'benchmarks', 'examples') for path in (ROOT / folder).rglob('*.py'))


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.proof),)


class Attribute:
    """Reads an attribute of what is harmless when it is unpickled, to get at what is not."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name

    def __reduce__(self) -> tuple[Callable, tuple]:
        return getattr, (self.owner, self.name)


@pytest.fixture(autouse=True)
def loaders() -> Iterator[None]:
    """mmengine's loaders are global: each test finds and leaves them as they were."""
    before, load_from_http = CheckpointLoader._schemes.copy(), mmengine_checkpoint.load_from_http
    yield
    CheckpointLoader._schemes, mmengine_checkpoint.load_from_http = before, load_from_http


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    return tmp_path / 'the code in the checkpoint ran'


@pytest.fixture
def poisoned(tmp_path: Path, proof: Path) -> str:
    path = tmp_path / 'poisoned.pth'
    torch.save(dict(state_dict={'head.fc.weight': torch.zeros(2)}, meta=dict(author=Payload(proof))), path)
    return str(path)


def test_the_payload_would_run(poisoned: str, proof: Path) -> None:
    """What follows shows something only because of this."""
    torch.load(poisoned, weights_only=False)
    assert proof.is_dir()


def test_a_checkpoint_with_code_is_refused_and_its_code_does_not_run(poisoned: str, proof: Path) -> None:
    with pytest.raises(ValueError, match=r'poisoned.pth.*holds a \w+.mkdir.*could run code.*security.md'):
        load_checkpoint_file(poisoned)
    assert not proof.exists()


@pytest.mark.parametrize('key', ['load_from', 'resume', 'model.student.backbone.init_cfg'])
def test_training_reads_no_code_whatever_the_config_loads(tmp_path: Path, poisoned: str, proof: Path, key: str) -> None:
    """mmengine itself would warn and run it."""
    cfg = distiller_run_config(str(tmp_path))
    if key == 'resume':
        cfg.merge_from_dict(dict(resume=True, load_from=poisoned))
    else:
        cfg.merge_from_dict({key: dict(type='Pretrained', checkpoint=poisoned) if key.endswith('init_cfg') else poisoned})
    cfg.experiment_name = f'poisoned_{key}'
    cfg.dump(str(tmp_path / 'config.py'))
    with pytest.raises(ValueError, match='could run code'):
        run_script(ROOT / 'tools/train.py', tmp_path / 'config.py', '--no-preflight')
    assert not proof.exists()


def test_testing_and_exporting_read_no_code(tmp_path: Path, poisoned: str, proof: Path) -> None:
    cfg = distiller_run_config(str(tmp_path))
    cfg.dump(str(tmp_path / 'config.py'))
    for arguments in (
        ('tools/test.py', tmp_path / 'config.py', poisoned, '--work-dir', tmp_path),
        ('tools/model_converters/export_student.py', poisoned, tmp_path / 'student.pth'),
    ):
        with pytest.raises(SystemExit, match='could run code'):
            run_script(ROOT / arguments[0], *arguments[1:])
    assert not proof.exists() and not (tmp_path / 'student.pth').exists()


@pytest.mark.parametrize(
    ('owner', 'name'), [(HistoryBuffer, '__init__'), (HistoryBuffer, '__dict__'), (torch.nn.Parameter, 'grad')]
)
def test_a_checkpoint_reaches_no_attribute_of_its_choice(tmp_path: Path, owner: Any, name: str) -> None:
    """mmengine's list of harmless functions has getattr in it, a way to nearly everything."""
    path = str(tmp_path / 'attribute.pth')
    torch.save(dict(state_dict={}, meta=dict(found=Attribute(owner, name))), path)
    with pytest.raises(ValueError, match=rf'getattr.*{name}.*could run code'):
        load_checkpoint_file(path)


def test_logs_are_read_all_the_same(tmp_path: Path) -> None:
    log, path = HistoryBuffer([1.0, 2.0], [1, 1]), str(tmp_path / 'log.pth')
    torch.save(dict(state_dict={}, message_hub=dict(loss=log)), path)
    assert load_checkpoint_file(path)['message_hub']['loss'].mean() == 1.5


def test_mmengine_reads_by_our_rules(poisoned: str, tmp_path: Path, proof: Path) -> None:
    load_safely_everywhere()
    with pytest.raises(ValueError, match='could run code'):
        CheckpointLoader.load_checkpoint(poisoned, 'cpu')
    assert not proof.exists()
    state = torch.nn.BatchNorm2d(2).state_dict()
    torch.save(state, tmp_path / 'bare.pth')
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'bare.pth'), 'cpu')
    # With the versions by which layers translate their older tensors.
    assert loaded._metadata == state._metadata


@pytest.mark.parametrize(
    'name', ['https://example.com/a.pth', 'torchvision://resnet18', 'open-mmlab://detectron2/resnet50_caffe']
)
def test_mmengine_downloads_by_our_rules(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    seen = []

    def download(address: str, **options: Any) -> dict:
        seen.append(address)
        assert options['weights_only'] is True
        return dict(state_dict={})

    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', download)
    # What mmengine imported by name would be called instead if anything was left to it.
    monkeypatch.setattr(mmengine_checkpoint, 'load_url', lambda *args, **options: pytest.fail('read by mmengine'))
    load_safely_everywhere()
    assert CheckpointLoader.load_checkpoint(name, 'cpu') == dict(state_dict={})
    assert len(seen) == 1 and seen[0].startswith('https://')


def test_the_way_to_convert_a_trusted_file_works(tmp_path: Path, poisoned: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/en/security.md writes it."""
    text = (ROOT / 'docs/en/security.md').read_text(encoding='utf-8')
    (script,) = re.findall(r'```python\n(# trusted.*?)```', text, re.DOTALL)
    assert "'trusted.pth'" in script and "'safe.pth'" in script
    monkeypatch.chdir(tmp_path)
    Path(poisoned).rename('trusted.pth')
    (tmp_path / 'convert.py').write_text(script, encoding='utf-8')
    runpy.run_path(str(tmp_path / 'convert.py'))
    assert list(load_checkpoint_file('safe.pth')['state_dict']) == ['head.fc.weight']


# ---------------------------------------------------------------------------------------------------------------- the sources

# Calls by the name that they are written with: what must hold, and why it is a fault otherwise.
FORBIDDEN = {
    'eval': 'runs text',
    'exec': 'runs text',
    'compile': 'runs text',
    '__import__': 'imports by text: importlib says so',
    'os.system': 'runs a shell',
    'os.popen': 'runs a shell',
    'subprocess.getoutput': 'runs a shell',
    'subprocess.getstatusoutput': 'runs a shell',
    'pickle.load': 'runs the code in a file',
    'pickle.loads': 'runs the code in a file',
    'pickle.Unpickler': 'runs the code in a file',
    'mmengine.load': 'unpickles, by the suffix of the file',
    'joblib.load': 'runs the code in a file',
    'yaml.load': 'builds any object: yaml.safe_load does not',
    'yaml.unsafe_load': 'builds any object',
    'get_config': "mmengine's installs packages by itself",
    'mmengine.hub.get_config': 'installs packages by itself',
    'get_model': "mmengine's installs packages by itself",
    'mim.install': 'installs packages by itself',
}


def dotted(node: ast.expr) -> str:
    """The name that a call is written with: `a.b.c`, '' for what is no plain name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f'{dotted(node.value)}.{node.attr}'
    return ''


def faults_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names and lines of the calls and imports that are refused."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for name in node.names:
                if f'{node.module}.{name.name}' in FORBIDDEN or (node.module or '').startswith('mmengine.hub'):
                    yield f'{node.module}.{name.name}', node.lineno
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        options = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in FORBIDDEN:
            yield name, node.lineno
        shell = options.get('shell')
        if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
            yield f'{name}(shell=...)', node.lineno
        if name in ('torch.load', 'torch.hub.load_state_dict_from_url', 'load_url', 'torch.hub.load'):
            safe = options.get('weights_only')
            if not (isinstance(safe, ast.Constant) and safe.value is True):
                yield f'{name} without weights_only=True', node.lineno
        if name in ('np.load', 'numpy.load') and 'allow_pickle' in options:
            yield f'{name}(allow_pickle=...)', node.lineno


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_what_it_reads(path: Path) -> None:
    assert list(faults_of(ast.parse(path.read_text(encoding='utf-8')))) == []


@pytest.mark.parametrize(
    'source',
    [
        "eval('1')",
        'subprocess.run(command, shell=True)',
        'subprocess.run(command, shell=flag)',
        "torch.load('a.pth')",
        "torch.load('a.pth', weights_only=False)",
        "torch.load('a.pth', **options)",
        'from mmengine.hub import get_config',
        'from os import system',
        'from pickle import loads',
        "np.load('a.npy', allow_pickle=True)",
    ],
)
def test_the_search_finds_what_it_is_for(source: str) -> None:
    assert list(faults_of(ast.parse(source)))


def test_shell_scripts_evaluate_nothing() -> None:
    scripts = sorted((ROOT / 'tools').glob('*.sh'))
    assert len(scripts) == 4
    for script in scripts:
        text = script.read_text(encoding='utf-8')
        assert not re.search(r'\beval\b|`|\bsh -c\b|\bbash -c\b', text), script


# ----------------------------------------------------------------------------------------------------------- the dependencies


def test_every_direct_dependency_is_pinned() -> None:
    """Exactly, so that what was tested and audited is what is installed."""
    lines = (ROOT / 'constraints.txt').read_text(encoding='utf-8').splitlines()
    requirements = [line.split('#')[0].split(';')[0].strip() for line in lines]
    pinned = dict(line.split('==') for line in requirements if line)
    setup = ast.parse((ROOT / 'setup.py').read_text(encoding='utf-8'))
    lists = {
        node.targets[0].id: node.value
        for node in setup.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    wanted = set()
    for name in ('INSTALL_REQUIRES', 'ONEDL', 'CLS', 'DET', 'SEG', 'DEMO', 'DOCS', 'EXTRAS'):
        for node in ast.walk(lists[name]):
            if isinstance(node, ast.List):
                wanted |= {e.value for e in node.elts if isinstance(e, ast.Constant) and isinstance(e.value, str)}
    names = {re.split(r'[<>=!\[;]', requirement)[0] for requirement in wanted}
    assert len(names) > 15
    assert sorted(names - set(pinned)) == []


def test_the_audit_is_of_these_pins() -> None:
    """What docs/en/security.md says of the audit names the file, and gives the command to repeat it."""
    text = (ROOT / 'docs/en/security.md').read_text(encoding='utf-8')
    assert 'pip-audit' in text and 'constraints.txt' in text
