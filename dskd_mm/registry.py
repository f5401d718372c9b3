"""Registries of dskd_mm: children of mmengine's roots under the scope ``dskd_mm``.

With ``locations`` a type written ``dskd_mm.X`` is found without any import of the package by the user: the prefix makes
mmengine import this file, and the registry then imports its locations.
"""

from typing import Any

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import Registry

from dskd_mm.arguments import check_arguments

SCOPE = 'dskd_mm'

MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope=SCOPE,
    locations=[
        'dskd_mm.distillers',
        'dskd_mm.diffusion',
        'dskd_mm.losses',
        'dskd_mm.features',
        'dskd_mm.sites',
        'dskd_mm.backbones',
    ],
)
"""Distillers and their parts: denoisers, schedules, losses, alignments, sites and CIFAR backbones."""

HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope=SCOPE, locations=['dskd_mm.hooks', 'dskd_mm.resume'])
"""Training hooks."""

DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope=SCOPE, locations=['dskd_mm.datasets'])
"""Data sets that no host reads."""

OPTIM_WRAPPERS = Registry('optim_wrapper', parent=MMENGINE_OPTIM_WRAPPERS, scope=SCOPE, locations=['dskd_mm.optim'])
"""Optimizer wrappers."""

OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope=SCOPE,
    locations=['dskd_mm.optim'],
)
"""How optimizer wrappers are built."""


def build(cls: type, config: dict | None, **kwargs: Any) -> Any:
    """Build a part from its arguments; a ``type`` in them replaces the class.

    Args:
        cls (type): The class.
        config (dict, optional): Its arguments, as a config has them. Defaults to None: none.
        kwargs: Further arguments; those of the config go before them.

    Raises:
        TypeError: If the class has no such argument.
    """
    config = {**kwargs, **(config or {})}
    if 'type' in config:
        return MODELS.build(config)
    check_arguments(cls, config)
    return cls(**config)
