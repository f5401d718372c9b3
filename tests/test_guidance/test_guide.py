"""Judges of whole pyramids against the guidance and the losses of single levels."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.diffusion import FeatureAutoEncoder
from dskd_mm.features import Pyramid
from dskd_mm.functional import target_cross_entropy
from dskd_mm.guidance import ClassifierGuidance, ClassifierGuide, HeadLossGuide, TeacherClassifier
from dskd_mm.losses import DKDLoss, KDLoss
from dskd_mm.structures import Target

SIZES = [(4, 5), (2, 3), (1, 1)]
CLASSES, CHANNELS, BATCH = 3, 6, 2

# How many classifiers, whether 3x3, predictions a location, sigmoid.
KINDS = {
    'shared 1x1': (1, False, 1, False),
    'shared 3x3, anchors, sigmoid': (1, True, 2, True),
    'one a level, sigmoid': (3, False, 1, True),
    'one a level 3x3, anchors': (3, True, 3, False),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def build_classifiers(kind: str) -> list[TeacherClassifier]:
    count, wide, anchors, sigmoid = KINDS[kind]
    layers = [nn.Conv2d(CHANNELS, anchors * CLASSES, 3 if wide else 1, padding=int(wide)) for _ in range(count)]
    return [TeacherClassifier.from_layer(layer, sigmoid, anchors) for layer in layers]


def draw_target(anchors: int, focus: float = 0.0) -> Target:
    count = anchors * sum(height * width for height, width in SIZES)
    probability = torch.rand(BATCH, CLASSES, count).softmax(dim=1)
    weight = 2 * torch.rand(BATCH, 1, count) * (torch.rand(BATCH, 1, count) > 0.3)
    return Target(probability, weight, torch.tensor(5.0), focus)


def draw_packed(channels: int = CHANNELS) -> Tensor:
    return torch.randn(BATCH, channels, sum(height * width for height, width in SIZES))


def per_level(classifiers: list[TeacherClassifier]) -> list[TeacherClassifier]:
    return classifiers if len(classifiers) > 1 else classifiers * len(SIZES)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('unit', ['logit', 'gradient'])
@pytest.mark.parametrize('latent', [False, True])
def test_a_pyramid_is_guided_as_each_of_its_levels_alone(kind, unit, latent):
    classifiers, anchors = build_classifiers(kind), KINDS[kind][2]
    target, scale, pyramid = draw_target(anchors), torch.tensor(1.7), Pyramid(SIZES)
    decoder = FeatureAutoEncoder(CHANNELS, 4).decoder if latent else None
    packed = draw_packed(4 if latent else CHANNELS)
    guidance = ClassifierGuide(pyramid, classifiers, target).guidance(unit, scale, decoder)
    gradient = guidance(packed)
    assert gradient.shape == packed.shape

    location = prediction = 0
    for classifier, (height, width) in zip(per_level(classifiers), SIZES, strict=True):
        length = height * width
        level = packed[:, :, location : location + length].reshape(BATCH, -1, height, width)
        here = slice(prediction, prediction + anchors * length)
        own = Target(target.probability[:, :, here], target.weight[:, :, here])
        alone = ClassifierGuidance(classifier, own, unit, scale, decoder)
        torch.testing.assert_close(gradient[:, :, location : location + length].reshape(level.shape), alone(level))
        location, prediction = location + length, prediction + anchors * length


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('background', [False, True])
@pytest.mark.parametrize('guided_classes', [None, 1, 2, 3])
def test_guidance_by_the_gradient_is_that_of_the_summed_log_likelihood(kind, background, guided_classes):
    classifiers, (_, _, anchors, sigmoid) = build_classifiers(kind), KINDS[kind]
    target, scale, pyramid = draw_target(anchors), torch.tensor(0.6), Pyramid(SIZES)
    target.background = background
    target.probability[:, 0] = 0  # not in the batch
    guided = [0, 1, 2]
    if guided_classes == 1:
        surest = (target.weight * target.probability).transpose(0, 1).flatten(1).amax(dim=1)
        guided = [1, 2] if background else [int(surest.argmax())]
    elif guided_classes == 2 and not background:
        guided = [1, 2]
    packed = draw_packed().requires_grad_()
    guide = ClassifierGuide(pyramid, classifiers, target, guided_classes=guided_classes)
    gradient = guide.guidance('gradient', scale, None)(packed.detach())

    likelihood, prediction = torch.zeros(()), 0
    maps = (scale * packed).split([height * width for height, width in SIZES], dim=2)
    for classifier, level, (height, width) in zip(per_level(classifiers), maps, SIZES, strict=True):
        out = F.conv2d(level.reshape(BATCH, -1, height, width), classifier.weight, classifier.bias, **classifier.conv_args)
        logits = out.permute(0, 2, 3, 1).reshape(BATCH, -1, CLASSES).transpose(1, 2)[:, guided]
        q = target.probability[:, guided, prediction : prediction + logits.shape[2]]
        w = target.weight[:, :, prediction : prediction + logits.shape[2]]
        if sigmoid:
            log_p = -F.binary_cross_entropy_with_logits(logits, q, reduction='none')
        else:
            log_p = q * logits.log_softmax(dim=1)
        likelihood = likelihood + (w * log_p).sum()
        prediction += logits.shape[2]
    assert prediction == target.probability.shape[2]
    (expected,) = torch.autograd.grad(likelihood, packed)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('latent', [False, True])
def test_strength_means_the_same_whatever_classes_are_regarded(latent):
    classifier = TeacherClassifier(torch.randn(CLASSES, CHANNELS, 1, 1), torch.randn(CLASSES), sigmoid=True)
    decoder = FeatureAutoEncoder(CHANNELS, 4).decoder if latent else None
    packed, target, scale = draw_packed(4 if latent else CHANNELS), draw_target(1), torch.tensor(1.7)
    units = {}
    for count in (None, 1):
        guide = ClassifierGuide(Pyramid(SIZES), [classifier], target, guided_classes=count)
        units[count] = [guide.guidance(unit, scale, decoder)(packed) for unit in ('logit', 'gradient')]
    ratio = units[None][0].norm() / units[None][1].norm()
    torch.testing.assert_close(units[1][0], units[1][1] * ratio, rtol=1e-4, atol=1e-5)
    assert units[1][1].abs().max() > 0


def test_annotated_classes_are_guided_first_then_the_surest():
    probability = torch.zeros(2, 5, 3)
    probability[0, 4, 1] = probability[1, 2, 0] = 1  # two annotated classes, one of which the teacher does not see
    weight = torch.ones(2, 1, 3)
    weight[1, 0, 2] = 0
    teacher_logits = torch.full((2, 5, 3), -5.0)
    teacher_logits[0, 4, 1], teacher_logits[1, 1, 1], teacher_logits[1, 0, 0], teacher_logits[1, 3, 2] = (
        2.0,
        1.0,
        0.5,
        9.0,
    )  # the last is ignored
    classifier = TeacherClassifier(torch.randn(5, CHANNELS, 1, 1), None, sigmoid=True)

    def chosen(count: int) -> set[int]:
        guide = ClassifierGuide(Pyramid([(1, 3)]), [classifier], Target(probability, weight), teacher_logits, count)
        return set(guide.select_classes(guide.target).tolist())

    assert [chosen(count) for count in (1, 2, 3, 4)] == [{4}, {2, 4}, {1, 2, 4}, {0, 1, 2, 4}]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('focus', [0.0, 1.0])
def test_the_loss_is_that_of_the_predictions_at_all_levels(kind, focus):
    classifiers, (_, _, anchors, sigmoid) = build_classifiers(kind), KINDS[kind]
    target, pyramid = draw_target(anchors, focus), Pyramid(SIZES)
    packed = draw_packed().requires_grad_()
    maps = pyramid.unpack(packed)
    logits = torch.cat([c(level).flatten(2) for c, level in zip(per_level(classifiers), maps, strict=True)], dim=2)
    expected = target_cross_entropy(logits, target, sigmoid)
    guide = ClassifierGuide(pyramid, classifiers, target)
    loss, prediction = guide.loss(packed, None)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(prediction.flatten(2), logits.flatten(2))
    loss.backward()
    assert packed.grad.abs().max() > 0


@pytest.mark.parametrize('sigmoid', [False, True])
def test_the_teachers_logits_take_the_place_of_the_annotations_and_keeps_their_weights(sigmoid):
    classifier = TeacherClassifier(torch.randn(CLASSES, CHANNELS, 1, 1), torch.randn(CLASSES), sigmoid)
    label, teacher_logits, pyramid, packed = draw_target(1, focus=1.0), draw_packed(CLASSES), Pyramid(SIZES), draw_packed()
    guide = ClassifierGuide(pyramid, [classifier], label, teacher_logits)

    def soft(temperature: float) -> Target:
        p = (teacher_logits / temperature).sigmoid() if sigmoid else (teacher_logits / temperature).softmax(dim=1)
        return Target(p, label.weight, label.avg_factor, label.focus)

    logits = F.conv1d(packed, classifier.weight[..., 0], classifier.bias)
    loss, prediction = guide.loss(packed, KDLoss(3.0))
    torch.testing.assert_close(loss, target_cross_entropy(logits, soft(3.0), sigmoid, 3.0))
    torch.testing.assert_close(prediction, logits)
    # Guidance aims at what the teacher thinks, not at a softened version.
    expected = ClassifierGuide(pyramid, [classifier], soft(1.0)).guidance('logit', torch.ones(()), None)(packed)
    torch.testing.assert_close(guide.guidance('logit', torch.ones(()), None)(packed), expected)


@pytest.mark.parametrize('imitation', [KDLoss(2.0), DKDLoss(temperature=2.0)])
def test_an_teacher_logits_at_every_location_is_compared_with_the_image_s_label_there(imitation):
    classifier = TeacherClassifier(torch.randn(CLASSES, CHANNELS, 1, 1), torch.randn(CLASSES))
    labels, weight, packed = torch.tensor([2, 0]), torch.tensor([[0.5], [1.5]]), draw_packed()[..., :12]
    teacher_logits = torch.randn(BATCH, CLASSES, 12)
    guide = ClassifierGuide(Pyramid([(3, 4)]), [classifier], Target(torch.eye(CLASSES)[labels], weight), teacher_logits)
    loss, logits = guide.loss(packed, imitation)
    each = [
        weight[i, 0]
        * imitation(logits[i : i + 1, :, m], teacher_logits[i : i + 1, :, m], Target(torch.eye(CLASSES)[labels[i]][None]))
        for i in range(BATCH)
        for m in range(12)
    ]
    torch.testing.assert_close(loss, sum(each) / (12 * weight.sum()))


@pytest.mark.parametrize('size', [(1, 1), (3, 4)])
def test_images_of_a_linear_classifier_are_a_pyramid_of_one_level(size):
    classifier, target = TeacherClassifier(torch.randn(CLASSES, CHANNELS)), Target(torch.eye(CLASSES)[:BATCH])
    feature, scale = torch.randn(BATCH, CHANNELS, *size), torch.tensor(2.0)
    guide = ClassifierGuide(Pyramid([size]), [classifier], target)
    expected = target_cross_entropy(classifier(feature), target)
    torch.testing.assert_close(guide.loss(feature.flatten(2), None)[0], expected)
    for unit in ('logit', 'gradient'):
        alone = ClassifierGuidance(classifier, target, unit, scale)(feature)
        torch.testing.assert_close(guide.guidance(unit, scale, None)(feature.flatten(2)), alone.flatten(2))


class Head(nn.Module):
    """Something like a detector's head: all levels go into one loss, a mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(CHANNELS, 4, 3, padding=1)

    def of_images(self, maps: list[Tensor]) -> Tensor:
        """(B, ): no loss of its own for an image depends on another one."""
        levels = [self.layer(level).tanh().flatten(1) for level in maps]
        return torch.cat(levels, dim=1).logsumexp(dim=1) + sum(level.square().mean(dim=1) for level in levels)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.of_images(maps).mean()


@pytest.mark.parametrize('latent', [False, True])
@pytest.mark.parametrize('under', [torch.no_grad, torch.enable_grad])
def test_a_head_guides_each_image_by_the_gradient_of_its_own_loss(latent, under):
    head, pyramid, scale = Head(), Pyramid(SIZES), torch.tensor(1.4)
    decoder = FeatureAutoEncoder(CHANNELS, 4).decoder if latent else None
    packed = draw_packed(4 if latent else CHANNELS)
    with under():
        gradient = HeadLossGuide(pyramid, head).guidance('gradient', scale, decoder)(packed)
    assert not gradient.requires_grad

    leaf = packed.clone().requires_grad_()
    feature = scale * leaf
    if latent:
        feature = F.conv1d(feature, decoder.weight[..., 0], decoder.bias)
    for i in range(BATCH):
        (own,) = torch.autograd.grad(head.of_images(pyramid.unpack(feature))[i], leaf, retain_graph=True)
        torch.testing.assert_close(gradient[i], -own[i])
    assert all(p.grad is None for p in head.parameters())


def test_a_head_guides_by_one_standard_deviation_in_the_unit_of_logits():
    """The same direction for each image, and the same size whatever the loss's."""
    packed, scale = draw_packed(), torch.tensor(1.4)
    for factor in (1.0, 1e4, 1e-4):
        head = Head()
        guide = HeadLossGuide(Pyramid(SIZES), lambda maps, head=head, factor=factor: factor * head(maps))
        plain, guidance = guide.guidance('gradient', scale, None)(packed), guide.guidance('logit', scale, None)(packed)
        root_mean_square = guidance.square().mean(dim=(1, 2)).sqrt()
        torch.testing.assert_close(root_mean_square, torch.ones(BATCH))
        cosine = F.cosine_similarity(guidance.flatten(1), plain.flatten(1))
        torch.testing.assert_close(cosine, torch.ones(BATCH))


@pytest.mark.parametrize('factor', [0.0, 1e-25, 1e-40])
def test_a_head_that_hardly_minds_does_not_throw_features_about(factor):
    """The squares of such gradients are 0 in float32; to divide by their root would be to divide by nothing."""
    guide = HeadLossGuide(Pyramid(SIZES), lambda maps: factor * Head()(maps))
    guidance = guide.guidance('logit', torch.ones(()), None)(draw_packed())
    assert torch.isfinite(guidance).all()
    assert guidance.square().mean(dim=(1, 2)).sqrt().max() <= 1.001


def test_the_loss_of_a_head_trains_the_features():
    head, packed = Head(), draw_packed().requires_grad_()
    pyramid = Pyramid(SIZES)
    loss, prediction = HeadLossGuide(pyramid, head).loss(packed, None)
    torch.testing.assert_close(loss, head(pyramid.unpack(packed)))
    assert prediction is None
    loss.backward()
    assert packed.grad.abs().max() > 0
