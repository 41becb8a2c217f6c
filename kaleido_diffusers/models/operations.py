"""What sampling costs, counted: floating-point operations (a multiplication and an addition are two) in matrix
products and attention, by a closed formula. `torch.utils.flop_counter` agrees with it (tests)."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any


__all__ = ["forward_operations", "sampling_operations"]


def forward_operations(
    config: Mapping[str, Any],
    memory_groups: Sequence[int],
    target_groups: Sequence[int],
    num_cached: int = 0,
    height: int | None = None,
    width: int | None = None,
) -> int:
    """
    Operations of one forward pass of [`KaleidoTransformer3DModel`], for one row of a batch.

    Args:
        config (`Mapping[str, Any]`):
            The transformer's config.
        memory_groups (`Sequence[int]`):
            Sizes of the memory groups that this pass encodes.
        target_groups (`Sequence[int]`):
            Sizes of the target groups that it denoises.
        num_cached (`int`, defaults to `0`):
            Views in the reference cache, which cost nothing but to be attended to.
        height (`int`, *optional*):
            Height of a view as the transformer sees it (pixels, or latent cells); `sample_size` when not given.
        width (`int`, *optional*):
            Its width, likewise.
    """
    patch_size, heads, kv_heads = (
        config[name] for name in ("patch_size", "num_attention_heads", "num_key_value_heads")
    )
    head_dim, dim = config["attention_head_dim"], heads * config["attention_head_dim"]
    height, width = height or config["sample_size"], width or config["sample_size"]
    tokens = (height // patch_size) * (width // patch_size)
    views, targets = sum(memory_groups) + sum(target_groups), sum(target_groups)

    # Weights, once a token: attention's projections and SwiGLU in each layer, patches at both ends
    layer = 2 * dim * heads * head_dim + 2 * dim * kv_heads * head_dim + 3 * dim * config["ffn_dim"]
    ends = config["in_channels"] * views + (config["out_channels"] or config["in_channels"]) * targets
    products = tokens * (views * config["num_layers"] * layer + dim * patch_size**2 * ends)
    products += views * (256 * dim + dim * dim + dim * 6 * dim)  # timesteps, once a view

    # Attention, queries to keys and scores to values, and the cameras' 4 x 4 matrices on q, k, v and the output
    pairs = sum(size * (num_cached + end) for size, end in zip(memory_groups, accumulate(memory_groups)))
    pairs += sum(size * (num_cached + sum(memory_groups) + size) for size in target_groups)
    camera_dim = head_dim - sum(config["rope_axes_dim"])
    pattern = config["layer_pattern"]
    for index in range(config["num_layers"]):
        if pattern[index % len(pattern)] == "view":
            products += 2 * heads * head_dim * views * tokens**2
        else:
            products += 2 * heads * head_dim * pairs * tokens**2
            products += 4 * camera_dim * 2 * (heads + kv_heads) * views * tokens
    return 2 * products


def sampling_operations(
    config: Mapping[str, Any],
    num_references: int,
    num_targets: int,
    views_per_group: int = 4,
    num_inference_steps: int = 25,
    guidance: bool = False,
    cached: bool = True,
    max_memory_views: int | None = None,
    height: int | None = None,
    width: int | None = None,
) -> int:
    """
    Operations of one call of [`KaleidoViewSynthesisPipeline`] with Euler steps, without the autoencoder.

    Args:
        config (`Mapping[str, Any]`):
            The transformer's config.
        num_references (`int`):
            N.
        num_targets (`int`):
            M, generated in groups, each of which joins the memory.
        views_per_group (`int`, defaults to `4`):
            Targets denoised together.
        num_inference_steps (`int`, defaults to `25`):
            Steps of each group.
        guidance (`bool`, defaults to `False`):
            Whether a second branch, without memory, is computed in every step.
        cached (`bool`, defaults to `True`):
            Whether memory views are encoded once, instead of in every step.
        max_memory_views (`int`, *optional*):
            Most views that a group attends to; an evicted view is taken to be chosen never again.
        height (`int`, *optional*):
            Height of a view as the transformer sees it; `sample_size` when not given.
        width (`int`, *optional*):
            Its width, likewise.
    """
    size: dict[str, Any] = {"height": height, "width": width}
    limit = max_memory_views or num_references + num_targets
    groups, total = [min(num_references, limit)] if num_references else [], 0
    encoded = 0  # memory groups in the cache
    for start in range(0, num_targets, views_per_group):
        count = min(views_per_group, num_targets - start)
        if cached:
            for number in range(encoded, len(groups)):
                before = min(sum(groups[:number]), limit - groups[number])
                total += forward_operations(config, groups[number : number + 1], (), before, **size)
            encoded = len(groups)
            step = forward_operations(config, (), (count,), min(sum(groups), limit), **size)
        else:
            step = forward_operations(config, groups, (count,), **size)
        if guidance:
            step += forward_operations(config, (), (count,), **size)
        total += num_inference_steps * step
        groups.append(count)
    return total
