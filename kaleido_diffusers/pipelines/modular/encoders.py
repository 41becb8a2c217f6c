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

"""References and targets as users have them, checked; references encoded."""

from functools import partial

from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam

from ...geometry.views import ShownFrame, ViewGeometry, Views
from ..generation import check_count, check_size, remember
from ..inputs import prepare_references, prepare_view_inputs
from ..memory import SceneMemories
from .modular_pipeline import TRANSFORMER, VAE, KaleidoBlock, KaleidoModularPipeline
from .state import KaleidoState


__all__ = ["KaleidoEncodeReferencesStep", "KaleidoPrepareReferencesStep", "KaleidoPrepareViewsStep"]

ATTENTION_KWARGS = InputParam.template("attention_kwargs")
USE_REFERENCE_CACHE = InputParam(
    "use_reference_cache",
    type_hint=bool,
    default=True,
    description="Whether memory views are encoded once instead of at every step. The result is the same.",
)
_REFERENCES = [
    InputParam(
        "reference_images",
        description="N reference views, a list of lists for a batch of scenes: PIL images, paths, arrays or tensors.",
    ),
    InputParam("poses", description="`world_from_camera` of the references, OpenCV axes: `Cameras` or `[N, 4, 4]`."),
    InputParam("intrinsics", description="Of the references in pixels, for poses without."),
    InputParam("fov", type_hint=float, description="Horizontal field of view in degrees, for bare poses."),
    InputParam("frame_times", description="Seconds of the references, for video and moving scenes."),
]
_SIZE = [
    InputParam.template("height"),
    InputParam.template("width"),
    InputParam(
        "camera_scale",
        type_hint=float,
        default=1.0,
        description="Multiplies camera translations after they were normalised.",
    ),
]
_PREPARED = [
    OutputParam("references", type_hint=Views, description="References `[B, N]`, pixels in [-1, 1]."),
    OutputParam("shown", type_hint=ShownFrame, description="Frame, unit and first second that the model is shown."),
    OutputParam("is_batch", type_hint=bool, description="Whether a batch of scenes was given, or one scene."),
]


class KaleidoPrepareViewsStep(KaleidoBlock):
    """References and targets together: with one reference, the targets decide on the unit of the scene."""

    @property
    def description(self) -> str:
        return "Checks images, cameras and times of references and targets and brings them to the working size."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [TRANSFORMER, VAE]

    @property
    def inputs(self) -> list[InputParam]:
        targets = [
            InputParam("target_poses", description="Of the targets; without them `poses` go on with them."),
            InputParam("target_intrinsics", description="Of the targets; those of the first reference by default."),
            InputParam("target_times", description="Seconds of the targets."),
        ]
        return [*_REFERENCES, *targets, *_SIZE]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        targets = OutputParam("targets", type_hint=ViewGeometry, description="Where and when targets are, `[B, M]`.")
        return [*_PREPARED, targets]

    def run(self, components: KaleidoModularPipeline, block_state: KaleidoState) -> None:
        """With `components`, from the inputs to the outputs in `block_state`."""
        views = prepare_view_inputs(
            block_state.reference_images,
            block_state.poses,
            block_state.target_poses,
            block_state.intrinsics,
            block_state.target_intrinsics,
            block_state.fov,
            block_state.frame_times,
            block_state.target_times,
            *_checked_size(components, block_state.height, block_state.width),
        )
        block_state.references, block_state.targets, block_state.is_batch = (
            views.references,
            views.targets,
            views.is_batch,
        )
        longest = components.transformer.config.max_focal_length
        block_state.shown = ShownFrame.of(views.geometry, len(views.references), block_state.camera_scale, longest)


class KaleidoPrepareReferencesStep(KaleidoBlock):
    """References of one scene alone, for targets to come: the largest distance between two of them is the unit."""

    @property
    def description(self) -> str:
        return "Checks images, cameras and times of references and brings them to the working size."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [TRANSFORMER, VAE]

    @property
    def inputs(self) -> list[InputParam]:
        return [*_REFERENCES, *_SIZE]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return _PREPARED

    def run(self, components: KaleidoModularPipeline, block_state: KaleidoState) -> None:
        """With `components`, from the inputs to the outputs in `block_state`."""
        block_state.references = prepare_references(
            block_state.reference_images,
            block_state.poses,
            block_state.intrinsics,
            block_state.fov,
            block_state.frame_times,
            *_checked_size(components, block_state.height, block_state.width),
        )
        block_state.is_batch = False
        longest = components.transformer.config.max_focal_length
        block_state.shown = ShownFrame.of(
            block_state.references, len(block_state.references), block_state.camera_scale, longest
        )


class KaleidoEncodeReferencesStep(KaleidoBlock):
    """References to a memory that any number of runs can use."""

    @property
    def description(self) -> str:
        return "Encodes references: to latents, and to the keys and values that targets attend to."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [TRANSFORMER, VAE]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            *(InputParam(known.name, type_hint=known.type_hint, required=True) for known in _PREPARED),
            InputParam(
                "max_memory_views",
                type_hint=int,
                description="Keep keys and values of no more than this many views: the nearest to the group.",
            ),
            USE_REFERENCE_CACHE,
            ATTENTION_KWARGS,
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("memory", type_hint=SceneMemories, description="What targets may attend to.")]

    def run(self, components: KaleidoModularPipeline, block_state: KaleidoState) -> None:
        """With `components`, from the inputs to the outputs in `block_state`."""
        limit, references = block_state.max_memory_views, block_state.references
        if limit is not None:
            check_count("max_memory_views", limit)
        scenes = remember(components.vae, references, block_state.shown, limit, components._execution_device)
        for scene in scenes:
            if block_state.use_reference_cache and not scene.overflows:
                scene.recall(partial(components.encode_memory, attention_kwargs=block_state.attention_kwargs))
        height, width = references.pixels.shape[-2:]
        cameras = references.cameras if len(scenes) == 1 and len(references) else None
        lens = None if cameras is None else cameras[0, :1]
        block_state.memory = SceneMemories(scenes, block_state.is_batch, height, width, block_state.shown, lens)


def _checked_size(components: KaleidoModularPipeline, height: int | None, width: int | None) -> tuple[int, int]:
    size = components.default_sample_size
    checked = (height or size, width or size)
    check_size(components.transformer, components.vae, *checked)
    return checked
