"""Kaleido for diffusers: generative novel view synthesis from posed photos (arXiv 2510.04236)."""

from diffusers import ModelMixin, SchedulerMixin

from . import trajectories
from ._registration import register
from ._version import __version__
from .bundled import bundled_checkpoint, sample_capture
from .cameras import Cameras
from .data.readers import load_scene
from .data.scene import Scene
from .pipeline_kaleido import KaleidoViewSynthesisPipeline, KaleidoViewSynthesisPipelineOutput
from .reference_cache import KaleidoReferenceCache
from .scheduling_rectified_flow_view import RectifiedFlowViewScheduler
from .transformer_kaleido import KaleidoTransformer3DModel


__all__ = [
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
