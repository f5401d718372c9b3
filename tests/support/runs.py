"""Whole runs in small: a data set in memory and the config of a training that takes a second."""

import copy
import itertools
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.runner import Runner

from dskd_mm.registry import DATASETS
from dskd_mm.testing import TOY_CLASSES, classifier_config, random_teacher

_RUN_NUMBERS = itertools.count()


@DATASETS.register_module()
class RandomPatterns(BaseDataset):
    """Images made of one random pattern a class and noise: easy, but not trivial to learn.

    Configs that name it need ``custom_imports = dict(imports=['support.runs'])``: it is not among the package's data sets.

    Args:
        num_images (int): Number of images. Defaults to 32.
        num_classes (int): Number of classes, which take turns. Defaults to :data:`TOY_CLASSES`.
        size (int): Height and width. Defaults to 16.
        noise (float): Standard deviation of the noise in grey values. Defaults to 60.
        seed (int): Seed of the noise; the patterns are always the same. Defaults to 0.
        **kwargs: Arguments of :class:`mmengine.dataset.BaseDataset`, such as ``pipeline``.
    """

    def __init__(
        self,
        num_images: int = 32,
        num_classes: int = TOY_CLASSES,
        size: int = 16,
        noise: float = 60.0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        self.num_images = num_images
        self.num_classes = num_classes
        self.size = size
        self.noise = noise
        self.seed = seed
        super().__init__(metainfo=dict(classes=[f'pattern {k}' for k in range(num_classes)]), **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Draw the images, (size, size, 3) of uint8."""
        shape = (self.size, self.size, 3)
        patterns = np.random.RandomState(0).uniform(60, 190, (self.num_classes, *shape))
        noise = np.random.RandomState(1 + self.seed)
        images = [patterns[i % self.num_classes] + self.noise * noise.standard_normal(shape) for i in range(self.num_images)]
        return [
            dict(img=image.clip(0, 255).astype(np.uint8), gt_label=i % self.num_classes, sample_idx=i)
            for i, image in enumerate(images)
        ]


def plain_run_config(work_dir: str, **kwargs: Any) -> Config:
    """Config of a whole run of a plain toy classifier: 2 epochs of 4 iterations, with validation, checkpoints and a test part.

    Args:
        work_dir (str): Folder of the run.
        **kwargs: Arguments of :func:`~dskd_mm.testing.toy.classifier_config`.

    Returns:
        Config: The config; ``dump`` writes it for the command-line tools.
    """
    size, num_classes = kwargs.get('image_size', 16), kwargs.get('num_classes', TOY_CLASSES)

    def dataloader(num_images: int, seed: int, shuffle: bool) -> dict[str, Any]:
        return dict(
            batch_size=8,
            num_workers=0,
            dataset=dict(
                type='dskd_mm.RandomPatterns',
                num_images=num_images,
                num_classes=num_classes,
                size=size,
                seed=seed,
                pipeline=[dict(type='PackInputs')],
            ),
            sampler=dict(type='DefaultSampler', shuffle=shuffle),
            collate_fn=dict(type='default_collate'),
        )

    evaluator = dict(type='Accuracy', topk=(1,))
    return Config(
        dict(
            default_scope='mmpretrain',
            custom_imports=dict(imports=['dskd_mm', 'support.runs'], allow_failed_imports=False),
            work_dir=work_dir,
            model=classifier_config(**kwargs),
            train_dataloader=dataloader(32, 0, True),
            val_dataloader=dataloader(30, 1, False),
            test_dataloader=dataloader(30, 1, False),
            val_evaluator=evaluator,
            test_evaluator=evaluator,
            train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1),
            val_cfg=dict(),
            test_cfg=dict(),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9)),
            auto_scale_lr=dict(base_batch_size=16),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1),
                checkpoint=dict(type='CheckpointHook', interval=1, save_best='auto'),
                visualization=dict(type='VisualizationHook', enable=False),
            ),
            visualizer=dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')]),
            randomness=dict(seed=0),
            log_level='WARNING',
        ),
        # The runner prints its config often, and formatting takes longer than the training.
        format_python_code=False,
    )


def distiller_run_config(work_dir: str, teacher: dict | None = None, student: dict | None = None, **kwargs: Any) -> Config:
    """The config of :func:`plain_run_config` with its classifier distilled.

    Args:
        work_dir (str): Folder of the run.
        teacher (dict, optional): The distiller's teacher. None writes one of random weights to ``work_dir``. Defaults to None.
        student (dict, optional): Arguments of :func:`~dskd_mm.testing.toy.classifier_config`. Defaults to None.
        **kwargs: Other arguments of :class:`~dskd_mm.distillers.DSKDDistiller`, whose ``warmup`` is 0 unless given.

    Returns:
        Config: The config.
    """
    cfg = plain_run_config(work_dir, **(student or {}))
    if teacher is None:
        teacher = random_teacher(work_dir)
    # These runs are shorter than any warm-up.
    cfg.model = dict(type='dskd_mm.DSKDDistiller', student=cfg.model, teacher=teacher, **(dict(warmup=0) | kwargs))
    return cfg


def toy_runner(cfg: Config, **options: Any) -> Runner:
    """Build the runner of a config.

    mmengine keeps loggers and best scores by the name of a run, which is its second of birth: the runs of a test need names.

    Args:
        cfg (Config): The config; it is not changed.
        **options: Settings to override, with '__' for '.'.

    Returns:
        Runner: The runner.
    """
    cfg = copy.deepcopy(cfg)
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in options.items()})
    cfg.experiment_name = f'toy_{next(_RUN_NUMBERS)}'
    return Runner.from_cfg(cfg)
