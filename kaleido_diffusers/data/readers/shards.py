"""One scene of a WebDataset shard as a capture."""

import io
from functools import partial
from pathlib import Path

import PIL.Image
import torch

from ...cameras import Cameras
from ..images import CaptureError, load_image, open_image
from ..scene import Scene, SceneImages
from ..shards import ShardSource
from .assembly import ReadOptions, printable, scene_name


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
    if options.images is not None or options.downscale is not None:
        raise CaptureError(f"{path}: the photos of a shard lie in it, in one size: no `images`, no `downscale`.")
    encoded, arrays = source.parts(chosen[0])
    where = f"{path}, scene {printable(names[chosen[0]])!r}"
    if "poses" not in arrays:
        raise CaptureError(f"{where}: is a video without cameras.")
    described = [(io.BytesIO(content), f"{where}, image {number}") for number, content in enumerate(encoded)]
    sizes = torch.tensor([open_image(*image).size[::-1] for image in described])
    loaders = [partial(_decode, content, name) for content, (_, name) in zip(encoded, described)]
    scale = torch.nn.functional.pad(sizes.flip(-1), (0, 1), value=1).unsqueeze(-1)
    try:
        cameras = Cameras(arrays["poses"], arrays["intrinsics"] * scale, sizes)
    except ValueError as error:
        raise CaptureError(f"{where}: {error}") from error
    return Scene(SceneImages(loaders), cameras, scene_name(Path(names[chosen[0]])), arrays.get("times"))


def _decode(content: bytes, name: str) -> PIL.Image.Image:
    return load_image(io.BytesIO(content), exif=False, name=name)
