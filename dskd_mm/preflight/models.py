"""Do student and teacher fit each other, and their checkpoints them?"""

import os.path as osp
import re
from collections.abc import Callable
from dataclasses import replace

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn

from dskd_mm.distillers.base import Distiller
from dskd_mm.preflight.data import LOADERS, class_names, is_downloaded, is_remote, normalizing_steps
from dskd_mm.preflight.report import Report
from dskd_mm.structures import TapRecord, TapSpec
from dskd_mm.teacher import FrozenTeacher, build_in_scope
from dskd_mm.utils.checkpoint import LoadReport, load_checkpoint_file, load_report, model_state
from dskd_mm.utils.classes import checkpoint_classes, class_indices, first_difference
from dskd_mm.utils.config import datasets, load_config, model_config, type_name


def check_models(report: Report) -> None:
    """Check that student and teacher can be built, and fit each other: classes, taps, channels, strides."""
    cfg = report.cfg
    missing = [key for key in ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper') if cfg.get(key) is None]
    if missing:
        report.fault('config', f'Expected the settings {missing} of a training, but {cfg.filename} has none.')
    if 'model' in missing:
        return
    with report.faults_in('model'):
        report.model = skeleton(lambda: MMENGINE_MODELS.build(model_config(cfg)))
    if not isinstance(report.model, Distiller):
        if report.model is not None:
            report.note('model', f'{type(report.model).__name__}, not distilled, {count_parameters(report.model)}')
        return
    distiller, own, theirs = report.model, report.model.student_spec, report.model.teacher_spec
    report.note('student', f'{type(distiller.student).__name__}, {count_parameters(distiller.student)}')
    with report.faults_in('teacher'):
        report.teacher = skeleton(lambda: build_in_scope(distiller.teacher.config, None))
        theirs = distiller.site.teacher_spec(report.teacher, distiller.teacher)
        report.note('teacher', f'{type(report.teacher).__name__}, {count_parameters(report.teacher)}')
    check_normalization(report)
    with report.faults_in("student's taps"):
        TapRecord(distiller.student, own, 'student')
        report.note("student's taps", describe(own))
    if report.teacher is not None and needs_whole_teacher(distiller):
        with report.faults_in("teacher's taps"):
            theirs = replace(theirs, layers=distiller.teacher_spec.layers)
            TapRecord(report.teacher, theirs, 'teacher')
            report.note("teacher's taps", describe(theirs))
    report.note('method', f'{type(distiller).__name__} at {type(distiller.site).__name__}')


def check_normalization(report: Report) -> None:
    """Tell of images that are normalised in the pipeline for the student alone, or for the teacher alone.

    What their preprocessors do is turned into one another (:class:`~dskd_mm.input_adapter.InputAdapter`); of pipelines a
    distiller knows nothing.
    """
    given = report.cfg.model.teacher
    own = normalizing_steps(report.cfg)
    for teacher in given if isinstance(given, list) else [given]:
        cfg = load_config(teacher.config)
        theirs = normalizing_steps(cfg) if LOADERS[0] in cfg else own
        if own != theirs:
            report.warn(
                'normalisation',
                f'the training pipeline normalises images by {own or "nothing"}, that of the teacher by {theirs or "nothing"}: '
                'what a pipeline does is not undone for the teacher. Let both normalise in the data_preprocessor (mean, std)',
            )


def check_checkpoints(report: Report) -> None:
    """Check that checkpoints exist and belong to the models that they are for."""
    if report.model is None:
        return
    if isinstance(report.model, Distiller):
        check_teacher_checkpoints(report, report.model)
    path = report.cfg.get('load_from')
    if path and report.cfg.get('resume'):
        if not is_remote(path) and not osp.exists(path):
            report.fault('resume', f'Expected a checkpoint at {osp.abspath(path)!r}, but there is none: correct the path.')
    elif path:
        match(report, 'load_from', path, report.model.student if isinstance(report.model, Distiller) else report.model)
    for name, module in report.model.named_modules():
        init = getattr(module, 'init_cfg', None)
        for config in init if isinstance(init, list) else [init or {}]:
            if config and type_name(config) in ('Pretrained', 'PretrainedInit') and config.get('checkpoint'):
                match(report, f'{name}.init_cfg', config['checkpoint'], module, config.get('prefix') or '')


def check_teacher_checkpoints(report: Report, distiller: Distiller) -> None:
    """Check that the checkpoint of each teacher has all that is loaded of it."""
    part = '' if needs_whole_teacher(distiller) else distiller.teacher_spec.part
    first = report.teacher.get_submodule(part) if report.teacher is not None else None
    has_weights = [has_teacher_weights(report, 'teacher', distiller.teacher, first, part)]
    for i, teacher in enumerate(distiller.teachers[1:], 1):
        module = skeleton(teacher.build_model)
        has_weights.append(has_teacher_weights(report, f'teacher {i}', teacher, module, ''))
    report.has_teacher_weights = all(has_weights)


def has_teacher_weights(report: Report, subject: str, teacher: FrozenTeacher, module: nn.Module | None, part: str) -> bool:
    """Return whether all that is loaded of a teacher is in its checkpoint, and tell."""
    found = match(report, subject, teacher.checkpoint, module, part)
    if found is None:
        return False
    check_class_order(report, teacher)
    if not (teacher.strict and (found.missing or found.mismatched)):
        return True
    report.fault(
        subject,
        f'Expected every tensor of the teacher ({type(module).__name__}) with its shape in '
        f'{teacher.checkpoint!r}, but {found}. Check that config and checkpoint belong together '
        '(architecture, number of classes), or accept random weights for the rest with teacher=dict(..., strict=False).',
    )
    return False


def check_class_order(report: Report, teacher: FrozenTeacher) -> None:
    """Tell of classes that the teacher's checkpoint names otherwise, or in another order, than the training data."""
    known = checkpoint_classes(load_checkpoint_file(teacher.checkpoint))
    for name, dataset in datasets(report.cfg.get(LOADERS[0]), LOADERS[0]):
        names = class_names(dataset) or report.classes.get(name)
        difference = first_difference(known, names) if known and names else None
        if known is None or names is None or difference is None:
            continue
        if teacher.match_classes:
            with report.faults_in('teacher classes'):
                class_indices(known, names, len(known))
                report.note('teacher classes', f'brought into the order of {name} by their names')
            continue
        report.warn(
            'teacher classes',
            f'{teacher.checkpoint} was trained on other classes than {name}, or in another order: {difference}. Its logits '
            'teach wrong classes unless only the names differ: set teacher=dict(..., match_classes=True)',
        )


def match(report: Report, subject: str, path: str, module: nn.Module | None, prefix: str = '') -> LoadReport | None:
    """Compare a checkpoint with a model, tell how much of it fits, and return that; None if there is nothing to compare."""
    if re.match(r'(?!https?:)[\w-]+:', path) and '://' in path:
        report.note(subject, f"{path} is read by mmengine's own loaders: not looked at")
        return None
    if osp.isdir(path):  # of a strategy that saves in shards
        report.note(subject, f'{path} is a folder: not looked at')
        return None
    if is_remote(path) and not report.thorough and not is_downloaded(path):
        report.note(subject, f'{path} is downloaded when training begins')
        return None
    with report.faults_in(subject):
        state = model_state(load_checkpoint_file(path), path)
        if prefix:
            start = prefix.rstrip('.') + '.'
            state = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
        if module is None:
            return None
        found = load_report(module, state)
        total = len(found.matched) + len(found.missing) + len(found.mismatched)
        if found.matched:
            rest = '' if len(found.matched) == total else f': {found}'
            report.note(subject, f'{len(found.matched)} of {total} tensors are in {path}{rest}')
            return found
        text = f'Expected weights of a {type(module).__name__} in {path!r}, but {found}'
        if translates_weights(module) and subject.endswith('.init_cfg'):
            report.note(subject, f'{text}, unless the model translates them')
        else:
            report.fault(subject, f'{text}.' if found.prefix else f'{text}: it is of another architecture.')
    return None


def skeleton(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model without memory for its weights, or with it if its constructor computes with them."""
    try:
        with torch.device('meta'):
            return build()
    except Exception:
        # Whatever is wrong with the config itself is raised again, by its own words.
        return build()


def translates_weights(module: nn.Module) -> bool:
    """Return whether a model loads what ``init_cfg`` names in its own way, as transformers do with their authors' files."""
    return isinstance(module, BaseModule) and type(module).init_weights is not BaseModule.init_weights


def needs_whole_teacher(distiller: Distiller) -> bool:
    """Return whether more of the teacher is loaded than its classifier."""
    return distiller.uses_teacher_forward or not distiller.teacher_spec.classifiers


def count_parameters(model: nn.Module) -> str:
    """Return the number of parameters in millions."""
    return f'{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters'


def describe(spec: TapSpec) -> str:
    """Return where a model is tapped, in a line."""
    text = f'{spec.io} of {", ".join(spec.features[:2])}{", ..." if len(spec.features) > 2 else ""}, {spec.channels} channels'
    if spec.num_classes:
        text += f', {spec.num_classes} classes ({"sigmoid" if spec.sigmoid else "softmax"})'
    if spec.strides:
        text += f', {spec.num_priors} anchors at the strides {", ".join(str(w) for w, _ in spec.strides)}'
    layers = [f'{name}: {layer.path}, {layer.channels} channels' for name, layer in spec.layers.items()]
    return '; '.join([text, *layers])
