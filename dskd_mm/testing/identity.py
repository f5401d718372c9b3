"""A student that is its teacher has nothing to learn from it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dskd_mm.distillers.base import BatchOutputs

RANDOM = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, nn.MultiheadAttention)
"""Modules that train otherwise than they predict."""
OTHERS = ('DropPath', 'StochasticDepth', 'NMF2D')
"""The same by name. SegNeXt's factorisation takes another number of steps."""


def make_identical(distiller: Any) -> None:
    """Give the student the weights of its teacher, and like that one no batch statistics and no dropout, in place.

    Args:
        distiller (Distiller): A distiller whose student is built as its teacher is.

    Raises:
        ValueError: If it is not.
    """
    distiller.load_teacher()
    # All there is, not the state dict: LoRA's model keeps its backbone out of it, Swin v2 does not load its tables.
    mine, theirs = (
        {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for model in (distiller.student, distiller.teacher.require_model())
    )
    if {name: value.shape for name, value in mine.items()} != {name: value.shape for name, value in theirs.items()}:
        raise ValueError('make_identical expects a student that is built as its teacher is, but got other tensors.')
    with torch.no_grad():
        for name, value in mine.items():
            value.copy_(theirs[name])
    distiller.train()
    for module in distiller.student.modules():
        if isinstance(module, RANDOM) or type(module).__name__ in OTHERS:
            module.eval()


def identity_step(
    distiller: Any, batch: Mapping[str, Any], seed: int = 0
) -> tuple[dict[str, float], BatchOutputs, dict[str, Tensor]]:
    """Take a step without an optimizer, and tell how far all that losses compare differs between both models.

    Args:
        distiller (Distiller): A distiller of identical models, see :func:`make_identical`.
        batch (Mapping): Preprocessed 'inputs' and 'data_samples'.
        seed (int): Of what models draw, the same for both. Defaults to 0.

    Returns:
        tuple[dict[str, float], BatchOutputs, dict[str, Tensor]]: The largest difference, relative to the largest value, of
        'feature', 'logits' and 'boxes', where there are any, all zeros for a right pair; without a linear classifier also that
        of 'head', the loss of the student and of the teacher's head on the same features. Then what both models made of the
        batch, and the losses.

    Raises:
        ValueError: If the teacher does not run.
    """

    def draw_anew() -> None:
        torch.manual_seed(seed)
        np.random.seed(seed)

    def noted(*args: Any) -> BatchOutputs:
        seen.append(run(*args))
        return seen[-1]

    def run_teacher(*args: Any) -> Any:
        draw_anew()  # as the student did: SegNeXt draws where its factorisation begins
        return of_teacher(*args)

    seen: list[BatchOutputs] = []
    run, of_teacher = distiller.run_models, distiller.run_teacher
    draw_anew()
    distiller.run_models, distiller.run_teacher = noted, run_teacher
    try:
        losses = distiller(**batch, mode='loss')
    finally:
        del distiller.run_models, distiller.run_teacher
    (outputs,) = seen
    student, teacher = outputs.student, outputs.teacher
    if teacher is None:
        raise ValueError("identity_step expects a distiller whose teacher runs, but it does not: give it prior='teacher'.")
    pairs = dict(
        feature=(student.features, teacher.features),
        logits=(student.logit_levels, teacher.logit_levels),
        boxes=(student.box_levels, teacher.box_levels),
    )
    found = {name: difference(*pair) for name, pair in pairs.items() if pair[0]}
    if outputs.target is None:
        draw_anew()
        with torch.no_grad():
            judged = outputs.head_loss([level.detach() for level in student.features])
        own = distiller.student.parse_losses(outputs.losses)[0]
        found['head'] = difference([own], [judged])
    return found, outputs, losses


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest difference of tensors relative to their largest value; infinity if their shapes differ."""
    if [level.shape for level in ours] != [level.shape for level in theirs]:
        return float('inf')
    largest = max((float(level.detach().abs().max()) for level in theirs if level.numel()), default=0.0)
    gaps = (float((own.detach() - other).abs().max()) for own, other in zip(ours, theirs, strict=True) if own.numel())
    return max(gaps, default=0.0) / max(largest, 1e-6)
