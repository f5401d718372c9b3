"""Distillers: start reading here."""

from dskd_mm.distillers.base import Distiller
from dskd_mm.distillers.configurable import ConfigurableDistiller
from dskd_mm.distillers.dskd import DSKDDistiller

__all__ = ['ConfigurableDistiller', 'DSKDDistiller', 'Distiller']
