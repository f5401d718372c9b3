"""Distillers: start reading here."""

from dskd_mm.distillers.base import Distiller
from dskd_mm.distillers.configurable import ConfigurableDistiller
from dskd_mm.distillers.crosskd import CrossKDDistiller
from dskd_mm.distillers.diffkd import DiffKDDistiller
from dskd_mm.distillers.dskd import DSKDDistiller
from dskd_mm.distillers.lshfm import LSHFMDistiller
from dskd_mm.distillers.rtk import RTKDistiller
from dskd_mm.distillers.simkd import SimKDDistiller
from dskd_mm.distillers.sokd import SoKDDistiller
from dskd_mm.distillers.srrl import SRRLDistiller
from dskd_mm.distillers.vkd import VkDDistiller

__all__ = [
    'ConfigurableDistiller',
    'CrossKDDistiller',
    'DSKDDistiller',
    'DiffKDDistiller',
    'Distiller',
    'LSHFMDistiller',
    'RTKDistiller',
    'SRRLDistiller',
    'SimKDDistiller',
    'SoKDDistiller',
    'VkDDistiller',
]
