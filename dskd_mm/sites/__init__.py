"""Sites: where a recogniser's linear classifier sits, what enters it and what it should say. One file a task."""

from dskd_mm.sites.base import NECK_SITES, SITES_BY_MODEL, Site, build_site, naming_the_neck
from dskd_mm.sites.classification import ClassificationSite
from dskd_mm.sites.dense_detection import DenseDetectionSite
from dskd_mm.sites.neck import NeckSite
from dskd_mm.sites.segmentation import SegmentationSite
from dskd_mm.sites.two_stage_detection import TwoStageDetectionSite

__all__ = [
    'NECK_SITES',
    'SITES_BY_MODEL',
    'ClassificationSite',
    'DenseDetectionSite',
    'NeckSite',
    'SegmentationSite',
    'Site',
    'TwoStageDetectionSite',
    'build_site',
    'naming_the_neck',
]
