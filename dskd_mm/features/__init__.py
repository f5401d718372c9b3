"""Getting features out of models and into one shape."""

from dskd_mm.features.align import ChannelAlign, match_levels, match_moments, match_space
from dskd_mm.features.augment import FeatureAugmentation
from dskd_mm.features.channels import fill_channels, find_channels, find_shapes, find_tapped, images_for
from dskd_mm.features.norm import build_norm
from dskd_mm.features.pyramid import Pyramid, per_location
from dskd_mm.features.tap import CallTap, FeatureTap, Tap, find_module
from dskd_mm.features.widths import Channels, PerWidth, align_levels, each_level, level_modules, modules_of, per_width
from dskd_mm.features.window import Window

__all__ = [
    'CallTap',
    'ChannelAlign',
    'Channels',
    'FeatureAugmentation',
    'FeatureTap',
    'PerWidth',
    'Pyramid',
    'Tap',
    'Window',
    'align_levels',
    'build_norm',
    'each_level',
    'fill_channels',
    'find_channels',
    'find_module',
    'find_shapes',
    'find_tapped',
    'images_for',
    'level_modules',
    'match_levels',
    'match_moments',
    'match_space',
    'modules_of',
    'per_location',
    'per_width',
]
