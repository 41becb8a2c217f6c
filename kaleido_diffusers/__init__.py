"""Kaleido for diffusers: generative novel view synthesis from posed photos (arXiv 2510.04236).

Names are imported when they are first asked for: torch and diffusers take seconds, which `kaleido --help`, or cameras
without a model, need not wait for. diffusers knows our classes from now on all the same, see [`_registration`].
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._registration import register
from ._version import __version__


if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    from .bundled import bundled_checkpoint, sample_capture
    from .captures.readers import load_scene
    from .captures.scene import Scene
    from .geometry import trajectories
    from .geometry.cameras import Cameras
    from .models.autoencoder_taef2 import AutoencoderTAEF2
    from .models.reference_cache import KaleidoReferenceCache
    from .models.transformer_kaleido import KaleidoTransformer3DModel
    from .pipelines.modular import (
        KaleidoBlocks,
        KaleidoEncodeBlocks,
        KaleidoGuidance,
        KaleidoMemoryBlocks,
        KaleidoModularPipeline,
    )
    from .pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline, KaleidoViewSynthesisPipelineOutput
    from .schedulers.scheduling_rectified_flow_view import RectifiedFlowViewScheduler


__all__ = [
    "AutoencoderTAEF2",
    "Cameras",
    "KaleidoBlocks",
    "KaleidoEncodeBlocks",
    "KaleidoGuidance",
    "KaleidoMemoryBlocks",
    "KaleidoModularPipeline",
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

_HOMES = {  # of the names above: the module that has them
    "AutoencoderTAEF2": ".models.autoencoder_taef2",
    "Cameras": ".geometry.cameras",
    "KaleidoBlocks": ".pipelines.modular",
    "KaleidoEncodeBlocks": ".pipelines.modular",
    "KaleidoGuidance": ".pipelines.modular",
    "KaleidoMemoryBlocks": ".pipelines.modular",
    "KaleidoModularPipeline": ".pipelines.modular",
    "KaleidoReferenceCache": ".models.reference_cache",
    "KaleidoTransformer3DModel": ".models.transformer_kaleido",
    "KaleidoViewSynthesisPipeline": ".pipelines.pipeline_kaleido",
    "KaleidoViewSynthesisPipelineOutput": ".pipelines.pipeline_kaleido",
    "ModelMixin": "diffusers",
    "RectifiedFlowViewScheduler": ".schedulers.scheduling_rectified_flow_view",
    "Scene": ".captures.scene",
    "SchedulerMixin": "diffusers",
    "bundled_checkpoint": ".bundled",
    "load_scene": ".captures.readers",
    "sample_capture": ".bundled",
}


def __getattr__(name: str) -> Any:
    if name == "trajectories":
        return import_module(".geometry.trajectories", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value  # asked for once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
