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

"""The loop over groups of targets: each is denoised given the memory, and joins it."""

from functools import partial
from typing import Any

import torch
from diffusers.modular_pipelines.modular_pipeline import (
    LoopSequentialPipelineBlocks,
    ModularPipelineBlocks,
    PipelineState,
)
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, ConfigSpec, InputParam, OutputParam

from ...geometry.views import ViewGeometry
from ..generation import (
    branch,
    check_guidance,
    check_prediction_type,
    group_joins,
    known_prediction,
    predict,
    recall,
    replay,
    set_timesteps,
    take_step,
)
from ..memory import ViewMemory
from .before_denoise import GROUPS, JOINS_MEMORY, MEMORY
from .encoders import ATTENTION_KWARGS, USE_REFERENCE_CACHE
from .modular_pipeline import GUIDER, SCHEDULER, TRANSFORMER, KaleidoModularPipeline
from .state import KaleidoState, read_state


__all__ = ["KaleidoDenoiseStep", "KaleidoGroupDenoiseStep", "KaleidoGroupRememberStep", "KaleidoGroupScheduleStep"]

_ROW_MEMORIES = InputParam("row_memories", type_hint=list[ViewMemory], required=True)


class KaleidoGroupScheduleStep(ModularPipelineBlocks):
    """The schedule of one group: with a dynamic shift it depends on the number of targets."""

    model_name = "kaleido"

    @property
    def description(self) -> str:
        return "Sets the scheduler to the first step of a group."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [SCHEDULER, TRANSFORMER]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam.template("num_inference_steps", default=25),
            InputParam.template("sigmas", note="instead of `num_inference_steps`"),
        ]

    @torch.no_grad()
    def __call__(
        self, components: KaleidoModularPipeline, block_state: KaleidoState, **_group
    ) -> tuple[KaleidoModularPipeline, KaleidoState]:
        """Runs with `components` on the group in `block_state`; other blocks read the `_group`'s number."""
        set_timesteps(
            components.scheduler,
            components.transformer.config["patch_size"],
            block_state.latents,
            block_state.num_inference_steps,
            block_state.sigmas,
        )
        return components, block_state


class KaleidoGroupDenoiseStep(ModularPipelineBlocks):
    """From noise to clean latents in the steps of the scheduler, under any guider whose branches are with and without
    the memory."""

    model_name = "kaleido"

    @property
    def description(self) -> str:
        return "Denoises the targets of one group, given the memory."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [TRANSFORMER, SCHEDULER, GUIDER]

    @property
    def inputs(self) -> list[InputParam]:
        noise = InputParam.template("generator", note="of the noise that stochastic schedulers add")
        return [_ROW_MEMORIES, USE_REFERENCE_CACHE, ATTENTION_KWARGS, noise]

    @torch.no_grad()
    def __call__(
        self, components: KaleidoModularPipeline, block_state: KaleidoState, progress_bar, **_group
    ) -> tuple[KaleidoModularPipeline, KaleidoState]:
        """Runs with `components` on the group in `block_state`; `progress_bar` counts steps, other blocks read the
        `_group`'s number."""
        geometry, memories = block_state.geometry, block_state.row_memories
        encode = partial(components.encode_memory, attention_kwargs=block_state.attention_kwargs)
        if block_state.use_reference_cache:
            context = recall(memories, geometry, encode)
        else:
            context = replay(memories, block_state.latents.device)
        components.transformer._reset_stateful_cache()  # what step caches know belongs to other views
        geometry = geometry.to(block_state.latents.device)
        for step, timestep in enumerate(components.scheduler.timesteps):
            components.current_timestep = timestep
            prediction = self._predict(components, block_state, step, geometry, context)
            block_state.latents = take_step(
                components.scheduler, prediction, timestep, block_state.latents, block_state.generator
            )
            progress_bar.update()
        components.transformer._reset_stateful_cache()
        return components, block_state

    @staticmethod
    def _predict(
        components: KaleidoModularPipeline,
        block_state: KaleidoState,
        step: int,
        geometry: ViewGeometry,
        context: dict[str, Any],
    ) -> torch.Tensor:
        guider, transformer, scheduler = components.guider, components.transformer, components.scheduler
        timestep = scheduler.timesteps[step]
        guider.set_state(step=step, num_inference_steps=len(scheduler.timesteps), timestep=timestep)
        batches = guider.prepare_inputs({"context": (context, {})})
        if not context:  # nothing to be guided to: one branch is all there is
            batches = batches[:1]
        for batch in batches:
            guider.prepare_models(transformer)
            with branch(transformer, scheduler, batch.__guidance_identifier__, step):
                batch.noise_pred = predict(
                    transformer, block_state.latents, timestep, geometry, batch.context, block_state.attention_kwargs
                )
            guider.cleanup_models(transformer)
        return guider(batches)[0] if context else batches[0].noise_pred


class KaleidoGroupRememberStep(ModularPipelineBlocks):
    """What was generated becomes a part of the memory."""

    model_name = "kaleido"

    @property
    def description(self) -> str:
        return "Lets the views of a group join the memory, for the groups after it."

    @property
    def inputs(self) -> list[InputParam]:
        return [_ROW_MEMORIES, JOINS_MEMORY]

    @torch.no_grad()
    def __call__(
        self, components: KaleidoModularPipeline, block_state: KaleidoState, number: int, **_group
    ) -> tuple[KaleidoModularPipeline, KaleidoState]:
        """Runs with `components` on the group in `block_state`, whose `number` decides; other blocks read more of the
        `_group`."""
        if group_joins(block_state.joins_memory, number):
            for row, memory in enumerate(block_state.row_memories):
                memory.add(block_state.latents[row : row + 1], block_state.geometry.rows([row]))
        return components, block_state


class KaleidoDenoiseStep(LoopSequentialPipelineBlocks):
    """All groups, one after the other."""

    model_name = "kaleido"
    block_classes = [KaleidoGroupScheduleStep, KaleidoGroupDenoiseStep, KaleidoGroupRememberStep]
    block_names = ["schedule", "denoise", "remember"]

    @property
    def description(self) -> str:
        return "Generates the targets, a group at a time. Blocks within get `latents` and `geometry` of one group."

    @property
    def loop_expected_components(self) -> list[ComponentSpec]:
        return [TRANSFORMER, SCHEDULER, GUIDER]

    @property
    def loop_expected_configs(self) -> list[ConfigSpec]:
        return [
            ConfigSpec("prediction_type", None, "What the transformer predicts; the scheduler's where not known."),
        ]

    @property
    def loop_inputs(self) -> list[InputParam]:
        return [
            MEMORY,
            InputParam("targets", type_hint=ViewGeometry, required=True),
            InputParam("noise", type_hint=torch.Tensor, required=True),
            InputParam(GROUPS.name, type_hint=tuple, required=True),
        ]

    @property
    def loop_intermediate_outputs(self) -> list[OutputParam]:
        return [
            OutputParam("denoised_latents", type_hint=torch.Tensor, description="`[R, M, C, h, w]` on the CPU."),
        ]

    @torch.no_grad()
    def __call__(
        self, components: KaleidoModularPipeline, state: PipelineState
    ) -> tuple[KaleidoModularPipeline, PipelineState]:
        """Runs with `components`; reads its inputs from `state` and writes its outputs there."""
        block_state = read_state(self, state)
        scheduler, noise, groups = components.scheduler, block_state.noise, block_state.groups
        check_prediction_type(scheduler, known_prediction(scheduler, components.config["prediction_type"]))
        check_guidance(getattr(components.guider, "guidance_scale", 1.0))  # one has a scale for each frequency
        scenes = torch.arange(len(block_state.memory)).repeat_interleave(len(noise) // len(block_state.memory))
        targets = block_state.memory.shown.show(block_state.targets).rows(scenes)
        rows = torch.arange(len(noise)).unsqueeze(-1)
        denoised = torch.zeros_like(noise, device="cpu")
        patch_size, first = components.transformer.config["patch_size"], noise[:, : groups[0].shape[1]]
        steps = len(set_timesteps(scheduler, patch_size, first, block_state.num_inference_steps, block_state.sigmas))
        progress: Any = self.progress_bar  # of which diffusers' decorator hides the type
        loop_step: Any = self.loop_step  # to diffusers' annotations it passes the state of the run on, not the block's
        with progress(total=steps * len(groups)) as progress_bar:
            for number, group in enumerate(groups):
                block_state.latents = noise[rows.to(noise.device), group.to(noise.device)]
                block_state.geometry = targets.select(group)
                components, block_state = loop_step(components, block_state, number=number, progress_bar=progress_bar)
                denoised[rows, group] = block_state.latents.cpu()
        components.rest()
        block_state.denoised_latents = denoised
        del block_state.latents  # those of the last group; noise that was given has this name in the state
        self.set_block_state(state, block_state)
        return components, state
