"""A student and a teacher that are plain modules, made into one module that returns the loss of a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import Tensor, nn

from dskd_mm.distillers import Distiller
from dskd_mm.pytorch.network import PART, NetworkClassifier, NetworkSite, NetworkTeacher, to_samples
from dskd_mm.pytorch.probe import Anatomy, examine
from dskd_mm.registry import MODELS
from dskd_mm.utils.methods import PAIR_KEYS, apply_method


def distil(
    student: nn.Module,
    teacher: nn.Module | Sequence[nn.Module],
    classifier: str | None = None,
    method: str = 'dskd',
    *,
    teacher_classifier: str | None = None,
    feature: str | None = None,
    teacher_feature: str | None = None,
    criterion: nn.Module | None = None,
    image_size: int | None = None,
    layers: dict[str, tuple[str, str]] | None = None,
    **options: Any,
) -> 'NetworkDistiller':
    """Make a module that returns the loss of a student which learns from labels and from a teacher.

    The student is trained in place and stays what it is. The teacher is frozen, put into evaluation mode, and brought
    to the student's device and to float32. Both get the same preprocessed images: what the teacher needs beside (its own
    normalisation, another size) stands before it in an ``nn.Sequential``.

    Args:
        student (nn.Module): A classifier of images: torchvision's, timm's, transformers' or your own.
        teacher (nn.Module | Sequence[nn.Module]): A trained classifier of the same classes. Of several the class probabilities
            are averaged, and the first is the teacher in all else.
        classifier (str, optional): Path of the student's last linear layer, such as 'fc'. Defaults to None: the one whose
            output the student returns.
        method (str): 'dskd', a name in ``configs/methods`` or the path of such a file. Defaults to 'dskd'.
        teacher_classifier (str, optional): Path of the teacher's last linear layer. Defaults to None: found likewise, as those
            of several teachers are that have no such layer.
        feature (str, optional): Path of the module whose output, maps (B, C, H, W), is the student's feature. Defaults to
            None: the map whose average enters the classifier, or the classifier's input.
        teacher_feature (str, optional): The same of the teacher; of as many channels as its classifier takes.
        criterion (nn.Module, optional): The student's own loss, of logits and labels. ``nn.BCEWithLogitsLoss`` means that
            classes are independent. Defaults to None: cross-entropy.
        image_size (int, optional): Height and width of the random images that show where a network classifies. Defaults to
            None: 64, then the size that the network names, or 224.
        layers (dict[str, tuple[str, str]], optional): Further maps that losses read, by a name of your own: a path in the
            student and one in the teacher. Defaults to None; methods that compare stages get the last module at each
            resolution.
        options: Arguments of the method's distiller, such as ``distill_losses`` and ``loss_weights``; put over the method's.

    Returns:
        NetworkDistiller: The module.

    Raises:
        TypeError: If a model is no plain module, the student is not in float32, or an option is not known.
        ValueError: If a classifier is not found, or the two do not fit each other.
    """
    teachers: list[Any] = list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]
    check_networks(student, teachers)
    ours = examine(student, classifier, feature, image_size, 'student')
    named = [teacher_classifier, *(teacher_classifier if has(one, teacher_classifier) else None for one in teachers[1:])]
    all_theirs = [
        examine(one, name, teacher_feature if one is teachers[0] else None, image_size, 'teacher')
        for one, name in zip(teachers, named, strict=True)
    ]
    theirs = all_theirs[0]
    if theirs.feature is not None and theirs.channels[theirs.feature] != theirs.in_channels:
        raise ValueError(
            f'teacher_feature {theirs.feature!r} has {theirs.channels[theirs.feature]} channels, but the classifier '
            f'{theirs.classifier!r}, which guides in its space, takes {theirs.in_channels}.'
        )
    model = method_settings(method, type(student).__name__, options)
    if layers is not None:
        model['layers'] = layer_pairs(layers, ours, theirs)
    elif 'layers' in model:
        model |= at_stages(model, ours, theirs, options.get('distill_losses') or {})
    device = next(student.parameters()).device
    own = NetworkClassifier(student, ours, criterion)
    frozen = [NetworkTeacher(one.to(device, torch.float32), where) for one, where in zip(teachers, all_theirs, strict=True)]
    site = NetworkSite(isinstance(criterion, nn.BCEWithLogitsLoss), **model.pop('site', {}))
    cls: Any = MODELS.get(model.pop('type'))
    distiller = cls(student=own, teacher=frozen, site=site, **model).to(device)
    distiller.load_teacher()
    return NetworkDistiller(distiller)


class NetworkDistiller(nn.Module):
    """Returns the loss of a batch; what :func:`distil` makes.

    Its parameters are the student's and those that only training needs. Its state dict, for checkpoints, holds both; the
    teacher is in neither.

    Args:
        distiller (Distiller): Of a :class:`NetworkClassifier`, with its teacher loaded.

    Attributes:
        log (dict[str, Tensor]): Of the last batch: the losses, and figures that tell whether distillation is healthy; see
            docs/en/log.md.
    """

    def __init__(self, distiller: Distiller) -> None:
        super().__init__()
        self.distiller = distiller
        self.log: dict[str, Tensor] = {}

    @property
    def student(self) -> nn.Module:
        """The student: the very module that :func:`distil` was given."""
        return self.distiller.student.network

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the total loss of a batch, a scalar to call ``backward`` of.

        Args:
            images (Tensor): Preprocessed images, (B, C, H, W), on the student's device.
            labels (Tensor): Class numbers (B, ); or scores (B, K): soft labels, or 0 and 1 of independent classes.

        Raises:
            ValueError: If labels are of another shape or type, or outside of the classes.
        """
        samples = to_samples(labels, self.distiller.student_spec.sigmoid)
        total, log = self.distiller.parse_losses(self.distiller(images, samples, mode='loss'))
        self.log = {name: value.detach() for name, value in log.items()}
        return total


def has(network: nn.Module, path: str | None) -> bool:
    """Return whether a network has a module of a path."""
    return path in dict(network.named_modules())


def check_networks(student: Any, teachers: Sequence[Any]) -> None:
    """Refuse what are no plain modules.

    Raises:
        TypeError: If one is no module, or a model of a host library, or the student is not in float32.
        ValueError: If they share weights.
    """
    for owner, network in (('student', student), *(('teacher', teacher) for teacher in teachers or [None])):
        if not isinstance(network, nn.Module) or isinstance(network, BaseModel):
            raise TypeError(
                f'The {owner} is expected to be an nn.Module that returns logits, but got a {type(network).__name__}. Models '
                'of mmpretrain, mmdet and mmseg are distilled by a config: `dskd distill`.'
            )
    types = {parameter.dtype for parameter in student.parameters()} - {torch.float32}
    if types:
        raise TypeError(
            f"The student's weights are expected in float32, but are in {', '.join(map(str, types))}: call student.float(), "
            'and train under torch.autocast for less.'
        )
    frozen = {id(parameter) for teacher in teachers for parameter in teacher.parameters()}
    if frozen & {id(parameter) for parameter in student.parameters()}:
        raise ValueError('Student and teacher share weights, and the teacher is frozen: pass copy.deepcopy(student) as it.')


def method_settings(method: str, student: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a method for images, with options put over them; see :func:`apply_method`."""
    model = dict(type='dskd_mm.DSKDDistiller', student=dict(type=student), teacher={})
    cfg = Config(dict(default_scope='mmpretrain', model=model))
    cfg = cfg if method == 'dskd' else apply_method(cfg, method)
    cfg.merge_from_dict(dict(model=options))
    return {key: value for key, value in cfg.model.items() if key not in PAIR_KEYS}


def layer_pairs(layers: dict[str, tuple[str, str]], student: Anatomy, teacher: Anatomy) -> dict[str, dict]:
    """Return layers as distillers take them: the paths within the network, with their channels.

    Raises:
        ValueError: If a module gives out no maps.
    """
    found: dict[str, dict] = {}
    for name, paths in layers.items():
        found[name] = {}
        for owner, path, anatomy in zip(('student', 'teacher'), paths, (student, teacher), strict=True):
            if path not in anatomy.channels:
                raise ValueError(
                    f'layers.{name}: the {owner} has no module {path!r} that gives out maps; these do: '
                    f'{list(anatomy.channels)}.'
                )
            found[name][owner] = dict(path=f'{PART}.{path}', channels=anatomy.channels[path])
    return found


def at_stages(model: dict[str, Any], student: Anatomy, teacher: Anatomy, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the layers and losses of a method that compares stages, for as many as both networks have.

    Args:
        model (dict): The method's settings, whose layers are those of a ResNet.
        student (Anatomy): The student's stages.
        teacher (Anatomy): The teacher's.

    Raises:
        ValueError: If there is none.
    """
    count = min(len(model['layers']), len(student.stages), len(teacher.stages))
    if not count:
        raise ValueError(
            'The method compares maps of stages, and a network shows none: take another method, or name '
            'layers=dict(stage1=(..., ...)).'
        )
    pairs = zip(student.stages[-count:], teacher.stages[-count:], strict=True)
    layers = layer_pairs({f'stage{i + 1}': pair for i, pair in enumerate(pairs)}, student, teacher)
    changed: dict[str, Any] = dict(layers=layers)
    losses = model.get('distill_losses')
    if losses:
        known = {*layers, 'feature', 'logits'}
        changed['distill_losses'] = {
            name: loss for name, loss in losses.items() if name in own or loss.get('on', 'feature') in known
        }
    return changed
