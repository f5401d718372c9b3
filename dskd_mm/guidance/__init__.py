"""What steers the sampling: the frozen teacher's classifier, or its whole head."""

from dskd_mm.guidance.classifier import TeacherClassifier
from dskd_mm.guidance.gradient import ClassifierGuidance, HeadLossGuidance
from dskd_mm.guidance.guide import ClassifierGuide, HeadLossGuide, TeacherGuide

__all__ = ['ClassifierGuidance', 'ClassifierGuide', 'HeadLossGuidance', 'HeadLossGuide', 'TeacherClassifier', 'TeacherGuide']
