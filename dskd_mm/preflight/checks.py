"""The parts of the pre-flight check, what they find, and how it is told."""

import copy
import difflib
import importlib
import importlib.util
import io
import math
import os.path as osp
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, DefaultScope
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.utils import digit_version
from rich.table import Table
from torch import Tensor, nn

from dskd_mm.distillers.base import Distiller
from dskd_mm.preflight.data import (
    LOADERS,
    dataset_classes,
    dataset_paths,
    datasets,
    downloads,
    is_downloaded,
    is_remote,
    item_problems,
    num_classes,
    pipeline_size,
    spread,
)
from dskd_mm.preflight.models import (
    count_parameters,
    describe,
    needs_whole_teacher,
    skeleton,
    take_step,
    translates_weights,
    weight_bytes,
)
from dskd_mm.sites import Observation
from dskd_mm.teacher import build_in_scope
from dskd_mm.utils.checkpoint import LoadReport, load_checkpoint_file, load_report, model_state
from dskd_mm.utils.config import is_distiller_config, model_config, nodes, type_module
from dskd_mm.utils.synthetic import synthetic_batch

MINIMUM = dict(mmengine='0.10.7', mmcv='2.0.1', mmpretrain='1.2.0', mmdet='3.3.0', mmseg='1.2.2')
"""The oldest versions of the hosts that are supported, by import name."""
EXTRAS = dict(mmpretrain='cls', mmdet='det', mmseg='seg')
"""Which extra of this package installs a host."""
MAX_ITEMS = 20000
"""Of how many items of a data set the files are looked at; of larger ones as many, evenly spread."""
SIZES: Mapping[str, tuple[int, int]] = dict(mmpretrain=(64, 64), mmdet=(128, 160), mmseg=(64, 128))
"""Height and width of the synthetic images, if those of the config are larger."""
GiB = 1024**3


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        part (str): Of :data:`PARTS`.
        subject (str): What was looked at.
        text (str): What was found; of a fault, what was expected, what came, and the mend.
        is_fault (bool): Whether training cannot run so. Defaults to False.
    """

    part: str
    subject: str
    text: str
    is_fault: bool = False


class Preflight:
    """Looks at a config, one part after the other, and keeps what it finds. The config is not changed.

    Args:
        cfg (Config): A whole config, of a distiller or of a plain model.
        thorough (bool): Whether time may be spent: data sets are read and checkpoints downloaded, as training would do.
            Defaults to True.
    """

    def __init__(self, cfg: Config, thorough: bool = True) -> None:
        self.cfg = cfg
        self.thorough = thorough
        self.scope: str | None = cfg.get('default_scope', 'mmengine')
        self.findings: list[Finding] = []
        self.model: nn.Module | None = None
        self.teacher: nn.Module | None = None
        self.image_size: tuple[int, int] | None = None  # the largest that was seen
        self.has_teacher_weights = False
        self._part = ''

    def run(self, parts: Iterable[str]) -> list[Finding]:
        """Look at some parts of :data:`PARTS`, in its order.

        Raises:
            ValueError: If there is no such part.
        """
        wanted = set(parts)
        if not wanted <= set(PARTS):
            raise ValueError(f'Pre-flight knows the parts {", ".join(PARTS)}, but got {sorted(wanted - set(PARTS))}.')
        for part in PARTS:
            if part in wanted:
                self._part = part
                with (
                    DefaultScope.overwrite_default_scope(self.scope),
                    torch.random.fork_rng(devices=[]),  # a training after it is what it would be without
                    warnings.catch_warnings(),
                ):
                    # Loading into a skeleton warns that it is one.
                    warnings.filterwarnings('ignore', message='.*meta parameter.*')
                    PARTS[part](self)
        return self.findings

    @property
    def faults(self) -> list[Finding]:
        """What keeps the config from training."""
        return [finding for finding in self.findings if finding.is_fault]

    def note(self, subject: str, text: str) -> None:
        """Keep what was found."""
        self.findings.append(Finding(self._part, subject, text))

    def fault(self, subject: str, text: str) -> None:
        """Keep what cannot train."""
        self.findings.append(Finding(self._part, subject, text, is_fault=True))

    @contextmanager
    def _faults_in(self, subject: str) -> Iterator[None]:
        """Whatever is raised is a fault."""
        try:
            yield
        except Exception as error:
            self.fault(subject, explain(error))

    def check_environment(self) -> None:
        """The hosts that the config needs are there, in versions that are supported."""
        scopes = {str(self.scope), *(type_module(node) for node in nodes(self.cfg.get('model')))}
        teacher = (self.cfg.get('model') or {}).get('teacher') or {}
        if isinstance(teacher.get('config'), str) and '::' in teacher['config']:
            scopes.add(teacher['config'].partition('::')[0])
        for package in ('mmengine', 'mmcv', *sorted(scopes & set(EXTRAS))):
            self._check_package(package)

    def _check_package(self, package: str) -> None:
        mend = f"pip install 'dskd_mm[{EXTRAS.get(package, 'cls')}]' (OneDL's packages), or '[openmmlab-...]' (OpenMMLab's)."
        if not is_installed(package):
            self.fault(package, f'Expected {package} {MINIMUM[package]} or newer, but it is not installed: {mend}')
            return
        try:
            version = importlib.import_module(package).__version__
        except Exception as error:  # mmdet and others refuse versions of mmcv by an assertion
            self.fault(package, f'Expected {package} to be importable, but it says: {explain(error)} Install what fits: {mend}')
            return
        if digit_version(version) < digit_version(MINIMUM[package]):
            self.fault(package, f'Expected version {MINIMUM[package]} or newer, but {version} is installed: {mend}')
        else:
            self.note(package, version)

    def check_data(self) -> None:
        """The paths of the data sets exist and their classes are those of the model; thoroughly: files and annotations."""
        seen: dict[str, str] = {}
        read: list[ConfigDict] = []  # validation and test parts are often one
        count = num_classes(self.cfg)
        self._check_warmup((self.cfg.get('train_cfg') or {}).get('max_iters'))
        for loader in LOADERS if self.thorough else LOADERS[:2]:
            for name, dataset in datasets(self.cfg.get(loader), loader):
                known, repeated = len(self.findings), dataset in read
                read.append(dataset)
                is_there = self._check_paths(name, dataset, seen)
                self._check_classes(name, dataset_classes(dataset), count)
                faults = any(finding.is_fault for finding in self.findings[known:])
                if self.thorough and is_there and not repeated and not faults:
                    # pycocotools prints what it does.
                    with self._faults_in(name), redirect_stdout(io.StringIO()):
                        self._read(name, dataset, count)
        for part in ('val', 'test') if self.thorough else ('val',):
            evaluators = self.cfg.get(f'{part}_evaluator') or []
            for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
                path = evaluator.get('ann_file')
                if isinstance(path, str) and path and not is_remote(path) and not osp.exists(path):
                    self._miss(f'{part}_evaluator.ann_file', path, seen)

    def _check_paths(self, name: str, dataset: ConfigDict, seen: dict[str, str]) -> bool:
        """Whether all that a data set reads is on this machine; a path that is missing twice is one fault."""
        is_there = True
        backend = dataset.get('backend_args') or dataset.get('file_client_args') or {}
        for setting, path in dataset_paths(dataset):
            if is_remote(path) or backend.get('backend', 'local') != 'local':
                self.note(f'{name}.{setting}', f'{path} is not on this machine: not looked at')
                is_there = False
            elif not osp.exists(path):
                is_there = False
                if downloads(dataset):
                    self.note(f'{name}.{setting}', f'{path} is not there yet: the data set downloads itself')
                else:
                    self._miss(f'{name}.{setting}', path, seen)
                if setting == 'data_root':
                    break  # all else lies in it
        return is_there

    def _miss(self, setting: str, path: str, seen: dict[str, str]) -> None:
        if path in seen:
            return
        seen[path] = setting
        where = ''
        if 'DSKD_DATA_ROOT' in (self.cfg.text or ''):
            where = 'set the environment variable DSKD_DATA_ROOT to the folder that holds the data sets, or '
        key = setting if setting.endswith(('data_root', 'ann_file')) else setting.rpartition('.')[0] + '.data_root'
        self.fault(
            setting,
            f'Expected data at {osp.abspath(path)!r} ({path!r}), but there is none: get the data set, correct the path, {where}'
            f'override it by --cfg-options {key}=...',
        )

    def _check_classes(self, name: str, classes: int | None, count: int | None) -> None:
        if classes is None or count is None:
            return
        if classes > count:
            self.fault(
                f'{name} classes',
                f'Expected at most the {count} classes that the model knows (num_classes of its head), but the data set has '
                f'{classes}: correct num_classes, or choose classes by metainfo=dict(classes=...).',
            )
        elif classes < count:
            self.note(f'{name} classes', f'{classes}, of {count} that the model knows')
        elif name.startswith(LOADERS[0]):
            self.note('classes', f'{count}, in the data set and in the model')

    def _read(self, name: str, dataset: ConfigDict, count: int | None) -> None:
        """Look at the items of a data set and at some samples."""
        ann_file = dict(dataset_paths(dataset)).get('ann_file')
        is_empty = ann_file is not None and osp.isfile(ann_file) and not osp.getsize(ann_file)
        built = None if is_empty else DATASETS.build(copy.deepcopy(dataset))
        length = 0 if built is None else len(built)
        if built is None or not length:
            where = ann_file or dataset.get('data_root') or dataset.get('type')
            self.fault(name, f'Expected images, but the data set {where!r} has none.')
            return
        told = (getattr(built, 'metainfo', None) or {}).get('classes')
        if dataset_classes(dataset) is None and told is not None:
            self._check_classes(name, len(told), count)
        index = spread(length, MAX_ITEMS)
        infos = [built.get_data_info(i) for i in index] if hasattr(built, 'get_data_info') else []
        for problem in item_problems(infos, count):
            self.fault(name, problem)
        text = f'{length} images'
        if len(index) < length:
            text += f', the files of {len(index)} looked at'
        empty = sum('instances' in info and not info['instances'] for info in infos)
        if empty == len(infos) and empty:
            self.fault(name, f'Expected objects, but none of {empty} images has any: do the names of classes match?')
        elif empty:
            text += f', {100 * empty / len(infos):.0f}% without an object'
        self.note(name, text)
        if name.startswith(LOADERS[0]):
            for i in spread(length, 8):
                self._look_at(name, built[i], count)
        if name == f'{LOADERS[0]}.dataset':  # not a part of it
            batch, epochs = self.cfg[LOADERS[0]].get('batch_size') or 1, (self.cfg.get('train_cfg') or {}).get('max_epochs')
            self._check_warmup(math.ceil(length / batch) * (epochs or 0))

    def _check_warmup(self, iterations: int | None) -> None:
        """Tell of a training that is hardly longer than the time over which the losses of the distillation grow."""
        if isinstance(self.model, Distiller) and iterations and self.model.warmup > iterations / 2:
            self.note(
                'warmup',
                f'the losses of the distillation grow over {self.model.warmup} iterations, but this training has {iterations} '
                f'on one device: set model.warmup={iterations // 10}, or train longer',
            )

    def _look_at(self, name: str, item: Any, count: int | None) -> None:
        """One sample as training will see it."""
        if not isinstance(item, Mapping) or not isinstance(item.get('inputs'), Tensor):
            return
        shape = item['inputs'].shape
        if not item['inputs'].numel():
            self.fault(name, f'Expected images, but the pipeline makes one of the shape {tuple(shape)}.')
        size = (int(shape[-2]), int(shape[-1]))
        self.image_size = max(self.image_size or size, size, key=math.prod)
        sample = item.get('data_samples')
        if isinstance(self.model, Distiller) and sample is not None:
            with self._faults_in(f'{name} annotations'):
                self.model.site.check([sample], self.model.student_port.num_classes)

    def check_models(self) -> None:
        """Student and teacher can be built, and fit each other: classes, taps, channels, strides."""
        missing = [key for key in ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper') if self.cfg.get(key) is None]
        if missing:
            self.fault('config', f'Expected the settings {missing} of a training, but {self.cfg.filename} has none.')
        if 'model' in missing:
            return
        with self._faults_in('model'):
            self.model = skeleton(lambda: MMENGINE_MODELS.build(model_config(self.cfg)))
        if not isinstance(self.model, Distiller):
            if self.model is not None:
                self.note('model', f'{type(self.model).__name__}, not distilled, {count_parameters(self.model)}')
            return
        distiller, own, theirs = self.model, self.model.student_port, self.model.teacher_port
        self.note('student', f'{type(distiller.student).__name__}, {count_parameters(distiller.student)}')
        with self._faults_in('teacher'):
            self.teacher = skeleton(lambda: build_in_scope(distiller.teacher.config, None))
            theirs = distiller.site.teacher_port(self.teacher, distiller.teacher)
            self.note('teacher', f'{type(self.teacher).__name__}, {count_parameters(self.teacher)}')
        with self._faults_in("student's taps"):
            Observation(distiller.student, own, 'student')
            self.note("student's taps", describe(own))
        if self.teacher is not None and needs_whole_teacher(distiller):
            with self._faults_in("teacher's taps"):
                theirs = replace(theirs, layers=distiller.teacher_port.layers)
                Observation(self.teacher, theirs, 'teacher')
                self.note("teacher's taps", describe(theirs))
        self.note('method', f'{type(distiller).__name__} at {type(distiller.site).__name__}')

    def check_checkpoints(self) -> None:
        """Checkpoints exist and belong to the models that they are for."""
        if self.model is None:
            return
        if isinstance(self.model, Distiller):
            teacher = self.model.teacher
            part = '' if needs_whole_teacher(self.model) else self.model.teacher_port.part
            module = self.teacher
            if part and module is not None:
                module = module.get_submodule(part)
            report = self._match('teacher', teacher.checkpoint, module, part)
            if report is not None:
                self.has_teacher_weights = True
                if teacher.strict and (report.missing or report.mismatched):
                    self.has_teacher_weights = False
                    self.fault(
                        'teacher',
                        f'Expected every tensor of the teacher ({type(self.teacher).__name__}) with its shape in '
                        f'{teacher.checkpoint!r}, but {report}. Check that config and checkpoint belong together '
                        '(architecture, number of classes), or accept random weights for the rest with '
                        'teacher=dict(..., strict=False).',
                    )
        path = self.cfg.get('load_from')
        if path and self.cfg.get('resume'):
            if not is_remote(path) and not osp.exists(path):
                self.fault('resume', f'Expected a checkpoint at {osp.abspath(path)!r}, but there is none: correct the path.')
        elif path:
            student = self.model.student if isinstance(self.model, Distiller) else self.model
            self._match('load_from', path, student)
        for name, module in self.model.named_modules():
            init = getattr(module, 'init_cfg', None)
            for config in init if isinstance(init, list) else [init or {}]:
                if config.get('type') == 'Pretrained' and config.get('checkpoint'):
                    self._match(f'{name}.init_cfg', config['checkpoint'], module, config.get('prefix') or '')

    def _match(self, subject: str, path: str, module: nn.Module | None, prefix: str = '') -> LoadReport | None:
        """Compare a checkpoint with a model, and keep how much of it fits."""
        if re.match(r'(?!https?:)[\w-]+:', path) and '://' in path:
            self.note(subject, f"{path} is read by mmengine's own loaders: not looked at")
            return None
        if osp.isdir(path):  # of a strategy that saves in shards
            self.note(subject, f'{path} is a folder: not looked at')
            return None
        if is_remote(path) and not self.thorough and not is_downloaded(path):
            self.note(subject, f'{path} is downloaded when training begins')
            return None
        with self._faults_in(subject):
            state = model_state(load_checkpoint_file(path), path)
            if prefix:
                start = prefix.rstrip('.') + '.'
                state = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
            if module is None:
                return None
            report = load_report(module, state)
            total = len(report.matched) + len(report.missing) + len(report.mismatched)
            if not report.matched:
                text = f'Expected weights of a {type(module).__name__} in {path!r}, but {report}'
                if translates_weights(module) and subject.endswith('.init_cfg'):
                    self.note(subject, f'{text}, unless the model translates them')
                else:
                    self.fault(subject, f'{text}: it is of another architecture.')
                return None
            rest = '' if len(report.matched) == total else f': {report}'
            self.note(subject, f'{len(report.matched)} of {total} tensors are in {path}{rest}')
            return report
        return None

    def check_step(self) -> None:
        """One training step on random images, of a reduced size and on the CPU; what it needs of memory at full size."""
        if self.model is None or any(finding.part == 'models' for finding in self.faults):
            self.note('step', 'left out: the models have faults')
            return
        if self.host not in SIZES:
            self.note('step', f'left out: random batches are known for {", ".join(SIZES)}, and the model is of none of them')
            return
        with self._faults_in('step'), tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            model = revert_sync_batchnorm(MMENGINE_MODELS.build(model_config(self.cfg)))
            if isinstance(model, Distiller) and not self.has_teacher_weights:
                model.teacher.checkpoint = osp.join(folder, 'random.pth')
                model.teacher.strict = True
                torch.save(dict(state_dict=build_in_scope(model.teacher.config, None).state_dict()), model.teacher.checkpoint)
                self.note('step', "the teacher's weights are random ones")
            images, size = self._synthetic_size(model)
            cfg = copy.deepcopy(self.cfg)
            cfg.default_scope = self.host
            saved = take_step(model, self.cfg, synthetic_batch(cfg, images, size), self._report_step)
            self._report_memory(model, saved, images, size)

    @property
    def host(self) -> str:
        """The library whose format batches have: that of the scope, or of the model where configs name classes."""
        model = self.cfg.get('model') or {}
        student = model.get('student') if is_distiller_config(self.cfg) else model
        return str(self.scope) if self.scope in SIZES else type_module(student or {})

    def _synthetic_size(self, model: nn.Module) -> tuple[int, tuple[int, int]]:
        """Number and size of the synthetic images; preprocessors that fill up to a fixed size do so to this one."""
        size = SIZES[self.host]
        fixed = [node['img_size'] for node in nodes(self.cfg.model) if isinstance(node.get('img_size'), int)]
        wanted = self.image_size or pipeline_size(self.cfg)
        if fixed:  # transformers with a table of positions
            size = (fixed[0], fixed[0])
        elif wanted is not None and wanted[0] * wanted[1] < size[0] * size[1]:
            size = wanted
        for module in model.modules():
            if getattr(module, 'size', None) is not None and hasattr(module, 'pad_val'):
                module.size = size  # type: ignore[assignment]
        return (4 if self.host == 'mmpretrain' else 2), size

    def _report_step(self, log: Mapping[str, Any], unused: Sequence[str], seconds: float) -> None:
        losses = {key: float(value) for key, value in log.items() if 'loss' in key}
        wrong = [key for key, value in losses.items() if value != value or value in (float('inf'), -float('inf'))]
        text = ', '.join(f'{key} {value:.3g}' for key, value in losses.items())
        if wrong:
            self.fault('step', f'Expected finite losses, but {", ".join(wrong)} of the step with random images are not: {text}')
        else:
            self.note('step', f'{seconds:.1f} s; {text}')
        if unused and not self.cfg.get('find_unused_parameters'):
            self.note(
                'unused parameters',
                f'{len(unused)} get no gradient ({", ".join(unused[:3])}{", ..." if len(unused) > 3 else ""}): with several '
                'processes set find_unused_parameters=True.',
            )

    def _report_memory(self, model: nn.Module, saved: int, images: int, size: tuple[int, int]) -> None:
        weights = weight_bytes(model, self.cfg.optim_wrapper.get('optimizer') or {})
        batch = int((self.cfg.get('train_dataloader') or {}).get('batch_size') or images)
        wanted = self.image_size or pipeline_size(self.cfg)
        full = wanted or size
        activations = saved * batch / images * math.prod(full) / math.prod(size)
        self.note(
            'memory',
            f'about {(weights + activations) / GiB:.2f} GiB in float32 for {batch} images of {full[0]}x{full[1]} on a device: '
            f'{weights / GiB:.2f} weights, gradients and optimizer, {activations / GiB:.2f} activations. Scaled up from a step '
            f'with {images} images of {size[0]}x{size[1]}{"" if wanted else " (the size of the config is not known)"}; the '
            "device's libraries come on top.",
        )


PARTS: Mapping[str, Callable[[Preflight], None]] = dict(
    environment=Preflight.check_environment,
    models=Preflight.check_models,
    data=Preflight.check_data,
    checkpoints=Preflight.check_checkpoints,
    step=Preflight.check_step,
)
"""What there is to look at, in this order."""
CHEAP = ('environment', 'models', 'data', 'checkpoints')
"""What ``tools/train.py`` looks at, without reading data sets or downloading."""


def refuse_faults(cfg: Config) -> None:
    """The cheap parts of the pre-flight check.

    Raises:
        SystemExit: If there is a fault; with all of them.
    """
    preflight = Preflight(cfg, thorough=False)
    try:
        preflight.run(CHEAP)
    except Exception as error:  # a check that fails is no reason not to train
        print(f'Pre-flight check given up: {error!r}')
        return
    if preflight.faults:
        faults = '\n'.join(f'- {finding.subject}: {finding.text}' for finding in preflight.faults)
        raise SystemExit(
            f'{cfg.filename} cannot train:\n{faults}\nAll that a check finds: python tools/misc/check_config.py CONFIG. '
            'To train nevertheless: --no-preflight.'
        )


def report_table(findings: Sequence[Finding], title: str) -> Table:
    """What was found, for a terminal."""
    table = Table(title=title, title_justify='left', show_lines=False)
    for column in ('part', 'what', '', 'found'):
        table.add_column(column, overflow='fold', no_wrap=column in ('part', ''))
    for finding in findings:
        mark = '[bold red]FAULT' if finding.is_fault else '[green]ok'
        # Texts hold brackets of their own.
        table.add_row(finding.part, finding.subject, mark, finding.text.replace('[', r'\['))
    return table


def explain(error: BaseException) -> str:
    """An error in one line, without what mmengine puts around it; names of types that are nearly right are added."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = re.sub(r'^(class `\w+` in \S+: )+', '', text)
    unknown = re.match(r'(\S+) is not in the (\S+) registry', text)
    if unknown:
        from dskd_mm.registry import MODELS

        name = unknown[1].rpartition('.')[2]
        near = difflib.get_close_matches(name, MODELS.module_dict, n=3)
        hint = f' Did you mean {" or ".join(f"dskd_mm.{one}" for one in near)}?' if near else ''
        return f'Expected a type that is registered, but nothing is under the name {unknown[1]!r} ({unknown[2]}).{hint}'
    return text if isinstance(error, (ValueError, OSError)) and text else f'{type(error).__name__}: {text}'


def is_installed(package: str) -> bool:
    """Whether a package can be found; it is not imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # made unimportable
        return False
