"""Toy models and data for tests; nothing here is needed for training."""

from dskd_mm.testing.runs import RandomPatterns, distiller_run_config, plain_run_config, toy_runner
from dskd_mm.testing.toy import TOY_CLASSES, classifier_config, random_batch, random_teacher

__all__ = [
    'TOY_CLASSES',
    'RandomPatterns',
    'classifier_config',
    'distiller_run_config',
    'plain_run_config',
    'random_batch',
    'random_teacher',
    'toy_runner',
]
