"""Every config loads, finds its teacher, and is listed where configs are listed."""

import json
import re
import runpy
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

import pytest
import yaml
from config_helpers import (
    CONFIGS,
    DEMO,
    FULL_SIZE,
    HOSTS,
    METHODS,
    PAIRS,
    PLAIN,
    ROOT,
    load,
    name_of,
    skip_without,
    strings,
    teaches,
)
from mmengine.config import Config

from dskd_mm.preflight import check_config
from dskd_mm.utils.config import (
    is_distiller_config,
    load_config,
    nodes,
    resolve_config_path,
    student_config,
    type_module,
)
from dskd_mm.utils.methods import suits

# mmengine does not find mmseg's configs as bases in OneDL's packages, so these repeat them.
MMSEG_TWINS = dict(
    deeplabv3_r18_cityscapes='mmseg::deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py',
    deeplabv3_mobilenetv2_cityscapes='mmseg::mobilenet_v2/mobilenet-v2-d8_deeplabv3_4xb2-80k_cityscapes-512x1024.py',
    pspnet_r18_cityscapes='mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py',
    segformer_b0_ade20k='mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
)

LAID_OUT = [path for path in CONFIGS if path.parent.name in ('dskd', 'plain')]


@pytest.mark.parametrize('path', LAID_OUT, ids=name_of)
def test_config_loads(path, monkeypatch):
    cfg = load(path)
    # Laying out the text of a detector's config takes seconds.
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
    # What the runner writes beside the checkpoints must load again.
    assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == cfg.to_dict()


def test_configs_are_there():
    assert len(PLAIN) >= 10
    assert len(PAIRS) >= 25
    assert {'kd', 'diffkd', 'lshfm', 'rtk', 'sokd', 'vkd'} < set(METHODS)


@pytest.mark.parametrize('path', PAIRS, ids=name_of)
def test_method_is_all_that_differs(path):
    """Every method fits every pair or says that it does not; student, teacher, data and schedule are those of DSKD's config."""
    pair = load(path)
    fitting = {method: load(path, method) for method in METHODS if suits(method, pair)}
    assert {'fitnet', 'diffkd', 'lshfm', 'rtk', 'sokd', 'vkd'} <= set(fitting)
    assert ('kd' in fitting) == (not path.stem.startswith('detr'))  # which has no logits that could be compared
    for method, cfg in fitting.items():
        assert '_delete_' not in str(cfg.to_dict())
        assert not {'imitation', 'autoencoder'} & set(cfg.model)  # DSKD's own
        model = cfg.model
        assert model.teacher == pair.model.teacher
        if method not in ('kd', 'lskd'):  # which weigh the student's own loss
            assert model.student == pair.model.student
        cfg.model = pair.model
        assert cfg.to_dict() == pair.to_dict(), method


@pytest.mark.parametrize('path', PAIRS, ids=name_of)
def test_a_method_that_does_not_fit_says_so(path):
    """What compares boxes or reads logits is built, without weights, wherever the method's file has settings."""
    pair = load(path)
    pytest.importorskip(pair.default_scope)
    for method in ('kd', 'dist', 'crosskd'):
        if suits(method, pair):
            assert check_config(load(path, method), ['models'], thorough=False).faults == []


def test_methods_are_compared_where_the_benchmark_compares_them():
    """On its data sets every method is there that has a meaning for the task."""
    everywhere = {'kd', 'fitnet', 'mgd', 'diffkd', 'lshfm', 'rtk', 'sokd', 'vkd'}
    expected = {
        'resnet8-w16_r14-w32_cifar100-subset': everywhere | {'dkd', 'dist', 'at', 'lskd', 'srrl', 'simkd'},
        'resnet8-w8_r14-w16_fashion-mnist': everywhere | {'dkd', 'dist', 'at', 'lskd', 'srrl', 'simkd'},
        'retinanet_r18-w8_r18-w32_bccd': everywhere | {'cwd', 'pkd', 'crosskd'},
        # Two exclusive classes leave DKD nothing to decouple.
        'fcn_r14-w8_r14-w32_dsb2018': everywhere | {'dist', 'at', 'cwd'},
    }
    for pair, names in expected.items():
        cfg = load(ROOT / f'configs/dskd/{pair}.py')
        assert {method for method in METHODS if suits(method, cfg)} == names


@pytest.mark.parametrize(
    'path',
    [path for path in (*DEMO, *PAIRS) if teaches(path)],
    ids=name_of,
)
def test_distiller_and_its_teacher_belong_together(path):
    cfg = load(path)
    assert is_distiller_config(cfg)
    assert cfg.model.type == 'dskd_mm.DSKDDistiller'
    assert 'dskd_mm' in cfg.custom_imports.imports
    # `_delete_` must have taken the base's keys away.
    assert 'backbone' not in cfg.model
    # The host's own types and hooks are looked up in the host.
    assert cfg.default_scope in HOSTS

    package, separator, relative = cfg.model.teacher.config.partition('::')
    if separator:
        skip_without(package)
    teacher_cfg = load_config(cfg.model.teacher.config)
    assert teacher_cfg.default_scope == cfg.default_scope
    assert class_counts(teacher_cfg) == class_counts(student_config(cfg))
    if separator:
        assert url_path(cfg.model.teacher.checkpoint) == url_path(published_model(package, relative)['Weights'])
    elif path in PAIRS:
        assert Path(cfg.model.teacher.checkpoint).parent.name == Path(cfg.model.teacher.config).stem


def class_counts(cfg: Config) -> set[int]:
    """Numbers of classes of a config's heads; mmpretrain's heads know theirs from the preprocessor, too."""
    counts = {node['num_classes'] for node in nodes(cfg.model) if 'num_classes' in node}
    return counts | {cfg.data_preprocessor.num_classes} if 'num_classes' in (cfg.get('data_preprocessor') or {}) else counts


def url_path(address: str) -> str:
    """An address without its server: OneDL mirrors OpenMMLab's, and not every metafile names the mirror."""
    assert address.startswith('https://')
    return urlparse(address).path


def published_model(package: str, relative: str) -> dict:
    """What a host's metafiles tell of one of its configs, {} for nothing."""
    folder = Path(resolve_config_path(f'{package}::{relative}')).parent
    found = []
    for metafile in folder.glob('metafile.y*ml'):
        models = yaml.safe_load(metafile.read_text(encoding='utf-8'))['Models']
        found += [model for model in models if model['Config'] == f'configs/{relative}']
    # More than one entry for a config means other hardware, not other weights.
    return found[0] if found else {}


def published_figures(address: str) -> list[str]:
    """Published figures of a config given as ``package::path``, as tables write them."""
    package, _, relative = address.partition('::')
    results = published_model(package, relative).get('Results', [])
    results = [results] if isinstance(results, dict) else results
    names = {'box AP': '.1f', 'mIoU': '.2f', 'Top 1 Accuracy': '.2f'}
    return [format(value, names[name]) for result in results for name, value in result['Metrics'].items() if name in names]


@pytest.mark.parametrize('path', FULL_SIZE, ids=name_of)
def test_data_root_is_overridden_by_options(path):
    """The README's options move all data that training reads."""
    cfg = load(path)
    if cfg.default_scope == 'mmpretrain' and path.stem.endswith('_cifar100'):
        pytest.skip('reads DSKD_DATA_ROOT')
    root = cfg.train_dataloader.dataset.data_root
    assert root in ('data/imagenet', 'data/coco/', 'data/cityscapes/', 'data/ade/ADEChallengeData2016')
    options = {f'{part}_dataloader.dataset.data_root': 'elsewhere/' for part in ('train', 'val', 'test')}
    if cfg.default_scope == 'mmdet':
        ann_file = 'elsewhere/annotations/instances_val2017.json'
        options |= {f'{part}_evaluator.ann_file': ann_file for part in ('val', 'test')}
    cfg.merge_from_dict(options)
    for part in ('train', 'val', 'test'):
        for key in (f'{part}_dataloader', f'{part}_evaluator'):
            assert not [text for text in strings(cfg.get(key)) if text.startswith('data/')]


@pytest.mark.parametrize('path', FULL_SIZE, ids=name_of)
def test_full_size_pair_keeps_its_hosts_runtime(path):
    cfg = load(path)
    assert cfg.auto_scale_lr.base_batch_size % cfg.train_dataloader.batch_size == 0
    assert {'timer', 'logger', 'param_scheduler', 'checkpoint', 'sampler_seed', 'visualization'} <= set(cfg.default_hooks)
    assert all(type_module(hook) in ('', 'dskd_mm') for hook in cfg.get('custom_hooks') or [])


def test_metafile_matches_the_configs():
    metafile = Config.fromfile(ROOT / 'configs/dskd/metafile.yml')
    collections = [collection.Name for collection in metafile.Collections]
    listed = [model.Config for model in metafile.Models]
    assert len(listed) == len(set(listed))
    for model in metafile.Models:
        assert (ROOT / model.Config).is_file()
        assert model.Name == f'dskd_{Path(model.Config).stem}'
        assert model['In Collection'] in collections
        assert_stated(model.Metadata, load(ROOT / model.Config))
    for collection in metafile.Collections:
        assert (ROOT / collection.README).is_file()
    full_size = {str(PurePosixPath(path.relative_to(ROOT))) for path in FULL_SIZE}
    assert full_size <= set(listed)
    assert 'configs/dskd/metafile.yml' in Config.fromfile(ROOT / 'model-index.yml').Import


def assert_stated(metadata: dict, cfg: Config) -> None:
    """The schedule and the batch that the metafile states are those of the config."""
    by_epoch = 'max_epochs' in cfg.train_cfg
    assert metadata['Epochs' if by_epoch else 'Iterations'] == cfg.train_cfg['max_epochs' if by_epoch else 'max_iters']
    assert metadata['Batch Size'] == cfg.auto_scale_lr.base_batch_size


@pytest.mark.parametrize('path', FULL_SIZE, ids=name_of)
def test_readme_lists_the_config_with_published_figures(path):
    rows = (ROOT / 'configs/dskd/README.md').read_text(encoding='utf-8').splitlines()
    (row,) = [row for row in rows if f'](./{path.name})' in row]
    cells = row.replace('(', ' ').replace(')', ' ').split()
    cfg = load(path)
    (base,) = Config._get_base_files(str(path))
    twin = MMSEG_TWINS.get(Path(base).stem, base)
    for address in (cfg.model.teacher.config, twin):
        if '::' in address and not (address == twin and cfg.default_scope == 'mmpretrain'):  # recipes differ there
            skip_without(address.partition('::')[0])
            assert set(published_figures(address)) <= set(cells), address


def test_readme_tells_of_every_folder():
    text = (ROOT / 'configs/README.md').read_text(encoding='utf-8')
    folders = {path.name for path in (ROOT / 'configs').iterdir() if path.is_dir()}
    assert folders <= set(re.findall(r'`(\w+)`', text.partition('\n## ')[0]))


def test_tables_state_what_the_configs_say():
    tables = runpy.run_path(str(ROOT / 'tools/misc/config_tables.py'))
    for page in tables['PAGES']:
        text = page.read_text(encoding='utf-8')
        assert tables['written'](text) == text, f'{page}: run tools/misc/config_tables.py'
        assert tables['written'](text.replace('| :-- |', '| outdated |')) == text


def test_the_method_of_the_readme_works(tmp_path):
    text = (ROOT / 'configs/README.md').read_text(encoding='utf-8')
    (block,) = re.findall(r'This is a whole method:\n\n```python\n(.*?)```', text, re.DOTALL)
    (tmp_path / 'mine.py').write_text(block)
    model = load(ROOT / 'configs/dskd/resnet20_r56_cifar100.py', str(tmp_path / 'mine.py')).model
    assert 'site' not in model and model.distill_losses.fitnet.loss_weight == 5
    skip_without('mmdet')
    model = load(ROOT / 'configs/dskd/fcos_r101_r50.py', str(tmp_path / 'mine.py')).model
    assert model.site.type == 'dskd_mm.NeckSite' and 'loss_weight' not in model.distill_losses.fitnet


@pytest.mark.parametrize('name', MMSEG_TWINS)
def test_segmenter_is_that_of_mmseg(name):
    """A student trained with a config of this repository is one of mmseg's: the same network, data and schedule."""
    skip_without('mmseg')
    ours, theirs = load(ROOT / f'configs/plain/{name}.py').to_dict(), load_config(MMSEG_TWINS[name]).to_dict()
    for key in ('custom_imports', 'auto_scale_lr'):
        ours.pop(key)
    for key in ('optimizer', 'checkpoint'):  # mere helpers
        ours.pop(key, None), theirs.pop(key, None)
    # OneDL and OpenMMLab serve the same files under addresses of their own.
    ours, theirs = (re.sub(r'https://[^/]+/', '', json.dumps(cfg, sort_keys=True)) for cfg in (ours, theirs))
    assert json.loads(ours) == json.loads(theirs)
