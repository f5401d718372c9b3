"""Distillers: start reading here."""

from dskd_mm.distillers.base import Distiller
from dskd_mm.distillers.configurable import ConfigurableDistiller
from dskd_mm.distillers.dskd import DSKDDistiller
from dskd_mm.distillers.rtk import RTKDistiller
from dskd_mm.distillers.sokd import SoKDDistiller

__all__ = [
    'ConfigurableDistiller',
    'DSKDDistiller',
    'Distiller',
    'RTKDistiller',
    'SoKDDistiller',
]
