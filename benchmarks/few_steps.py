"""Quality against model calls: solvers, time shifts, guidance and step caches, on unseen synthetic worlds.

    python benchmarks/few_steps.py --lpips lpips_alex.pth
    python benchmarks/few_steps.py --solvers euler --shifts 4 --steps 25 --first-block-caches 0.02 0.1 --lpips ...

PSNR alone would choose one blurred step; LPIPS and gradient energy (the true views' is 1) say what is lost.
"""

import io
import json
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import tyro
from diffusers import FirstBlockCacheConfig, MagCacheConfig
from measuring import show
from tqdm.auto import tqdm

from kaleido_diffusers import KaleidoViewSynthesisPipeline, RectifiedFlowViewScheduler
from kaleido_diffusers.cli.loading import load_pipeline
from kaleido_diffusers.evaluation.metrics import LPIPS
from kaleido_diffusers.evaluation.protocol import evaluate, synthetic_cases


COLUMNS = {
    "solver": "", "shift": "g", "guidance": "g", "step cache": "", "steps": "d", "calls": "d", "psnr": ".2f",
    "lpips": ".3f", "gradient_energy": ".2f", "seconds a view": ".2f",
}  # fmt: skip


@dataclass
class Config:
    checkpoint: str = "kaleido-tiny"
    """Folder or Hub id of a pipeline, or the name of a bundled checkpoint."""
    solvers: tuple[str, ...] = ("euler", "heun", "multistep")
    """Of the scheduler."""
    shifts: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    """Time shifts: above 1, more of the steps at high noise."""
    steps: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 25)
    """Numbers of steps."""
    guidance_scales: tuple[float, ...] = (1.0,)
    """Classifier-free guidance."""
    first_block_caches: tuple[float, ...] = ()
    """Thresholds of diffusers' FirstBlockCache, each in place of computing every step."""
    mag_caches: tuple[float, ...] = ()
    """Thresholds of diffusers' MagCache, calibrated on the first world."""
    worlds: int = 40
    """Object-level worlds of the test split, two views each."""
    max_solids: int = 2
    """Most solids in a world."""
    references: int = 3
    """References."""
    lpips: Path | None = None
    """State dict of LPIPS (AlexNet, version 0.1)."""
    output: Path | None = None
    """JSON of the rows."""


def main(config: Config) -> None:
    pipe = load_pipeline(config.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    lpips = None if config.lpips is None else LPIPS(config.lpips)
    size = pipe.transformer.config.sample_size
    worlds = (config.worlds, size, "object", "test", config.references, 1.0, config.max_solids)
    cases, rows = list(synthetic_cases(*worlds)), []
    caches = [("first block", threshold) for threshold in config.first_block_caches]
    caches += [("MagCache", threshold) for threshold in config.mag_caches]
    combinations = product(config.solvers, config.shifts, config.guidance_scales, caches or [None], config.steps)
    for solver, shift, guidance, cache, steps in tqdm(list(combinations)):
        changes = {"solver": solver, "shift": shift, "use_dynamic_shifting": False}
        pipe.scheduler = RectifiedFlowViewScheduler.from_config(pipe.scheduler.config, **changes)
        options = {"num_inference_steps": steps, "guidance_scale": guidance, "height": size, "width": size}
        run = partial(evaluate, num_references=[config.references], baselines=False, views_per_group=1, **options)
        if cache:
            settings = step_cache(*cache, steps, partial(run, pipe, cases[:1], lpips=None), pipe.transformer)
            pipe.transformer.enable_cache(settings)
        timed = Timed(pipe)
        result = run(timed, cases, lpips=lpips)
        if cache:
            pipe.transformer.disable_cache()
        scores = result.summary()[0]
        row = {"solver": solver, "shift": shift, "guidance": guidance, "steps": steps}
        row["step cache"] = " ".join(map(str, cache)) if cache else ""
        row |= {
            "calls": 2 * steps - 1 if solver == "heun" else steps,
            "seconds a view": timed.seconds / scores["views"],
        }
        rows.append({**row, **{key: scores[key] for key in ("psnr", "lpips", "gradient_energy")}})
    show(rows, COLUMNS, config.output)


def step_cache(kind: str, threshold: float, steps: int, one_world: Callable, transformer) -> Any:
    """Settings of a step cache; MagCache prints how much the blocks change from step to step when it calibrates."""
    if kind == "first block":
        return FirstBlockCacheConfig(threshold=threshold)
    transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=steps))
    with redirect_stdout(io.StringIO()) as said:
        one_world()
    transformer.disable_cache()
    ratios = json.loads(next(line for line in said.getvalue().splitlines() if line.startswith("[1.0")))
    return MagCacheConfig(threshold=threshold, num_inference_steps=steps, mag_ratios=ratios)


class Timed:
    """A pipeline that counts the seconds that it takes."""

    def __init__(self, pipe: KaleidoViewSynthesisPipeline):
        self.pipe, self.seconds = pipe, 0.0

    def __call__(self, *args, **options):
        started = time.perf_counter()
        output = self.pipe(*args, **options)
        self.seconds += time.perf_counter() - started
        return output


if __name__ == "__main__":
    torch.manual_seed(0)
    main(tyro.cli(Config, description=__doc__))
