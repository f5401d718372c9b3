"""Toy models, data and checks for tests; nothing here is needed for training."""

from dskd_mm.testing.checks import (
    Call,
    assert_distils,
    assert_nothing_is_unused,
    assert_trains,
    distillation_losses,
    gradients,
    reaches,
    watch,
)
from dskd_mm.testing.dense import (
    DENSE_CLASSES,
    DENSE_SIZE,
    DETECTORS,
    SEGMENTORS,
    build_distiller,
    dense_distiller_config,
    detection_batch,
    detector_config,
    random_boxes,
    segmentation_batch,
    segmentor_config,
)
from dskd_mm.testing.runs import RandomPatterns, distiller_run_config, plain_run_config, toy_runner
from dskd_mm.testing.toy import TOY_CLASSES, classifier_config, random_batch, random_teacher, save_random_model

__all__ = [
    'DENSE_CLASSES',
    'DENSE_SIZE',
    'DETECTORS',
    'SEGMENTORS',
    'TOY_CLASSES',
    'Call',
    'RandomPatterns',
    'assert_distils',
    'assert_nothing_is_unused',
    'assert_trains',
    'build_distiller',
    'classifier_config',
    'dense_distiller_config',
    'detection_batch',
    'detector_config',
    'distillation_losses',
    'distiller_run_config',
    'gradients',
    'plain_run_config',
    'random_batch',
    'random_boxes',
    'random_teacher',
    'reaches',
    'save_random_model',
    'segmentation_batch',
    'segmentor_config',
    'toy_runner',
    'watch',
]
