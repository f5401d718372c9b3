"""The diffusion core: a light denoiser, its schedule and guided sampling. Needs torch and the registry only."""

from dskd_mm.diffusion.autoencoder import FeatureAutoEncoder
from dskd_mm.diffusion.denoiser import DiffusionDenoiser, noise_prediction_loss
from dskd_mm.diffusion.noise_adapter import NoiseAdapter
from dskd_mm.diffusion.sampler import TeacherGuidedSampler
from dskd_mm.diffusion.schedule import DDIMSchedule

__all__ = [
    'DDIMSchedule',
    'DiffusionDenoiser',
    'FeatureAutoEncoder',
    'NoiseAdapter',
    'TeacherGuidedSampler',
    'noise_prediction_loss',
]
