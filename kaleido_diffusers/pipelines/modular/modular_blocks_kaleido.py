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

"""Blocks put together. (To the type checker their `description` in diffusers can be nothing but "".)"""

from diffusers.modular_pipelines.modular_pipeline import SequentialPipelineBlocks

from .before_denoise import (
    KaleidoOrderTargetsStep,
    KaleidoPartSamplesStep,
    KaleidoPrepareLatentsStep,
    KaleidoPrepareTargetsStep,
)
from .decoders import KaleidoDecodeStep
from .denoise import KaleidoDenoiseStep
from .encoders import KaleidoEncodeReferencesStep, KaleidoPrepareReferencesStep, KaleidoPrepareViewsStep


__all__ = ["KaleidoBlocks", "KaleidoEncodeBlocks", "KaleidoMemoryBlocks"]

_GENERATE = [
    ("order_targets", KaleidoOrderTargetsStep),
    ("prepare_latents", KaleidoPrepareLatentsStep),
    ("part_samples", KaleidoPartSamplesStep),
    ("denoise", KaleidoDenoiseStep),
    ("decode", KaleidoDecodeStep),
]


class KaleidoBlocks(SequentialPipelineBlocks):
    """Target views from reference views."""

    block_classes = [KaleidoPrepareViewsStep, KaleidoEncodeReferencesStep, *(block for _, block in _GENERATE)]
    block_names = ["prepare_views", "encode_references", *(name for name, _ in _GENERATE)]

    @property
    def description(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (
            "Synthesises views of a scene from any number of posed reference photos, or frames of a video from other"
            " frames. Without `encode_references` it takes the `memory` of another run."
        )


class KaleidoEncodeBlocks(SequentialPipelineBlocks):
    """A memory from references."""

    block_classes = [KaleidoPrepareReferencesStep, KaleidoEncodeReferencesStep]
    block_names = ["prepare_references", "encode_references"]

    @property
    def description(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return "Encodes the references of one scene once, for any number of runs of `KaleidoMemoryBlocks`."


class KaleidoMemoryBlocks(SequentialPipelineBlocks):
    """Target views from a memory."""

    block_classes = [KaleidoPrepareTargetsStep, *(block for _, block in _GENERATE)]
    block_names = ["prepare_targets", *(name for name, _ in _GENERATE)]

    @property
    def description(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return "Synthesises views of a scene from the `memory` of its references, which stays as it is."
