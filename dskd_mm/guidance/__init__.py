"""What steers the sampling: the frozen teacher's classifier."""

from dskd_mm.guidance.classifier import ClassifierGuidance, Target, TeacherClassifier, target_cross_entropy
from dskd_mm.guidance.head_loss import HeadLossGuidance

__all__ = ['ClassifierGuidance', 'HeadLossGuidance', 'Target', 'TeacherClassifier', 'target_cross_entropy']
