"""Finds the reader of a capture by what lies in its folder."""

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...bundled import SAMPLES
from ..images import CaptureError, unread_photo
from ..scene import Scene
from .assembly import ReadOptions, clear_caches, image_files
from .co3d import find_co3d, read_co3d
from .colmap import find_colmap, half_of_colmap, read_colmap
from .llff import find_llff, read_llff
from .pose_files import find_seven_scenes, find_tum, read_seven_scenes, read_tum
from .real_estate import find_real_estate, read_real_estate
from .shards import find_shard, read_shard
from .single_photo import is_photo
from .transforms_json import find_blender, find_transforms, read_blender, read_transforms
from .zero123 import find_zero123, read_zero123


__all__ = ["load_scene"]


@dataclass(frozen=True)
class Reader:
    """A format: its name, what its `find` looks for, and how what was found is read."""

    name: str
    looks_for: str
    find: Callable[[Path], Path | None]
    read: Callable[[Path, ReadOptions], Scene]


# The first that finds something reads the capture.
READERS = (
    Reader("nerfstudio, instant-ngp, DL3DV", "transforms.json", find_transforms, read_transforms),
    Reader("Blender (NeRF-synthetic)", "transforms_train.json", find_blender, read_blender),
    Reader("COLMAP", "sparse/0/cameras.bin or .txt", find_colmap, read_colmap),
    Reader("LLFF", "poses_bounds.npy", find_llff, read_llff),
    Reader("7-Scenes", "frame-*.pose.txt", find_seven_scenes, read_seven_scenes),
    Reader("TUM RGB-D", "groundtruth.txt and rgb.txt", find_tum, read_tum),
    Reader("zero123", "NNN.npy beside NNN.png", find_zero123, read_zero123),
    Reader("CO3D", "frame_annotations.jgz of the category", find_co3d, read_co3d),
    Reader("RealEstate10K", "one .txt of cameras", find_real_estate, read_real_estate),
    Reader("WebDataset", "a .tar of scenes", find_shard, read_shard),
)


def load_scene(
    path: str | os.PathLike,
    missing: Literal["error", "skip"] = "error",
    background: tuple[int, int, int] = (255, 255, 255),
    images: str | os.PathLike | None = None,
    downscale: int | None = None,
    scene: str | None = None,
) -> Scene:
    """
    Reads a capture, whatever tool wrote it; views come in the order of their names.

    The formats, in the order in which they are looked for: nerfstudio, instant-ngp and DL3DV (`transforms.json`),
    Blender (`transforms_{train,val,test}.json`), COLMAP (text or binary, in `sparse/0`), LLFF (`poses_bounds.npy`),
    7-Scenes, TUM RGB-D, zero123 and GSO renders, CO3D, RealEstate10K, and WebDataset shards. Lens distortion is
    undone and EXIF rotations are applied, to photos and cameras together. Splits are taken from the format's own
    lists and from `train_test_split_N.json`.

    Args:
        path (`str` or `Path`):
            The folder of the capture, or the file that holds its cameras.
        missing (`str`, defaults to `"error"`):
            What to do about photos that the capture lists but does not have: `"error"` refuses and lists them,
            `"skip"` leaves them out with a warning.
        background (`tuple[int, int, int]`, defaults to white):
            RGB behind transparent pixels.
        images (`str` or `Path`, *optional*):
            Folder of the photos, or what the names of the format start from, where that is not with the cameras.
        downscale (`int`, *optional*):
            Take the photos from `images_2`, `images_4` or `images_8`, and scale the cameras. They are taken, too,
            where the full size is not there.
        scene (`str`, *optional*):
            Which scene, of a shard or a category that holds several.

    Raises:
        [`CaptureError`]: when the folder holds no known format, or what it holds cannot be read; the message names the
        file and the field.
    """
    path = Path(path).absolute()
    if missing not in ("error", "skip"):
        raise ValueError(f"`missing` must be 'error' or 'skip', got {missing!r}.")
    if downscale is not None and downscale < 2:
        raise ValueError(f"`downscale` must be at least 2, got {downscale}.")
    images = None if images is None else Path(images)
    for place in filter(None, (path, images)):
        if not _exists(place):
            raise CaptureError(f"{place}: no such capture.{_meant(place.name)}")
        if is_photo(place):
            raise CaptureError(f"{place}: a photo, not the folder of a capture.")
    clear_caches()
    options = ReadOptions(images, missing, background, downscale, scene)
    for reader in READERS:
        found = reader.find(path)
        if found is not None:
            return reader.read(found, options)
    raise CaptureError(
        f"{path}: no capture in a known format.{_hint(path)} Looked for:"
        f" {'; '.join(f'{r.looks_for} ({r.name})' for r in READERS)}."
    )


def _hint(path: Path) -> str:
    """What else may have been meant by a path that holds no capture."""
    if path.is_file():
        packed = path.suffix.lower() in (".zip", ".gz", ".7z", ".rar")
        return " Unpack it first." if packed else " `kaleido poses` finds the cameras of photos and videos."
    if (half := half_of_colmap(path)) is not None:
        return f" {half}"
    folders = sorted(place for place in path.iterdir() if place.is_dir() and not place.name.startswith("."))
    for place in (*folders, *(inner for folder in folders[:20] for inner in sorted(folder.glob("[!.]*/")))):
        if place.is_dir() and any(reader.find(place) is not None for reader in READERS):
            return f" There is one in {place}."
    photos = [place for place in (path, *folders) if image_files(place)]
    if photos:
        return f" {photos[0]} holds photos: `kaleido poses` finds their cameras."
    names = [entry.name for entry in path.iterdir()]
    return next((f" {told}" for name in names if (told := unread_photo(name))), "")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (ValueError, OSError):  # a null byte, a name too long
        return False


def _meant(name: str) -> str:
    """The sample whose name this one is nearly."""
    near = difflib.get_close_matches(name, SAMPLES, 1)
    return f" Did you mean {near[0]}, which ships with the package?" if near else ""
