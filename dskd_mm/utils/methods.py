"""Putting another method over the config of a pair."""

import copy
import re
from pathlib import Path

from mmengine.config import Config, ConfigDict

from dskd_mm.utils.config import HOSTS, host_of, is_distiller_config, resolve_config_path

ROWS = ('model', *HOSTS.values(), 'two_stage_detection', 'pairs')
"""Keys of a method's file that hold settings of the model."""
PAIR_KEYS = ('student', 'teacher', 'data_preprocessor', '_scope_')
"""What of a distiller's config belongs to its pair. All other arguments are those of a method."""


def apply_method(cfg: Config, method: str) -> Config:
    """Return a distiller's config with another method: student, teacher, data and schedule stay.

    Of the model only :data:`PAIR_KEYS` are kept. Then settings of the method's file are merged in by mmengine's own rules,
    ``_delete_`` included, each over the ones before:

    1. ``model``,
    2. that of the task: ``classification``, ``detection`` or ``segmentation``, which the scope tells, or else the package in
       the student's type,
    3. ``two_stage_detection``, if the student has a ``roi_head``,
    4. those of ``pairs`` whose regular expression is found in the name of the config's file.

    All other keys of the method's file, such as ``custom_imports``, are merged into the whole config.

    Args:
        cfg (Config): A distiller's config. It is not changed.
        method (str): A name of a file in ``configs/methods``, such as 'vkd', or the path of a file of your own.

    Returns:
        Config: A copy, whole: it can be dumped, and trains by itself.

    Raises:
        ValueError: If the config has no student and teacher, the method is not known, or it has no settings for the task.
    """
    if not is_distiller_config(cfg):
        raise ValueError(
            'A method is put over a config whose model has a student and a teacher, such as configs/dskd/*.py, but the model '
            f'of {cfg.filename} is a {cfg.get("model", {}).get("type")}.'
        )
    overlay = Config.fromfile(method_path(method))
    settings = method_settings(overlay, cfg)
    cfg = copy.deepcopy(cfg)
    cfg.model = ConfigDict({key: cfg.model[key] for key in PAIR_KEYS if key in cfg.model})
    for model in settings:
        cfg.merge_from_dict(dict(model=model))
    cfg.merge_from_dict({key: value for key, value in overlay.items() if key not in ROWS})
    return cfg


def method_settings(overlay: Config, cfg: Config) -> list[ConfigDict]:
    """Return the settings that a method's file has for the model of a config, in the order in which they are merged.

    Raises:
        ValueError: If the last that applies is None: the method is not for such models.
    """
    student, task = cfg.model.student, HOSTS.get(host_of(cfg))
    if task is None and any(name in overlay for name in HOSTS.values()):
        raise ValueError(
            f'{overlay.filename} has settings for each task, which the scope tells: expected default_scope to be one of '
            f'{", ".join(HOSTS)}, but {cfg.filename or "the config"} has {cfg.get("default_scope")!r}, and the type of its '
            f"student is {student.get('type')!r}. Set default_scope, or name the type with its package ('mmdet.RetinaNet')."
        )
    names = ['model', task, *(['two_stage_detection'] if 'roi_head' in student else [])]
    found = {name: overlay[name] for name in names if name in overlay}
    pair = Path(cfg.filename or '').stem
    found |= {pattern: row for pattern, row in (overlay.get('pairs') or {}).items() if re.search(pattern, pair)}
    if found and list(found.values())[-1] is None:
        raise ValueError(
            f'{overlay.filename} has no settings for {list(found)[-1]!r}, which {pair or "the student"} '
            f'({student.get("type")}) is: choose another method, or write a file with such settings and give its path.'
        )
    return [row for row in found.values() if row is not None]


def suits(method: str, cfg: Config) -> bool:
    """Return whether a method has settings for the pair of a distiller's config."""
    try:
        method_settings(Config.fromfile(method_path(method)), cfg)
    except ValueError:
        return False
    return True


def method_path(method: str) -> str:
    """Return the path of a method's file.

    Raises:
        ValueError: If there is no such method.
        FileNotFoundError: If a path is given, and there is no file.
    """
    if method.endswith('.py'):
        return resolve_config_path(method)
    known = methods()
    if method not in known:
        raise ValueError(
            f'Expected one of the methods {", ".join(known)}, or the path of a file (.py), but got {method!r}. DSKD needs no '
            'method: it is what configs/dskd/*.py run.'
        )
    return known[method]


def methods() -> dict[str, str]:
    """Return the paths of the files in ``configs/methods`` by the methods' names."""
    folder = Path(resolve_config_path('dskd_mm::methods/kd.py')).parent
    return {path.stem: str(path) for path in sorted(folder.glob('*.py'))}
