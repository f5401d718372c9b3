"""Reading configs, the installed hosts' ones included."""

import importlib.util
import os.path as osp

from mmengine.config import Config, ConfigDict


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
        found = osp.join(osp.dirname(spec.origin), '.mim', 'configs', relative)
    else:
        found = path
    if not osp.isfile(found):
        raise FileNotFoundError(
            f'Expected a config file at {osp.abspath(found)!r} ({path!r}), but there is none. Paths are relative to the '
            "working directory; '{{ fileDirname }}/...' in a config is relative to that config."
        )
    return found


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
    """The model of a whole config, ready to be built alone: with its scope and its data preprocessor.

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
