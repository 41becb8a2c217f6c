"""LLFF's `poses_bounds.npy`: a row a photo, photos sorted by name: a 3 x 5 matrix of `world_from_camera` with the
camera axes (down, right, backward) and a column of height, width and focal length; then near and far."""

from pathlib import Path

import numpy as np
import torch

from ..images import CaptureError
from ..scene import Scene
from .assembly import Frame, ReadOptions, assemble, file_size, image_files, inside, intrinsics_of, load_array


__all__ = ["find_llff", "read_llff"]

_MAX_BYTES = 64_000_000
_COLUMNS = 17
_FOLDERS = ("images", "images_2", "images_4", "images_8", "rgb", "")


def find_llff(path: Path) -> Path | None:
    """The `poses_bounds.npy` of a folder.

    Args:
        path (`Path`): file or folder to look at.
    """
    file = path if path.name == "poses_bounds.npy" else path / "poses_bounds.npy"
    return file if file.is_file() else None


def read_llff(file: Path, options: ReadOptions) -> Scene:
    """Reads the poses; photos are those of `images/` (or `images_{2,4,8}`), masks those of `masks/`.

    Args:
        file (`Path`): the file.
        options (`ReadOptions`): how captures are read.
    """
    file_size(file, _MAX_BYTES)
    rows = load_array(file)
    if rows.ndim != 2 or rows.shape[1] != _COLUMNS:
        raise CaptureError(f"{file}: must have shape [V, {_COLUMNS}], got {list(rows.shape)}.")
    folder = file.parent
    places = [f"images_{options.downscale}"] if options.downscale else _FOLDERS
    filled = (folder / place for place in places if (folder / place).is_dir() and image_files(folder / place))
    root = options.images or next(filled, None)
    if root is None:
        raise CaptureError(f"{file}: no photos in {' or '.join(f'{place}/' for place in places if place)}.")
    paths = image_files(root)
    if len(paths) != len(rows):
        raise CaptureError(f"{file}: has poses of {len(rows)} photos, but {root} holds {len(paths)}.")
    matrices = torch.from_numpy(rows[:, :15].astype(np.float64)).reshape(-1, 3, 5)
    poses = torch.eye(4, dtype=torch.float64).repeat(len(rows), 1, 1)
    down, right, backward, center, _ = matrices.unbind(-1)
    poses[:, :3] = torch.stack([right, down, -backward, center], dim=-1)
    frames = []
    for path, pose, (height, width, focal) in zip(paths, poses.tolist(), matrices[:, :, 4].tolist()):
        if not (0 < focal < np.inf and height >= 1 and width >= 1 and height % 1 == width % 1 == 0):
            raise CaptureError(f"{file}, row of {path.name}: height, width, focal are {height}, {width}, {focal}.")
        masks = [inside(folder, f"masks/{path.stem}{suffix}", f"{file}, masks") for suffix in (".png", path.suffix)]
        mask = next((candidate for candidate in masks if candidate.is_file()), None)
        intrinsics, size = intrinsics_of(focal, focal, width / 2, height / 2), (int(height), int(width))
        shared = {"mask_path": mask, "root": folder if options.images is None else root, "is_scaled": True}
        frames.append(Frame(path.name, path, pose, intrinsics, size, **shared))
    return assemble(file, frames, ReadOptions(root, options.missing, options.background), folder)
