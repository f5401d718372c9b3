"""What only the ablations need: stand-ins for the diffusion and redesigns, by the names of benchmarks/variants.py."""

from dataclasses import replace
from typing import Any

import torch
from mmengine.logging import MessageHub
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn

from dskd_mm.diffusion import FeatureDiffusion, draw_like
from dskd_mm.distillers import DSKDDistiller
from dskd_mm.distillers.base import BatchOutputs
from dskd_mm.distillers.dskd_batch import AlignedBatch
from dskd_mm.features import Pyramid, align_levels
from dskd_mm.structures import TapRecord


class RandomShift(FeatureDiffusion):
    """Moves features as far as the diffusion would, location by location, in a random direction."""

    def denoise(
        self, start: Tensor, pyramid: Pyramid, generator: torch.Generator, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`FeatureDiffusion.denoise`."""
        denoised, gamma = super().denoise(start, pyramid, generator, *args, **kwargs)
        direction = torch.nn.functional.normalize(draw_like(start, generator), dim=1)
        return start + (denoised - start).norm(dim=1, keepdim=True) * direction, gamma


class AveragedPrior(DSKDDistiller):
    """DSKD whose prior and start are the features of a running average of the student and φ, at a second forward pass."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Of the last hundred steps, about one epoch of these data sets.
        self.average = ExponentialMovingAverage(self._networks, momentum=0.01, update_buffers=True)
        self._averaged: list[Tensor] = []

    @property
    def _networks(self) -> nn.ModuleDict:
        return nn.ModuleDict(dict(student=self.student, align=self.align))

    def run_models(self, inputs: Tensor, data_samples: list, *args: Any, **kwargs: Any) -> BatchOutputs:
        """See :meth:`Distiller.run_models`; runs the averaged student, too."""
        outputs = super().run_models(inputs, data_samples, *args, **kwargs)
        student = self.average.module['student']
        with torch.no_grad(), TapRecord(student, self.student_spec, 'student') as record:
            student(inputs, data_samples, mode='loss')
            self._averaged = record.features
        return outputs

    def _train_denoiser(self, batch: AlignedBatch, generator: torch.Generator) -> tuple[dict, dict, Tensor]:
        with torch.no_grad():
            _, aligned = align_levels(self.average.module['align'], self._averaged)
        return super()._train_denoiser(replace(batch, aligned=aligned.float()), generator)

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        """See :meth:`Distiller.train_step`; the average follows."""
        log = super().train_step(data, optim_wrapper)
        self.average.update_parameters(self._networks)
        return log


class FadingAnchor(DSKDDistiller):
    """DSKD whose anchor fades to nothing in the course of the training; the hash is as strong as beside the whole anchor."""

    def distill(self, *outputs: Any) -> dict[str, Tensor]:
        """See :meth:`Distiller.distill`."""
        losses = super().distill(*outputs)
        progress = self.step_index / MessageHub.get_current_instance().get_info('max_iters')
        return losses | dict(loss_dskd_anchor=losses['loss_dskd_anchor'] * (1 - progress))
