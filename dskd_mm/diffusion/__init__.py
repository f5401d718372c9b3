"""The diffusion core: a light denoiser, its schedule and guided sampling. Needs torch and the registry only."""

from dskd_mm.diffusion.autoencoder import FeatureAutoEncoder
from dskd_mm.diffusion.bridge import FeatureBridge
from dskd_mm.diffusion.denoiser import DiffusionDenoiser, noise_prediction_loss, table_rows
from dskd_mm.diffusion.feature_diffusion import FeatureDiffusion
from dskd_mm.diffusion.levels import draw_like, mixing_weights, on_levels
from dskd_mm.diffusion.noise_adapter import NoiseAdapter
from dskd_mm.diffusion.sampler import TeacherGuidedSampler
from dskd_mm.diffusion.schedule import DDIMSchedule

__all__ = [
    'DDIMSchedule',
    'DiffusionDenoiser',
    'FeatureAutoEncoder',
    'FeatureBridge',
    'FeatureDiffusion',
    'NoiseAdapter',
    'TeacherGuidedSampler',
    'draw_like',
    'mixing_weights',
    'noise_prediction_loss',
    'on_levels',
    'table_rows',
]
