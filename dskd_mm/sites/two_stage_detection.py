"""Two-stage detection: the input of the box head's last linear layer, on the student's sampled proposals."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dskd_mm.features import find_module
from dskd_mm.guidance import Target
from dskd_mm.registry import MODELS
from dskd_mm.sites.base import Observation, Port, Site, box_encoding, check_objects
from dskd_mm.sites.dense_detection import assigned
from dskd_mm.teacher import FrozenTeacher


@MODELS.register_module()
class TwoStageDetectionSite(Site):
    """The site of mmdet's ``TwoStageDetector``: Faster R-CNN, Cascade R-CNN, Mask R-CNN.

    The classifier is ``fc_cls`` of the box head, its feature one vector for each of the student's sampled proposals; targets
    are the labels of its sampler. A teacher that runs looks at the same proposals. Mask heads are left alone.

    Args:
        stage (int): Which stage of a cascade; a head of one stage has only that. Defaults to -1, the last.
        classifier (str): Name of the classification layer in the student's box head. Defaults to 'fc_cls'.
        teacher_classifier (str): The same of the teacher. Defaults to 'fc_cls'.
    """

    norm = 'BN'  # hundreds of proposals an image
    # Box heads end in 1024 channels, for which the denoiser of vectors would have 17 M parameters.
    defaults = dict(temperature=1.0, autoencoder=dict(latent_channels=256))

    def __init__(self, stage: int = -1, classifier: str = 'fc_cls', teacher_classifier: str = 'fc_cls') -> None:
        self.stage = stage
        self.classifier = classifier
        self.teacher_classifier = teacher_classifier
        self.num_objects = 0

    def student_port(self, model: nn.Module) -> Port:
        """See :meth:`Site.student_port`."""
        heads = find_module(model, 'roi_head.bbox_head', 'student')
        stage = self._stage(len(heads)) if isinstance(heads, nn.ModuleList) else ''
        head = model.get_submodule(f'roi_head.bbox_head{stage}')
        port = make_port(head, stage, self.classifier, 'student')
        self.num_objects = int(getattr(head, 'num_classes', port.num_classes))
        return port

    def check(self, data_samples: Sequence[Any], num_classes: int) -> None:
        """Refuse labels of objects that the student does not know; see :meth:`Site.check`."""
        check_objects(data_samples, self.num_objects)

    def teacher_port(self, model: nn.Module | None, teacher: FrozenTeacher) -> Port:
        """See :meth:`Site.teacher_port`."""
        config = teacher.part_config('roi_head.bbox_head')
        stage = self._stage(len(config)) if isinstance(config, list) else ''
        part = f'roi_head.bbox_head{stage}'
        head = teacher.build_part(part) if model is None else model.get_submodule(part)
        return make_port(head, stage, self.teacher_classifier, 'teacher')

    def _stage(self, count: int) -> str:
        if not -count <= self.stage < count:
            raise ValueError(f'stage of {type(self).__name__} expects one of the {count} stages, but got {self.stage}.')
        return f'.{self.stage % count}'

    def target(self, seen: Observation, data_samples: Sequence[Any], num_classes: int, sigmoid: bool) -> Target:
        """Labels of the sampled proposals, (N, K); the last class is background."""
        (logits,) = seen.logits
        if len(logits):
            labels, weight = assigned(seen.calls('loss'), len(logits), [1], num_classes, type(self).__name__)
        else:
            # Without any proposal mmdet calls no loss.
            labels, weight = logits.new_zeros(0, num_classes, 1), logits.new_zeros(0, 1, 1)
        labels, weight = labels[:, :, 0], weight[:, :, 0]
        return Target(labels, weight, self.count(labels, weight, sigmoid), background=not seen.port.sigmoid)

    def run_teacher(self, teacher: FrozenTeacher, inputs: Tensor, data_samples: Sequence[Any], student: Observation) -> None:
        """Run the teacher's box head on the student's proposals; see :meth:`Site.run_teacher`."""
        model: Any = teacher.model
        args, kwargs = student.calls('extractor')[0]
        rois = args[1] if len(args) > 1 else kwargs['rois']
        part = self.teacher_port(model, teacher).part
        stage = part.removeprefix('roi_head.bbox_head').removeprefix('.')
        features = model.extract_feat(teacher.adapt(inputs))
        model.roi_head._bbox_forward(*([int(stage)] if stage else []), features, rois.detach())


def make_port(head: nn.Module, stage: str, classifier: str, owner: str) -> Port:
    """The port of a box head.

    Raises:
        ValueError: If the classification layer is no linear layer.
    """
    part = f'roi_head.bbox_head{stage}'
    layer: Any = find_module(head, classifier, f"{owner}'s box head")
    if not isinstance(layer, nn.Linear):
        raise ValueError(
            f"The {owner}'s classification layer '{part}.{classifier}' is expected to be linear, but it is {layer}. Name "
            "another one in the site, or distil at the neck with site=dict(type='dskd_mm.NeckSite')."
        )
    return Port(
        part=part,
        classifiers=(f'{part}.{classifier}',),
        sigmoid=bool(getattr(getattr(head, 'loss_cls', None), 'use_sigmoid', False)),
        num_classes=layer.out_features,
        features=(f'{part}.{classifier}',),
        io='input',
        channels=layer.in_features,
        is_map=False,
        calls=dict(loss=f'{part}.loss_cls', extractor=f'roi_head.bbox_roi_extractor{stage}'),
        boxes=box_encoding(head),
    )
