"""Types resolve by their prefix alone, and the layers of the package import downwards only."""

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import dskd_mm

PACKAGE = Path(dskd_mm.__file__).parent
HOSTS = ('mmcv', 'mmpretrain', 'mmdet', 'mmseg')

WITHOUT_HOSTS = """
import importlib, importlib.abc, json, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {hosts!r}:
            raise ModuleNotFoundError(f'blocked: {{name}}', name=name)

sys.meta_path.insert(0, Blocker())
{body}
"""


def run_without_hosts(body: str) -> str:
    """Standard output of Python code in a process where no host library can be imported."""
    code = WITHOUT_HOSTS.format(hosts=HOSTS, body=body)
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_the_core_needs_no_host_and_no_layer_above():
    """Each package of the core is imported first in turn; what it brings along is looked at."""
    body = """
found = {}
for layer in ('losses', 'features', 'guidance', 'diffusion'):
    importlib.import_module(f'dskd_mm.{layer}')
    found[layer] = sorted(name for name in sys.modules if name.startswith('dskd_mm.'))
try:
    import mmcv
except ModuleNotFoundError:
    found['blocked'] = True
print(json.dumps(found))
"""
    found = json.loads(run_without_hosts(body))
    assert found.pop('blocked')
    above = ('dskd_mm.distillers', 'dskd_mm.sites', 'dskd_mm.teacher', 'dskd_mm.hooks', 'dskd_mm.datasets')
    for layer, modules in found.items():
        assert f'dskd_mm.{layer}' in modules
        assert not [name for name in modules if name.startswith(above)], layer


def test_types_resolve_by_their_prefix_without_any_import_or_host():
    body = """
from mmengine.registry import DefaultScope, MODELS
assert not [name for name in sys.modules if name.startswith('dskd_mm')]
with DefaultScope.overwrite_default_scope('mmengine'):
    built = [
        MODELS.build(config)
        for config in (
            dict(type='dskd_mm.DDIMSchedule'),
            dict(type='dskd_mm.DiffusionDenoiser', channels=4),
            dict(type='dskd_mm.TeacherGuidedSampler'),
            dict(type='dskd_mm.NoiseAdapter', channels=8),
            dict(type='dskd_mm.FeatureAutoEncoder', channels=4, latent_channels=2),
            dict(type='dskd_mm.LSHDistillLoss', in_channels=4),
            dict(type='dskd_mm.ChannelAlign', in_channels=4, out_channels=5),
            dict(type='dskd_mm.ClassificationSite'),
            dict(type='dskd_mm.SegmentationSite'),
            dict(type='dskd_mm.DenseDetectionSite'),
            dict(type='dskd_mm.TwoStageDetectionSite'),
            dict(type='dskd_mm.NeckSite'),
            dict(type='dskd_mm.CIFARResNet', depth=8),
        )
    ]
    built.append(MODELS.get('dskd_mm.DSKDDistiller'))
print(json.dumps([getattr(x, '__name__', type(x).__name__) for x in built]))
"""
    assert json.loads(run_without_hosts(body)) == [
        'DDIMSchedule',
        'DiffusionDenoiser',
        'TeacherGuidedSampler',
        'NoiseAdapter',
        'FeatureAutoEncoder',
        'LSHDistillLoss',
        'ChannelAlign',
        'ClassificationSite',
        'SegmentationSite',
        'DenseDetectionSite',
        'TwoStageDetectionSite',
        'NeckSite',
        'CIFARResNet',
        'DSKDDistiller',
    ]


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: relative import'
            names.add(node.module or '')
    return names


# What of the package a layer may import, besides itself.
BELOW = {
    'arguments': set(),
    'compiled': set(),
    'distributed': set(),
    'registry': {'arguments'},
    'features': {'compiled', 'registry', 'distributed'},
    'structures': {'features'},
    'functional': {'structures'},
    'guidance': {'features', 'functional', 'structures'},
    'losses': {'arguments', 'registry', 'distributed', 'features', 'functional', 'structures'},
    'diffusion': {'compiled', 'registry', 'distributed', 'features', 'functional'},
    'backbones': {'registry'},
    'report': {'utils', 'version'},
    'resume': {'registry', 'distributed', 'utils'},
    'mmcv_ops': set(),
    'utils': {'arguments', 'registry'},
    'input_adapter': set(),
    'teacher': {'arguments', 'input_adapter', 'features', 'guidance', 'structures', 'utils'},
    'sites': {'arguments', 'registry', 'distributed', 'features', 'guidance', 'structures', 'teacher', 'utils'},
    'distillers': {
        *(
            'arguments',
            'registry',
            'distributed',
            'features',
            'functional',
            'structures',
            'guidance',
            'diffusion',
            'losses',
            'utils',
        ),
        *('compiled', 'teacher', 'sites'),
    },
    'visualization': {'distillers', 'features', 'guidance', 'structures', 'utils'},
    'pytorch': {'registry', 'features', 'guidance', 'structures', 'utils', 'teacher', 'sites', 'distillers'},
}


def test_no_layer_is_below_itself():
    assert 'distillers' in list(TopologicalSorter(BELOW).static_order())[-3:]


@pytest.mark.parametrize('layer', BELOW)
def test_imports_run_downwards(layer):
    files = sorted((PACKAGE / layer).glob('*.py')) or [PACKAGE / f'{layer}.py']
    for path in files:
        for name in imports(path):
            top, _, rest = name.partition('.')
            if top == 'dskd_mm':
                assert rest.split('.')[0] in BELOW[layer] | {layer}, f'{path.name} imports {name}'


@pytest.mark.parametrize('layer', ['losses', 'features', 'guidance', 'diffusion'])
def test_the_core_imports_torch_and_the_registry_only(layer):
    standard = set(sys.stdlib_module_names)
    for path in (PACKAGE / layer).glob('*.py'):
        foreign = {name.split('.')[0] for name in imports(path)} - standard - {'torch', 'dskd_mm'}
        assert not foreign, f'{path.name} imports {foreign}'


@pytest.mark.parametrize('layer', ['distillers', 'pytorch', 'hooks', 'optim', 'resume', 'utils', 'sites', 'teacher.py'])
def test_no_host_is_imported_when_a_file_is(layer):
    """A host is imported inside functions only, so that each task works with the other hosts absent."""
    root = PACKAGE / layer
    for path in [root] if root.is_file() else sorted(root.glob('*.py')):
        tree = ast.parse(path.read_text())
        top_level = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        for node in ast.walk(top_level):
            names = [alias.name for alias in getattr(node, 'names', [])] if isinstance(node, ast.Import) else []
            names += [node.module or ''] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split('.')[0] in HOSTS], f'{path.name}: {names}'


@pytest.mark.parametrize('registry', ['MODELS', 'HOOKS', 'DATASETS', 'OPTIM_WRAPPERS'])
def test_every_location_of_the_registries_can_be_imported_and_registers(registry):
    from dskd_mm import registry as registries

    child = getattr(registries, registry)
    assert child.scope == 'dskd_mm'
    child.import_from_location()
    modules = {cls.__module__ for cls in child.module_dict.values()}
    for location in child._locations:
        assert [name for name in modules if name.startswith(location)], f'{location} registers nothing'
