"""Pictures of training and of denoising. They draw on figures of their own: no window, no global state of matplotlib."""

from dskd_mm.visualization.curves import accuracy_curves
from dskd_mm.visualization.denoising import (
    DenoisingTrajectory,
    denoising_trajectory,
    plot_denoising_plane,
    plot_denoising_steps,
    plot_feature_maps,
)
from dskd_mm.visualization.predictions import Boxes, plot_detections, plot_segmentations
from dskd_mm.visualization.scalars import read_scalars

__all__ = [
    'Boxes',
    'DenoisingTrajectory',
    'accuracy_curves',
    'denoising_trajectory',
    'plot_denoising_plane',
    'plot_denoising_steps',
    'plot_detections',
    'plot_feature_maps',
    'plot_segmentations',
    'read_scalars',
]
