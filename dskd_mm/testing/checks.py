"""Check what every distiller must do, whatever the task."""

from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn


def distillation_losses(losses: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the losses among what a distiller returned that are not the student's own."""
    return {key: value for key, value in losses.items() if key.startswith('loss_dskd_')}


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor | None]:
    """Return the gradients of a loss by the trainable parameters of a module, None for those that it does not depend on."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))


def reaches(loss: Tensor, module: nn.Module) -> bool:
    """Return whether a loss moves any parameter of a module: its gradients are finite, and not all of them are None or zero."""
    found = [gradient for gradient in gradients(loss, module) if gradient is not None]
    return all(bool(g.isfinite().all()) for g in found) and any(bool(g.any()) for g in found)


def parameters_without_gradient(model: Any, batch: Mapping[str, Any]) -> set[str]:
    """Return the names of the trainable parameters that a training step leaves out: DDP waits for them in vain.

    Args:
        model (BaseModel): The model; its gradients are overwritten.
        batch (Mapping): Preprocessed 'inputs' and 'data_samples'.
    """
    model.zero_grad(set_to_none=True)
    total, _ = model.parse_losses(model(**batch, mode='loss'))
    total.backward()
    return {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}


def train(model: Any, batch: Mapping[str, Any], steps: int = 2, lr: float = 1e-3) -> list[dict[str, Tensor]]:
    """Train on one batch as a runner does, clipping gradients as detectors do.

    Args:
        model (BaseModel): The model.
        batch (Mapping): Preprocessed 'inputs' and 'data_samples'.
        steps (int): Number of steps. Defaults to 2.
        lr (float): Learning rate of SGD. Defaults to 0.001.

    Returns:
        list[dict[str, Tensor]]: What is logged in each step.
    """
    from mmengine.optim import OptimWrapper

    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr, momentum=0.9)
    wrapper, logs = OptimWrapper(optimizer, clip_grad=dict(max_norm=35)), []
    for _ in range(steps):
        total, log = model.parse_losses(model(**batch, mode='loss'))
        wrapper.update_params(total)
        logs.append(log)
    return logs


def assert_trains(distiller: Any, batch: Mapping[str, Any], names: set[str]) -> None:
    """Take two steps with an optimizer: all losses must be there and finite, and the student must move.

    Args:
        distiller (Distiller): The distiller; it is trained.
        batch (Mapping): Preprocessed 'inputs' and 'data_samples'.
        names (set[str]): Which losses of the distillation are expected, without ``loss_dskd_``.
    """
    before = {key: value.clone() for key, value in distiller.student.backbone.state_dict().items()}
    for log in train(distiller, batch):
        assert {key.removeprefix('loss_dskd_') for key in distillation_losses(log)} == names
        assert [key for key, value in log.items() if not bool(torch.isfinite(value))] == []
    after = distiller.student.backbone.state_dict()
    assert any(not torch.equal(after[key], value) for key, value in before.items())
    assert int(distiller.iteration) == 2


def assert_distils(distiller: Any, batch: Mapping[str, Any]) -> None:
    """Require that each loss but the diffusion's own reaches the student's backbone by itself, and none the teacher.

    DSKD's gate is open meanwhile: a teacher of random weights may like what is denoised less.

    Args:
        distiller (Distiller): The distiller.
        batch (Mapping): Preprocessed 'inputs' and 'data_samples'.
    """
    with patch.object(distiller.options, 'gate', False, create=True):
        losses = distillation_losses(distiller(**batch, mode='loss'))
    # Denoiser and autoencoder are trained on detached features.
    for name in ('loss_dskd_diff', 'loss_dskd_autoencoder'):
        if name in losses:
            assert not any(gradient is not None for gradient in gradients(losses.pop(name), distiller.student))
    assert losses and [name for name, loss in losses.items() if not reaches(loss, distiller.student.backbone)] == []
    distiller.zero_grad(set_to_none=True)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    teacher = [*distiller.teacher.classifiers, *filter(None, [distiller.teacher.model])]
    assert teacher
    for module in teacher:
        assert not any(p.requires_grad or p.grad is not None for p in module.parameters())


def assert_nothing_is_unused(distiller: Any, batch: Mapping[str, Any]) -> None:
    """Require that no parameter is waited for in vain under DDP, unless it is in the plain student, too."""
    plain = {f'student.{name}' for name in parameters_without_gradient(distiller.student, batch)}
    assert parameters_without_gradient(distiller, batch) == plain
