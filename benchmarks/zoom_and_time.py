"""Whether a checkpoint follows another field of view than the references', and time where things move.

    kaleido shard --data worlds --split test --assets my-assets --zoom 0 --size 208 --views 8 --output zoom
    kaleido shard --data motion --split test --assets my-assets --size 128 --output motion
    python benchmarks/zoom_and_time.py --checkpoint kaleido-tiny --zoom zoom --motion motion

Zoom: the same photo is made from references of its own focal length and from others, both cut out of larger pictures
(so those with the longer lens show less of the place). Time: two views of a moving world are made as they are, with
their times swapped, and with their poses swapped.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from measuring import show
from tqdm.auto import tqdm

from kaleido_diffusers import Cameras
from kaleido_diffusers.captures.images import crop_and_resize
from kaleido_diffusers.cli.loading import load_pipeline
from kaleido_diffusers.evaluation.metrics import LPIPS, psnr
from kaleido_diffusers.worlds.sources import ShardSource


COLUMNS = {"data": "", "shown": "", "steps": "d", "psnr": ".2f", "lpips": ".3f", "views": "d"}
ZOOMS = {"target 0.6": (1.0, 0.6), "target 1.6": (0.625, 1.0)}  # parts of a picture: the target's, the references'


@dataclass
class Config:
    checkpoint: str = "kaleido-tiny"
    """Folder or Hub id of a pipeline, or the name of a bundled checkpoint."""
    zoom: Path | None = None
    """Shards of pictures of one field of view a world, at least 1.6 times as large as the checkpoint's."""
    motion: Path | None = None
    """Shards of pictures of moving worlds."""
    scenes: int = 100
    """Most worlds of each."""
    steps: tuple[int, ...] = (1, 4)
    """Numbers of denoising steps."""
    lpips: Path | None = None
    """State dict of LPIPS (AlexNet, version 0.1)."""
    output: Path = Path("runs/zoom_and_time.json")
    """Where the table goes."""

    def main(self) -> None:
        torch.set_grad_enabled(False)
        self.pipe = load_pipeline(self.checkpoint)
        self.pipe.set_progress_bar_config(disable=True)
        self.perceptual = None if self.lpips is None else LPIPS(self.lpips)
        self.scores = defaultdict(list)
        if self.zoom is not None:
            self._zoom(ShardSource(self.zoom))
        if self.motion is not None:
            self._time(ShardSource(self.motion, self.pipe.default_sample_size))
        rows = []
        for (data, shown, steps), values in self.scores.items():
            mean = torch.tensor(values).mean(0).tolist()
            row = {"data": data, "shown": shown, "steps": steps, "psnr": mean[0], "lpips": mean[1]}
            rows.append({**row, "views": len(values)})
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        show(rows, COLUMNS, self.output)

    def _zoom(self, source: ShardSource) -> None:
        """The first view of each world from six others."""
        size = self.pipe.default_sample_size
        for number in tqdm(range(min(self.scenes, len(source))), desc="zoom"):
            world = source[number]
            parts = {part: _cut(world.pixels.float() / 255, world.cameras, part, size) for part in (1.0, 0.625, 0.6)}
            for name, (of_target, of_references) in ZOOMS.items():
                truth, cameras = parts[of_target]
                for shown, part in ("equal", of_target), ("other", of_references):
                    references, known = parts[part]
                    self._score((name, shown), number, truth[:1], (references[1:7], known[1:7]), cameras[:1])

    def _time(self, source: ShardSource) -> None:
        """Two views from the four between and beside them."""
        for number in tqdm(range(min(self.scenes, len(source))), desc="time"):
            world = source[number]
            images, cameras, times = world.pixels.float() / 255, world.cameras, world.times
            last = len(world) - 1
            targets, references = [last // 4, last - last // 4], [0, last // 3, last - last // 3, last]
            given = images[references], cameras[references]
            moves = not torch.allclose(world.poses[targets[0]], world.poses[targets[1]])
            data = "camera moves" if moves else "still camera"
            orders = {"as it is": ([0, 1], [0, 1]), "times swapped": ([0, 1], [1, 0])}
            if moves:
                orders["poses swapped"] = [1, 0], [0, 1]
            for shown, (poses, clock) in orders.items():
                seconds = times[targets][clock], times[references]
                self._score((data, shown), number, images[targets], given, cameras[targets][poses], *seconds)

    def _score(self, key, number: int, truth: torch.Tensor, references, targets: Cameras, times=None, known=None):
        for steps in self.steps:
            views = self.pipe(
                *references,
                targets,
                target_times=times,
                frame_times=known,
                num_inference_steps=steps,
                views_per_group=1,
                joins_memory="none",
                generator=torch.Generator().manual_seed(number),
                output_type="pt",
            ).images.float()
            perceptual = (
                [torch.nan] * len(views) if self.perceptual is None else self.perceptual(views, truth).tolist()
            )
            self.scores[(*key, steps)] += list(zip(psnr(views, truth).tolist(), perceptual, strict=True))


def _cut(images: torch.Tensor, cameras: Cameras, part: float, size: int) -> tuple[torch.Tensor, Cameras]:
    """The middle `part` of the pictures `[V, 3, H, W]` and their cameras, at `size`."""
    full, side = images.shape[-2:], round(part * min(images.shape[-2:]))
    top, left = (full[0] - side) // 2, (full[1] - side) // 2
    return crop_and_resize(images, cameras, (top, left, side, side), (size, size))


if __name__ == "__main__":
    tyro.cli(Config).main()
