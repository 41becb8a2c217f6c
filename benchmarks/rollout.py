"""A long orbit around an unseen synthetic world at bounded memory: CPU seconds a view, peak memory, and how far the
views drift, with and without a little noise on the views that the memory takes in.

    python benchmarks/rollout.py --lpips lpips_alex.pth

The three references stand within 30 degrees, so most of the orbit is made from views that were themselves made. Where
the first group alone joins the memory, its views are spread over the orbit, and made first; seconds and memory are by
the order in which views are made, scores by their place on the orbit.
"""

import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import torch
import tyro
from measuring import peak_memory, reset_peak_memory, show

from kaleido_diffusers import Cameras, KaleidoViewSynthesisPipeline, trajectories
from kaleido_diffusers.cli.loading import load_pipeline
from kaleido_diffusers.evaluation.metrics import LPIPS, psnr
from kaleido_diffusers.evaluation.report import contact_sheet
from kaleido_diffusers.worlds.sources import SyntheticSource
from kaleido_diffusers.worlds.synthetic import Worlds, make_worlds, render


COLUMNS = {
    "memory": "d", "joins": "", "noise": "g", "views": "", "CPU seconds a view": ".3f", "GiB": ".2f", "psnr": ".2f",
    "lpips": ".3f",
}  # fmt: skip


class NoisyMemory(KaleidoViewSynthesisPipeline):
    """Puts noise on generated views before they are encoded into the memory."""

    memory_noise = 0.0

    def _encode_memory(self, latents, geometry, cache):
        if len(cache) and self.memory_noise:
            latents = torch.lerp(latents, torch.randn_like(latents), self.memory_noise)
        super()._encode_memory(latents, geometry, cache)


@dataclass
class Config:
    checkpoint: str = "kaleido-tiny"
    """Folder or Hub id of a pipeline, or the name of a bundled checkpoint."""
    views: int = 480
    """Views of the orbit."""
    memory_views: tuple[int, ...] = (12,)
    """Bounds of the memory; 0 for none."""
    joins_memory: tuple[Literal["all", "first"], ...] = ("all", "first")
    """Generated views that later groups attend to: all, or a first group spread over the orbit."""
    noises: tuple[float, ...] = (0.0, 0.05)
    """Sigmas of the noise on the memory."""
    world: int = 0
    """Number of the world in the test split."""
    steps: int = 10
    """Denoising steps."""
    guidance_scale: float = 1.0
    """Classifier-free guidance."""
    window: int = 24
    """Views that a row of the table and a point of the plot stand for."""
    lpips: Path | None = None
    """State dict of LPIPS (AlexNet, version 0.1)."""
    output: Path = Path("runs/rollout")
    """Folder for the table as JSON, the plot, and pictures."""


def main(config: Config) -> None:
    plain = load_pipeline(config.checkpoint, "cpu")
    pipe = NoisyMemory(**plain.components)
    pipe.set_progress_bar_config(disable=True)
    lpips = None if config.lpips is None else LPIPS(config.lpips)

    # ------------------------------------------------------------------------------------------------ the orbit
    size = pipe.transformer.config.sample_size
    source = SyntheticSource("object", "views", "test", config.world + 1, 12, size, max_solids=2)
    world, around = (
        make_worlds([source.first_seed + config.world], "object", max_solids=2),
        source[config.world].cameras,
    )
    orbit = trajectories.orbit(around, config.views)
    near = trajectories.orbit(around, 25, degrees=30)[[0, 12, 24]]
    given, truth = rendered(world, near, size), rendered(world, orbit, size)

    # ------------------------------------------------------------------------------------------------ runs
    rows, pictures, curves = [], {"truth": truth[:: config.views // 8]}, {}
    for bound, joins, pipe.memory_noise in product(config.memory_views, config.joins_memory, config.noises):
        name, clock = f"memory {bound or 'all'}, {joins} joins, noise {pipe.memory_noise:g}", Clock(config)
        views = pipe(
            given,
            near,
            orbit,
            num_inference_steps=config.steps,
            guidance_scale=config.guidance_scale,
            max_memory_views=bound or None,
            joins_memory=joins,
            generation_order="given" if joins == "all" else "anchors",
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
            callback_on_step_end=lambda _pipe, step, _timestep, tensors, clock=clock: clock(step, tensors),
        ).images
        pictures[name], curves[name] = views[:: config.views // 8], []
        for number, (seconds, memory) in enumerate(clock.windows):
            part = slice(number * config.window, (number + 1) * config.window)
            row = {"memory": bound, "joins": joins, "noise": pipe.memory_noise}
            row |= {"views": f"{part.start + 1} to {part.stop}", "CPU seconds a view": seconds, "GiB": memory / 2**30}
            row |= {"psnr": psnr(views[part], truth[part]).mean().item()}
            row |= {"lpips": float("nan") if lpips is None else lpips(views[part], truth[part]).mean().item()}
            curves[name].append(row)
        rows += curves[name]
    config.output.mkdir(parents=True, exist_ok=True)
    contact_sheet(given, pictures, tile=96).save(config.output / "views.png")
    plot(curves, config)
    show(rows, COLUMNS, config.output / "rollout.json")


class Clock:
    """CPU seconds a view and peak memory of each window of views, taken after every fourth view (a group)."""

    def __init__(self, config: Config):
        self.config, self.windows, self.views = config, [], 0
        reset_peak_memory(torch.device("cpu"))
        self.started = time.process_time()

    def __call__(self, step: int, tensors: dict[str, torch.Tensor]) -> dict:
        if (step + 1) % self.config.steps == 0:
            self.views += tensors["latents"].shape[1]
            if self.views % self.config.window == 0:
                now = time.process_time()
                self.windows.append(((now - self.started) / self.config.window, peak_memory(torch.device("cpu"))))
                reset_peak_memory(torch.device("cpu"))
                self.started = now
        return {}


def rendered(world: Worlds, cameras: Cameras, size: int) -> torch.Tensor:
    """True views `[V, 3, size, size]`, by ray casting."""
    poses, intrinsics = (x.float().unsqueeze(0) for x in (cameras.world_from_camera, cameras.normalized_intrinsics))
    return render(world, poses, intrinsics, size=(size, size))[0]


def plot(curves: dict[str, list[dict]], config: Config) -> None:
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.2), layout="constrained")
    for axis, key in zip(axes, ("CPU seconds a view", "GiB", "psnr", "lpips")):
        for name, points in curves.items():
            ends = [(number + 1) * config.window for number in range(len(points))]
            axis.plot(ends, [point[key] for point in points], label=name)
        axis.set_xlabel("view")
        axis.set_ylabel(key)
        axis.set_ylim(bottom=0)
    axes[0].legend(fontsize=8)
    figure.savefig(config.output / "rollout.png", dpi=110)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
