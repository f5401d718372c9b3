"""What steers the sampling: the frozen teacher's classifier, or its whole head."""

from dskd_mm.guidance.classifier import ClassifierGuidance, Target, TeacherClassifier, target_cross_entropy
from dskd_mm.guidance.head_loss import HeadLossGuidance
from dskd_mm.guidance.judge import ClassifierJudge, HeadJudge, Judge

__all__ = [
    'ClassifierGuidance',
    'ClassifierJudge',
    'HeadJudge',
    'HeadLossGuidance',
    'Judge',
    'Target',
    'TeacherClassifier',
    'target_cross_entropy',
]
