"""How many predictions are for objects, from batch to batch."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dskd_mm.structures import Target

MOMENTUM = 0.9
"""How much of the running mean is kept in a step, as in the loss normalizer of detectron2's RetinaNet."""
SHARE = 0.5
"""The share of the running mean by which losses are divided at least."""


class ForegroundCount(nn.Module):
    """Keeps a batch with few objects, or none, from outweighing the others.

    A detector's losses are divided by the number of predictions for objects. The host's own almost vanish where there is none.
    Those that compare with a teacher do not: student and teacher differ in the background, too, and a sum over it would be
    divided by 1 instead of some hundred. So they are divided by half of the running mean at least.
    """

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('mean', torch.zeros(()))

    def forward(self, target: Target) -> Target:
        """Return annotations whose ``avg_factor`` is at least half of the running mean; in training, that counts this one."""
        count = target.avg_factor
        if count is None:
            return target
        if self.training:
            self.mean.copy_(torch.where(self.mean > 0, count.lerp(self.mean, MOMENTUM), count))
        return replace(target, avg_factor=torch.maximum(count, SHARE * self.mean))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.setdefault(prefix + 'mean', self.mean)  # checkpoints of before it
        super()._load_from_state_dict(state_dict, prefix, *args)
