"""Training hooks."""

from dskd_mm.hooks.student_export import StudentExportHook

__all__ = ['StudentExportHook']
