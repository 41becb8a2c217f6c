"""Renders of zero123, EscherNet and the like (Objaverse, GSO): `NNN.png` beside `NNN.npy`, a 3 x 4 `camera_from_world`
with Blender's camera axes. There are no intrinsics on file; all such sets share one lens."""

import math
from pathlib import Path

import numpy as np
import torch

from ...geometry.cameras import convert_axes, invert_rigid
from ..images import CaptureError
from ..scene import Scene
from .assembly import Frame, ReadOptions, assemble, file_size, intrinsics_of, load_array


__all__ = ["find_zero123", "read_zero123"]

FOV = 49.1  # degrees, of zero123's renders: 35 mm on a sensor of 32 mm

_MAX_BYTES = 10_000


def find_zero123(path: Path) -> Path | None:
    """The folder, when it holds a `NNN.npy` with an image beside it.

    Args:
        path (`Path`): file or folder to look at.
    """
    files = path.glob("[0-9][0-9][0-9].npy") if path.is_dir() else ()
    return path if any(file.with_suffix(".png").is_file() for file in files) else None


def read_zero123(folder: Path, options: ReadOptions) -> Scene:
    """Reads a folder of renders.

    Args:
        folder (`Path`): the folder.
        options (`ReadOptions`): how captures are read.
    """
    files = sorted(folder.glob("[0-9][0-9][0-9].npy"))
    focal = 0.5 / math.tan(math.radians(FOV) / 2)
    frames = []
    for file in files:
        file_size(file, _MAX_BYTES)
        matrix = load_array(file)
        if matrix.shape not in ((3, 4), (4, 4)):
            raise CaptureError(f"{file}: must have shape [3, 4], got {list(matrix.shape)}.")
        camera_from_world = torch.eye(4, dtype=torch.float64)
        camera_from_world[:3] = torch.from_numpy(matrix[:3].astype(np.float64))
        pose = convert_axes(invert_rigid(camera_from_world), "opengl", "opencv").tolist()
        path = (options.images or folder) / f"{file.stem}.png"
        frames.append(Frame(file.stem, path, pose, intrinsics_of(focal, focal, 0.5, 0.5), size=(1, 1)))
    return assemble(folder, frames, options, folder)
