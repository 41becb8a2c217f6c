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

"""What blocks hand to each other, by the names that their inputs and outputs have."""

from typing import Any

import torch
from diffusers.modular_pipelines.modular_pipeline import BlockState, ModularPipelineBlocks, PipelineState

from ...geometry.views import ShownFrame, ViewGeometry, Views
from ..memory import SceneMemories, ViewMemory


__all__ = ["KaleidoState", "read_state"]


class KaleidoState(BlockState):
    """
    What a block reads and writes, the types of which are said here for all blocks: the state of a run has one flat
    namespace. A block finds in it what it declares as `inputs`, and nothing else. Shapes as in
    [`~pipelines.generation`].
    """

    # As users have them, see `KaleidoPrepareViewsStep`
    reference_images: Any
    poses: Any
    intrinsics: Any
    fov: float | None
    frame_times: Any
    target_poses: Any
    target_intrinsics: Any
    target_times: Any
    height: int | None
    width: int | None
    camera_scale: float

    # Prepared
    references: Views
    targets: ViewGeometry
    shown: ShownFrame
    is_batch: bool

    # The memory
    max_memory_views: int | None
    use_reference_cache: bool
    attention_kwargs: dict[str, Any] | None
    memory: SceneMemories
    row_memories: list[ViewMemory]

    # Groups
    views_per_group: int
    generation_order: str
    joins_memory: str
    num_samples: int
    groups: tuple[torch.Tensor, ...]

    # Denoising: `latents` are the user's noise, and within the loop those of the group, where `geometry` belongs too
    generator: torch.Generator | list[torch.Generator] | None
    noise: torch.Tensor
    num_inference_steps: int
    sigmas: list[float] | None
    latents: Any
    geometry: ViewGeometry
    denoised_latents: torch.Tensor

    # Views
    output_type: str
    images: Any


def read_state(block: ModularPipelineBlocks, state: PipelineState) -> KaleidoState:
    """
    What a block declares as its inputs, from the state of a run.

    Args:
        block (`ModularPipelineBlocks`): whose inputs.
        state (`PipelineState`): of the run.

    Raises:
        `ValueError`: where one is required and not there.
    """
    found: Any = block.get_block_state(state)  # to diffusers' annotations a `dict`, which it is not
    return KaleidoState(**found.as_dict())
