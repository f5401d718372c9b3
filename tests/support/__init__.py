"""What only our own tests need: toy detectors and segmenters, whole runs in small, processes."""

from support.checks import FIRST_CONSTRUCTION, Call, assert_refused, first_not_finite, watch
from support.dense import (
    DENSE_CLASSES,
    DENSE_SIZE,
    DETECTORS,
    SEGMENTORS,
    ZOO_DETECTORS,
    build_distiller,
    dense_distiller_config,
    detection_batch,
    detector_config,
    random_boxes,
    segmentation_batch,
    segmentor_config,
)
from support.runs import RandomPatterns, distiller_run_config, plain_run_config, toy_runner
from support.scenes import (
    EXISTING,
    SCENE_CLASSES,
    detector_run_config,
    segmentor_run_config,
    write_distiller_files,
    write_scenes,
)
from support.tools import environment, free_port, named, predictions, run_process, run_script, scalars

__all__ = [
    'DENSE_CLASSES',
    'DENSE_SIZE',
    'DETECTORS',
    'EXISTING',
    'FIRST_CONSTRUCTION',
    'SCENE_CLASSES',
    'SEGMENTORS',
    'ZOO_DETECTORS',
    'Call',
    'RandomPatterns',
    'assert_refused',
    'build_distiller',
    'dense_distiller_config',
    'detection_batch',
    'detector_config',
    'detector_run_config',
    'distiller_run_config',
    'environment',
    'first_not_finite',
    'free_port',
    'named',
    'plain_run_config',
    'predictions',
    'random_boxes',
    'run_process',
    'run_script',
    'scalars',
    'segmentation_batch',
    'segmentor_config',
    'segmentor_run_config',
    'toy_runner',
    'watch',
    'write_distiller_files',
    'write_scenes',
]
