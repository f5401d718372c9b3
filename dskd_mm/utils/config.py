"""Reading configs, the installed hosts' ones included."""

import copy
import importlib.util
import os.path as osp
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config, ConfigDict

HOSTS = dict(mmpretrain='classification', mmdet='detection', mmseg='segmentation')
"""The libraries whose models are distilled, as scopes and as packages, each with its task."""


def resolve_config_path(path: str) -> str:
    """Find a config file.

    Args:
        path (str): A path, or ``package::relative/path.py`` for a config that an installed package ships (``mmpretrain::``,
            ``mmdet::``, ``mmseg::``).

    Returns:
        str: The path of an existing file.

    Raises:
        FileNotFoundError: If there is no such file.
        ModuleNotFoundError: If the package is not installed.
    """
    if '::' in path:
        # mmengine's get_config is not used: it looks up distribution names, which the maintained forks changed, and may
        # pip-install what it misses.
        package, _, relative = path.partition('::')
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f'The config {path!r} needs the package {package!r}, which is not installed.')
        root = osp.dirname(spec.origin)
        # Beside the package in a checkout that is not installed.
        folders = (osp.join(root, '.mim', 'configs'), osp.join(osp.dirname(root), 'configs'))
        found = osp.join(next(filter(osp.isdir, folders), folders[0]), relative)
    else:
        found = path
    if not osp.isfile(found):
        raise FileNotFoundError(
            f'Expected a config file at {osp.abspath(found)!r} ({path!r}), but there is none. Paths are relative to the '
            "working directory; '{{ fileDirname }}/...' in a config is relative to that config."
        )
    return found


def know_own_configs() -> None:
    """Let mmengine resolve ``dskd_mm::relative/path.py`` in ``_base_``, from a checkout and from an installed wheel.

    It knows a fixed list of packages, and takes the types in their configs for the package's own. Those in ours are of a host:
    they stay as if the file were named by its path.
    """
    known = Config._get_cfg_path
    if getattr(known, 'knows_dskd_mm', False):
        return

    def find(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if cfg_path.startswith('dskd_mm::'):
            return resolve_config_path(cfg_path), None
        try:
            return known(cfg_path, filename)
        except ModuleNotFoundError as error:
            if '::' not in cfg_path or importlib.util.find_spec(cfg_path.partition('::')[0]) is None:
                raise
            # It asks for the package under the name of its first distribution.
            raise ModuleNotFoundError(
                f'{error}: mmengine cannot inherit {cfg_path!r} from a package of another name, such as the onedl-* forks. '
                f'Write it out and inherit that: dskd config {cfg_path} > base.py'
            ) from error

    find.knows_dskd_mm = True  # type: ignore[attr-defined]
    Config._get_cfg_path = staticmethod(find)


know_own_configs()  # when it is imported: a config is read before anything that it imports


def load_config(config: str | dict) -> Config:
    """Read a config from a path (see :func:`resolve_config_path`) or wrap one given as a dict.

    Raises:
        TypeError: If the config is of another kind.
    """
    if isinstance(config, Config):
        return config
    if isinstance(config, dict):
        return Config(config)
    if isinstance(config, str):
        return Config.fromfile(resolve_config_path(config))
    raise TypeError(f'A config must be a path or a dict, but got {type(config).__name__}.')


def model_config(cfg: Config) -> ConfigDict:
    """Return the model of a whole config, ready to be built alone: with its scope and its data preprocessor.

    Args:
        cfg (Config): A whole config with a ``model``, or a model's own config.

    Returns:
        ConfigDict: A copy of the model's config.

    Raises:
        ValueError: If there is no model in it.
    """
    model = cfg.get('model', cfg if 'type' in cfg else None)
    if model is None:
        raise ValueError(f'Expected a config with a model, but got one with the keys {sorted(cfg)} ({cfg.filename}).')
    model = ConfigDict(model.to_dict())
    if cfg.get('data_preprocessor') is not None and model.get('data_preprocessor') is None:
        model.data_preprocessor = ConfigDict(cfg.data_preprocessor.to_dict())
    if cfg.get('default_scope') and '_scope_' not in model:
        model._scope_ = cfg.default_scope
    return model


def type_module(config: dict) -> str:
    """Return the package of a config's ``type``, '' if it has none: a name ('package.Name') or, in lazy configs, a class."""
    kind = config.get('type', '')
    name = kind if isinstance(kind, str) else kind.__module__ + '.'
    return name.split('.')[0] if '.' in name else ''


def type_name(config: dict) -> str:
    """Return the name of a config's ``type`` without its package, '' if it has none."""
    kind = config.get('type', '')
    return (kind if isinstance(kind, str) else kind.__name__).split('.')[-1]


def added_losses(model: dict) -> dict[str, Any]:
    """Return a distiller's ``distill_losses`` by their names, without those that None leaves out."""
    return {name: loss for name, loss in (model.get('distill_losses') or {}).items() if loss is not None}


def host_of(cfg: Config) -> str:
    """Return the library that a config's model is of, '' if that is not told: that of the scope, else that of the type."""
    model = cfg.get('model') or {}
    student = (model.get('student') if is_distiller_config(cfg) else model) or {}
    scopes = (student.get('_scope_'), model.get('_scope_'), cfg.get('default_scope'))
    return next((scope for scope in scopes if scope in HOSTS), None) or type_module(student)


def imported_modules(cfg: Config) -> list[str]:
    """Return what a config's ``custom_imports`` names: mmengine takes a list, or a single name."""
    names = (cfg.get('custom_imports') or {}).get('imports') or []
    return [names] if isinstance(names, str) else list(names)


def nodes(config: Any) -> Iterator[Any]:
    """Yield all dicts in a config, itself included."""
    if isinstance(config, dict):
        yield config
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for child in config:
            yield from nodes(child)


def datasets(loader: Any, name: str) -> Iterator[tuple[str, ConfigDict]]:
    """Yield the data sets that a loader, a list of loaders or a wrapper of data sets reads, each with its key in the config."""
    if isinstance(loader, (list, tuple)):
        for i, one in enumerate(loader):
            yield from datasets(one, f'{name}.{i}')
        return
    for key in ('dataset', 'datasets'):
        inner = (loader or {}).get(key)
        for i, dataset in enumerate(inner if isinstance(inner, (list, tuple)) else [inner]):
            path = f'{name}.{key}' + (f'.{i}' if key == 'datasets' else '')
            if is_dataset_wrapper(dataset):
                yield from datasets(dataset, path)
            elif isinstance(dataset, dict):
                yield path, dataset


def is_dataset_wrapper(dataset: Any) -> bool:
    """Return whether the config of a data set holds others."""
    return isinstance(dataset, dict) and ('dataset' in dataset or 'datasets' in dataset)


def num_classes(model: Any) -> int | None:
    """Return how many classes a plain model's config knows by its head, None if that is not told."""
    for name in ('head', 'bbox_head', 'decode_head', 'roi_head.bbox_head', 'mask_head'):
        node = model
        for key in name.split('.'):
            node = (node.get(key) if isinstance(node, dict) else None) or {}
        told = [inner['num_classes'] for inner in nodes(node) if isinstance(inner.get('num_classes'), int)]
        if told:
            return told[0]
    # Networks of timm and transformers, which have no head apart.
    told = [model[key] for key in ('num_classes', 'num_labels') if isinstance(model, dict) and isinstance(model.get(key), int)]
    return told[0] if told else None


def is_distiller_config(cfg: Config) -> bool:
    """Return whether a config's model is a distiller: it takes a student and a teacher, as all of them do."""
    return {'student', 'teacher'} <= set(cfg.get('model') or {})


def default_hook(cfg: Config, name: str) -> dict[str, Any]:
    """Return the settings of one of a config's ``default_hooks``, none if it is not there or is switched off."""
    return (cfg.get('default_hooks') or {}).get(name) or {}


SHOWS_STUDENT = 'dskd_mm.StudentOptimWrapperConstructor'
BY_NAME = ('LearningRateDecayOptimizerConstructor', 'LayerDecayOptimizerConstructor')
"""Constructors of mmdet and mmseg that know a plain model's parameters by their names."""


def show_student(optim_wrapper: dict) -> ConfigDict:
    """Return a distiller's ``optim_wrapper`` with :class:`~dskd_mm.optim.StudentOptimWrapperConstructor` where it is needed.

    Args:
        optim_wrapper (dict): The setting of a config. It is not changed.

    Returns:
        ConfigDict: A copy; the same unless its constructor is one of :data:`BY_NAME`.
    """
    shown = ConfigDict(optim_wrapper)
    if _constructor_name(shown) in BY_NAME:
        kind = shown.constructor
        if not isinstance(kind, str):  # of a lazy config: a dumped config can name it
            kind = f'{kind.__module__}.{kind.__qualname__}'
        shown.paramwise_cfg = {**shown.paramwise_cfg, 'constructor': kind}
        shown.constructor = SHOWS_STUDENT
    return shown


def hide_student(optim_wrapper: dict) -> ConfigDict:
    """Return the ``optim_wrapper`` of the plain student, without what :func:`show_student` and ``--amp`` put there."""
    hidden = ConfigDict(optim_wrapper)
    rules = dict(hidden.get('paramwise_cfg') or {})
    if _constructor_name(hidden) == SHOWS_STUDENT.split('.')[-1] and 'constructor' in rules:
        hidden.constructor = rules.pop('constructor')
        hidden.paramwise_cfg = rules
    if type_name(hidden) == 'BF16OptimWrapper':  # of --amp on a CPU
        hidden.type = 'OptimWrapper'
    return hidden


def _constructor_name(optim_wrapper: ConfigDict) -> str:
    return type_name(dict(type=optim_wrapper.get('constructor') or ''))


def student_config(cfg: Config) -> Config:
    """Return the config of the plain student that a distiller's config trains; a plain config stays as it is.

    The student keeps its scope and its data preprocessor. What only distillation needs is dropped: the teacher, the hooks of
    dskd_mm, what it puts around the optimizer's constructor, and the import of dskd_mm (its backbones and data sets are found
    by their prefix), so that the result runs where dskd_mm is not installed, unless the student is built from its backbones.

    Args:
        cfg (Config): A whole config. It is not changed.

    Returns:
        Config: A copy whose ``model`` is the student.
    """
    cfg = copy.deepcopy(cfg)
    if not is_distiller_config(cfg):
        return cfg
    model, student = cfg.model, cfg.model.student
    for key in ('data_preprocessor', '_scope_'):
        if student.get(key) is None and model.get(key) is not None:
            student[key] = model[key]
    cfg.model = student
    if cfg.get('optim_wrapper'):
        cfg.optim_wrapper = hide_student(cfg.optim_wrapper)
    if cfg.get('custom_hooks'):
        cfg.custom_hooks = [hook for hook in cfg.custom_hooks if type_module(hook) != 'dskd_mm']
    if cfg.get('custom_imports') is not None:
        cfg.custom_imports.imports = [name for name in imported_modules(cfg) if name != 'dskd_mm']
    return cfg
