"""Sites: where a recogniser's linear classifier sits, what enters it and what it should say. One file a task."""

from dskd_mm.sites.base import Port, Site, build_site
from dskd_mm.sites.classification import ClassificationSite

__all__ = ['ClassificationSite', 'Port', 'Site', 'build_site']
