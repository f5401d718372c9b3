"""Optimizer settings that a host ties to the names of a plain model's parameters."""

from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_CONSTRUCTORS
from torch import nn

from dskd_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS
from dskd_mm.utils.checkpoint import STUDENT_PREFIX


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class StudentOptimWrapperConstructor:
    """Shows another constructor the plain student, whose parameters it knows by name.

    Learning rates that decay from layer to layer by ``LearningRateDecayOptimizerConstructor`` of mmdet and mmseg go by names
    that begin with ``backbone.``. In a distiller they begin with ``student.backbone.``, and every parameter would be taken for
    one of the last layer, without a word. ``tools/train.py`` puts this class around them. (mmpretrain's asks the model instead,
    see :meth:`~dskd_mm.distillers.base.Distiller.get_layer_depth`.) The distiller's own parameters have the learning rate and
    weight decay of the optimizer, whatever ``paramwise_cfg`` says.

    Args:
        optim_wrapper_cfg (dict): As for every constructor of mmengine.
        paramwise_cfg (dict): The other constructor's, and its type under the key ``constructor``.

    Raises:
        ValueError: If no other constructor is named.

    Example:
        >>> optim_wrapper = dict(
        ...     optimizer=dict(type='AdamW', lr=1e-3),
        ...     constructor='dskd_mm.StudentOptimWrapperConstructor',
        ...     paramwise_cfg=dict(constructor='LearningRateDecayOptimizerConstructor', decay_rate=0.7, num_layers=6))
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        rules = dict(paramwise_cfg or {})
        kind = rules.pop('constructor', None)
        if kind is None:
            raise ValueError(
                "paramwise_cfg of StudentOptimWrapperConstructor expects the student's own constructor, "
                f"dict(constructor='LearningRateDecayOptimizerConstructor', ...), but got {dict(paramwise_cfg or {})}."
            )
        self.constructor: Any = MMENGINE_CONSTRUCTORS.build(
            dict(type=kind, optim_wrapper_cfg=optim_wrapper_cfg, paramwise_cfg=rules)
        )

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the wrapper.

        Args:
            model (nn.Module): A distiller, perhaps in a wrapper for several processes.
        """
        distiller: Any = model.module if is_model_wrapper(model) else model
        wrapper = self.constructor(distiller.student)
        own = {name: p for name, p in distiller.named_parameters() if p.requires_grad and not name.startswith(STUDENT_PREFIX)}
        if own:
            group = dict(params=list(own.values()))
            # torch wants them in all groups or in none.
            if 'param_names' in wrapper.optimizer.param_groups[0]:
                group['param_names'] = list(own)
            wrapper.optimizer.add_param_group(group)
        return wrapper
