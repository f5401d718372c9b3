"""Before any epoch is spent: what of a config cannot train, found on the CPU in seconds and told all at once.

``tools/misc/check_config.py`` runs all of it, ``tools/train.py`` the cheap parts.
"""

from dskd_mm.preflight.checks import CHEAP, MINIMUM, PARTS, Finding, Preflight, explain, refuse_faults, report_table

__all__ = ['CHEAP', 'MINIMUM', 'PARTS', 'Finding', 'Preflight', 'explain', 'refuse_faults', 'report_table']
