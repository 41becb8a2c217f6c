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

"""Masked autoregressive view synthesis: groups of targets are denoised given a memory of clean views, and join it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
import torch.distributed as dist
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.utils import logging
from diffusers.utils.doc_utils import replace_example_docstring
from diffusers.utils.outputs import BaseOutput

from ..geometry.cameras import Cameras
from ..geometry.views import ShownFrame, ViewGeometry, Views
from ..loaders.lora import KaleidoLoraLoaderMixin
from ..models.autoencoder_taef2 import AutoencoderTAEF2
from ..models.latents import compression, decode_views, encode_views
from ..models.reference_cache import KaleidoReferenceCache
from ..models.transformer_kaleido import KaleidoTransformer3DModel
from ..schedulers.scheduling_rectified_flow_view import RectifiedFlowViewScheduler
from . import generation
from .hub import write_code
from .inputs import prepare_references, prepare_view_inputs
from .memory import SceneMemory, ViewMemory
from .modular.modular_pipeline import write_modular_index
from .pushing import KaleidoPushMixin, PushOptions
from .turns import one_call_at_a_time


__all__ = ["KaleidoViewSynthesisPipeline", "KaleidoViewSynthesisPipelineOutput"]

logger = logging.get_logger(__name__)  # pylint: disable=invalid-name

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> from kaleido_diffusers import KaleidoViewSynthesisPipeline, bundled_checkpoint, load_scene, sample_capture

        >>> pipe = KaleidoViewSynthesisPipeline.from_pretrained(bundled_checkpoint())
        >>> scene = load_scene(sample_capture())
        >>> views = pipe(scene.images[1:5], scene.cameras[1:5], scene.cameras[:1]).images
        >>> views[0].save("new_view.png")
        ```
"""


@dataclass
class KaleidoViewSynthesisPipelineOutput(BaseOutput):
    """
    Output of [`KaleidoViewSynthesisPipeline`].

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`):
            M views in the order of the targets: PIL images, an array `[M, H, W, 3]` or a tensor `[M, 3, H, W]` in
            [0, 1], or latents `[M, C, h, w]`. For a batch of scenes there is a leading dimension (a list of lists);
            with several samples of each target, one after M.
        memory ([`SceneMemory`], *optional*):
            Of a call with `memory` and one sample of each target: that memory with the generated views in it.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
    memory: "SceneMemory | None" = None


@dataclass(frozen=True)
class _Options:
    """How the groups of one call are generated."""

    num_inference_steps: int
    sigmas: Sequence[float] | None
    joins_memory: str
    use_reference_cache: bool
    share_groups: bool
    image_size: tuple[int, int] | None  # None for latents
    callback: Callable | None
    callback_inputs: list[str]
    generator: torch.Generator | list[torch.Generator] | None  # of the noise that the scheduler adds


class KaleidoViewSynthesisPipeline(KaleidoPushMixin, DiffusionPipeline, KaleidoLoraLoaderMixin):
    r"""
    Synthesises views of a scene from any number of posed reference photos, or frames of a video from other frames
    (Kaleido, arXiv 2510.04236).

    This model inherits from [`DiffusionPipeline`]. Check the superclass documentation for the generic methods the
    library implements for all the pipelines (such as downloading or saving, running on a particular device, etc.)
    LoRA adapters load by [`~loaders.LoraBaseMixin.load_lora_weights`], as in other pipelines.

    Args:
        transformer ([`KaleidoTransformer3DModel`]):
            Denoises target views given memory views.
        scheduler ([`RectifiedFlowViewScheduler`] or [`FlowMatchEulerDiscreteScheduler`]):
            Integrates the flow from noise to views.
        vae ([`AutoencoderKL`], [`AutoencoderTiny`], [`AutoencoderDC`] or [`AutoencoderTAEF2`], *optional*):
            Image autoencoder; each view passes on its own. Without one the transformer works on pixels.
        prediction_type (`str`, *optional*):
            What the transformer was trained to predict; the scheduler's `prediction_type` when not given. Saved with
            the pipeline, so that a scheduler that knows velocities alone is refused where the model predicts `x_0`.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae"]
    _callback_tensor_inputs = ["latents", "targets"]

    def __init__(
        self,
        transformer: KaleidoTransformer3DModel,
        scheduler: RectifiedFlowViewScheduler | FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKL | AutoencoderTiny | AutoencoderDC | AutoencoderTAEF2 | None = None,
        prediction_type: str | None = None,
    ):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        self.register_to_config(prediction_type=generation.known_prediction(scheduler, prediction_type))
        self.vae_scale_factor = compression(vae)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor, do_resize=False)
        self._current_timestep = scheduler.config["num_train_timesteps"]

    @property
    def default_sample_size(self) -> int:
        """Height and width of views in pixels where none are asked for."""
        return self.transformer.config.sample_size * self.vae_scale_factor

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        return self._attention_kwargs

    @property
    def num_groups(self) -> int:
        """Groups of targets of the whole call."""
        return self._num_groups

    @property
    def current_group(self) -> int:
        """Number of the group that is being denoised, from 0."""
        return self._current_group

    @property
    def num_timesteps(self) -> int:
        """Scheduler steps of the whole call, all groups together."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> torch.Tensor | int:
        """Of the step that is being denoised. Elsewhere the scheduler's `num_train_timesteps`, as while views are
        encoded: step caches that are told of the timestep skip nothing there."""
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        **kwargs: Any,
    ) -> None:
        """As in diffusers, with an index beside it by which [`KaleidoModularPipeline`] loads the folder, and a
        `pipeline.py` for code that knows diffusers alone; what `push_to_hub` uploads has a model card, see
        [`PushOptions`] for what goes along with it."""
        push = PushOptions(**kwargs) if push_to_hub else None
        super().save_pretrained(
            save_directory, safe_serialization, variant, max_shard_size, use_flashpack=use_flashpack
        )
        write_modular_index(save_directory, self.components, self.config["prediction_type"], variant)
        write_code(save_directory)
        if push is not None:
            push.push(save_directory)

    def check_inputs(
        self,
        height: int,
        width: int,
        output_type: str,
        views_per_group: int,
        max_memory_views: int | None,
        generation_order: str,
        joins_memory: str,
        num_samples: int,
        use_reference_cache: bool,
        callback_on_step_end_tensor_inputs: list[str],
    ) -> None:
        """Raises `ValueError` for arguments of `__call__` that cannot be met; images, cameras and times are checked
        where they are prepared.

        Args:
            height (`int`): as in a call.
            width (`int`): as in a call.
            output_type (`str`): as in a call.
            views_per_group (`int`): as in a call.
            max_memory_views (`int`, *optional*): as in a call.
            generation_order (`str`): as in a call.
            joins_memory (`str`): as in a call.
            num_samples (`int`): as in a call.
            use_reference_cache (`bool`): as in a call.
            callback_on_step_end_tensor_inputs (`list[str]`): as in a call.
        """
        self.check_memory_inputs(height, width, max_memory_views)
        generation.check_output_type(output_type)
        generation.check_group_options(
            views_per_group, max_memory_views, generation_order, joins_memory, num_samples, use_reference_cache
        )
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be among {self._callback_tensor_inputs}, got"
                f" {sorted(unknown)}."
            )
        generation.check_prediction_type(self.scheduler, self.config["prediction_type"])

    def check_memory_inputs(self, height: int, width: int, max_memory_views: int | None) -> None:
        """
        Raises `ValueError` for a memory that cannot be: what `encode_references` and `__call__` share.

        Args:
            height (`int`): as in a call.
            width (`int`): as in a call.
            max_memory_views (`int`, *optional*): as in a call.
        """
        generation.check_size(self.transformer, self.vae, height, width)
        if max_memory_views is not None:
            generation.check_count("max_memory_views", max_memory_views)

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Views `[B, V, 3, H, W]` in [-1, 1] to latents `[B, V, C, h, w]`, each on its own. Pixels without a VAE.

        Args:
            pixels (`torch.Tensor`): `[B, V, 3, H, W]` in [-1, 1].
        """
        return encode_views(self.vae, pixels)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """The inverse of [`~KaleidoViewSynthesisPipeline.encode_images`].

        Args:
            latents (`torch.Tensor`): `[B, V, C, h, w]`.
        """
        return decode_views(self.vae, latents)

    def prepare_latents(
        self, shape: tuple[int, ...], latents: torch.Tensor | None, generator, device: torch.device
    ) -> torch.Tensor:
        """Noise `[B, M, S, C, h, w]` in the order of the targets; `latents` may lack a B or S of 1, as outputs do.

        Args:
            shape (`tuple[int, ...]`): `[B, M, S, C, h, w]`.
            latents (`torch.Tensor`, *optional*): noise to take.
            generator (`Any`): one, one for each scene, or one for each sample of each scene.
            device (`torch.device`): of the noise.
        """
        return generation.make_noise(shape, latents, generator, device)

    @torch.no_grad()
    @one_call_at_a_time
    def encode_references(
        self,
        images: Any,
        poses: Any = None,
        intrinsics: Any = None,
        fov: float | None = None,
        frame_times: Any = None,
        height: int | None = None,
        width: int | None = None,
        max_memory_views: int | None = None,
        camera_scale: float = 1.0,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> SceneMemory:
        r"""
        Encodes the references of one scene once, for calls with `memory` that render targets against them.

        Frame and unit of the scene are fixed here, before any target is known: the first reference's camera, and the
        largest distance between two references. With one reference, or with references in one place, the unit is 1,
        where a call would take its largest distance to a target: `camera_scale=1 / distance` makes that the unit.

        Args:
            images (`list` of `PIL.Image.Image`, paths, `np.ndarray` or `torch.Tensor`):
                N reference views, as in a call.
            poses ([`Cameras`], `torch.Tensor` or `np.ndarray` of shape `[N, 4, 4]`, *optional*):
                `world_from_camera`, OpenCV axes. Left out for video.
            intrinsics (`torch.Tensor` or `np.ndarray` of shape `[3, 3]` or `[N, 3, 3]`, *optional*):
                As in a call.
            fov (`float`, *optional*):
                As in a call.
            frame_times (`Sequence[float]` of length N, *optional*):
                As in a call.
            height (`int`, *optional*):
                Height of all views in pixels; the transformer's `sample_size` when not given.
            width (`int`, *optional*):
                Width of all views in pixels; likewise.
            max_memory_views (`int`, *optional*):
                As in a call, for the calls to come.
            camera_scale (`float`, defaults to `1.0`):
                Multiplies camera translations after they were normalised.
            attention_kwargs (`dict`, *optional*):
                As in a call.

        Returns:
            [`SceneMemory`]: of this pipeline, while its weights, adapters and device stay as they are.
        """
        height, width = height or self.default_sample_size, width or self.default_sample_size
        self.check_memory_inputs(height, width, max_memory_views)
        references = prepare_references(images, poses, intrinsics, fov, frame_times, height, width)
        self._attention_kwargs = attention_kwargs
        longest = self.transformer.config.max_focal_length
        shown = ShownFrame.of(references, len(references), camera_scale, longest)
        views = self._remember(references, shown, max_memory_views)[0]
        if not views.overflows:
            views.recall(self._encode_memory)
        self.maybe_free_model_hooks()
        lens = None if references.cameras is None else references.cameras[0, :1]
        return SceneMemory(self, views, height, width, shown, lens, max_memory_views)

    def order_targets(
        self, references: ViewGeometry, targets: ViewGeometry, generation_order: str, views_per_group: int
    ) -> list[int]:
        """
        The order in which the targets of one scene are generated.

        `"given"` as they are; `"nearest"` always the one nearest to what is known; `"anchors"` first one group spread
        over the targets, then the nearest.

        Args:
            references (`ViewGeometry` with leading dimensions `[1, N]`): the references.
            targets (`ViewGeometry` with leading dimensions `[1, M]`): the targets.
            generation_order (`str`): `"given"`, `"nearest"` or `"anchors"`.
            views_per_group (`int`): the number of anchors.
        """
        return generation.order_targets(references, targets, generation_order, views_per_group)

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    @one_call_at_a_time
    def __call__(
        self,
        images: Any = None,
        poses: Any = None,
        target_poses: Any = None,
        intrinsics: Any = None,
        target_intrinsics: Any = None,
        fov: float | None = None,
        frame_times: Any = None,
        target_times: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 25,
        sigmas: list[float] | None = None,
        guidance_scale: float = 1.0,
        views_per_group: int = 4,
        max_memory_views: int | None = None,
        generation_order: Literal["given", "nearest", "anchors"] = "given",
        camera_scale: float = 1.0,
        joins_memory: Literal["all", "first", "none"] = "all",
        num_samples: int = 1,
        use_reference_cache: bool = True,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
        memory: SceneMemory | None = None,
        share_groups: bool = False,
    ) -> KaleidoViewSynthesisPipelineOutput | tuple:
        r"""
        Generates target views from reference views.

        A batch of scenes is a list of lists of images with lists of `Cameras` (or poses `[B, V, 4, 4]`); its scenes
        share their numbers of references and targets.

        Args:
            images (`list` of `PIL.Image.Image`, paths, `np.ndarray` or `torch.Tensor`):
                N reference views, also one alone or none. Arrays `[H, W, 3]` and tensors `[3, H, W]` are uint8 or in
                [0, 1]. Sizes may differ; each view is centre-cropped to the aspect of the output, its camera with it.
            poses ([`Cameras`], `torch.Tensor` or `np.ndarray` of shape `[N + M, 4, 4]` or `[N, 4, 4]`, *optional*):
                `world_from_camera`, OpenCV axes: first those of the references, then, without `target_poses`, those
                of the targets. The last row may be missing: `[..., 3, 4]`. Left out for video.
            target_poses ([`Cameras`], `torch.Tensor` or `np.ndarray` of shape `[M, 4, 4]`, *optional*):
                `world_from_camera` of the targets.
            intrinsics (`torch.Tensor` or `np.ndarray` of shape `[3, 3]` or `[N, 3, 3]`, *optional*):
                `K` in pixels of the given images, for poses without intrinsics.
            target_intrinsics (`torch.Tensor` or `np.ndarray` of shape `[3, 3]` or `[M, 3, 3]`, *optional*):
                `K` of the targets in pixels of an image of the first reference's size. Default: the first reference's.
            fov (`float`, *optional*):
                Horizontal field of view in degrees, for poses without any intrinsics. Without it 60 is assumed, with a
                warning.
            frame_times (`Sequence[float]` of length N, *optional*):
                Seconds of the references, for video and moving scenes.
            target_times (`Sequence[float]` of length M, *optional*):
                Seconds of the targets.
            height (`int`, *optional*):
                Height of the generated views in pixels; the transformer's `sample_size` when not given.
            width (`int`, *optional*):
                Width of the generated views in pixels; likewise.
            num_inference_steps (`int`, defaults to `25`):
                Steps from noise to views.
            sigmas (`list[float]`, *optional*):
                A schedule instead of `num_inference_steps`.
            guidance_scale (`float`, defaults to `1.0`):
                Classifier-free guidance (arXiv 2207.12598): above 1, targets follow the references more closely. Each
                step then computes a second branch, without a memory: 1.4 times the operations of a call of 10 steps,
                1.6 times those of 25 (`kaleido-tiny`, 6 references; measured in `benchmarks/README.md`, Guiders and
                Step caches), and never more than twice.
            views_per_group (`int`, defaults to `4`):
                Targets denoised together. Larger groups agree better among themselves.
            max_memory_views (`int`, *optional*):
                Keep keys and values of no more than this many views: the nearest to the group. All when not given.
            generation_order (`str`, defaults to `"given"`):
                `"given"`, `"nearest"` to the known views first, or `"anchors"`: a spread group, then the nearest.
            camera_scale (`float`, defaults to `1.0`):
                Multiplies camera translations after they were normalised.
            joins_memory (`str`, defaults to `"all"`):
                Which generated views later groups attend to, along with the references: `"all"`, those of the
                `"first"` group (with the order `"anchors"` the two passes of Stable Virtual Camera, arXiv 2503.14489:
                a group spread over the targets, then all others given these), or `"none"`. But for `"all"`, groups
                after the first do not depend on each other.
            num_samples (`int`, defaults to `1`):
                Samples of each target. Samples go separate ways: each has a memory of its own.
            use_reference_cache (`bool`, defaults to `True`):
                Whether to encode memory views once instead of at every step. The result is the same.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                Makes generation deterministic. A list holds one for each scene of a batch, or, with `num_samples`,
                one for each sample (of the first scene, then of the next): a sample is then what a call with its
                generator alone gives.
            latents (`torch.Tensor`, *optional*):
                Noise to start from, in the shape of an output with `output_type="latent"`.
            output_type (`str`, defaults to `"pil"`):
                `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict (`bool`, defaults to `True`):
                Whether to return a [`KaleidoViewSynthesisPipelineOutput`] instead of a tuple.
            attention_kwargs (`dict`, *optional*):
                Passed to the transformer; `scale` multiplies LoRA layers.
            callback_on_step_end (`Callable`, *optional*):
                Called as `callback(pipeline, step, timestep, {"latents": ...})` after each scheduler step; `step`
                counts over all groups, the latents `[rows, targets of the group, C, h, w]` are those of one group:
                `pipeline.current_group` of `pipeline.num_groups`. What it returns, a dictionary of tensors or nothing,
                replaces them.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to `["latents"]`):
                Names of the tensors that the callback gets: `"latents"`, and `"targets"` `[rows, targets of the
                group]`, the numbers of these targets among all.
            memory ([`SceneMemory`], *optional*):
                References that [`~KaleidoViewSynthesisPipeline.encode_references`] has encoded, instead of `images`
                and all that describes them. `target_poses` without intrinsics take the first reference's.
            share_groups (`bool`, defaults to `False`):
                Whether the processes of `torch.distributed` share out the groups that do not join the memory. Needs
                `joins_memory="first"` or `"none"` and the same noise in all; every process returns all views.

        Examples:

        Returns:
            [`KaleidoViewSynthesisPipelineOutput`] or `tuple`: `images`, in the order of the targets.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs

        # 1. Inputs: checked, images and cameras at the working size
        if memory is not None:
            self._check_memory(
                memory,
                height,
                width,
                target_poses,
                target_times,
                images=images,
                poses=poses,
                intrinsics=intrinsics,
                fov=fov,
                frame_times=frame_times,
                target_intrinsics=target_intrinsics,
                max_memory_views=max_memory_views,
                camera_scale=None if camera_scale == 1.0 else camera_scale,
            )
            height, width, max_memory_views = memory.height, memory.width, memory.max_memory_views
        height, width = height or self.default_sample_size, width or self.default_sample_size
        generation.check_guidance(guidance_scale)
        self.check_inputs(
            height,
            width,
            output_type,
            views_per_group,
            max_memory_views,
            generation_order,
            joins_memory,
            num_samples,
            use_reference_cache,
            callback_on_step_end_tensor_inputs,
        )
        if share_groups:
            self._check_sharing(joins_memory, generator, latents)
        if memory is not None and memory.lens is not None and not isinstance(target_poses, Cameras):
            target_intrinsics = memory.lens.intrinsics[0]
        inputs = prepare_view_inputs(
            images,
            poses,
            target_poses,
            intrinsics,
            target_intrinsics,
            fov,
            frame_times,
            target_times,
            height,
            width,
        )
        self._guidance_scale = guidance_scale
        self._attention_kwargs = attention_kwargs
        self._current_timestep = self.scheduler.config.num_train_timesteps
        self._interrupt = False

        # 2. Remember: a memory for each row, that is a scene, or a sample of a scene
        if memory is None:
            longest = self.transformer.config.max_focal_length
            shown = ShownFrame.of(inputs.geometry, len(inputs.references), camera_scale, longest)
            scenes = self._remember(inputs.references, shown, max_memory_views)
        else:
            shown, scenes = memory.shown, [memory.views]
        encode = self._encode_memory if use_reference_cache else None
        memories = generation.part_samples(scenes, num_samples, encode, keep=memory is not None)

        # 3. Order: noise belongs to a target wherever it comes in the order
        targets = shown.show(inputs.targets)
        groups = generation.order_groups(scenes, targets, generation_order, views_per_group, num_samples)
        latent_size = (height // self.vae_scale_factor, width // self.vae_scale_factor)
        shape = (len(scenes), len(targets), num_samples, self.transformer.out_channels, *latent_size)
        noise = self.prepare_latents(shape, latents, generator, self._execution_device)

        # 4. Denoise group by group
        outputs = self._generate(
            noise.transpose(1, 2).flatten(0, 1),  # [R, M, ...]
            targets.rows(torch.arange(len(scenes)).repeat_interleave(num_samples)),
            groups,
            memories,
            _Options(
                num_inference_steps,
                sigmas,
                joins_memory,
                use_reference_cache,
                share_groups,
                None if output_type == "latent" else (height, width),
                callback_on_step_end,
                callback_on_step_end_tensor_inputs,
                generator,
            ),
        )

        # 5. Return in the order asked for
        self._current_timestep = self.scheduler.config.num_train_timesteps
        images = generation.as_asked(self.image_processor, outputs, output_type, inputs.is_batch, num_samples)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (images,)
        grown = replace(memory, views=memories[0]) if memory is not None and num_samples == 1 else None
        return KaleidoViewSynthesisPipelineOutput(images=images, memory=grown)

    def _check_sharing(self, joins_memory: str, generator, latents: torch.Tensor | None) -> None:
        """Raises `ValueError` where groups cannot be shared out."""
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError("`share_groups` needs the processes of `torch.distributed`, such as `torchrun` starts.")
        if joins_memory == "all":
            raise ValueError(
                "`share_groups` needs groups that do not depend on each other: pass `joins_memory='first'` or 'none'."
            )
        if generation.adds_noise(self.scheduler):
            raise ValueError(
                f"`share_groups` needs a scheduler whose steps draw no noise: what the {type(self.scheduler).__name__}"
                " draws for a group would depend on the groups that its process had before."
            )
        if generator is None and latents is None:
            raise ValueError("`share_groups` needs the same noise in all processes: pass `generator` or `latents`.")

    def _check_memory(
        self,
        memory: SceneMemory,
        height: int | None,
        width: int | None,
        target_poses: Any,
        target_times: Any,
        **settled: Any,
    ) -> None:
        """Raises `ValueError` for a memory of another pipeline, and for arguments that do not go with a memory: those
        of `settled` that are given."""
        if memory.pipeline is not self:
            raise ValueError("`memory` was encoded by another pipeline: encode the references with this one.")
        for name, value in settled.items():
            if value is not None:
                hint = "; pass `target_poses` as `Cameras`" if name == "target_intrinsics" else ""
                raise ValueError(f"`{name}` cannot be given along with `memory`, which settles it{hint}.")
        if (height or memory.height, width or memory.width) != (memory.height, memory.width):
            raise ValueError(
                f"`memory` holds views of {memory.height} x {memory.width} pixels (height x width), but `height` is"
                f" {height} and `width` {width}."
            )
        generation.check_targets(memory.shown, target_poses, target_times)

    def _remember(self, references: Views, shown: ShownFrame, max_memory_views: int | None) -> list[ViewMemory]:
        """References `[B, N]` into a memory for each scene; keys and values are made when it is recalled."""
        return generation.remember(self.vae, references, shown, max_memory_views, self._execution_device)

    def _generate(
        self,
        noise: torch.Tensor,  # [R, M, C, h, w]
        targets: ViewGeometry,  # [R, M]
        groups: Sequence[torch.Tensor],  # of targets, [R, g]
        memories: list[ViewMemory],
        options: "_Options",
    ) -> torch.Tensor:
        """Targets `[R, M, ...]`, decoded unless latents are asked for, on the CPU. Groups join the memory as they are
        made; groups that are not reached before an interrupt stay grey."""
        device = self._execution_device
        process, num_processes = (dist.get_rank(), dist.get_world_size()) if options.share_groups else (0, 1)
        rows = torch.arange(len(noise)).unsqueeze(-1)
        steps = len(self._set_timesteps(noise[:, : groups[0].shape[1]], options))
        self._num_timesteps, self._num_groups = steps * len(groups), len(groups)
        outputs = torch.zeros_like(noise, device="cpu")
        if options.image_size is not None:
            outputs = torch.zeros(*noise.shape[:2], 3, *options.image_size, dtype=torch.float32)
        progress: Any = self.progress_bar  # of which diffusers' decorator hides the type
        with progress(total=self._num_timesteps) as progress_bar:
            for number, group in enumerate(groups):
                if self.interrupt:
                    break
                joins = generation.group_joins(options.joins_memory, number)
                if not joins and number % num_processes != process:
                    progress_bar.update(steps)
                    continue
                geometry, self._current_group = targets.select(group), number
                start = noise[rows.to(device), group.to(device)]
                self._set_timesteps(start, options)
                views = self._denoise(start, group, geometry, memories, options, progress_bar, number * steps)
                for row, memory in enumerate(memories if joins else []):
                    memory.add(views[row : row + 1], geometry.rows([row]))
                if joins and process:  # the first process returns what all of them have made
                    continue
                made = views if options.image_size is None else self.decode_latents(views)
                outputs[rows, group] = made.float().cpu()
        if options.share_groups:
            outputs = outputs.to(device)
            dist.all_reduce(outputs)
        return outputs.cpu()

    def _set_timesteps(self, latents: torch.Tensor, options: _Options) -> torch.Tensor:
        """Sets the schedule for a group `[R, g, C, h, w]`; returns its timesteps."""
        patch_size = self.transformer.config.patch_size
        return generation.set_timesteps(
            self.scheduler, patch_size, latents, options.num_inference_steps, options.sigmas
        )

    def _encode_memory(self, latents: torch.Tensor, geometry: ViewGeometry, cache: KaleidoReferenceCache) -> None:
        """Encodes clean views into a cache."""
        self._current_timestep = self.scheduler.config.num_train_timesteps
        device = self._execution_device
        generation.encode_memory(self.transformer, latents, geometry, cache, device, self.attention_kwargs)

    def _denoise(
        self,
        latents: torch.Tensor,  # [R, g, C, h, w]
        group: torch.Tensor,  # [R, g] numbers of the targets
        geometry: ViewGeometry,
        memories: list[ViewMemory],
        options: _Options,
        progress_bar,
        first_step: int,
    ) -> torch.Tensor:
        """Takes one group of targets from noise to clean latents."""
        if options.use_reference_cache:
            context = generation.recall(memories, geometry, self._encode_memory)
        else:
            context = generation.replay(memories, latents.device)
        self.transformer._reset_stateful_cache()  # what step caches know belongs to other views
        geometry = geometry.to(latents.device)
        for index, t in enumerate(self.scheduler.timesteps):
            if self.interrupt:
                continue
            self._current_timestep = t
            prediction = self._predict("cond", index, latents, geometry, context)
            if self.guidance_scale != 1.0 and context:
                unconditional = self._predict("uncond", index, latents, geometry, {})
                prediction = torch.lerp(unconditional, prediction, self.guidance_scale)
            latents = generation.take_step(self.scheduler, prediction, t, latents, options.generator)
            if options.callback is not None:
                tensors = {"latents": latents, "targets": group}
                tensors = {name: tensors[name] for name in options.callback_inputs}
                changed = options.callback(self, first_step + index, t, tensors)
                latents = (changed or {}).get("latents", latents)
            progress_bar.update()
        self.transformer._reset_stateful_cache()
        return latents

    def _predict(
        self, branch: str, step: int, latents: torch.Tensor, geometry: ViewGeometry, context: dict[str, Any]
    ) -> torch.Tensor:
        """What the transformer predicts in one branch of guidance."""
        with generation.branch(self.transformer, self.scheduler, branch, step):
            timestep = self.scheduler.timesteps[step]
            return generation.predict(self.transformer, latents, timestep, geometry, context, self.attention_kwargs)
