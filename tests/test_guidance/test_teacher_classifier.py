"""The closed-form gradient of a linear classifier against autograd, its losses against scipy."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import special
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.features.pyramid import fold_priors, unfold_priors
from dskd_mm.functional import target_cross_entropy
from dskd_mm.guidance import TeacherClassifier
from dskd_mm.structures import Target

# Derandomised: the same examples in every run.
random_shapes = settings(derandomize=True, deadline=None, max_examples=60)


def log_likelihood(logits: Tensor, target: Tensor, sigmoid: bool) -> Tensor:
    """sum_k q_k log p_k from the definitions of softmax and sigmoid."""
    if sigmoid:
        p = 1 / (1 + torch.exp(-logits))
        return target * torch.log(p) + (1 - target) * torch.log(1 - p)
    p = torch.exp(logits) / torch.exp(logits).sum(dim=1, keepdim=True)
    return target * torch.log(p)


def autograd_gradient(layer, x: Tensor, target: Tensor, weight: Tensor | None, sigmoid: bool):
    """Gradient by x of the weighted log-likelihood of ``layer``, a function of x."""
    leaf = x.clone().requires_grad_()
    likelihood = log_likelihood(layer(leaf), target, sigmoid)
    if weight is not None:
        likelihood = likelihood * weight
    return torch.autograd.grad(likelihood.sum(), leaf)[0]


def draw_target(kind: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """A target of the shape of logits (B, K, ...)."""
    classes = like.shape[1]
    values = torch.rand(like.shape, generator=generator, dtype=torch.float64)
    if kind == 'one_hot':
        index = values.argmax(dim=1)
        return F.one_hot(index, classes).movedim(-1, 1).double()
    if kind == 'soft':
        return values / values.sum(dim=1, keepdim=True)
    return values  # 'free': sums to anything


def draw_weight(kind: str, like: Tensor, generator: torch.Generator) -> Tensor | None:
    """A weight of the shape of logits with one channel: None, a mask or real numbers."""
    values = torch.rand(like[:, :1].shape, generator=generator, dtype=torch.float64)
    return {'none': None, 'mask': (values > 0.5).double(), 'real': 2 * values}[kind]


targets = st.sampled_from(['one_hot', 'soft', 'free'])
weights = st.sampled_from(['none', 'mask', 'real'])


@random_shapes
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 6),
    classes=st.integers(1, 6),
    size=st.none() | st.tuples(st.integers(1, 5), st.integers(1, 5)),
    bias=st.booleans(),
    sigmoid=st.booleans(),
    target=targets,
    weight=weights,
    seed=st.integers(0, 2**16),
)
def test_gradient_of_pooled_linear_classifier_is_autograds(batch, channels, classes, size, bias, sigmoid, target, weight, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(classes, channels, generator=generator)
    offset = torch.randn(classes, generator=generator) if bias else None
    x = torch.randn(batch, channels, *(size or ()), generator=generator, dtype=torch.float64)

    def layer(value: Tensor) -> Tensor:
        value = value if size is None else value.flatten(2).mean(dim=2)
        return value @ matrix.double().T + (0 if offset is None else offset.double())

    logits = layer(x)
    q, w = draw_target(target, logits, generator), draw_weight(weight, logits, generator)
    classifier = TeacherClassifier(matrix, offset, sigmoid)
    gradient = classifier.gradient(x, q, w)
    assert gradient.shape == x.shape
    expected = autograd_gradient(layer, x, q, w, sigmoid)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(classifier(x), logits, rtol=1e-10, atol=1e-10)


@random_shapes
@given(
    batch=st.integers(1, 2),
    channels=st.integers(1, 4),
    classes=st.integers(1, 4),
    size=st.tuples(st.integers(3, 8), st.integers(3, 8)),
    kernel=st.sampled_from([(1, 1), (3, 3), (1, 3)]),
    stride=st.sampled_from([1, 2, (2, 1)]),
    padding=st.sampled_from([0, 1, (0, 1)]),
    dilation=st.sampled_from([1, 2]),
    anchors=st.integers(1, 3),
    packed=st.booleans(),
    bias=st.booleans(),
    sigmoid=st.booleans(),
    target=targets,
    weight=weights,
    seed=st.integers(0, 2**16),
)
def test_gradient_of_conv_classifier_is_autograds(
    batch, channels, classes, size, kernel, stride, padding, dilation, anchors, packed, bias, sigmoid, target,
    weight, seed,
):  # fmt: skip
    """Also with several predictions at each location, in mmdet's order; targets as maps or with their locations in a row."""
    pads = padding if isinstance(padding, tuple) else (padding, padding)
    spans = [dilation * (k - 1) + 1 for k in kernel]
    assume(all(n + 2 * p >= span for n, p, span in zip(size, pads, spans, strict=True)))
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Conv2d(channels, anchors * classes, kernel, stride, padding, dilation, bias=bias)
    classifier = TeacherClassifier.from_layer(layer, sigmoid, anchors)
    layer.double()
    x = torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64)
    shape = classifier(x).shape
    assert shape[:2] == (batch, classifier.num_classes) == (batch, classes)

    def predictions(value: Tensor) -> Tensor:
        return layer(value).permute(0, 2, 3, 1).reshape(batch, -1, classes).transpose(1, 2)

    logits = predictions(x).detach()
    torch.testing.assert_close(classifier(x).flatten(2), logits, rtol=1e-10, atol=1e-10)
    q, w = draw_target(target, logits, generator), draw_weight(weight, logits, generator)
    maps = (q, w) if packed else (q.reshape(shape), None if w is None else w.reshape(batch, 1, *shape[2:]))
    gradient = classifier.gradient(x, *maps)
    assert gradient.shape == x.shape
    expected = autograd_gradient(predictions, x, q, w, sigmoid)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)
    likelihood = log_likelihood(logits, q, sigmoid) * (1 if w is None else w)
    own = classifier.log_prob(x, q.reshape(shape), None if w is None else w.reshape(batch, 1, *shape[2:]))
    torch.testing.assert_close(own, likelihood.sum(dim=(1, 2)), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize('anchors', [1, 2, 3])
@pytest.mark.parametrize('size', [(1, 1), (3, 4)])
def test_predictions_are_in_the_order_of_mmdets_losses(anchors, size):
    """mmdet flattens (B, A*K, H, W) by permute(0, 2, 3, 1).reshape(B, -1, K)."""
    logits = torch.randn(2, anchors * 5, *size)
    folded = fold_priors(logits, anchors)
    assert folded.shape == ((2, 5, *size) if anchors == 1 else (2, 5, *size, anchors))
    flat = logits.permute(0, 2, 3, 1).reshape(2, -1, 5)
    assert torch.equal(folded.flatten(2), flat.transpose(1, 2))
    assert torch.equal(unfold_priors(folded, anchors), logits)


def test_several_anchors_are_several_classifiers():
    torch.manual_seed(0)
    weight, bias = torch.randn(3, 5, 4, 1, 1), torch.randn(3, 5)
    classifier = TeacherClassifier(weight.flatten(0, 1), bias.flatten(), num_priors=3)
    each = [TeacherClassifier(weight[a], bias[a]) for a in range(3)]
    x = torch.randn(2, 4, 3, 3)
    logits = torch.stack([single(x) for single in each], dim=4)
    torch.testing.assert_close(classifier(x), logits)
    q = torch.rand_like(logits)
    expected = sum(single.gradient(x, q[..., a]) for a, single in enumerate(each))
    torch.testing.assert_close(classifier.gradient(x, q), expected)
    torch.testing.assert_close(classifier.logit_gain(), torch.stack([single.logit_gain() for single in each]).mean())
    assert (classifier.num_classes, classifier.weight.shape[1], classifier.is_dense) == (5, 4, True)
    torch.testing.assert_close(classifier.predict(logits).sum(dim=1), torch.ones(2, 3, 3, 3))


@pytest.mark.parametrize(('shape', 'anchors'), [((10, 4, 1, 1), 3), ((9, 4), 3)], ids=['indivisible', 'linear'])
def test_outputs_that_are_not_of_so_many_anchors_are_refused(shape, anchors):
    with pytest.raises(ValueError, match=rf'multiple of its {anchors} anchors as output channels, but got .*\({shape[0]}, 4'):
        TeacherClassifier(torch.zeros(shape), num_priors=anchors)
    with pytest.raises(ValueError, match='anchors'):
        TeacherClassifier.from_layer(nn.Linear(4, 9), num_priors=3)


@pytest.mark.parametrize('sigmoid', [False, True])
@pytest.mark.parametrize('dense', [False, True])
def test_log_prob_is_scipys(dense, sigmoid):
    torch.manual_seed(0)
    shape = (4, 3, 1, 1) if dense else (4, 3)
    classifier = TeacherClassifier(torch.randn(shape), torch.randn(4), sigmoid)
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    logits = classifier(x).numpy()
    assert logits.shape == ((2, 4, 5, 6) if dense else (2, 4))
    q = np.random.default_rng(0).random(logits.shape)
    w = np.random.default_rng(1).random((2, 1, 5, 6) if dense else (2, 1))
    if sigmoid:
        expected = q * special.log_expit(logits) + (1 - q) * special.log_expit(-logits)
    else:
        expected = q * special.log_softmax(logits, axis=1)
    expected = (expected * w).reshape(2, -1).sum(axis=1)
    value = classifier.log_prob(x, torch.from_numpy(q), torch.from_numpy(w))
    np.testing.assert_allclose(value, expected, rtol=1e-10)


@pytest.mark.parametrize('sigmoid', [False, True])
@pytest.mark.parametrize('shape', [(5, 3), (5, 3, 1, 1), (5, 3, 3, 3)])
def test_ignored_everywhere_gives_zero_gradient_and_zero_loss_in_the_graph(shape, sigmoid):
    torch.manual_seed(0)
    padding = int(shape[2:] == (3, 3))
    classifier = TeacherClassifier(torch.randn(shape), torch.randn(5), sigmoid, padding=padding)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    logits = classifier(x)
    q = torch.rand_like(logits)
    nothing = torch.zeros_like(logits[:, :1])
    gradient = classifier.gradient(x.detach(), q, nothing)
    assert gradient.shape == x.shape
    assert gradient.abs().max() == 0
    assert classifier.log_prob(x, q, nothing).abs().max() == 0
    loss = target_cross_entropy(classifier(x), Target(q, nothing), sigmoid)
    assert loss == 0
    loss.backward()
    assert x.grad is not None
    assert x.grad.abs().max() == 0


@pytest.mark.parametrize('extreme', [0.0, 1e4, -1e4])
@pytest.mark.parametrize('sigmoid', [False, True])
def test_extreme_logits_stay_finite(extreme, sigmoid):
    classifier = TeacherClassifier(torch.eye(3) * extreme, sigmoid=sigmoid)
    x = torch.ones(2, 3, 1, 1) * torch.tensor([1.0, 0.0, -1.0])[None, :, None, None]
    x.requires_grad_()
    q = torch.eye(3)[:2]
    loss = target_cross_entropy(classifier(x), Target(q), sigmoid)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(classifier.gradient(x.detach(), q)).all()


@pytest.mark.parametrize('temperature', [1.0, 4.0])
@pytest.mark.parametrize('weight', [None, [[1.0], [0.0], [0.5]], [[0.1], [0.0], [0.2]]])
def test_cross_entropy_of_exclusive_classes_is_scipys_divergence(weight, temperature):
    """KL(q || p), times T^2, averaged over what counts: by sum of weights, but at least 1."""
    rng = np.random.default_rng(0)
    logits, q = rng.normal(size=(3, 5)).astype('f'), rng.dirichlet(np.ones(5), 3).astype('f')
    q[0] = np.eye(5)[2]  # an entropy of zero
    p = special.softmax(logits / temperature, axis=1)
    each = special.rel_entr(q, p).sum(axis=1)
    w = np.ones(3) if weight is None else np.array(weight)[:, 0]
    expected = (each * w).sum() / max(w.sum(), 1) * temperature**2
    target = Target(torch.from_numpy(q), None if weight is None else torch.tensor(weight))
    loss = target_cross_entropy(torch.from_numpy(logits), target, temperature=temperature)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_cross_entropy_of_independent_classes_is_scipys_divergence(temperature):
    rng = np.random.default_rng(0)
    logits, q = rng.normal(size=(2, 3, 4, 4)).astype('f'), rng.random((2, 3, 4, 4)).astype('f')
    q[0, 0] = 1
    w = (rng.random((2, 1, 4, 4)) > 0.5).astype('f')
    p = special.expit(logits / temperature)
    each = special.rel_entr(q, p) + special.rel_entr(1 - q, 1 - p)
    expected = (each * w).sum() / w.sum() * temperature**2
    target = Target(torch.from_numpy(q), torch.from_numpy(w))
    loss = target_cross_entropy(torch.from_numpy(logits), target, True, temperature)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize('temperature', [1.0, 3.0])
def test_cross_entropy_has_the_gradient_of_torchs_kl(temperature):
    torch.manual_seed(0)
    logits = torch.randn(4, 6, requires_grad=True)
    q = torch.randn(4, 6).softmax(dim=1)
    reference = F.kl_div((logits / temperature).log_softmax(1), q, reduction='batchmean')
    (expected,) = torch.autograd.grad(reference * temperature**2, logits)
    loss = target_cross_entropy(logits, Target(q), temperature=temperature)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize('sigmoid', [False, True])
def test_cross_entropy_is_zero_where_the_prediction_is_the_target(sigmoid):
    torch.manual_seed(0)
    classifier = TeacherClassifier(torch.randn(4, 3), sigmoid=sigmoid)
    logits = torch.randn(2, 4)
    target = Target(classifier.predict(logits / 2.0))
    assert target_cross_entropy(logits, target, sigmoid, 2.0).abs() < 1e-5
    assert target_cross_entropy(logits + torch.randn(2, 4), target, sigmoid, 2.0) > 0.01


def test_divergence_trains_the_feature_and_not_the_classifier():
    torch.manual_seed(0)
    classifier = TeacherClassifier.from_layer(nn.Linear(3, 4))
    assert list(classifier.parameters()) == []
    assert classifier.state_dict() == {}
    x = torch.randn(2, 3, 2, 2, requires_grad=True)
    q = torch.eye(4)[:2]
    target_cross_entropy(classifier(x), Target(q)).backward()
    # Descending the divergence is ascending the mean log-likelihood.
    torch.testing.assert_close(x.grad, -classifier.gradient(x.detach(), q) / 2)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_features_are_classified_in_float32(dtype):
    torch.manual_seed(0)
    dense = TeacherClassifier(torch.randn(4, 8, 3, 3), padding=1)
    pooled = TeacherClassifier(torch.randn(4, 8), torch.randn(4))
    x = torch.randn(2, 8, 4, 4).to(dtype)
    for classifier in (dense, pooled):
        expected = classifier(x.float())
        q = torch.rand_like(expected)
        with torch.autocast('cpu', torch.bfloat16):
            logits, gradient = classifier(x), classifier.gradient(x, q)
        assert logits.dtype == gradient.dtype == torch.float32
        torch.testing.assert_close(logits, expected)
        torch.testing.assert_close(gradient, classifier.gradient(x.float(), q))


def test_from_layer_takes_a_copy_with_the_layers_geometry():
    layer = nn.Conv2d(3, 4, 3, stride=2, padding=1, dilation=2)
    classifier = TeacherClassifier.from_layer(layer)
    x = torch.randn(2, 3, 9, 9)
    before = layer(x).detach()
    torch.testing.assert_close(classifier(x), before)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    torch.testing.assert_close(classifier(x), before)
    assert (classifier.num_classes, classifier.weight.shape[1], classifier.is_dense) == (4, 3, True)


def test_per_location_is_the_linear_layer_on_every_location():
    torch.manual_seed(0)
    layer = nn.Linear(3, 4)
    classifier = TeacherClassifier.from_layer(layer, sigmoid=True)
    dense = classifier.per_location()
    x = torch.randn(2, 3, 5, 6)
    expected = layer(x.movedim(1, -1)).movedim(-1, 1).detach()
    torch.testing.assert_close(dense(x), expected)
    torch.testing.assert_close(dense(x).mean(dim=(2, 3)), classifier(x))
    assert (dense.is_dense, dense.sigmoid, dense.num_classes) == (True, True, 4)
    assert dense.per_location() is dense
    torch.testing.assert_close(dense.logit_gain(), classifier.logit_gain())
    assert classifier.double().per_location().weight.dtype == torch.float64
    assert classifier.state_dict() == {}


class Normalised(nn.Linear):
    """As the cosine classifiers of the hosts: a linear layer by type, not by what it computes."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x), F.normalize(self.weight))


@pytest.mark.parametrize(
    'layer',
    [
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, 3, padding='same'),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode='reflect'),
        nn.Conv1d(4, 4, 1),
        nn.ReLU(),
        Normalised(4, 4),
    ],
    ids=['grouped', 'named padding', 'reflected padding', '1-d', 'no layer', 'own forward'],
)
def test_from_layer_refuses_what_has_no_closed_form(layer):
    with pytest.raises(TypeError, match=r'needs a linear classifier.*NeckSite'):
        TeacherClassifier.from_layer(layer)


def test_from_layer_accepts_mmcvs_wrappers():
    """mmcv's Linear and Conv2d have a forward of their own, for empty inputs of old PyTorch."""
    wrappers = pytest.importorskip('mmcv.cnn.bricks.wrappers')
    for layer, x in (
        (wrappers.Linear(3, 4), torch.randn(2, 3)),
        (wrappers.Conv2d(3, 4, 1), torch.randn(2, 3, 2, 2)),
    ):
        torch.testing.assert_close(TeacherClassifier.from_layer(layer)(x), layer(x).detach())


def test_weight_of_another_rank_is_refused():
    with pytest.raises(ValueError, match=r'\(K, C\).*\(2, 3, 1\)'):
        TeacherClassifier(torch.zeros(2, 3, 1))
