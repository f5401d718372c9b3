"""Getting features out of models and into one shape."""

from dskd_mm.features.align import ChannelAlign, match_levels, match_space
from dskd_mm.features.augment import FeatureAugmentation
from dskd_mm.features.channels import fill_channels, find_channels, find_shapes
from dskd_mm.features.norm import build_norm
from dskd_mm.features.pyramid import Pyramid, per_location
from dskd_mm.features.tap import CallTap, FeatureTap, Tap, find_module
from dskd_mm.features.window import Window

__all__ = [
    'CallTap',
    'ChannelAlign',
    'FeatureAugmentation',
    'FeatureTap',
    'Pyramid',
    'Tap',
    'Window',
    'build_norm',
    'fill_channels',
    'find_channels',
    'find_module',
    'find_shapes',
    'match_levels',
    'match_space',
    'per_location',
]
