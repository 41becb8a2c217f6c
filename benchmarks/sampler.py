"""Speed and memory of the sampler with random weights: operations counted, seconds, the share of this machine's
matrix-product peak, the share of the time in matrix products and attention, and peak memory.

    python benchmarks/sampler.py                                             # cached against uncached, on the CPU
    python benchmarks/sampler.py --references 1 4 16 64 --paths cached
    python benchmarks/sampler.py --layer-patterns global "view global"
    python benchmarks/sampler.py --backends native flash xformers --dtypes bfloat16 --device cuda
    python benchmarks/sampler.py --presets large xl --height 72 --width 72 --references 3 --targets 18 \\
        --views-per-group 18 --paths cached --dtypes bfloat16 --device cuda --compile   # 576 px through an 8x VAE

Views are what the transformer sees: latents, without the autoencoder. A row is one call of the pipeline.
"""

from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal

import torch
import tyro
from measuring import best_seconds, peak_memory, peak_rate, reset_peak_memory, share_of_products, show

from kaleido_diffusers import KaleidoTransformer3DModel, KaleidoViewSynthesisPipeline, RectifiedFlowViewScheduler
from kaleido_diffusers.models.operations import sampling_operations


COLUMNS = {
    "preset": "", "pattern": "", "backend": "", "dtype": "", "references": "d", "targets": "d", "path": "",
    "TFLOP": ".2f", "seconds": ".2f", "seconds a view": ".2f", "GFLOP/s": ".0f", "of the peak": ".0%",
    "in products": ".0%", "uncached / cached": "", "by counting": "", "GiB": ".2f",
}  # fmt: skip


@dataclass
class Config:
    presets: tuple[str, ...] = ("small",)
    """Architectures; three channels a view stand for latents, a thousandth of the work."""
    layer_patterns: tuple[str, ...] = ("global",)
    """Layer kinds, in one word each: `"view global"`."""
    references: tuple[int, ...] = (12,)
    """Numbers of references."""
    targets: tuple[int, ...] = (4, 1)
    """Numbers of targets."""
    views_per_group: int = 4
    """Targets denoised together."""
    paths: tuple[Literal["uncached", "cached"], ...] = ("uncached", "cached")
    """Memory encoded at every step, or once."""
    backends: tuple[str, ...] = ("native",)
    """Attention backends of diffusers; one that cannot run here is named and left out."""
    dtypes: tuple[str, ...] = ("float32",)
    """Precisions of the weights."""
    height: int = 32
    """Height of a view in latent cells (8 pixels each)."""
    width: int = 32
    """Width of a view in latent cells."""
    steps: int = 25
    """Euler steps."""
    guidance_scale: float = 1.0
    """Above 1: a second branch at every step."""
    repeats: int = 1
    """Runs of each row after the one that warms up; the shortest counts."""
    compile: bool = False
    """torch.compile the blocks."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to run."""
    output: Path | None = None
    """JSON of the rows."""


def main(config: Config) -> None:
    device, rows = torch.device(config.device), []
    for preset, pattern, dtype in product(config.presets, config.layer_patterns, config.dtypes):
        pipe = make_pipeline(config, preset, pattern.split(), getattr(torch, dtype))
        for backend in config.backends:
            try:
                pipe.transformer.set_attention_backend(backend)
            except (ValueError, RuntimeError, ImportError) as error:
                print(f"{backend} cannot run here: {error}")
                continue
            for references, targets in product(config.references, config.targets):
                known = {"preset": preset, "pattern": pattern, "backend": backend, "dtype": dtype}
                known |= {"references": references, "targets": targets}
                rows += measure(config, pipe, known, device)
    show(rows, COLUMNS, config.output)


def make_pipeline(config: Config, preset: str, pattern: list[str], dtype: torch.dtype) -> KaleidoViewSynthesisPipeline:
    options = {"in_channels": 3, "sample_size": config.height, "layer_pattern": tuple(pattern)}
    with torch.device(config.device):
        transformer = KaleidoTransformer3DModel.from_preset(preset, **options).to(dtype).eval()
    if config.compile:
        transformer.compile_repeated_blocks()
    pipe = KaleidoViewSynthesisPipeline(transformer, RectifiedFlowViewScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def measure(config: Config, pipe: KaleidoViewSynthesisPipeline, known: dict, device: torch.device) -> list[dict]:
    """A row for each path, with the ratio between the two on the last."""
    poses = torch.eye(4, dtype=torch.float64).repeat(known["references"] + known["targets"], 1, 1)
    poses[:, 0, 3] = torch.linspace(0, 1, len(poses))
    photos = torch.rand(known["references"], 3, config.height, config.width)
    size, peak, rows = {"height": config.height, "width": config.width}, peak_rate(device, pipe.dtype), []

    def sample(cached: bool, steps: int) -> None:
        pipe(
            photos,
            poses,
            fov=60,
            num_inference_steps=steps,
            guidance_scale=config.guidance_scale,
            views_per_group=config.views_per_group,
            use_reference_cache=cached,
            output_type="latent",
            **size,
        )

    for path in config.paths:
        cached = path == "cached"
        sample(cached, 1)  # warms up, at one step's cost
        operations = sampling_operations(
            pipe.transformer.config,
            known["references"],
            known["targets"],
            config.views_per_group,
            config.steps,
            config.guidance_scale != 1,
            cached,
            **size,
        )
        reset_peak_memory(device)
        seconds = best_seconds(partial(sample, cached, config.steps), config.repeats, device, warm_up=False)
        row = {**known, "path": path, "TFLOP": operations / 1e12, "seconds": seconds}
        row |= {"seconds a view": seconds / known["targets"], "GFLOP/s": operations / seconds / 1e9}
        row |= {"of the peak": operations / seconds / peak, "GiB": peak_memory(device) / 2**30}
        row["in products"] = share_of_products(partial(sample, cached, min(config.steps, 3)), device)
        rows.append({**row, "uncached / cached": "", "by counting": ""})
    if len(rows) == 2:
        ratio, counted = (rows[0][key] / rows[1][key] for key in ("seconds", "TFLOP"))
        rows[1] |= {"uncached / cached": f"{ratio:.2f}", "by counting": f"{counted:.2f}"}
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
