"""Measures what a photo with a lens takes of one core, from its file to a view of the size that is asked for, and at
its own size, beside what decoding it takes. Smooth noise, saved as JPEG.

    OMP_NUM_THREADS=1 python benchmarks/undistortion.py
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import tyro
from measuring import show

from kaleido_diffusers import Cameras
from kaleido_diffusers.captures.images import load_image
from kaleido_diffusers.captures.lenses import RadialTangentialLens
from kaleido_diffusers.captures.photos import Optics, Photo


COLUMNS = {"photo": "", "decoded ms": ".0f", "straight ms": ".0f"}


@dataclass
class Config:
    photos: tuple[tuple[int, int], ...] = ((1920, 1080), (6000, 4000))
    """Widths and heights of the photos in pixels."""
    sizes: tuple[int, ...] = (128, 512)
    """Heights and widths of the views that are asked for."""
    repetitions: int = 5
    """Of which the quickest counts."""
    output: Path | None = None
    """JSON of the rows."""


def main(config: Config) -> None:
    torch.set_num_threads(1)
    lens, rows = RadialTangentialLens(k1=-0.1, k2=0.03, p1=1e-3), []
    with tempfile.TemporaryDirectory() as folder:
        for width, height in config.photos:
            intrinsics = [[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1]]
            camera = Cameras(torch.eye(4, dtype=torch.float64), intrinsics, [height, width])
            photo = Photo(_picture(Path(folder), width, height), Optics(camera, lens))
            calls = {"decoded ms": lambda photo=photo: load_image(photo.path), "straight ms": photo.load}
            for size in config.sizes:
                calls[f"{size} x {size} ms"] = lambda photo=photo, size=size: photo.load_fitted(size, size)
            times = {name: _milliseconds(call, config.repetitions) for name, call in calls.items()}
            rows.append({"photo": f"{width} x {height}", **times})
    show(rows, COLUMNS | {f"{size} x {size} ms": ".0f" for size in config.sizes}, config.output)


def _picture(folder: Path, width: int, height: int) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8)
    path = folder / f"{width}.jpg"
    PIL.Image.fromarray(noise).resize((width, height), PIL.Image.Resampling.BICUBIC).save(path, quality=92)
    return path


def _milliseconds(call: Callable, repetitions: int) -> float:
    times = []
    for _ in range(repetitions):
        start = time.process_time()
        call()
        times.append(1e3 * (time.process_time() - start))
    return min(times)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
