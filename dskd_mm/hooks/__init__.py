"""Training hooks."""

from dskd_mm.hooks.check_finite import CheckFiniteHook
from dskd_mm.hooks.student_export import StudentExportHook

__all__ = ['CheckFiniteHook', 'StudentExportHook']
