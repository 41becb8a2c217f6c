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

"""The pipeline in blocks, of which others are composed: diffusers' modular form of
[`KaleidoViewSynthesisPipeline`], over the same functions ([`..generation`])."""

from .modular_blocks_kaleido import KaleidoBlocks, KaleidoEncodeBlocks, KaleidoMemoryBlocks
from .modular_pipeline import KaleidoGuidance, KaleidoModularPipeline


__all__ = ["KaleidoBlocks", "KaleidoEncodeBlocks", "KaleidoGuidance", "KaleidoMemoryBlocks", "KaleidoModularPipeline"]
