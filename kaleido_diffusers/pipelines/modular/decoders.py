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

"""Latents to views."""

import torch
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam

from ...models.latents import decode_views
from ..generation import as_asked, check_output_type
from .before_denoise import GROUPS, MEMORY, NUM_SAMPLES
from .modular_pipeline import IMAGE_PROCESSOR, VAE, KaleidoBlock, KaleidoModularPipeline
from .state import KaleidoState


__all__ = ["KaleidoDecodeStep"]


class KaleidoDecodeStep(KaleidoBlock):
    """Group by group, as they were denoised: so many views pass through the autoencoder at once."""

    @property
    def description(self) -> str:
        return "Decodes views, and brings them to the form and the order that was asked for."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [VAE, IMAGE_PROCESSOR]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("denoised_latents", type_hint=torch.Tensor, required=True, description="`[R, M, C, h, w]`."),
            InputParam(GROUPS.name, type_hint=tuple, required=True, description=GROUPS.description),
            MEMORY,
            NUM_SAMPLES,
            InputParam.template("output_type", note='or "latent"'),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam.template("images", note="in the order of the targets")]

    def run(self, components: KaleidoModularPipeline, block_state: KaleidoState) -> None:
        """With `components`, from the inputs to the outputs in `block_state`."""
        latents, memory, device = block_state.denoised_latents, block_state.memory, components._execution_device
        check_output_type(block_state.output_type)
        views = latents
        if block_state.output_type != "latent":
            rows = torch.arange(len(latents)).unsqueeze(-1)
            views = torch.zeros(*latents.shape[:2], 3, memory.height, memory.width, dtype=torch.float32)
            for group in block_state.groups:
                views[rows, group] = decode_views(components.vae, latents[rows, group].to(device)).float().cpu()
        block_state.images = as_asked(
            components.image_processor, views, block_state.output_type, memory.is_batch, block_state.num_samples
        )
