"""Finds the reader for a capture by what lies in its folder."""

import os
from pathlib import Path
from typing import Literal

from .images import CaptureError
from .scene import Scene
from .transforms_json import read_blender, read_transforms_json


__all__ = ["load_scene"]


def load_scene(
    path: str | os.PathLike,
    missing: Literal["error", "skip"] = "error",
    background: tuple[int, int, int] = (255, 255, 255),
) -> Scene:
    """
    Reads a capture, views in the order of their paths.

    Args:
        path (`str` or `Path`):
            A folder with a `transforms.json` (nerfstudio, instant-ngp) or with `transforms_train.json` and its like
            (Blender, NeRF-synthetic), or a file of the former kind.
        missing (`str`, defaults to `"error"`):
            What to do about photos that the capture lists but does not have: `"error"` refuses and lists them,
            `"skip"` leaves them out with a warning.
        background (`tuple[int, int, int]`, defaults to white):
            RGB behind transparent pixels.

    Raises:
        [`CaptureError`]: when the folder holds no known format, or what it holds cannot be read; the message names the
        file and the field.
    """
    path = Path(path)
    if missing not in ("error", "skip"):
        raise ValueError(f"`missing` must be 'error' or 'skip', got {missing!r}.")
    if not path.exists():
        raise CaptureError(f"{path}: no such capture.")
    options = {"missing": missing, "background": background}
    if (path / "transforms_train.json").is_file() and not (path / "transforms.json").exists():
        return read_blender(path, **options)
    file = path / "transforms.json" if path.is_dir() else path
    if not file.is_file() or file.suffix != ".json":
        raise CaptureError(
            f"{path}: no capture in a known format. Looked for: transforms.json, transforms_train.json."
        )
    return read_transforms_json(file, **options)
