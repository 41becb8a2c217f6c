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

"""Targets for references that are encoded already; their order, noise, and a memory for each sample."""

from functools import partial

import torch
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam

from ...geometry.cameras import Cameras
from ...geometry.views import ViewGeometry
from ..generation import check_group_options, check_targets, make_noise, order_groups, part_samples
from ..inputs import prepare_view_inputs
from ..memory import SceneMemories, ViewMemory
from .encoders import ATTENTION_KWARGS, USE_REFERENCE_CACHE
from .modular_pipeline import TRANSFORMER, VAE, KaleidoBlock, KaleidoModularPipeline
from .state import KaleidoState


__all__ = [
    "KaleidoOrderTargetsStep",
    "KaleidoPartSamplesStep",
    "KaleidoPrepareLatentsStep",
    "KaleidoPrepareTargetsStep",
]

MEMORY = InputParam(
    "memory", type_hint=SceneMemories, required=True, description="References that were encoded, of any run."
)
NUM_SAMPLES = InputParam(
    "num_samples", type_hint=int, default=1, description="Samples of each target, each with a memory of its own."
)
JOINS_MEMORY = InputParam(
    "joins_memory",
    type_hint=str,
    default="all",
    description='Which generated views later groups attend to: "all", those of the "first" group, or "none".',
)
GROUPS = OutputParam("groups", type_hint=tuple, description="Numbers of the targets of each group, `[R, g]`.")
_TARGETS = InputParam(
    "targets", type_hint=ViewGeometry, required=True, description="Where and when targets are, `[B, M]`."
)


class KaleidoPrepareTargetsStep(KaleidoBlock):
    """Targets alone, for a memory."""

    @property
    def description(self) -> str:
        return "Checks cameras and times of targets that are to be rendered against a memory."

    @property
    def inputs(self) -> list[InputParam]:
        return [
            MEMORY,
            InputParam("target_poses", description="`world_from_camera`: `Cameras` or `[M, 4, 4]`."),
            InputParam("target_intrinsics", description="In pixels, for poses without; the first reference's lens."),
            InputParam("target_times", description="Seconds, for video and moving scenes."),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("targets", type_hint=ViewGeometry, description="Where and when targets are, `[B, M]`.")]

    def run(self, components: KaleidoModularPipeline, block_state: KaleidoState) -> None:
        """From the inputs to the outputs in `block_state`. Not read: `components`."""
        memory, poses, lens = block_state.memory, block_state.target_poses, block_state.target_intrinsics
        check_targets(memory.shown, poses, block_state.target_times)
        if lens is None and memory.lens is not None and not isinstance(poses, Cameras):
            lens = memory.lens.intrinsics[0]
        none = [[] for _ in memory.scenes] if memory.is_batch else None
        times, size = block_state.target_times, (memory.height, memory.width)
        views = prepare_view_inputs(none, None, poses, None, lens, None, None, times, *size)
        block_state.targets = views.targets


class KaleidoOrderTargetsStep(KaleidoBlock):
    """Which targets are denoised together, and in which order."""

    @property
    def description(self) -> str:
        return "Puts targets into groups, and each group into its turn."

    @property
    def inputs(self) -> list[InputParam]:
        return [
            MEMORY,
            _TARGETS,
            InputParam("views_per_group", type_hint=int, default=4, description="Targets that are denoised together."),
            InputParam(
                "generation_order",
                type_hint=str,
                default="given",
                description='"given", "nearest" to the known views first, or "anchors": a spread group, then that.',
            ),
            JOINS_MEMORY,
            NUM_SAMPLES,
            USE_REFERENCE_CACHE,
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [GROUPS]

    def run(self, components: KaleidoModularPipeline, block_state: KaleidoState) -> None:
        """From the inputs to the outputs in `block_state`. Not read: `components`."""
        scenes, targets = block_state.memory.scenes, block_state.memory.shown.show(block_state.targets)
        order, count, samples = block_state.generation_order, block_state.views_per_group, block_state.num_samples
        check_group_options(
            count,
            scenes[0].max_views,
            order,
            block_state.joins_memory,
            samples,
            block_state.use_reference_cache,
        )
        block_state.groups = order_groups(scenes, targets, order, count, samples)


class KaleidoPrepareLatentsStep(KaleidoBlock):
    """Noise for each target; it belongs to a target wherever that comes in the order."""

    @property
    def description(self) -> str:
        return "Draws the noise that targets start from."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [TRANSFORMER, VAE]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            MEMORY,
            _TARGETS,
            NUM_SAMPLES,
            InputParam.template("generator", note="one, one for each scene, or one for each sample"),
            InputParam.template("latents", note="in the shape of an output with `output_type='latent'`"),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("noise", type_hint=torch.Tensor, description="`[R, M, C, h, w]`.")]

    def run(self, components: KaleidoModularPipeline, block_state: KaleidoState) -> None:
        """With `components`, from the inputs to the outputs in `block_state`."""
        memory, ratio = block_state.memory, components.vae_scale_factor
        shape = (len(memory), len(block_state.targets), block_state.num_samples)
        shape += (components.transformer.out_channels, memory.height // ratio, memory.width // ratio)
        noise = make_noise(shape, block_state.latents, block_state.generator, components._execution_device)
        block_state.noise = noise.transpose(1, 2).flatten(0, 1)


class KaleidoPartSamplesStep(KaleidoBlock):
    """A memory for each sample, which grows; the one that was encoded stays as it is."""

    @property
    def description(self) -> str:
        return "Gives each sample of each scene a memory of its own."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [TRANSFORMER]

    @property
    def inputs(self) -> list[InputParam]:
        return [MEMORY, NUM_SAMPLES, USE_REFERENCE_CACHE, ATTENTION_KWARGS]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("row_memories", type_hint=list[ViewMemory], description="One for each row, `[R]`.")]

    def run(self, components: KaleidoModularPipeline, block_state: KaleidoState) -> None:
        """With `components`, from the inputs to the outputs in `block_state`."""
        encode = partial(components.encode_memory, attention_kwargs=block_state.attention_kwargs)
        block_state.row_memories = part_samples(
            block_state.memory.scenes,
            block_state.num_samples,
            encode if block_state.use_reference_cache else None,
            keep=True,
        )
