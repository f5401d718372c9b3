"""The networks of the diffusion core: denoiser, noise adapter, autoencoder."""

import math

import pytest
import torch
from torch import Tensor, nn

from dskd_mm.diffusion import (
    DDIMSchedule,
    DiffusionDenoiser,
    FeatureAutoEncoder,
    FeatureDiffusion,
    NoiseAdapter,
    noise_prediction_loss,
)
from dskd_mm.diffusion.denoiser import Bottleneck
from dskd_mm.features import Pyramid


def count(module: nn.Module, kind: type[nn.Module]) -> int:
    return sum(p.numel() for layer in module.modules() if isinstance(layer, kind) for p in layer.parameters())


def test_denoiser_has_the_size_of_the_paper():
    """0.205 M at 256 channels without the embedding; the norms' affine parameters add 2,048."""
    denoiser = DiffusionDenoiser(256)
    assert count(denoiser, nn.Conv2d) == 204_800
    assert sum(p.numel() for p in denoiser.layers.parameters()) == 206_848
    assert denoiser.time_embedding.weight.shape == (1280, 256)


def test_vector_denoiser_widens_fourfold_twice():
    """C -> 4C -> C -> 4C -> C by 1x1 convolutions, normalised and activated as in DiffKD."""
    denoiser = DiffusionDenoiser(6, kernel_size=1)
    convs = [layer for layer in denoiser.modules() if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size) for c in convs] == [
        (6, 24, (1, 1)),
        (24, 6, (1, 1)),
        (6, 24, (1, 1)),
        (24, 6, (1, 1)),
    ]
    kinds = [type(layer).__name__ for layer in denoiser.layers]
    assert kinds == ['Conv2d', 'BatchNorm2d', 'ReLU', 'Conv2d', 'BatchNorm2d', 'Conv2d', 'BatchNorm2d', 'ReLU', 'Conv2d']


C = 16


@pytest.mark.parametrize(
    ('module', 'shapes'),
    [
        # A bottleneck of C/8, or C -> 2C -> C; two outputs.
        (NoiseAdapter(C), [(C // 8, C, 1, 1), (C // 8, C // 8, 3, 3), (C, C // 8, 1, 1), (2, C)]),
        (NoiseAdapter(C, kernel_size=1), [(2 * C, C, 1, 1), (C, 2 * C, 1, 1), (2, C)]),
        # Convolutions with a bias, a norm between them.
        (FeatureAutoEncoder(C, 4), [(4, C, 1, 1), (C, 4, 1, 1)]),
    ],
    ids=['adapter of maps', 'adapter of vectors', 'autoencoder'],
)
def test_the_other_networks_are_those_of_the_paper(module: nn.Module, shapes: list[tuple[int, ...]]) -> None:
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in layers] == shapes
    norms = [layer.num_features for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    convs = [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)]
    # Each convolution has its norm, but for the decoder, which restores what is not normalised.
    assert norms == (convs[:1] if isinstance(module, FeatureAutoEncoder) else convs)


@pytest.mark.parametrize('norm', ['BN', 'GN'])
@pytest.mark.parametrize(('kernel_size', 'shape'), [(3, (2, 8, 5, 7)), (3, (2, 3, 1, 1)), (1, (4, 8, 1, 1)), (1, (2, 8, 3, 2))])
def test_output_has_the_shape_of_the_input(kernel_size, shape, norm):
    denoiser = DiffusionDenoiser(shape[1], kernel_size, norm)
    assert denoiser(torch.randn(shape), 10).shape == shape


@pytest.mark.parametrize('kernel_size', [1, 3])
def test_one_timestep_is_the_same_timestep_for_each_sample(kernel_size):
    denoiser = DiffusionDenoiser(8, kernel_size)
    x = torch.randn(3, 8, 4, 4)
    torch.testing.assert_close(denoiser(x, 7), denoiser(x, torch.tensor([7, 7, 7])))


def test_timestep_enters_as_its_own_learned_vector():
    denoiser = DiffusionDenoiser(8).eval()
    x = torch.randn(2, 8, 4, 4)
    timesteps = torch.tensor([3, 900])
    shift = denoiser.time_embedding.weight[timesteps][:, :, None, None]
    torch.testing.assert_close(denoiser(x, timesteps), denoiser.layers(x + shift))
    assert not torch.allclose(denoiser(x, 3), denoiser(x, 900))


def test_bottlenecks_add_to_what_enters_and_end_without_activation():
    bottleneck = Bottleneck(8).eval()
    x = torch.randn(2, 8, 4, 4)
    nn.init.zeros_(bottleneck.layers[-1].weight)
    torch.testing.assert_close(bottleneck(x), x)
    nn.init.constant_(bottleneck.layers[-1].bias, -1.0)
    torch.testing.assert_close(bottleneck(x), x - 1)


@pytest.mark.parametrize(('kernel_size', 'size'), [(1, 1), (3, 1), (3, 5)])
def test_group_norm_trains_on_a_single_image(kernel_size, size):
    denoiser = DiffusionDenoiser(8, kernel_size, norm='GN').train()
    predicted = denoiser(torch.randn(1, 8, size, size), torch.tensor([5]))
    predicted.square().sum().backward()
    assert torch.isfinite(predicted).all()
    assert all(torch.isfinite(p.grad).all() for p in denoiser.parameters())


@pytest.mark.parametrize('module', [DiffusionDenoiser, NoiseAdapter])
def test_other_kernel_sizes_and_norms_are_refused(module):
    with pytest.raises(ValueError, match=f'kernel_size of {module.__name__} must be 1'):
        module(8, kernel_size=5)
    with pytest.raises(ValueError, match="'BN', 'SyncBN', 'GN' or None, but got 'LN'"):
        module(8, norm='LN')


@pytest.mark.parametrize(('kernel_size', 'size'), [(3, 4), (1, 1)])
def test_a_velocity_network_begins_as_the_trivial_filter(kernel_size, size):
    denoiser = DiffusionDenoiser(8, kernel_size, 'GN', time='film')
    x, steps = torch.randn(3, 8, size, size), torch.tensor([0, 400, 999])
    sigma = (1 - denoiser.schedule.alphas_cumprod[steps]).sqrt()[:, None, None, None]
    torch.testing.assert_close(denoiser(x, steps), sigma * x)
    for i, t in enumerate(steps.tolist()):
        torch.testing.assert_close(denoiser(x, t)[i], denoiser(x, steps)[i])
    assert 'sinusoids' not in denoiser.state_dict() and not hasattr(denoiser, 'time_embedding')


def test_scale_and_shift_of_the_timestep_are_written_out():
    """The network once more: 1x1, 3x3, 1x1 twice, each norm scaled and shifted by a sinusoid's description."""
    torch.manual_seed(0)
    denoiser = DiffusionDenoiser(8, 3, 'GN', time='film')
    for parameter in denoiser.parameters():
        nn.init.normal_(parameter, std=0.4)
    x, t = torch.randn(2, 8, 4, 4), 300
    rates = [math.exp(-math.log(10000) * i / 31) for i in range(32)]
    described = denoiser.describe(torch.tensor([[math.sin(t * r) for r in rates] + [math.cos(t * r) for r in rates]]))
    y = x
    for block in denoiser.blocks:
        inner = y
        for i in range(3):
            inner = block.convs[i](inner if i == 0 else inner.clamp(min=0))
            film = block.norms[i].scale_shift(described)[0]
            scale, shift = film[: inner.shape[1]], film[inner.shape[1] :]
            inner = block.norms[i].norm(inner) * (1 + scale[:, None, None]) + shift[:, None, None]
        y = y + inner
    alpha = 1.0
    for i in range(t + 1):
        alpha *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
    expected = math.sqrt(1 - alpha) * x + math.sqrt(alpha) * denoiser.output(y)
    torch.testing.assert_close(denoiser(x, t), expected, rtol=1e-3, atol=1e-3)


def test_the_velocity_of_a_noised_feature_tells_its_noise():
    schedule, (clean, noise) = DDIMSchedule(), torch.randn(2, 3, 4, 2, 2)
    steps = torch.tensor([5, 500, 990])
    signal, sigma = (
        (v[:, None, None, None]).sqrt() for v in (schedule.alphas_cumprod[steps], 1 - schedule.alphas_cumprod[steps])
    )
    velocity = signal * noise - sigma * clean
    noisy = schedule.add_noise(clean, noise, steps)
    torch.testing.assert_close(schedule.noise_of_velocity(noisy, velocity, steps), noise)
    torch.testing.assert_close(schedule.noise_of_velocity(noisy, velocity, 500)[1], noise[1], rtol=1e-4, atol=1e-4)


def test_the_trivial_error_is_that_of_the_trivial_filter():
    schedule, clean = DDIMSchedule(), 2 * torch.randn(4000, 3)
    steps, noise = torch.randint(1000, (4000,)), torch.randn(4000, 3)
    sigma = (1 - schedule.alphas_cumprod[steps]).sqrt()[:, None]
    found = (sigma * schedule.add_noise(clean, noise, steps) - noise).square().mean()
    torch.testing.assert_close(schedule.trivial_error(clean.square().mean()), found, rtol=0.1, atol=0.02)


def test_the_denoiser_beats_the_trivial_filter_on_features_of_a_trained_student():
    """Digits, a student of three layers, one learning rate for all: as in a run."""
    digits = pytest.importorskip('sklearn.datasets').load_digits()
    images, labels = torch.tensor(digits.images[:600]).float()[:, None] / 8 - 1, torch.tensor(digits.target[:600])
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
    classifier, diffusion = nn.Linear(16, 10), FeatureDiffusion(16, denoiser=dict(time='film', norm='GN'), normalize=True)
    parameters = [*student.parameters(), *classifier.parameters(), *diffusion.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True)
    generator = torch.Generator().manual_seed(0)
    errors = []
    for _ in range(300):
        index = torch.randint(600, (32,), generator=generator)
        feature = student(images[index])
        error = diffusion.loss(feature.detach().flatten(2), Pyramid([(4, 4)]), generator)
        loss = nn.functional.cross_entropy(classifier(feature.mean(dim=(2, 3))), labels[index]) + error
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append((float(error.detach()), float(diffusion.trivial_error(feature.flatten(2)))))
    learned, trivial = torch.tensor(errors[-100:]).mean(dim=0).tolist()
    assert learned < 0.9 * trivial


def test_noise_prediction_loss_is_the_plain_loop():
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 3, 2, 2, 2)
    timestep = torch.tensor([0, 500, 999])

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        return 0.5 * x + t[:, None, None, None] / 1000

    total, alpha = 0.0, 1.0
    table = []
    for i in range(1000):
        alpha *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
        table.append(alpha)
    for b, t in enumerate(timestep.tolist()):
        for x_0, epsilon in zip(clean[b].flatten().tolist(), noise[b].flatten().tolist(), strict=True):
            x_t = math.sqrt(table[t]) * x_0 + math.sqrt(1 - table[t]) * epsilon
            total += (0.5 * x_t + t / 1000 - epsilon) ** 2
    loss = noise_prediction_loss(denoiser, DDIMSchedule(), clean, noise, timestep)
    assert float(loss) == pytest.approx(total / clean.numel(), rel=1e-4)


def test_denoiser_learns_to_predict_noise():
    """A distribution of a single point is denoised perfectly in a few steps."""
    torch.manual_seed(0)
    denoiser, schedule = DiffusionDenoiser(8, kernel_size=1), DDIMSchedule()
    optimizer = torch.optim.Adam(denoiser.parameters(), 0.01)
    point, losses = torch.randn(1, 8, 1, 1), []
    for _ in range(150):
        clean = point.expand(64, -1, -1, -1)
        loss = noise_prediction_loss(denoiser, schedule, clean, torch.randn_like(clean), torch.randint(1000, (64,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(('kernel_size', 'shape'), [(3, (4, 16, 5, 5)), (1, (4, 16, 1, 1)), (3, (2, 4, 3, 3))])
@pytest.mark.parametrize('norm', ['BN', 'GN'])
def test_noise_adapter_gives_one_share_an_image(kernel_size, shape, norm):
    torch.manual_seed(0)
    adapter = NoiseAdapter(shape[1], kernel_size, norm)
    feature = 10 * torch.randn(shape)
    gamma = adapter(feature)
    assert gamma.shape == (shape[0], 1, 1, 1)
    assert ((gamma > 0) & (gamma < 1)).all()
    assert len(gamma.unique()) == shape[0]
    with torch.autocast('cpu', torch.bfloat16):
        assert adapter(feature).dtype == torch.float32


def test_noise_adapter_follows_the_first_of_two_outputs():
    """gamma is component 0 of a softmax over two."""
    adapter = NoiseAdapter(8)
    nn.init.zeros_(adapter.fc.weight)
    with torch.no_grad():
        adapter.fc.bias.copy_(torch.tensor([1.0, 0.0]))
    gamma = adapter(torch.randn(3, 8, 2, 2)).flatten().tolist()
    assert gamma == pytest.approx([1 / (1 + math.exp(-1))] * 3)


def test_only_the_reconstruction_trains_the_autoencoder():
    torch.manual_seed(0)
    autoencoder = FeatureAutoEncoder(8, 3)
    feature = torch.randn(4, 8, 5, 5)
    latent, loss = autoencoder(feature)
    assert latent.shape == (4, 3, 5, 5)
    assert not latent.requires_grad
    torch.testing.assert_close(latent, autoencoder.encode(feature).detach())
    expected = (autoencoder.decode(autoencoder.encode(feature)) - feature).square().sum() / feature.numel()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is not None for p in autoencoder.parameters())
    assert autoencoder.encoder[0].weight.grad.abs().max() > 0


def test_wide_latent_reconstructs_after_training():
    torch.manual_seed(0)
    autoencoder = FeatureAutoEncoder(4, 4)
    optimizer = torch.optim.Adam(autoencoder.parameters(), 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss = autoencoder(torch.randn(8, 4, 3, 3))[1]
        loss.backward()
        optimizer.step()
    assert loss < 0.15  # of a variance of 1
