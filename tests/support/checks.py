"""Watch calls, check that spoilt configs are refused, and write figures down once more."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FIRST_CONSTRUCTION: dict[str, Any] = dict(
    denoiser=dict(time='table', norm='BN'),
    sampler=dict(steps=5, start=0.5, scale=1.0, guidance_point='noisy', noise='schedule'),
    guidance_temperature=1.0,
    gate=False,
    lsh=dict(soft=False),
    lsh_share=0.0,
)
"""Options of DSKD as they were first: a table of timesteps, hard bits, no gate."""


@dataclass
class Call:
    """One call of a watched method.

    Attributes:
        args (tuple): Its positional arguments.
        kwargs (dict): Its named arguments.
        result (Any): What it returned.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


def watch(owner: Any, name: str) -> list[Call]:
    """Record the calls of a method of one object, from now on and as long as the object lives.

    Args:
        owner (Any): The object.
        name (str): The method.

    Returns:
        list[Call]: The calls; it grows.
    """
    method, calls = getattr(owner, name), []

    def recorded(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        calls.append(Call(args, kwargs, result))
        return result

    setattr(owner, name, recorded)
    return calls


def assert_refused(config: Any, spoil: Callable[[Any], Any], words: Sequence[str]) -> None:
    """A spoilt config is refused with a ValueError when it is built, in words that help.

    Args:
        config (ConfigDict): Config of a distiller; it stays as it is.
        spoil (Callable): Changes a copy of it.
        words (Sequence[str]): What the message has to contain.
    """
    from mmengine.registry import MODELS

    config = copy.deepcopy(config)
    spoil(config)
    try:
        MODELS.build(config)
    except ValueError as error:
        assert [word for word in words if word not in str(error)] == [], str(error)
    else:
        raise AssertionError(f'Expected to be refused with {list(words)}, but it was built.')


def first_not_finite(distiller: Any, batch: Mapping[str, Any]) -> str | None:
    """Return the name of the first thing in a step that is NaN or infinite, as CheckFiniteHook tells it."""
    distiller.magnitudes = {}
    distiller(**batch, mode='loss')
    return next((name for name, value in distiller.magnitudes.items() if not bool(value.isfinite())), None)


def matched_cosine(ours: Tensor, theirs: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean cosine of vectors (M, C) with others, less their mean, once each channel of ours has the moments of theirs."""
    a, b = (each.detach().double() for each in (ours, theirs))
    b = b - b.mean(dim=0)
    a = (a - a.mean(dim=0)) / a.std(dim=0, unbiased=False) * b.std(dim=0, unbiased=False)
    cosine = (a * b).sum(dim=1) / (a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt()
    weight = torch.ones_like(cosine) if weight is None else weight
    return ((weight * cosine).sum() / weight.sum()).float()
