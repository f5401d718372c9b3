"""Options of a method, apart from its modules: their defaults, one row for each task, and what is refused."""

import logging
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch
from mmengine.logging import print_log
from torch import Tensor

from dskd_mm.arguments import check_arguments
from dskd_mm.sites import Site
from dskd_mm.structures import TapSpec

WARMUP = dict(classification=200)
"""Iterations of warm-up by task, one rule for all methods: what is much for the first steps differs from loss to loss."""
Options = TypeVar('Options', bound='MethodOptions')


@dataclass(kw_only=True)
class MethodOptions:
    """Base of the options of a method: a field for each, with its general default.

    Attributes:
        warmup (int): Iterations over which all losses on the student grow linearly from 0 to their weight, ``distill_losses``
            included, but for :attr:`Distiller.learned_losses`; their factor is logged as ``distill_warmup``. Defaults to 200
            for classification, and to 0 elsewhere; DSKD has a rule of its own.
        distill_weight (float): What the same losses are multiplied with, beside their own weights. Defaults to 1.
    """

    task_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """The row of each task: defaults that go before those of the fields. A task without a row has these."""
    merged: ClassVar[tuple[str, ...]] = ('loss_weights',)
    """Options that are dicts of which a config may name some keys: the others keep their default."""
    losses: ClassVar[Mapping[str, float]] = {}
    """The method's own losses by name, with their general weights: the default of an option ``loss_weights``."""

    warmup: int | None = None
    distill_weight: float = 1.0

    @classmethod
    def resolve(
        cls: type[Options], owner: type, given: Mapping[str, Any], site: Site, student: TapSpec, teacher: TapSpec
    ) -> Options:
        """Return options with every default filled in, and refuse what cannot train.

        Args:
            owner (type): The distiller, for messages.
            given (Mapping): What the config says; None stands for the default.
            site (Site): Names the task, see :attr:`~dskd_mm.sites.Site.task`.
            student (TapSpec): Where the student is tapped.
            teacher (TapSpec): Where the teacher is tapped.

        Raises:
            TypeError: If there is no option of a name.
            ValueError: If a value is out of its range, or a combination cannot train.
        """
        check_arguments(owner, given)
        given = {name: value for name, value in given.items() if value is not None}
        values = cls.overlay(cls.defaults(given, site, student, teacher), given)
        if cls.losses:
            check_weights(owner.__name__, values['loss_weights'], cls.losses, given.get('loss_weights'))
        options = cls(**values)
        options.complete(site, student, teacher)
        options.check(owner.__name__, site, student, teacher)
        return options

    @classmethod
    def defaults(cls, given: Mapping[str, Any], site: Site, student: TapSpec, teacher: TapSpec) -> dict[str, Any]:
        """Return all defaults: those of the fields, and before them the task's row.

        Args:
            given (Mapping): What the config says, on which a default may depend.
            site (Site): Names the task.
            student (TapSpec): Where the student is tapped.
            teacher (TapSpec): Where the teacher is tapped.
        """
        values = {field.name: default_of(field) for field in fields(cls)}
        if cls.losses:
            values['loss_weights'] = dict(cls.losses)
        return cls.overlay(values, cls.task_defaults.get(site.task, {}))

    @classmethod
    def overlay(cls, values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
        """Return options with others put over them; of those in :attr:`merged` key by key."""
        found = dict(values)
        for name, value in over.items():
            is_part = name in cls.merged and isinstance(value, Mapping)
            found[name] = {**(found.get(name) or {}), **value} if is_part else value
        return found

    def complete(self, site: Site, student: TapSpec, teacher: TapSpec) -> None:
        """Fill in what follows from other options or from the models."""
        if self.warmup is None:
            self.warmup = WARMUP.get(site.task, 0)

    def check(self, owner: str, site: Site, student: TapSpec, teacher: TapSpec) -> None:
        """Refuse what cannot train.

        Raises:
            ValueError: If a value is out of its range, or a combination cannot train.
        """
        if self.warmup is None or self.warmup < 0:
            raise ValueError(f'warmup of {owner} must not be negative, but got {self.warmup}.')
        if self.distill_weight < 0:
            raise ValueError(f'distill_weight of {owner} must not be negative, but got {self.distill_weight}.')

    def warmup_problem(self, iterations: int | None) -> str:
        """Return what is wrong with :attr:`warmup` in so many iterations; '' if nothing is, or they are not known."""
        if not self.warmup or not iterations or self.warmup <= iterations / 2:
            return ''
        return (
            f'The distillation losses grow over {self.warmup} iterations, but this training has {iterations}: set '
            f'model.warmup={iterations // 10}, or train longer'
        )

    def warn_of_warmup(self, iterations: int | None) -> None:
        """Log what :meth:`warmup_problem` finds."""
        problem = self.warmup_problem(iterations)
        if problem:
            print_log(f'{problem}.', 'current', logging.WARNING)

    @property
    def reads_probabilities(self) -> bool:
        """Return whether a loss of the method needs what the teacher says of the classes: of several, their average."""
        return False

    def weigh(self, losses: Mapping[str, Tensor], iteration: Tensor, learned: tuple[str, ...] = ()) -> dict[str, Tensor]:
        """Return losses and figures, with :attr:`warmup` and :attr:`distill_weight` applied to the losses on the student.

        Args:
            losses (Mapping[str, Tensor]): By name, those on the student under names that begin with ``loss_``.
            iteration (Tensor): How many have been before, a scalar.
            learned (tuple[str, ...]): How names of losses end that stay as they are. Defaults to none.
        """
        found, factor = dict(losses), torch.full_like(iteration, self.distill_weight, dtype=torch.float32)
        if self.warmup:
            found['distill_warmup'] = torch.clamp((iteration + 1) / self.warmup, max=1.0)
            factor = factor * found['distill_warmup']
        elif self.distill_weight == 1:
            return found
        on_student = (name for name in losses if name.startswith('loss_') and not name.endswith(learned))
        return found | {name: factor * losses[name] for name in on_student}


def default_of(field: Field) -> Any:
    """Return the default of a field."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def check_choice(owner: str, name: str, value: Any, known: tuple[Any, ...]) -> None:
    """Refuse a value that is none of those known.

    Raises:
        ValueError: If it is not.
    """
    if value not in known:
        raise ValueError(f'{name} of {owner} must be one of {known}, but got {value!r}.')


def check_images(owner: str, site: Site) -> None:
    """Refuse what is no classifier of images.

    Raises:
        ValueError: If the site is another's.
    """
    if site.task != 'classification':
        raise ValueError(f'{owner} is defined for classifiers of images and expects their site, but got {type(site).__name__}.')


def check_weights(owner: str, weights: Mapping[str, float], known: Mapping[str, float], given: Any = None) -> None:
    """Refuse weights of losses that there are not, and negative ones.

    Args:
        owner (str): Whose they are, for the error.
        weights (Mapping[str, float]): The weights, with all defaults.
        known (Mapping[str, float]): The losses by name.
        given (Any): What the config says, for the error. Defaults to None: ``weights``.

    Raises:
        ValueError: If a loss of another name is given, or a weight that is negative or no number.
    """
    are_numbers = all(isinstance(weight, (int, float)) for weight in weights.values())
    if set(weights) != set(known) or not are_numbers or min(weights.values()) < 0:
        raise ValueError(
            f'loss_weights of {owner} expects weights of {sorted(known)} that are not negative, but got '
            f'{dict(weights if given is None else given)}.'
        )
