"""Makes diffusers find our classes: in `model_index.json` under this package's name, from `DiffusionPipeline`,
`AutoModel` and `from_single_file`, and in its block caches. Runs on import; running it again changes nothing."""

import diffusers
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.pipelines.pipeline_loading_utils import ALL_IMPORTABLE_CLASSES, LOADABLE_CLASSES

from .models.autoencoder_taef2 import AutoencoderTAEF2
from .models.transformer_kaleido import KaleidoTransformer3DModel, KaleidoTransformerBlock
from .pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline
from .schedulers.scheduling_rectified_flow_view import RectifiedFlowViewScheduler


__all__ = ["register"]

_SAVE_LOAD = ["save_pretrained", "from_pretrained"]


def _state_dict_as_it_is(checkpoint: dict, **kwargs) -> dict:
    """`KaleidoSingleFileMixin` has converted it before diffusers asks."""
    return checkpoint


def register() -> None:
    """Registers with diffusers."""
    # `model_index.json` then records "kaleido_diffusers", not a module path, and loading looks for these bases here.
    LOADABLE_CLASSES["kaleido_diffusers"] = {"ModelMixin": _SAVE_LOAD, "SchedulerMixin": _SAVE_LOAD}
    ALL_IMPORTABLE_CLASSES.update(LOADABLE_CLASSES["kaleido_diffusers"])

    # `DiffusionPipeline.from_pretrained`, `AutoModel` and `from_single_file` look for attributes of diffusers.
    for cls in (
        AutoencoderTAEF2,
        KaleidoViewSynthesisPipeline,
        KaleidoTransformer3DModel,
        RectifiedFlowViewScheduler,
    ):
        setattr(diffusers, cls.__name__, cls)
    SINGLE_FILE_LOADABLE_CLASSES["KaleidoTransformer3DModel"] = {
        "checkpoint_mapping_fn": _state_dict_as_it_is,
        "default_subfolder": "transformer",
    }

    # FirstBlockCache, MagCache and their like ask what a block returns.
    TransformerBlockRegistry.register(
        KaleidoTransformerBlock,
        TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
    )
