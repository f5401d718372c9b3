"""Toy classifiers and checks for tests of your own distiller; nothing here is needed for training."""

from dskd_mm.testing.checks import (
    assert_distils,
    assert_nothing_is_unused,
    assert_trains,
    distillation_losses,
    gradients,
    parameters_without_gradient,
    reaches,
    train,
)
from dskd_mm.testing.identity import identity_step, make_identical
from dskd_mm.testing.toy import (
    TOY_CLASSES,
    TOY_KINDS,
    classifier_config,
    random_batch,
    random_teacher,
    save_random_model,
)

__all__ = [
    'TOY_CLASSES',
    'TOY_KINDS',
    'assert_distils',
    'assert_nothing_is_unused',
    'assert_trains',
    'classifier_config',
    'distillation_losses',
    'gradients',
    'identity_step',
    'make_identical',
    'parameters_without_gradient',
    'random_batch',
    'random_teacher',
    'reaches',
    'save_random_model',
    'train',
]
