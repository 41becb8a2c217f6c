"""What a run will take, before it begins."""

import os
from dataclasses import dataclass

import torch

from ..models.latents import compression
from ..models.operations import sampling_operations
from ..models.precision import product_speed
from ..pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline


__all__ = ["Cost", "rendering_cost"]

_COUNTED = 400  # views that are counted one group after the other; of more, the cost is extrapolated
_SHARE = 0.4  # of the speed of large matrix products that sampling reaches
_SMALL = 1e13  # operations that need no estimate: minutes on any machine


@dataclass(frozen=True)
class Cost:
    """
    What a run takes, roughly.

    Attributes:
        seconds (`float`): of time.
        memory (`float`): bytes.
        free (`float`): bytes that there are.
    """

    seconds: float
    memory: float
    free: float

    def __str__(self) -> str:
        hours = self.seconds / 3600
        time = f"{hours:,.1f} hours" if hours >= 1 else f"{self.seconds / 60:.0f} minutes"
        return f"about {time} and {self.memory / 2**30:,.1f} GiB of memory ({self.free / 2**30:.1f} GiB are free)"


def rendering_cost(
    pipe: KaleidoViewSynthesisPipeline,
    references: int,
    targets: int,
    height: int,
    width: int,
    steps: int,
    guidance: bool = False,
    views_per_group: int = 4,
    max_memory_views: int | None = None,
) -> Cost:
    """
    What a call of the pipeline takes: operations over the speed that is measured here, keys and values of the memory,
    and the views.

    Args:
        pipe ([`KaleidoViewSynthesisPipeline`]): as loaded.
        references (`int`): number of references.
        targets (`int`): number of views to generate.
        height (`int`): of the views, in pixels.
        width (`int`): likewise.
        steps (`int`): denoising steps.
        guidance (`bool`, defaults to `False`): whether views are guided.
        views_per_group (`int`, defaults to `4`): views denoised together.
        max_memory_views (`int`, *optional*): most views that a group attends to.
    """
    config, smaller = pipe.transformer.config, compression(pipe.vae)
    rows, columns = height // smaller, width // smaller
    counted = min(targets, _COUNTED)
    operations = sampling_operations(
        config, references, counted, views_per_group, steps, guidance, True, max_memory_views, rows, columns
    )
    operations *= (targets / counted) ** (2 if max_memory_views is None else 1)
    kept = min(references + targets, max_memory_views or references + targets)
    tokens = (rows // config.patch_size) * (columns // config.patch_size)
    cached = 2 * config.num_layers * config.num_key_value_heads * config.attention_head_dim * pipe.dtype.itemsize
    at_work = 20 * config.num_attention_heads * config.attention_head_dim * pipe.dtype.itemsize * views_per_group
    memory = tokens * (kept * cached + at_work) + 2 * 3 * 4 * targets * height * width
    seconds = 0.0
    if operations > _SMALL:
        seconds = operations / (_SHARE * product_speed(pipe.dtype, device=pipe.device.type))
    return Cost(seconds, memory, _free_memory(pipe.device))


def _free_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(1024.0 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) if hasattr(os, "sysconf") else torch.inf
