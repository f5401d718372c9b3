"""Denoising trajectories: what training does, without touching the distiller; and the pictures of them."""

import copy

import pytest
import torch
from matplotlib.figure import Figure
from mmengine.registry import MODELS
from torch import Tensor

from dskd_mm.distillers import DSKDDistiller
from dskd_mm.guidance import TeacherClassifier
from dskd_mm.sites import DenseDetectionSite, NeckSite, SegmentationSite, TwoStageDetectionSite
from dskd_mm.testing import TOY_CLASSES, classifier_config, random_batch, random_teacher
from examples.digits.denoising import (
    DenoisingTrajectory,
    denoising_trajectory,
    plot_denoising_plane,
    plot_denoising_steps,
    plot_feature_maps,
)

BATCH = 24


def build(tmp_path, kind: str = 'gap', **switches) -> DSKDDistiller:
    torch.manual_seed(0)
    teacher = random_teacher(str(tmp_path), kind=kind)
    config = dict(student=classifier_config(kind), teacher=teacher, noise_seed=7, **switches)
    return MODELS.build(dict(type='dskd_mm.DSKDDistiller', **config)).eval()


def handmade(features: Tensor, teacher: Tensor, labels: list[int]) -> DenoisingTrajectory:
    """A trajectory of one step from given vectors (B, C) of the student and the teacher."""
    step = features[:, :, None, None]
    return DenoisingTrajectory(
        guided=torch.stack([step, step]),
        unguided=torch.stack([step, step]),
        teacher=teacher[:, :, None, None],
        labels=torch.tensor(labels),
        timesteps=[0],
        classifier=TeacherClassifier(torch.eye(teacher.shape[1])),
    )


def save(figure: Figure, tmp_path) -> None:
    """Draw in earnest: matplotlib finds most mistakes only then."""
    path = tmp_path / 'figure.png'
    figure.savefig(path)
    assert path.read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    'switches',
    [
        dict(),
        dict(prior='teacher', target='label', sampler=dict(steps=2, guidance_point='clean')),
        dict(autoencoder=dict(latent_channels=8)),
        dict(sampler=dict(noise='adapter'), detach=False),
        dict(normalize=False),
    ],
)
def test_the_last_step_is_what_a_training_step_hashes(tmp_path, switches):
    distiller = build(tmp_path, gate=False, **switches)
    images, samples = random_batch(BATCH)
    trajectory = denoising_trajectory(distiller, images, samples)

    hashed = []
    distiller.train().lsh.register_forward_pre_hook(lambda module, args: hashed.append(args))
    distiller.loss(images, samples)
    (feature, target, weight), *_ = hashed
    assert weight is None
    torch.testing.assert_close(trajectory.guided[0].mean(dim=(2, 3)), feature, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trajectory.guided[-1].mean(dim=(2, 3)), target, rtol=1e-4, atol=1e-4)
    assert len(trajectory.guided) == len(trajectory.unguided) == len(trajectory.timesteps) + 1
    assert trajectory.labels.tolist() == [int(sample.gt_label) for sample in samples]


def test_guidance_makes_the_difference(tmp_path):
    images, samples = random_batch(BATCH)
    strong = denoising_trajectory(build(tmp_path, target='label', sampler=dict(scale=5.0)), images, samples)
    assert strong.cross_entropy(strong.guided[-1]).mean() < strong.cross_entropy(strong.unguided[-1]).mean()
    off = denoising_trajectory(build(tmp_path, sampler=dict(scale=0.0)), images, samples)
    torch.testing.assert_close(off.guided, off.unguided)


@pytest.mark.parametrize('training', [True, False])
def test_the_distiller_stays_as_it_is(tmp_path, training):
    distiller = build(tmp_path, target='label', loss_weights=dict(logit=0)).train(training)
    before = copy.deepcopy(distiller.state_dict())
    images, samples = random_batch(BATCH)
    denoising_trajectory(distiller, images, samples)
    after = distiller.state_dict()
    # Loading the teacher sets the hash's spread, as the first training step does.
    assert [key for key in after if not torch.equal(before[key], after[key])] in ([], ['lsh.std'])
    assert distiller.training is training
    assert distiller.teacher.model is None, 'it needs the classifier alone, also after a picture'
    assert all(p.grad is None for p in distiller.parameters())
    distiller.train().loss(images, samples)


def test_what_has_no_trajectory_is_refused(tmp_path):
    images, samples = random_batch(BATCH)
    with pytest.raises(ValueError, match='does not denoise'):
        denoising_trajectory(build(tmp_path, loss_weights=dict(lsh=0, virtual=0)), images, samples)
    with pytest.raises(ValueError, match='several classes at once'):
        images, samples = random_batch(BATCH, multi_label=True)
        denoising_trajectory(build(tmp_path, kind='multi_label'), images, samples)


@pytest.mark.parametrize('site', [SegmentationSite(), DenseDetectionSite(), TwoStageDetectionSite(), NeckSite()])
def test_other_tasks_have_no_trajectory(tmp_path, site):
    distiller = build(tmp_path)
    distiller.site = site
    with pytest.raises(ValueError, match=f'for images of one class each, .* {type(site).__name__} finds'):
        denoising_trajectory(distiller, *random_batch(BATCH))
    assert not distiller.teacher.is_loaded, 'for nothing'


def test_measures_by_hand():
    teacher = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 2.0], [0.0, 4.0]])
    labels = [0, 0, 1, 1]
    # An offset and another length change no angle.
    same = handmade(teacher.new_tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 3.0], [0.0, 3.0]]) * 7 + 5, teacher, labels)
    assert same.angle(same.guided[0]).tolist() == pytest.approx([0] * 4, abs=0.1)
    swapped = handmade(teacher.flip(1), teacher, labels)
    assert swapped.angle(swapped.guided[0]).mean() > 90
    assert same.centroids().tolist() == [[1.5, -1.5], [-1.5, 1.5]]
    # The identity classifies (0, 0) as a toss-up.
    assert same.cross_entropy(torch.zeros(4, 2, 1, 1)).tolist() == pytest.approx([0.6931] * 4, abs=1e-3)


def test_pictures_are_drawn_and_labelled(tmp_path):
    images, samples = random_batch(BATCH)
    trajectory = denoising_trajectory(build(tmp_path), images, samples)
    rows = {'epoch 1': trajectory, 'epoch 2': trajectory}

    steps = plot_denoising_steps(rows)
    save(steps, tmp_path)
    assert len(steps.axes) == 4
    for axes in steps.axes:
        assert axes.get_title().startswith('epoch') and '(' in axes.get_ylabel()
        guided = next(line for line in axes.lines if line.get_label() == 'denoised with guidance')
        assert len(guided.get_xdata()) == len(trajectory.timesteps) + 1

    plane = plot_denoising_plane(rows, class_names=[f'class {k}' for k in range(TOY_CLASSES)])
    save(plane, tmp_path)
    assert len(plane.axes) == 8
    present = {f'class {k}' for k in trajectory.labels.tolist()}
    assert {text.get_text() for text in plane.axes[0].texts} == present

    maps = plot_feature_maps(trajectory, torch.rand(BATCH, 1, 16, 16) * 255, count=2)
    save(maps, tmp_path)
    assert len(maps.axes) == 2 * 5


def test_vectors_have_trajectories_too(tmp_path):
    images, samples = random_batch(BATCH)
    trajectory = denoising_trajectory(build(tmp_path, kind='vit'), images, samples)
    assert trajectory.guided.shape[3:] == (1, 1)
    save(plot_denoising_steps({'vit': trajectory}), tmp_path)
