"""One scene of a WebDataset shard as a capture."""

import io
from functools import partial
from pathlib import Path

import PIL.Image
import torch

from ...cameras import Cameras
from ..images import CaptureError, to_rgb
from ..scene import Scene, SceneImages
from ..shards import ShardSource
from .assembly import ReadOptions, printable


__all__ = ["find_shard", "read_shard"]


def find_shard(path: Path) -> Path | None:
    """A tar file, or a folder of them."""
    if path.is_dir():
        return path if next(path.glob("*.tar"), None) else None
    return path if path.suffix == ".tar" else None


def read_shard(path: Path, options: ReadOptions) -> Scene:
    """Reads the scene that `options.scene` names, or the only one."""
    source = ShardSource(path)
    names = source.names
    chosen = [index for index, name in enumerate(names) if options.scene in (None, name)]
    if len(chosen) != 1:
        listed = ", ".join(map(printable, names[:10])) + (", ..." if len(names) > 10 else "")
        raise CaptureError(f"{path}: holds {len(names)} scenes; choose one by `scene`: {listed}.")
    encoded, arrays = source.parts(chosen[0])
    where = f"{path}, scene {names[chosen[0]]!r}"
    if "poses" not in arrays:
        raise CaptureError(f"{where}: is a video without cameras.")
    loaders = [partial(_decode, content, f"{where}, image {number}") for number, content in enumerate(encoded)]
    sizes = torch.tensor([loader().size[::-1] for loader in loaders])
    scale = torch.nn.functional.pad(sizes.flip(-1), (0, 1), value=1).unsqueeze(-1)
    try:
        cameras = Cameras(arrays["poses"], arrays["intrinsics"] * scale, sizes)
    except ValueError as error:
        raise CaptureError(f"{where}: {error}") from error
    return Scene(SceneImages(loaders), cameras, printable(names[chosen[0]]), arrays.get("times"))


def _decode(content: bytes, where: str) -> PIL.Image.Image:
    try:
        return to_rgb(PIL.Image.open(io.BytesIO(content)))
    except (ValueError, OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise CaptureError(f"{where}: damaged or cut short ({error}).") from error
