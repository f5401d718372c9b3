"""Image classification: the input of the last linear layer, before pooling where there is pooling."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from dskd_mm.features import find_module
from dskd_mm.guidance.classifier import computes_as
from dskd_mm.registry import MODELS
from dskd_mm.sites.annotations import check_annotated
from dskd_mm.sites.base import Site
from dskd_mm.sites.logits_layer import LogitsLayer, find_logits_layer, is_linear
from dskd_mm.structures import TapRecord, TapSpec, Target
from dskd_mm.teacher import FrozenTeacher

AS_IMAGE_CLASSIFIER = (
    "dict(type='mmpretrain.ImageClassifier', backbone=dict(type='mmpretrain.TIMMBackbone', model_name='resnet18'), "
    "neck=dict(type='mmpretrain.GlobalAveragePooling'), head=dict(type='mmpretrain.LinearClsHead', num_classes=10, "
    'in_channels=512))'
)
"""How a network of timm, or any other backbone, becomes a model that can be distilled."""


@MODELS.register_module()
class ClassificationSite(Site):
    """The site of mmpretrain's classifiers: ``ImageClassifier``, ``TimmClassifier``, ``HuggingFaceClassifier``.

    The classifier is the head's only plain linear layer with one output per class (the last linear of a stacked head). The
    feature is the map that global average pooling reduces, if the pooled map is what enters the classifier; otherwise (hidden
    layers between, class token or averaged tokens of a transformer) the classifier's own input, a vector.
    Of heads that average or add two linear layers (DeiT, EfficientFormer, LeViT, Conformer) the one that you name guides, and
    losses read what the head returns.

    A model without a head holds a whole network as ``model``, of timm, transformers or any other library. Its classifier is the
    linear layer, or 1x1 convolution of a pooled map, whose output the network returns as it is; a pass on the meta device finds
    it, and the average pooling before it. So is that of a backbone that classifies by itself, behind which the head has only a
    loss: VGG, AlexNet, LeNet, Inception v3. Where logits are made of more (two layers averaged, a maximum of locations) the
    layer that you name guides, and losses read what the network returns.

    Args:
        classifier (str, optional): Path of the student's classification layer. None finds it. Defaults to None.
        teacher_classifier (str, optional): The same of the teacher. Defaults to None.
        feature (dict, optional): Another tap of the student: ``dict(path=..., channels=..., io=..., index=...)`` as in
            :class:`~dskd_mm.features.FeatureTap`; it should yield maps (B, C, H, W). Defaults to None.
        teacher_feature (dict, optional): Another tap of the teacher, of as many channels as its classifier takes; it is used
            when the teacher runs. Defaults to None.
        dense (bool): Whether every location of a map is hashed instead of its average. Defaults to False.
    """

    task = 'classification'
    norm = 'BN'
    part = 'head'
    network = 'model'
    """What a model without a head holds: a whole network of another library."""

    def __init__(
        self,
        classifier: str | None = None,
        teacher_classifier: str | None = None,
        feature: dict | None = None,
        teacher_feature: dict | None = None,
        dense: bool = False,
    ) -> None:
        self.classifier = classifier
        self.teacher_classifier = teacher_classifier
        self.feature = feature
        self.teacher_feature = teacher_feature
        self.dense = dense

    def student_spec(self, model: nn.Module) -> TapSpec:
        """See :meth:`Site.student_spec`."""
        return self._spec(model, self.classifier, self.feature, 'student')

    def teacher_spec(self, model: nn.Module | None, teacher: FrozenTeacher) -> TapSpec:
        """See :meth:`Site.teacher_spec`."""
        if model is None and any(key.endswith('head') for key in teacher.config):  # one by another name is for another task
            head = teacher.build_part(self.part)
            if not is_bare(head):
                return self._head_spec(None, head, self.teacher_classifier, self.teacher_feature, 'teacher')
        model = teacher.build_model() if model is None else model
        return self._spec(model, self.teacher_classifier, self.teacher_feature, 'teacher')

    def _spec(self, model: nn.Module, classifier: str | None, feature: dict | None, owner: str) -> TapSpec:
        head, network, backbone = (getattr(model, name, None) for name in (self.part, self.network, 'backbone'))
        if isinstance(head, nn.Module) and isinstance(backbone, nn.Module) and is_bare(head):
            return self._network_spec(model, 'backbone', is_multi_label(head), classifier, feature, owner)
        if isinstance(head, nn.Module):
            return self._head_spec(model, head, classifier, feature, owner)
        if isinstance(network, nn.Module):
            return self._network_spec(model, self.network, is_multi_label(model), classifier, feature, owner)
        raise ValueError(
            f'The {owner} ({type(model).__name__}) has no {self.part}, and no {self.network} that is a network, so there is '
            f'no classifier to distil for. Give its network as the backbone of a model that has one: {AS_IMAGE_CLASSIFIER}.'
        )

    def _head_spec(
        self, model: nn.Module | None, head: nn.Module, classifier: str | None, feature: dict | None, owner: str
    ) -> TapSpec:
        """Return where a model of backbone and head is tapped; without the model only its classifier is known."""
        tasks: Any = getattr(head, 'task_heads', None)
        if tasks is not None:
            raise ValueError(
                f"The {owner}'s head ({type(head).__name__}) has the tasks {list(tasks)}, each with classes and annotations of "
                'its own, where one classifier is expected.'
            )
        if classifier is None:
            classifier = f'{self.part}.{find_classifier(head, owner)}'
        layer: Any = find_module(head, classifier.removeprefix(f'{self.part}.'), f"{owner}'s head")
        spec = linear_spec(self.part, classifier, layer, is_multi_label(head), owner)
        if has_other_linears(head, layer):
            spec.logits_of = self.part
        if feature is not None:
            tap_feature(spec, feature, owner)
        elif model is not None and pools_into(model, layer):
            spec.features, spec.is_map, spec.is_pooled = ('neck',), True, True
        return spec

    def _network_spec(
        self, model: nn.Module, part: str, sigmoid: bool, classifier: str | None, feature: dict | None, owner: str
    ) -> TapSpec:
        """Return where a model is tapped of which one part is a whole network that returns logits."""
        network = model.get_submodule(part)
        found = LogitsLayer(classifier) if classifier else find_logits_layer(network, f'{part}.', owner)
        layer: Any = find_module(model, found.path, owner)
        is_convolution = is_linear(layer) and not isinstance(layer, nn.Linear)
        spec = linear_spec('', found.path, layer, sigmoid, owner, is_convolution)
        if classifier or is_convolution:
            spec.logits_of, spec.is_map = part, is_convolution
        if feature is not None:
            tap_feature(spec, feature, owner)
        elif found.pooling:
            spec.features, spec.is_map, spec.is_pooled = (found.pooling,), True, True
        return spec

    def check(self, data_samples: Sequence[Any], spec: TapSpec) -> None:
        """Check labels on the CPU; those on an accelerator are not read back, which would make it wait.

        Raises:
            ValueError: If a label lies outside the classes, or a score has another length.
        """
        num_classes = spec.num_labels
        check_annotated(data_samples, 'gt_label', 'gt_score')
        for i, sample in enumerate(data_samples):
            if 'gt_score' in sample:
                if sample.gt_score.shape[-1] != num_classes:
                    raise ValueError(
                        f'Sample {i} has a gt_score over {sample.gt_score.shape[-1]} classes, but the teacher knows '
                        f'{num_classes}: set num_classes of the data preprocessor to the number of classes.'
                    )
                continue
            check_annotated([sample], 'gt_label')
            label = sample.gt_label
            if label.device.type == 'cpu' and bool(((label < 0) | (label >= num_classes)).any()):
                raise ValueError(
                    f'Sample {i} ({sample.get("img_path", "image in memory")}) has the label {label.tolist()}, but the '
                    f'teacher knows the classes 0 to {num_classes - 1}: correct the annotations or num_classes.'
                )

    def target(self, record: TapRecord, data_samples: Sequence[Any], num_classes: int, sigmoid: bool) -> Target:
        """Return labels as (B, K): one-hot, the soft labels of Mixup and CutMix, or multi-hot for independent classes."""
        return label_target(data_samples, num_classes, record.logits[0].device)

    def hash_vectors(
        self, tensors: Sequence[Tensor], target: Target | None, generator: torch.Generator
    ) -> tuple[list[Tensor], Tensor | None]:
        """Return one vector per image, the average of the map; with ``dense`` one per location."""
        if self.dense:
            return [tensor.transpose(1, 2).flatten(0, 1) for tensor in tensors], None
        return [tensor.mean(dim=2) for tensor in tensors], None


def linear_spec(part: str, classifier: str, layer: Any, sigmoid: bool, owner: str, is_convolution: bool = False) -> TapSpec:
    """Return where a model is tapped whose classifier is a linear layer, or a 1x1 convolution of a pooled map.

    Raises:
        ValueError: If the classifier is of another kind.
    """
    weight = getattr(layer, 'weight', None)
    if not isinstance(weight, Tensor) or weight.ndim != (4 if is_convolution else 2):
        raise ValueError(
            f"The {owner}'s classification layer {classifier!r} is expected to be a linear layer, but it is {layer}. "
            'Name another one in the site.'
        )
    return TapSpec(
        part=part,
        classifiers=(classifier,),
        sigmoid=sigmoid,
        num_classes=int(weight.shape[0]),
        features=(classifier,),
        io='input',
        channels=int(weight.shape[1]),
        is_map=False,
        num_labels=int(weight.shape[0]),
    )


def tap_feature(spec: TapSpec, feature: Mapping[str, Any], owner: str) -> None:
    """Let a spec have the feature that a site's argument names.

    Raises:
        ValueError: If its arguments are wrong, or a teacher's has other channels than its classifier takes.
    """
    unknown = set(feature) - {'path', 'io', 'index', 'channels'}
    if unknown or 'path' not in feature or 'channels' not in feature:
        raise ValueError(
            f'A feature of the {owner} expects dict(path=..., channels=..., io=..., index=...), but got {feature!r}.'
        )
    if feature.get('index') == 'all':
        raise ValueError(
            f"The classifier of images is guided at one map, but the index of the {owner}'s feature is 'all': give the "
            'number of one.'
        )
    if owner == 'teacher' and feature['channels'] != spec.channels:
        raise ValueError(
            f"The teacher's feature {feature['path']!r} has {feature['channels']} channels, but its classifier "
            f'{spec.classifiers[0]!r}, which guides in the space of that feature, takes {spec.channels}.'
        )
    spec.features, spec.channels, spec.is_map = (feature['path'],), feature['channels'], True
    spec.io, spec.index = feature.get('io', 'output'), feature.get('index')


def label_target(data_samples: Sequence[Any], num_classes: int, device: torch.device) -> Target:
    """Return the annotations of images as a distribution (B, K)."""
    if 'gt_score' in data_samples[0]:
        return Target(torch.stack([sample.gt_score for sample in data_samples]).float().to(device))
    classes = torch.arange(num_classes, device=device)
    # All images at once, or there would be hundreds of small operations. A sample may have several labels, or none.
    labels = pad_sequence([sample.gt_label for sample in data_samples], batch_first=True, padding_value=-1)
    # Comparison instead of one_hot: that reads the labels back from the device.
    return Target((labels.to(device)[:, :, None] == classes).any(dim=1).float())


def find_classifier(head: nn.Module, owner: str) -> str:
    """Return the path, in a head, of its only plain linear layer with one output per class.

    Raises:
        ValueError: If there is none, or several.
    """
    num_classes = getattr(head, 'num_classes', None)
    linears = {name: layer for name, layer in head.named_modules() if computes_as(layer, nn.Linear)}
    found = [name for name, layer in linears.items() if num_classes in (None, layer.out_features)]
    if num_classes is None:  # ViG does not tell: a layer that leads to another is hidden
        found = [name for name in found if all(linears[name].out_features != linears[other].in_features for other in found)]
    if len(found) == 1:
        return found[0]
    argument = 'teacher_classifier' if owner == 'teacher' else 'classifier'
    mend = f"Name the classification layer with site=dict({argument}='head....')."
    if found:
        problem = f'it has {len(found)} of them: {found}'
    elif linears:
        problem = f'it has only the linear layers {list(linears)}'
    else:
        problem, mend = 'it has no linear layer', 'Take one that ends in such a layer, as LinearClsHead does.'
    raise ValueError(
        f"The {owner}'s head ({type(head).__name__}) is expected to hold one plain linear layer with {num_classes} outputs, "
        f'but {problem}. {mend}'
    )


def is_bare(head: nn.Module) -> bool:
    """Return whether a head has only a loss, so that the backbone before it classifies."""
    return next(head.parameters(), None) is None


def has_other_linears(head: nn.Module, classifier: nn.Module) -> bool:
    """Return whether a head holds more linear layers of the classifier's shape: DeiT and EfficientFormer average two."""
    outputs = [module.out_features for module in head.modules() if computes_as(module, nn.Linear)]
    return outputs.count(len(classifier.weight)) > 1  # type: ignore[arg-type]


def is_multi_label(head: nn.Module) -> bool:
    """Return whether a head's classes are independent, by its loss or its family."""
    loss = getattr(head, 'loss_module', None)
    # Label smoothing holds its cross-entropy, and the switch, in an attribute.
    uses_sigmoid = any(getattr(part, 'use_sigmoid', False) for part in (loss, getattr(loss, 'ce', None)))
    return uses_sigmoid or any(cls.__name__ == 'MultiLabelClsHead' for cls in type(head).__mro__)


def pools_into(model: nn.Module, classifier: nn.Module) -> bool:
    """Return whether the model's neck is global average pooling and its result enters the classifier with nothing between."""
    neck, head = getattr(model, 'neck', None), model.get_submodule('head')
    is_pooling = any(cls.__name__ == 'GlobalAveragePooling' for cls in type(neck).__mro__)
    is_pooling &= not isinstance(getattr(neck, 'gap', None), nn.AdaptiveAvgPool1d)  # of MLP-Mixer's tokens, which are no map
    return is_pooling and all(module in (head, classifier) or not has_own_parameters(module) for module in head.modules())


def has_own_parameters(module: nn.Module) -> bool:
    """Return whether a module itself, not a child, holds parameters."""
    return any(True for _ in module.parameters(recurse=False))
