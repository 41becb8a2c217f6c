# Copyright 2026 The Kaleido for diffusers team.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""What blocks run in: components, what is known of all of them, and how they are saved."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import __version__ as diffusers_version
from diffusers.configuration_utils import FrozenDict
from diffusers.guiders.classifier_free_guidance import ClassifierFreeGuidance
from diffusers.guiders.guider_utils import GuiderOutput, rescale_noise_cfg
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.modular_pipelines.modular_pipeline import ModularPipeline, ModularPipelineBlocks, PipelineState
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec
from diffusers.pipelines.pipeline_loading_utils import _fetch_class_library_tuple

from ...files import written_whole
from ...geometry.views import ViewGeometry
from ...loaders.lora import KaleidoLoraLoaderMixin
from ...models.latents import compression
from ...models.reference_cache import KaleidoReferenceCache
from ...models.transformer_kaleido import KaleidoTransformer3DModel
from ...schedulers.scheduling_rectified_flow_view import RectifiedFlowViewScheduler
from ..generation import encode_memory, known_prediction
from ..hub import INDEX, MODULAR_INDEX, write_code
from ..pushing import KaleidoPushMixin, PushOptions
from ..turns import one_call_at_a_time
from .state import KaleidoState, read_state


__all__ = [
    "GUIDER",
    "IMAGE_PROCESSOR",
    "SCHEDULER",
    "TRANSFORMER",
    "VAE",
    "KaleidoBlock",
    "KaleidoGuidance",
    "KaleidoModularPipeline",
    "write_modular_index",
]


class KaleidoGuidance(ClassifierFreeGuidance):
    """
    Classifier-free guidance from the prediction without a memory through the one with it, by `torch.lerp`: to the bit
    what `guidance_scale` is in [`KaleidoViewSynthesisPipeline`].

    Args: as for [`~diffusers.ClassifierFreeGuidance`]. A `guidance_scale` of 1 takes one branch.
    """

    def forward(self, pred_cond: torch.Tensor, pred_uncond: torch.Tensor | None = None) -> GuiderOutput:
        """As in diffusers."""
        if pred_uncond is None or self.use_original_formulation:
            return super().forward(pred_cond, pred_uncond)
        pred = torch.lerp(pred_uncond, pred_cond, self.guidance_scale)
        if self.guidance_rescale > 0:
            pred = rescale_noise_cfg(pred, pred_cond, self.guidance_rescale)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)


TRANSFORMER = ComponentSpec("transformer", KaleidoTransformer3DModel, "Denoises target views given memory views.")
SCHEDULER = ComponentSpec("scheduler", RectifiedFlowViewScheduler, "Integrates the flow from noise to views.")
VAE = ComponentSpec("vae", AutoencoderKL, "Image autoencoder, or none: the transformer then works on pixels.")
GUIDER = ComponentSpec(
    "guider",
    KaleidoGuidance,
    "Combines predictions with and without a memory.",
    config=FrozenDict({"guidance_scale": 1.0}),
    default_creation_method="from_config",
)
IMAGE_PROCESSOR = ComponentSpec(
    "image_processor",
    VaeImageProcessor,
    "Views to the form that was asked for.",
    config=FrozenDict({"do_resize": False}),
    default_creation_method="from_config",
)


class KaleidoModularPipeline(KaleidoPushMixin, ModularPipeline, KaleidoLoraLoaderMixin):
    """
    [`KaleidoViewSynthesisPipeline`] in blocks, see [`KaleidoBlocks`]. To the bit the same views.

    A folder of it serves both forms. Its guider is saved, with its scale.
    """

    default_blocks_name = "KaleidoBlocks"

    # Where nothing is denoised, step caches that are told of the timestep skip nothing
    current_timestep: torch.Tensor | int = 1000

    @classmethod
    def of(cls, components: Mapping[str, Any], prediction_type: str | None = None) -> "KaleidoModularPipeline":
        """
        One with the default blocks, of components that are there already.

        Args:
            components (`Mapping[str, Any]`): by name, such as the `components` of another pipeline.
            prediction_type (`str`, *optional*): what the transformer predicts; the scheduler's when not given.
        """
        pipe = cls()
        pipe.update_components(**components, prediction_type=prediction_type)
        return pipe

    @property
    def vae_scale_factor(self) -> int:
        """Pixels along a side of a latent cell."""
        return compression(getattr(self, "vae", None))

    @property
    def default_sample_size(self) -> int:
        """Height and width of views in pixels where none are asked for."""
        return self.transformer.config.sample_size * self.vae_scale_factor

    def rest(self) -> None:
        """Sets `current_timestep` to where step caches skip nothing."""
        scheduler = getattr(self, "scheduler", None)
        self.current_timestep = 1000 if scheduler is None else scheduler.config.num_train_timesteps

    def encode_memory(
        self,
        latents: torch.Tensor,
        geometry: ViewGeometry,
        cache: KaleidoReferenceCache,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """
        Encodes clean views into a cache, see [`~pipelines.generation.encode_memory`].

        Args:
            latents (`torch.Tensor` of shape `[B, V, C, h, w]`): the views.
            geometry (`ViewGeometry` with leading dimensions `[B, V]`): where and when they are.
            cache ([`KaleidoReferenceCache`]): grown in place.
            attention_kwargs (`dict`, *optional*): passed to the transformer.
        """
        self.rest()
        encode_memory(self.transformer, latents, geometry, cache, self._execution_device, attention_kwargs)

    @one_call_at_a_time
    def __call__(self, *args, **kwargs) -> Any:
        """As in diffusers; calls from several threads wait for each other."""
        return super().__call__(*args, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        overwrite_modular_index: bool = True,
        **kwargs: Any,
    ) -> None:
        """As in diffusers. Both forms load the folder, from wherever it is moved to; what `push_to_hub` uploads has a
        model card, see [`PushOptions`] for what goes along with it."""
        push = PushOptions(**kwargs) if push_to_hub else None
        folder = os.fspath(save_directory)
        if getattr(self, "guider", None) is not None:
            self._keep_guider()
        super().save_pretrained(
            folder, safe_serialization, variant, max_shard_size, overwrite_modular_index=overwrite_modular_index
        )
        _write_index(folder, MODULAR_INDEX, dict(self.config) | {"_class_name": type(self).__name__})
        self._write_standard_index(folder)
        if push is not None:
            push.push(folder)

    def _write_standard_index(self, folder: str) -> None:
        """`model_index.json` and `pipeline.py`, where there is all that the standard form needs."""
        parts = {name: getattr(self, name, None) for name in ("scheduler", "transformer", "vae")}
        if parts["transformer"] is None or parts["scheduler"] is None:
            return
        known = known_prediction(parts["scheduler"], self.config.get("prediction_type"))
        index: dict[str, Any] = {"_class_name": "KaleidoViewSynthesisPipeline", "prediction_type": known}
        for name, part in parts.items():
            index[name] = [None, None] if part is None else list(_fetch_class_library_tuple(part))
        _write_index(folder, INDEX, index)
        write_code(folder)

    def _keep_guider(self) -> None:
        """Makes the guider a component that is saved: diffusers would make one anew, at the default scale."""
        spec = self._component_specs["guider"]
        spec.type_hint, spec.default_creation_method = type(self.guider), "from_pretrained"
        library, name = _fetch_class_library_tuple(self.guider)
        self.register_to_config(guider=(library, name, self._component_spec_to_dict(spec)))


class KaleidoBlock(ModularPipelineBlocks):
    """A block of ours: it says what it does in [`~KaleidoBlock.run`], on inputs that were fetched for it."""

    model_name = "kaleido"

    @torch.no_grad()
    def __call__(
        self, components: KaleidoModularPipeline, state: PipelineState
    ) -> tuple[KaleidoModularPipeline, PipelineState]:
        """Runs with `components`; reads its inputs from `state` and writes its outputs there."""
        block_state = read_state(self, state)
        self.run(components, block_state)
        self.set_block_state(state, block_state)
        return components, state

    def run(self, components: KaleidoModularPipeline, block_state: KaleidoState) -> None:
        """With `components`, from the inputs to the outputs in `block_state`. Each block has its own."""


def write_modular_index(
    folder: str | os.PathLike, components: Mapping[str, Any], prediction_type: str, variant: str | None = None
) -> None:
    """
    Writes `modular_model_index.json`, by which [`KaleidoModularPipeline`] loads a folder of the standard form.

    Args:
        folder (`str` or `os.PathLike`): where the components are, in folders of their names.
        components (`Mapping[str, Any]`): transformer, scheduler and autoencoder by name.
        prediction_type (`str`): what the transformer predicts.
        variant (`str`, *optional*): of the files of weights.
    """
    index: dict[str, Any] = {"_class_name": KaleidoModularPipeline.__name__, "_blocks_class_name": "KaleidoBlocks"}
    index["prediction_type"] = prediction_type
    for name, known in {"transformer": TRANSFORMER, "scheduler": SCHEDULER, "vae": VAE}.items():
        part = components[name]
        spec = known if part is None else ComponentSpec(name, type(part))
        if isinstance(part, torch.nn.Module):
            spec.variant = variant
        library = (None, None) if part is None else _fetch_class_library_tuple(part)
        index[name] = [*library, ModularPipeline._component_spec_to_dict(spec)]  # an absent one keeps its type
    _write_index(folder, MODULAR_INDEX, index)


def _write_index(folder: str | os.PathLike, name: str, index: dict[str, Any]) -> None:
    """Writes an index, in which components of the folder name no place: it may be moved."""
    index = {"_diffusers_version": diffusers_version, **index}
    here = {"pretrained_model_name_or_path": None, "revision": None}
    for key, entry in index.items():
        if isinstance(entry, (tuple, list)) and len(entry) == 3 and (Path(folder) / key).is_dir():
            index[key] = [*entry[:2], {**entry[2], **here, "subfolder": key}]
    with written_whole(Path(folder) / name) as part:
        part.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
