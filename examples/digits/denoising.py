"""What denoising does to a student's features, seen by the teacher."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from dskd_mm.distillers import DSKDDistiller
from dskd_mm.guidance import TeacherClassifier
from dskd_mm.sites.classification import label_target
from dskd_mm.structures import TapRecord, TapSpec
from dskd_mm.visualization.style import BLUE, GREY, ORANGE, new_figure, tidy


@dataclass
class DenoisingTrajectory:
    """Features on their way from the student to the denoised ones, in the teacher's channels.

    Attributes:
        guided (Tensor): (S + 1, B, C, H, W): the student's aligned features, then the clean features that each of the S
            sampling steps predicts. The last ones are what the student is pulled to.
        unguided (Tensor): The same from the same noise without guidance.
        teacher (Tensor): The teacher's features of the same images, (B, C, H', W').
        labels (Tensor): True classes, (B, ).
        timesteps (list[int]): The S timesteps, noisiest first.
        classifier (TeacherClassifier): The teacher's classifier.
    """

    guided: Tensor
    unguided: Tensor
    teacher: Tensor
    labels: Tensor
    timesteps: list[int]
    classifier: TeacherClassifier

    def cross_entropy(self, features: Tensor) -> Tensor:
        """Cross-entropy of the true class by the teacher's classifier, in nats.

        Args:
            features (Tensor): Of shape (B, C, H, W).

        Returns:
            Tensor: Of shape (B, ).
        """
        return nn.functional.cross_entropy(self.classifier(features), self.labels, reduction='none')

    def angle(self, features: Tensor) -> Tensor:
        """Angle between each image's feature and the teacher's centroid of its class, in degrees.

        Directions are what the hashing loss compares. They are seen from the mean of all images, as the loss does: features
        and centroids may lie at different offsets.

        Args:
            features (Tensor): Of shape (B, C, H, W).

        Returns:
            Tensor: Of shape (B, ).
        """
        centroids = self.centroids()[self.labels]
        return torch.rad2deg(torch.acos(nn.functional.cosine_similarity(centered(features), centroids).clamp(-1, 1)))

    def centroids(self) -> Tensor:
        """Mean of the teacher's centred features of each class, (K, C); NaN for classes without an image."""
        vectors = centered(self.teacher)
        return torch.stack([vectors[self.labels == k].mean(dim=0) for k in range(self.classifier.num_classes)])


def centered(features: Tensor) -> Tensor:
    """Average features (B, C, H, W) over their locations and take away the mean over images; (B, C)."""
    vectors = features.mean(dim=(2, 3))
    return vectors - vectors.mean(dim=0)


@torch.no_grad()
def denoising_trajectory(distiller: DSKDDistiller, inputs: Tensor, data_samples: Sequence[Any]) -> DenoisingTrajectory:
    """Denoise the student's features of a batch as a training step does, with and without the teacher's guidance.

    As in training, all norms use the statistics of the batch. It happens in a copy: the distiller stays as it is, but that its
    teacher is loaded.

    Args:
        distiller (DSKDDistiller): A distiller of an image classifier.
        inputs (Tensor): Preprocessed images of shape (B, C, H, W); a hundred or more, so that the statistics mean something.
        data_samples (Sequence): Their annotations, with ``gt_label``.

    Returns:
        DenoisingTrajectory: The features of every step.

    Raises:
        ValueError: If the distiller does not denoise, or its images have not one class each.
    """
    if distiller.diffusion is None:
        raise ValueError('This distiller does not denoise: its loss_weights turn both lsh and virtual off.')
    has_images = distiller.site.task == 'classification'
    if not has_images or distiller.teacher_spec.sigmoid:
        kind = 'images into several classes at once' if has_images else f'what {type(distiller.site).__name__} finds in them'
        raise ValueError(f'Trajectories are drawn for images of one class each, but this teacher classifies {kind}.')
    if not distiller.teacher.is_loaded:
        distiller.load_teacher()
    (classifier,) = distiller.classifiers
    teacher = run_teacher(distiller, inputs)

    def sample(guided: bool) -> Tensor:
        steps: list[Tensor] = []
        batch, _ = copy.deepcopy(distiller).train().denoise(inputs, list(data_samples), guided, steps)
        return torch.stack([batch.aligned, *steps]).unflatten(3, batch.pyramid.sizes[0])

    sampler, label = distiller.diffusion.sampler, label_target(data_samples, classifier.num_classes, inputs.device)
    return DenoisingTrajectory(
        guided=sample(True),
        unguided=sample(False),
        teacher=teacher,
        labels=label.probability.argmax(dim=1),
        timesteps=distiller.diffusion.schedule.timesteps(sampler.steps, sampler.start),
        classifier=classifier,
    )


def run_teacher(distiller: DSKDDistiller, inputs: Tensor) -> Tensor:
    """Return the teacher's features (B, C, H, W) of images that are preprocessed for the student."""
    # A copy, because a distiller may be content with the classifier alone: then it must not get the whole teacher from here.
    teacher = copy.copy(distiller.teacher)
    if teacher.model is None:
        teacher.load(distiller.teacher_spec, inputs.device, True, distiller.data_preprocessor)
    model = teacher.require_model()
    return run_tapped(model, distiller.site.teacher_spec(model, teacher), teacher.adapt(inputs))


def run_tapped(model: nn.Module, spec: TapSpec, inputs: Tensor) -> Tensor:
    """Run a model on images and return its feature, (B, C, H, W); a vector gets H = W = 1."""
    with TapRecord(model, spec, 'model') as seen:
        model(inputs, mode='tensor')
        return seen.features[0].float()


def plot_denoising_steps(trajectories: Mapping[str, DenoisingTrajectory]) -> Figure:
    """Plot how near features come to the teacher's idea of their class, over the sampling steps.

    Left the cross-entropy of the true class by the teacher's classifier, right the angle to the teacher's centroid of the
    class. Lines are means over images, bands their standard error.

    Args:
        trajectories (Mapping[str, DenoisingTrajectory]): What :func:`denoising_trajectory` returns, by its row's name, such as
            one early and one late in training.

    Returns:
        Figure: The picture, one row for each trajectory.
    """
    figure, grid = new_figure(10, 3.6 * len(trajectories) + 0.6, len(trajectories), 2, squeeze=False)
    for row, (name, trajectory) in zip(grid, trajectories.items(), strict=True):
        steps = ['student', *(f't = {t}' for t in trajectory.timesteps)]
        for axes, measure, title, ylabel in (
            (row[0], trajectory.cross_entropy, "teacher's classifier on the feature", 'Cross-entropy of the class (nats)'),
            (row[1], trajectory.angle, "direction of the teacher's class", "Angle to the class's centroid (degrees)"),
        ):
            for features, label, color in (
                (trajectory.unguided, 'denoised without guidance', BLUE),
                (trajectory.guided, 'denoised with guidance', ORANGE),
            ):
                values = torch.stack([measure(step) for step in features]).cpu()
                mean, error = values.mean(dim=1).numpy(), (values.std(dim=1) / values.shape[1] ** 0.5).numpy()
                axes.plot(steps, mean, marker='o', markersize=4, color=color, label=label)
                axes.fill_between(steps, mean - error, mean + error, color=color, alpha=0.18, linewidth=0)
            own = float(measure(trajectory.teacher).mean())
            axes.axhline(own, color=GREY, linestyle='--', linewidth=1.2, label="teacher's own features")
            axes.set_ylim(bottom=0)
            axes.set(title=f'{name}: {title}', ylabel=ylabel)
            tidy(axes)
    for axes in grid[-1]:
        axes.set_xlabel("Student's feature, then the prediction at each timestep")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=3, frameon=False)
    figure.suptitle("How near features are to the teacher's idea of their class (lower is nearer; band: standard error)")
    return figure


def plot_denoising_plane(trajectories: Mapping[str, DenoisingTrajectory], class_names: Sequence[str] | None = None) -> Figure:
    """Plot features before and after denoising in the plane that shows the teacher's class centroids best.

    Args:
        trajectories (Mapping[str, DenoisingTrajectory]): What :func:`denoising_trajectory` returns, by its row's name, such as
            one early and one late in training.
        class_names (Sequence[str], optional): Written on the centroids. Defaults to None: the classes' numbers.

    Returns:
        Figure: The picture, one row for each trajectory: the student's features, the denoised ones without and with guidance,
        and the teacher's own. Colours are the true classes, grey from the eleventh class on.
    """
    figure, grid = new_figure(13, 3.3 * len(trajectories) + 0.7, len(trajectories), 4, squeeze=False, sharex=True, sharey=True)
    figure.set_layout_engine('compressed')  # panels of a fixed aspect leave gaps otherwise
    for row, (name, trajectory) in zip(grid, trajectories.items(), strict=True):
        centroids = trajectory.centroids()
        present = torch.unique(trajectory.labels).tolist()
        # The centroids' two main directions: where features of different classes differ most for the teacher.
        directions = torch.linalg.svd(centroids[present], full_matrices=False).Vh[:2]
        unit = centroids[present].norm(dim=1).mean()
        for axes, title, features in (
            (row[0], "student's features", trajectory.guided[0]),
            (row[1], 'denoised without guidance', trajectory.unguided[-1]),
            (row[2], 'denoised with guidance', trajectory.guided[-1]),
            (row[3], "teacher's features", trajectory.teacher),
        ):
            # Only directions compare: the length of features differs between models.
            vectors = centered(features)
            points = vectors / vectors.norm(dim=1).mean() @ directions.T
            x, y = points.T.cpu().numpy()
            axes.scatter(x, y, s=5, c=[class_color(k) for k in trajectory.labels.tolist()], alpha=0.55, linewidths=0)
            for k, place in zip(present, (centroids[present] / unit @ directions.T).tolist(), strict=True):
                axes.plot(*place, marker='o', markersize=11, color=class_color(k), markeredgecolor='black')
                label = class_names[k] if class_names else str(k)
                axes.text(*place, label, ha='center', va='center_baseline', color='white', fontsize=8, fontweight='bold')
            axes.set_title(f'{name}: {title}', fontsize=10)
            axes.set_aspect('equal')
            tidy(axes)
        row[0].set_ylabel('Second main direction')
    for axes in grid[-1]:
        axes.set_xlabel('First main direction')
    figure.suptitle(
        "Features, coloured by class, and the teacher's class centroids (discs), in the centroids' main plane\n"
        "(each panel about its mean, in units of the features' mean length)"
    )
    return figure


def class_color(k: int) -> str:
    """Colour of a class; matplotlib's cycle has ten."""
    return f'C{k}' if k < 10 else GREY


def plot_feature_maps(trajectory: DenoisingTrajectory, images: Tensor, count: int = 4) -> Figure:
    """Plot images beside the strength of their features at every location.

    Args:
        trajectory (DenoisingTrajectory): What :func:`denoising_trajectory` returns, of features that are maps.
        images (Tensor): The images of the same batch as (B, 1 or 3, H, W), uint8 or scaled to 0...255.
        count (int): How many images, the first ones of the batch. Defaults to 4.

    Returns:
        Figure: The picture, one row an image. Every map is the length of the feature vector at a location, scaled to the
        map's own range.
    """
    columns = (
        ("student's", trajectory.guided[0]),
        ('denoised,\nno guidance', trajectory.unguided[-1]),
        ('denoised,\nguided', trajectory.guided[-1]),
        ("teacher's", trajectory.teacher),
    )
    count = min(count, len(images))
    width = len(columns) + 1
    figure, grid = new_figure(1.5 * width, 1.5 * count + 0.9, count, width, squeeze=False)
    pictures = images[:count].float().clamp(0, 255).div(255).permute(0, 2, 3, 1).cpu().numpy()
    for row, picture in zip(grid, pictures, strict=True):
        row[0].imshow(picture, cmap='gray', vmin=0, vmax=1)
    for index, (title, features) in enumerate(columns, start=1):
        grid[0][index].set_title(title, fontsize=9)
        for row, strength in zip(grid, features[:count].norm(dim=1).cpu().numpy(), strict=True):
            row[index].imshow(strength, cmap='viridis')
    grid[0][0].set_title('image', fontsize=9)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    figure.suptitle('Length of the feature vector at each location\n(dark: shortest of the map, yellow: longest)', fontsize=10)
    return figure
