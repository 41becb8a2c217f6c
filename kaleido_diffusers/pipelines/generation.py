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

"""What view synthesis computes, as functions over components: each form of the pipeline calls these.

Shapes: B scenes, M targets, S samples of each target, R rows (scenes and their samples), g targets of a group.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_singlestep import DPMSolverSinglestepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_lcm import FlowMatchLCMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from diffusers.utils.torch_utils import randn_tensor

from ..geometry.cameras import farthest_views
from ..geometry.views import ShownFrame, ViewGeometry, Views
from ..models.latents import compression, encode_views, latent_channels
from ..models.reference_cache import KaleidoReferenceCache
from ..models.transformer_kaleido import KaleidoTransformer3DModel
from ..schedulers.scheduling_rectified_flow_view import RectifiedFlowViewScheduler
from .memory import Encode, ViewMemory


__all__ = [
    "GENERATION_ORDERS",
    "JOINS_MEMORY",
    "OUTPUT_TYPES",
    "adds_noise",
    "as_asked",
    "branch",
    "check_autoencoder",
    "check_count",
    "check_group_options",
    "check_guidance",
    "check_output_type",
    "check_prediction_type",
    "check_size",
    "check_targets",
    "encode_memory",
    "group_joins",
    "known_prediction",
    "make_noise",
    "order_groups",
    "order_targets",
    "part_samples",
    "predict",
    "recall",
    "remember",
    "replay",
    "set_timesteps",
    "take_step",
    "taken_prediction",
]

GENERATION_ORDERS = ("given", "nearest", "anchors")
JOINS_MEMORY = ("all", "first", "none")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")

Scheduler = Any  # RectifiedFlowViewScheduler, or one of these of diffusers':

_FLOWS = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FlowMatchLCMScheduler)
_SOLVERS = (UniPCMultistepScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler)


# Inputs


def check_count(name: str, value: Any) -> None:
    """Raises `ValueError` for what is no positive integer.

    Args:
        name (`str`): of the argument.
        value (`Any`): its value.
    """
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")


def check_output_type(output_type: str) -> None:
    """Raises `ValueError` for a form that views cannot take.

    Args:
        output_type (`str`): as in [`KaleidoViewSynthesisPipeline`].
    """
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"`output_type` must be 'pil', 'np', 'pt' or 'latent', got {output_type!r}.")


def check_guidance(guidance_scale: float) -> None:
    """Raises `ValueError` for guidance away from the references.

    Args:
        guidance_scale (`float`): as in [`KaleidoViewSynthesisPipeline`].
    """
    if not guidance_scale >= 0:
        raise ValueError(
            f"`guidance_scale` must be 0 or more (1: none; above: closer to the references), got {guidance_scale}."
        )


def check_size(transformer: KaleidoTransformer3DModel, vae: ModelMixin | None, height: int, width: int) -> None:
    """Raises `ValueError` for an autoencoder that does not fit, see [`check_autoencoder`], and for views that are no
    whole number of tokens.

    Args:
        transformer ([`KaleidoTransformer3DModel`]): of the pipeline.
        vae (`ModelMixin`, *optional*): of the pipeline.
        height (`int`): of the views in pixels.
        width (`int`): likewise.
    """
    check_autoencoder(transformer, vae)
    multiple = compression(vae) * transformer.config["patch_size"]
    if height % multiple or width % multiple or height < 1 or width < 1:
        raise ValueError(f"`height` and `width` must be multiples of {multiple}, got {height} and {width}.")


def check_autoencoder(transformer: KaleidoTransformer3DModel, vae: ModelMixin | None) -> None:
    """Raises `ValueError` for an autoencoder whose latents the transformer does not work on, or for none where it
    works on latents.

    Args:
        transformer ([`KaleidoTransformer3DModel`]): of the pipeline.
        vae (`ModelMixin`, *optional*): of the pipeline.
    """
    wanted, made = transformer.config["in_channels"], latent_channels(vae)
    if wanted == made:
        return
    makes = (
        "there is no `vae`, and pixels have 3 channels"
        if vae is None
        else (f"the `vae`, {type(vae).__name__}, makes latents of {made} channels")
    )
    raise ValueError(
        f"The transformer works on views of {wanted} channels, but {makes}: pass the `vae` that it was trained with"
        f"{' (`None` for pixels)' if wanted == 3 else ''}."
    )


def check_group_options(
    views_per_group: int,
    max_memory_views: int | None,
    generation_order: str,
    joins_memory: str,
    num_samples: int,
    use_reference_cache: bool,
) -> None:
    """Raises `ValueError` for groups that cannot be generated as asked for.

    Args:
        views_per_group (`int`): as in [`KaleidoViewSynthesisPipeline`].
        max_memory_views (`int`, *optional*): likewise.
        generation_order (`str`): likewise.
        joins_memory (`str`): likewise.
        num_samples (`int`): likewise.
        use_reference_cache (`bool`): likewise.
    """
    if generation_order not in GENERATION_ORDERS:
        raise ValueError(f"`generation_order` must be one of {GENERATION_ORDERS}, got {generation_order!r}.")
    if joins_memory not in JOINS_MEMORY:
        raise ValueError(f"`joins_memory` must be one of {JOINS_MEMORY}, got {joins_memory!r}.")
    if max_memory_views is not None and not use_reference_cache:
        raise ValueError("`max_memory_views` needs the reference cache: leave `use_reference_cache=True`.")
    check_count("views_per_group", views_per_group)
    check_count("num_samples", num_samples)


def check_prediction_type(scheduler: Scheduler, prediction_type: str) -> None:
    """Raises `ValueError` for a scheduler that does not follow the flow, and where it would misread what the
    transformer predicts.

    Args:
        scheduler (`SchedulerMixin`): of the pipeline.
        prediction_type (`str`): what the transformer was trained to predict.
    """
    name, taken = type(scheduler).__name__, taken_prediction(scheduler)
    if taken is None:
        others = ", ".join(kind.__name__ for kind in _SOLVERS)
        is_ours = "flow_prediction" if prediction_type == "velocity" else prediction_type
        raise ValueError(
            f"The {name}, as it is set, does not follow the flow from noise to views. Those that do:"
            f" RectifiedFlowViewScheduler; {', '.join(kind.__name__ for kind in _FLOWS)} (velocities); and, made by"
            f" `from_config(scheduler.config, use_flow_sigmas=True, prediction_type={is_ours!r})`, {others}."
        )
    if prediction_type != taken:
        raise ValueError(
            f"The transformer predicts {prediction_type!r}, which the {name} would take for a {taken!r}. Use"
            f" `RectifiedFlowViewScheduler.from_config(scheduler.config, prediction_type={prediction_type!r})`."
        )


def check_targets(shown: ShownFrame, target_poses: Any, target_times: Any) -> None:
    """Raises `ValueError` for targets without what the references of a memory have, and with what they lack.

    Args:
        shown (`ShownFrame`): of the memory.
        target_poses (`Any`): as in a call.
        target_times (`Any`): likewise.
    """
    for name, value, known in (
        ("target_poses", target_poses, shown.frame),
        ("target_times", target_times, shown.start),
    ):
        if (value is None) != (known is None):
            raise ValueError(
                f"`{name}` must {'not ' * (known is None)}be given with this `memory`: its references"
                f" have {'no ' * (known is None)}{'cameras' if name == 'target_poses' else 'times'}."
            )


def taken_prediction(scheduler: Scheduler) -> str | None:
    """What a scheduler takes the predictions of the transformer for; `None` if it does not follow the flow.

    Args:
        scheduler (`SchedulerMixin`): of the pipeline.
    """
    config = scheduler.config
    if isinstance(scheduler, RectifiedFlowViewScheduler):
        return config.prediction_type
    if isinstance(scheduler, _FLOWS):
        return None if config.get("invert_sigmas") or config.get("scale_factors") else "velocity"
    if isinstance(scheduler, _SOLVERS) and config.use_flow_sigmas:
        return {"flow_prediction": "velocity", "sample": "sample"}.get(config.prediction_type)
    return None


def known_prediction(scheduler: Scheduler, prediction_type: str | None) -> str:
    """What the transformer predicts: as it is known, else what its scheduler takes it for, else a velocity (of a
    scheduler that does not follow the flow, which [`check_prediction_type`] then refuses).

    Args:
        scheduler (`SchedulerMixin`): of the pipeline.
        prediction_type (`str`, *optional*): what the transformer was trained to predict, if that is known.
    """
    return prediction_type or taken_prediction(scheduler) or "velocity"


def adds_noise(scheduler: Scheduler) -> bool:
    """Whether the steps of a scheduler draw noise, from the call's `generator`.

    Args:
        scheduler (`SchedulerMixin`): of the pipeline.
    """
    config = scheduler.config
    is_differential = str(config.get("algorithm_type", "")).startswith("sde-")
    return isinstance(scheduler, FlowMatchLCMScheduler) or bool(config.get("stochastic_sampling")) or is_differential


def make_noise(
    shape: Sequence[int], latents: torch.Tensor | None, generator: Any, device: torch.device
) -> torch.Tensor:
    """Noise `[B, M, S, C, h, w]` in the order of the targets; `latents` may lack a B or S of 1, as outputs do.

    Args:
        shape (`Sequence[int]`): `[B, M, S, C, h, w]`.
        latents (`torch.Tensor`, *optional*): noise to take.
        generator (`Any`): one, one for each scene, or one for each sample of each scene.
        device (`torch.device`): of the noise.
    """
    batch, targets, samples = shape[:3]
    if isinstance(generator, list) and len(generator) not in (batch, batch * samples):
        of_samples = f", or one for each of the {batch * samples} samples" if samples > 1 else ""
        raise ValueError(
            f"`generator` must be one, or one for each of the {batch} scenes{of_samples}; got {len(generator)}."
        )
    if latents is None:
        if isinstance(generator, list) and len(generator) != batch:  # each row as a call with that generator alone
            rows = [make_noise((1, targets, 1, *shape[3:]), None, one, device) for one in generator]
            return torch.cat(rows, dim=2).unflatten(2, (batch, samples))[0].transpose(0, 1)
        return randn_tensor(tuple(shape), generator=generator, device=device, dtype=torch.float32)
    squeezed = tuple(n for i, n in enumerate(shape) if not (i == 0 and batch == 1 or i == 2 and samples == 1))
    if tuple(latents.shape) not in (tuple(shape), squeezed):
        raise ValueError(f"`latents` must have shape {list(squeezed)}, got {list(latents.shape)}.")
    return latents.to(device, torch.float32).reshape(shape)


# The memory


def remember(
    vae: ModelMixin | None, references: Views, shown: ShownFrame, max_views: int | None, device: torch.device
) -> list[ViewMemory]:
    """
    A memory for each scene; keys and values are made when it is recalled.

    Args:
        vae (`ModelMixin`, *optional*): the autoencoder; without one the views stay pixels.
        references (`Views` of shape `[B, N]`): pixels in [-1, 1].
        shown (`ShownFrame`): where the model sees the scenes from.
        max_views (`int`, *optional*): most views that a group attends to.
        device (`torch.device`): of the autoencoder.
    """
    latents = encode_views(vae, references.pixels.to(device)).float()
    geometry = shown.show(references)
    return [ViewMemory(row, geometry.rows([index]), max_views) for index, row in enumerate(latents.split(1))]


def part_samples(
    scenes: Sequence[ViewMemory], num_samples: int, encode: Encode | None, keep: bool
) -> list[ViewMemory]:
    """
    A memory for each sample of each scene, `[R]`, which may grow. What all samples attend to is encoded before they
    part.

    Args:
        scenes (`Sequence[ViewMemory]`): a memory for each scene.
        num_samples (`int`): S.
        encode (`Callable`, *optional*): encodes views, see [`ViewMemory.recall`]; `None` where nothing is encoded.
        keep (`bool`): whether those of `scenes` are to stay as they are.
    """
    memories = []
    for scene in scenes:
        if encode is not None and not scene.overflows:
            scene.recall(encode)
        first = scene.fork() if keep else scene
        memories += [first, *(scene.fork() for _ in range(num_samples - 1))]
    return memories


def encode_memory(
    transformer: KaleidoTransformer3DModel,
    latents: torch.Tensor,
    geometry: ViewGeometry,
    cache: KaleidoReferenceCache,
    device: torch.device,
    attention_kwargs: dict[str, Any] | None,
) -> None:
    """
    Encodes clean views into a cache. Step caches start afresh before, so that they skip nothing, and after, so that
    they take nothing of it for a target.

    Args:
        transformer ([`KaleidoTransformer3DModel`]): what encodes.
        latents (`torch.Tensor` of shape `[B, V, C, h, w]`): the views.
        geometry (`ViewGeometry` with leading dimensions `[B, V]`): where and when they are.
        cache ([`KaleidoReferenceCache`]): grown in place.
        device (`torch.device`): of the transformer.
        attention_kwargs (`dict`, *optional*): passed to the transformer.
    """
    transformer._reset_stateful_cache()
    with transformer.cache_context("memory"):
        transformer.encode_views(
            latents.to(device, transformer.dtype),
            **geometry.to(device).arguments(),
            cache=cache,
            attention_kwargs=attention_kwargs,
        )
    transformer._reset_stateful_cache()


def recall(memories: Sequence[ViewMemory], geometry: ViewGeometry, encode: Encode) -> dict[str, Any]:
    """
    The encoded memory of all rows, as a `context` of [`predict`]; empty where there is none.

    Args:
        memories (`Sequence[ViewMemory]`): one for each row.
        geometry (`ViewGeometry` with leading dimensions `[R, g]`): of the targets that are to attend to it.
        encode (`Callable`): encodes views, see [`ViewMemory.recall`].
    """
    caches = [memory.recall(encode, geometry.rows([row])) for row, memory in enumerate(memories) if len(memory)]
    return {"cache": caches[0] if len(caches) == 1 else KaleidoReferenceCache.cat(caches)} if caches else {}


def replay(memories: Sequence[ViewMemory], device: torch.device) -> dict[str, Any]:
    """
    The memory of all rows as it is, to be encoded along with the targets at every step: a `context` of [`predict`];
    empty where there is none.

    Args:
        memories (`Sequence[ViewMemory]`): one for each row.
        device (`torch.device`): of the transformer.
    """
    if not len(memories[0]):
        return {}
    latents, geometries, groups = zip(*(memory.views() for memory in memories))
    return {"memory": (torch.cat(latents).to(device), ViewGeometry.cat_rows(geometries).to(device), groups[0])}


# The loop over groups


def order_targets(
    references: ViewGeometry, targets: ViewGeometry, generation_order: str, views_per_group: int
) -> list[int]:
    """
    The order in which the targets of one scene are generated.

    `"given"` as they are; `"nearest"` always the one nearest to what is known; `"anchors"` first one group spread over
    the targets, then the nearest.

    Args:
        references (`ViewGeometry` with leading dimensions `[1, N]`): the references.
        targets (`ViewGeometry` with leading dimensions `[1, M]`): the targets.
        generation_order (`str`): `"given"`, `"nearest"` or `"anchors"`.
        views_per_group (`int`): the number of anchors.
    """
    between = targets.distances(targets)[0]
    if generation_order == "given":
        return list(range(len(between)))
    order = farthest_views(between, min(views_per_group, len(between))) if generation_order == "anchors" else []
    gap = torch.cat([targets.distances(references)[0], between[:, order]], dim=1)
    gap = gap.amin(-1) if gap.shape[1] else torch.zeros(len(between), dtype=torch.float32)
    while len(order) < len(between):
        rest = [view for view in range(len(between)) if view not in order]
        order.append(min(rest, key=lambda view: gap[view].item()))
        gap = torch.minimum(gap, between[:, order[-1]])
    return order


def order_groups(
    scenes: Sequence[ViewMemory],
    targets: ViewGeometry,
    generation_order: str,
    views_per_group: int,
    num_samples: int,
) -> tuple[torch.Tensor, ...]:
    """
    The groups in which targets are generated: their numbers `[R, g]`.

    Args:
        scenes (`Sequence[ViewMemory]`): a memory for each scene.
        targets (`ViewGeometry` with leading dimensions `[B, M]`): as the model is shown them.
        generation_order (`str`): `"given"`, `"nearest"` or `"anchors"`.
        views_per_group (`int`): g of all groups but the last.
        num_samples (`int`): S.
    """
    orders = [
        order_targets(scene.geometry, targets.rows([row]), generation_order, views_per_group)
        for row, scene in enumerate(scenes)
    ]
    return torch.tensor(orders).repeat_interleave(num_samples, dim=0).split(views_per_group, dim=1)


def group_joins(joins_memory: str, number: int) -> bool:
    """Whether later groups attend to the views of a group.

    Args:
        joins_memory (`str`): `"all"`, `"first"` or `"none"`.
        number (`int`): of the group.
    """
    return joins_memory == "all" or joins_memory == "first" and number == 0


def set_timesteps(
    scheduler: Scheduler,
    patch_size: int,
    latents: torch.Tensor,
    num_inference_steps: int,
    sigmas: Sequence[float] | None,
) -> torch.Tensor:
    """
    Sets the schedule for a group; returns its timesteps.

    Args:
        scheduler (`SchedulerMixin`): whose schedule.
        patch_size (`int`): of the transformer: a dynamic shift depends on the number of tokens.
        latents (`torch.Tensor` of shape `[R, g, C, h, w]`): of the group, or others of that shape and on that device.
        num_inference_steps (`int`): steps from noise to views.
        sigmas (`Sequence[float]`, *optional*): a schedule instead of that.
    """
    is_ours = isinstance(scheduler, RectifiedFlowViewScheduler)
    options: dict[str, Any] = {"num_inference_steps": num_inference_steps}
    if sigmas is not None or not is_ours:  # the schedules of others end before 0
        chosen = np.linspace(1, 1 / num_inference_steps, num_inference_steps) if sigmas is None else sigmas
        options = {"sigmas": list(chosen) if is_ours else np.array(chosen, dtype=np.float64)}
    if "sigmas" in options and "sigmas" not in inspect.signature(scheduler.set_timesteps).parameters:
        if sigmas is not None:
            raise ValueError(f"The {type(scheduler).__name__} takes no `sigmas`: pass `num_inference_steps`.")
        options = {"num_inference_steps": num_inference_steps}
    if scheduler.config.get("use_dynamic_shifting"):
        height, width = latents.shape[-2:]
        options["mu"] = _shift(scheduler, latents.shape[1] * (height // patch_size) * (width // patch_size))
    scheduler.set_timesteps(device=latents.device, **options)
    scheduler.set_begin_index(0)
    return scheduler.timesteps


def _shift(scheduler: Scheduler, num_tokens: int) -> float:
    """The logarithm of the shift of a schedule that depends on the number of tokens."""
    if isinstance(scheduler, RectifiedFlowViewScheduler):
        return scheduler.calculate_mu(num_tokens)
    defaults = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
    low, high, base, most = (scheduler.config.get(name, default) for name, default in defaults.items())
    return base + (most - base) / (high - low) * (num_tokens - low)


def take_step(
    scheduler: Scheduler, prediction: torch.Tensor, timestep: torch.Tensor, latents: torch.Tensor, generator: Any
) -> torch.Tensor:
    """
    The targets one step nearer to views, `[R, g, C, h, w]`.

    Args:
        scheduler (`SchedulerMixin`): set to the schedule of the group.
        prediction (`torch.Tensor` of shape `[R, g, C, h, w]`): of the transformer.
        timestep (`torch.Tensor` of shape `[]`): of the step.
        latents (`torch.Tensor` of shape `[R, g, C, h, w]`): the targets.
        generator (`torch.Generator` or `list[torch.Generator]`, *optional*): source of the noise that stochastic
            schedulers add: one, or one for each of the B scenes, whose rows follow each other.
    """
    options = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        if isinstance(generator, list):
            samples = len(latents) // len(generator)
            generator = [scene for scene in generator for _ in range(samples)]
        options["generator"] = generator
    return scheduler.step(prediction, timestep, latents, return_dict=False, **options)[0]


@contextmanager
def branch(transformer: KaleidoTransformer3DModel, scheduler: Scheduler, name: str, step: int) -> Iterator[None]:
    """
    What step caches get to know of a prediction.

    Args:
        transformer ([`KaleidoTransformer3DModel`]): what predicts.
        scheduler (`SchedulerMixin`): set to the schedule of the group.
        name (`str`): of the branch of guidance.
        step (`int`): number of the step in the group.
    """
    timestep, count = scheduler.timesteps[step], len(scheduler.timesteps)
    sigma = timestep / scheduler.config.num_train_timesteps
    with transformer.cache_context(name, step_index=step, num_inference_steps=count, timestep=timestep, sigma=sigma):
        yield


def predict(
    transformer: KaleidoTransformer3DModel,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    geometry: ViewGeometry,
    context: dict[str, Any],
    attention_kwargs: dict[str, Any] | None,
) -> torch.Tensor:
    """
    What the transformer predicts for noisy targets, `[R, g, C, h, w]` in float32.

    Args:
        transformer ([`KaleidoTransformer3DModel`]): what predicts.
        latents (`torch.Tensor` of shape `[R, g, C, h, w]`): the targets.
        timestep (`torch.Tensor` of shape `[]`): 1000 times their sigma.
        geometry (`ViewGeometry` with leading dimensions `[R, g]`): where and when they are.
        context (`dict`): what they attend to, of [`recall`] or [`replay`]; empty for nothing.
        attention_kwargs (`dict`, *optional*): passed to the transformer.
    """
    num_targets = latents.shape[1]
    timesteps = timestep.to(latents.device, torch.float32).expand(latents.shape[:2])
    options = {"cache": context["cache"]} if "cache" in context else {"num_targets": num_targets}
    if "memory" in context:
        memory, memory_geometry, groups = context["memory"]
        latents = torch.cat([memory, latents], dim=1)
        timesteps = torch.cat([timesteps.new_zeros(memory.shape[:2]), timesteps], dim=1)
        geometry = ViewGeometry.cat([memory_geometry, geometry])
        options["view_groups"] = groups + [len(groups)] * num_targets
    return transformer(
        latents.to(transformer.dtype),
        timesteps,
        **geometry.arguments(),
        **options,
        attention_kwargs=attention_kwargs,
        return_dict=False,
    )[0].float()


# Outputs


def as_asked(
    image_processor: VaeImageProcessor, outputs: torch.Tensor, output_type: str, is_batch: bool, num_samples: int
) -> Any:
    """
    Views as users get them: without a dimension for one scene, or for one sample.

    Args:
        image_processor (`VaeImageProcessor`): of the pipeline.
        outputs (`torch.Tensor` of shape `[R, M, ...]`): views in [-1, 1], or latents.
        output_type (`str`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
        is_batch (`bool`): whether a batch of scenes was given, or one scene.
        num_samples (`int`): S.

    Raises:
        `ValueError`: for what is not finite.
    """
    if not outputs.isfinite().all():
        raise ValueError(
            "The views came out as NaN or infinity. In float16 that is a model that needs bfloat16 or float32;"
            " else its weights, an adapter, or an extreme `guidance_scale` or `camera_scale` are at fault."
        )
    outputs = outputs.unflatten(0, (-1, num_samples)).transpose(1, 2)  # [B, M, S, ...]
    leading = [outputs.shape[0], outputs.shape[1], outputs.shape[2]]
    leading = leading[not is_batch : 3 if leading[2] > 1 else 2]
    images: Any = image_processor.postprocess(outputs.flatten(0, 2), output_type=output_type)
    if output_type != "pil":
        return images.reshape(*leading, *images.shape[1:])
    for count in reversed(leading[1:]):
        images = [images[i : i + count] for i in range(0, len(images), count)]
    return images
