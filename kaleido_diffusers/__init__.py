"""Kaleido for diffusers: generative novel view synthesis from posed photos (arXiv 2510.04236)."""

from diffusers import ModelMixin, SchedulerMixin

from ._registration import register
from ._version import __version__
from .bundled import bundled_checkpoint, sample_capture
from .captures.readers import load_scene
from .captures.scene import Scene
from .geometry import trajectories
from .geometry.cameras import Cameras
from .models.autoencoder_taef2 import AutoencoderTAEF2
from .models.reference_cache import KaleidoReferenceCache
from .models.transformer_kaleido import KaleidoTransformer3DModel
from .pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline, KaleidoViewSynthesisPipelineOutput
from .schedulers.scheduling_rectified_flow_view import RectifiedFlowViewScheduler


__all__ = [
    "AutoencoderTAEF2",
    "Cameras",
    "KaleidoReferenceCache",
    "KaleidoTransformer3DModel",
    "KaleidoViewSynthesisPipeline",
    "KaleidoViewSynthesisPipelineOutput",
    "ModelMixin",
    "RectifiedFlowViewScheduler",
    "Scene",
    "SchedulerMixin",
    "__version__",
    "bundled_checkpoint",
    "load_scene",
    "sample_capture",
    "trajectories",
]

register()
