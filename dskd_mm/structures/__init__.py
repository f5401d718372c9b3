"""What travels between sites, guidance, losses and distillers: targets, tap specifications, model outputs."""

from dskd_mm.structures.outputs import ModelOutputs, TapRecord
from dskd_mm.structures.taps import BoxEncoding, Layer, MapInfo, TapSpec
from dskd_mm.structures.target import Target

__all__ = ['BoxEncoding', 'Layer', 'MapInfo', 'ModelOutputs', 'TapRecord', 'TapSpec', 'Target']
