"""What readers share: from frames that a file lists to a scene of photos that are there, upright and straight."""

import json
import math
import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ...geometry.cameras import Cameras, check_rigid
from ..images import THREADS, CaptureError, open_image, upright_turns
from ..lenses import Lens
from ..photos import Optics, Photo, photo_cameras
from ..scene import Scene, SceneImages


__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_JSON_BYTES",
    "Frame",
    "ReadOptions",
    "assemble",
    "clear_caches",
    "file_size",
    "finite",
    "image_files",
    "inside",
    "intrinsics_of",
    "listed",
    "load_array",
    "load_json",
    "printable",
    "scene_name",
    "smaller_copy",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

MAX_JSON_BYTES = 64_000_000

_SCALES = (2, 4, 8)
_CHUNK = 256  # images a thread opens at a time
_CORRECTED = 1e-2  # entries of a rotation may be off by this much
_NOTICED = 1e-4


@dataclass(frozen=True)
class ReadOptions:
    """What [`load_scene`] was asked for: its `images`, `missing`, `background`, `downscale` and `scene`."""

    images: Path | None = None
    missing: Literal["error", "skip"] = "error"
    background: tuple[int, int, int] = (255, 255, 255)
    downscale: int | None = None
    scene: str | None = None


@dataclass
class Frame:
    """
    One view as a file lists it.

    Attributes:
        name (`str`): what the file calls it; views are sorted by it.
        path (`Path`): where its photo should be.
        world_from_camera (4 x 4 numbers): OpenCV axes.
        intrinsics (3 x 3 numbers): in pixels of `size`.
        size (`tuple[int, int]`, *optional*): height and width that `intrinsics` are for; those of the photo when not
            given. (1, 1) for normalised intrinsics.
        lens ([`Lens`], *optional*): distortion.
        time (`float`, *optional*): seconds.
        mask_path (`Path`, *optional*): where its mask should be.
        root (`Path`, *optional*): folder that the photo must stay in, whatever it links to; its own when not given.
        is_scaled (`bool`): whether the photo may be a smaller copy of what the camera is for.
    """

    name: str
    path: Path
    world_from_camera: Sequence[Sequence[float]]
    intrinsics: tuple[tuple[float, ...], ...]
    size: tuple[int, int] | None = None
    lens: Lens | None = None
    time: float | None = None
    mask_path: Path | None = None
    root: Path | None = None
    is_scaled: bool = False


def assemble(
    where: Path,
    frames: list[Frame],
    options: ReadOptions,
    folder: Path,
    points: torch.Tensor | None = None,
    splits: dict[str, Iterable[str]] | None = None,
) -> Scene:
    """
    A scene of the frames whose photos are there, in the order of their names.

    Args:
        where (`Path`):
            The file that lists them, for errors.
        frames (`list[Frame]`):
            The frames, all of them.
        options ([`ReadOptions`]):
            What to do about missing photos, and which sizes to take.
        folder (`Path`):
            Of the capture: the scene is called after it, and its `train_test_split_N.json` are read.
        points (`torch.Tensor` of shape `[P, 3]`, *optional*):
            Sparse points.
        splits (`dict[str, Iterable[str]]`, *optional*):
            Names of the frames of each split.

    Raises [`CaptureError`]: poses that are not rigid, photos that are missing, damaged, or of another size than their
    camera.
    """
    frames = sorted(frames, key=lambda frame: frame.name)
    if not frames:
        raise CaptureError(f"{where}: lists no frames.")
    splits = {**(splits or {}), **_split_files(folder, [frame.name for frame in frames])}
    splits = _known(where, splits, [frame.name for frame in frames])
    frames = _present(where, [_sized(where, frame, options.downscale) for frame in frames], options.missing)
    poses = _checked_poses(where, frames)
    described = [f"{where}, frame {frame.name!r}" for frame in frames]
    headers = _headers([frame.path for frame in frames])
    optics: dict[tuple, Optics] = {}
    photos = [
        _photo(frame, *header, optics, options, description)
        for frame, header, description in zip(frames, headers, described)
    ]
    has_masks = _has_all(where, "masks", [photo.mask_path is not None for photo in photos])
    times = [frame.time for frame in frames]
    if None in times and any(time is not None for time in times):
        raise CaptureError(f"{where}: {times.count(None)} of {len(times)} frames have no `time`, the others have one.")
    return Scene(
        images=SceneImages([photo.load for photo in photos]),
        cameras=photo_cameras(photos, poses, described),
        name=scene_name(folder),
        times=None if None in times else torch.tensor(times, dtype=torch.float64),
        masks=SceneImages([photo.load_mask for photo in photos]) if has_masks else None,
        points=points,
        image_paths=[photo.path for photo in photos],
        splits=_indexed(splits, [frame.name for frame in frames]),
    )


def _has_all(where: Path, what: str, there: list[bool]) -> bool:
    """Whether every photo has one; warns where only some do, and none are used."""
    if any(there) and not all(there):
        warnings.warn(
            f"{where}: {there.count(False)} of {len(there)} photos have no {what}: none are used.", stacklevel=5
        )
    return all(there)


def scene_name(folder: Path) -> str:
    """What to call the scene of a folder, which is part of the names of what is written about it.

    Args:
        folder (`Path`): of the scene.
    """
    name = folder.resolve().name
    name = folder.resolve().parent.name if name == "nerfstudio" else name  # DL3DV
    return printable(name) or "capture"


def _known(where: Path, splits: dict[str, Iterable[str]], names: list[str]) -> dict[str, list[str]]:
    """Splits by the names that frames have: `./a.png` is `a.png`."""
    plain = {os.path.normpath(name): name for name in names}
    for key, chosen in splits.items():
        strangers = [name for name in chosen if os.path.normpath(name) not in plain]
        if strangers:
            raise CaptureError(f"{where}: the {key} split names what is no frame ({listed(strangers)}).")
    return {key: [plain[os.path.normpath(name)] for name in chosen] for key, chosen in splits.items()}


def _split_files(folder: Path, names: list[str]) -> dict[str, list[str]]:
    """Names of the frames in the splits of `train_test_split_N.json` (ReconFusion), which number the sorted frames."""
    splits = {}
    for file in sorted(folder.glob("train_test_split_*.json")):
        data, number = load_json(file), file.stem.removeprefix("train_test_split_")
        for key in ("train", "test"):
            ids = data.get(f"{key}_ids")
            if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < len(names) for i in ids):
                raise CaptureError(f"{file}: `{key}_ids` must be a list of numbers from 0 to {len(names) - 1}.")
            splits[f"{key}_{number}"] = [names[i] for i in ids]
    return splits


def _indexed(splits: dict[str, Iterable[str]], names: list[str]) -> dict[str, list[int]] | None:
    """Views of each split, without those whose photos are missing."""
    index = {name: number for number, name in enumerate(names)}
    return {key: [index[name] for name in chosen if name in index] for key, chosen in splits.items()} or None


def load_json(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds; raises [`CaptureError`] otherwise, and for files above `MAX_JSON_BYTES`.

    Args:
        file (`Path`): a JSON file.
    """
    file_size(file, MAX_JSON_BYTES)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CaptureError(f"{file}: not valid JSON ({error}).") from error
    if not isinstance(data, dict):
        raise CaptureError(f"{file}: must hold a JSON object, got a {type(data).__name__}.")
    return data


def load_array(file: Path) -> np.ndarray:
    """Real numbers of an `.npy` file; raises [`CaptureError`] where there are none.

    Args:
        file (`Path`): an `.npy` file.
    """
    try:
        array = np.load(file, allow_pickle=False)
    except Exception as error:  # numpy's parser of headers lets through whatever Python's own raises
        raise CaptureError(f"{file}: not a numpy array that can be read ({error}).") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise CaptureError(f"{file}: must hold an array of numbers.")
    return array


def _sized(where: Path, frame: Frame, downscale: int | None) -> Frame:
    """The frame, its photo taken from `images_2` and its like, beside its folder, if asked to or if it lies nowhere
    else. Raises [`CaptureError`] where the photo lies outside its root."""
    root = frame.root or frame.path.parent
    if downscale or not frame.path.is_file():
        smaller = smaller_copy(root, frame.path, downscale)
        if smaller is not None:
            frame = replace(frame, path=smaller, is_scaled=True)
        elif downscale:
            frame = replace(frame, path=root / f"(no copy at 1/{downscale})" / frame.path.name)
    inside(root, os.path.relpath(frame.path, root), f"{where}, frame {frame.name!r}")
    return frame


def smaller_copy(root: Path, path: Path, downscale: int | None = None) -> Path | None:
    """The photo in `images_2`, `images_4` or `images_8` beside the folder of `root` that it should lie in.

    Args:
        root (`Path`): folder of the capture.
        path (`Path`): the photo at full size.
        downscale (`int`, *optional*): how many times smaller it is wanted; the largest there is when not given.
    """
    folder, *rest = path.relative_to(root).parts
    if not rest:
        return None
    for scale in (downscale,) if downscale else _SCALES:
        same = Path(root, f"{folder}_{scale}", *rest)
        found = next((p for suffix in ("", *IMAGE_SUFFIXES) if (p := _with(same, suffix)).is_file()), None)
        if found is not None:
            return found
    return None


def _with(path: Path, suffix: str) -> Path:
    return path.with_suffix(suffix) if suffix else path


def _present(where: Path, frames: list[Frame], missing: str) -> list[Frame]:
    there = [frame.path.is_file() for frame in frames]
    absent = [frame.name for frame, is_there in zip(frames, there) if not is_there]
    if absent and missing == "error":
        raise CaptureError(
            f"{where}: {len(absent)} of {len(frames)} images are missing ({listed(absent)}). Pass `missing='skip'` to"
            " go on without them."
        )
    present = [frame for frame, is_there in zip(frames, there) if is_there]
    if not present:
        raise CaptureError(f"{where}: none of the {len(absent)} images that it lists exists ({listed(absent)}).")
    if absent:
        warnings.warn(
            f"{where}: skipped {len(absent)} of {len(frames)} frames without an image ({listed(absent)}).",
            stacklevel=5,
        )
    return present


def _checked_poses(where: Path, frames: list[Frame]) -> torch.Tensor:
    """Poses `[V, 4, 4]`. Rotations that tools have rounded are replaced by the nearest ones, with a warning."""
    try:
        poses = torch.tensor([frame.world_from_camera for frame in frames], dtype=torch.float64)
    except (ValueError, TypeError, RuntimeError, OverflowError):
        for frame in frames:
            _check_pose(f"{where}, frame {frame.name!r}", frame.world_from_camera)
        raise
    poses, error = _nearest_rotations(poses)
    try:
        check_rigid(poses, "pose")
    except ValueError:
        for frame, pose in zip(frames, poses):
            _check_pose(f"{where}, frame {frame.name!r}", pose)
    if error > _NOTICED:
        message = f"{where}: the rotations are orthonormal to {error:.1g} only; the nearest rotations are taken."
        warnings.warn(message, stacklevel=5)
    return poses


def _nearest_rotations(poses: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Poses whose rotations were nearly orthonormal, made so, and how far they were from it."""
    rotation = poses[:, :3, :3]
    error = (rotation.mT @ rotation - torch.eye(3, dtype=torch.float64)).abs().amax((-2, -1))
    off = (error > 1e-12) & (error < _CORRECTED)
    if not off.any():
        return poses, 0.0
    u, _, vh = torch.linalg.svd(rotation[off])
    poses = poses.clone()
    poses[off, :3, :3] = u @ vh
    return poses, float(error[off].max())


def _check_pose(where: str, matrix: Sequence) -> None:
    try:
        check_rigid(torch.as_tensor(matrix, dtype=torch.float64)[None], "pose")
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise CaptureError(f"{where}: {error}") from error


def _headers(paths: list[Path]) -> list[tuple[tuple[int, int], int]]:
    """Height and width of the stored pixels, and the quarter turns that make them upright."""

    def read(start: int) -> list[tuple[tuple[int, int], int]]:
        headers = []
        for path in paths[start : start + _CHUNK]:
            with open_image(path) as image:
                headers.append(((image.height, image.width), upright_turns(image)))
        return headers

    with ThreadPoolExecutor(THREADS) as pool:
        return [header for part in pool.map(read, range(0, len(paths), _CHUNK)) for header in part]


def _photo(frame: Frame, stored: tuple[int, int], turns: int, optics: dict, options: ReadOptions, where: str) -> Photo:
    """The photo of a frame. `optics` collects what photos share."""
    wanted = frame.size or stored
    is_upright = False
    if stored != wanted:
        upright = stored[::-1] if turns % 2 else stored
        if _fits(upright, wanted, frame) and turns % 2:
            is_upright, stored = True, upright
        elif not _fits(stored, wanted, frame):
            raise CaptureError(
                f"{frame.path}: the image is {stored[1]} x {stored[0]} pixels, its camera is for {wanted[1]} x"
                f" {wanted[0]} ({where})."
            )
    key = (frame.intrinsics, wanted, stored, frame.lens)
    if key not in optics:
        try:
            camera = Cameras(torch.eye(4, dtype=torch.float64), frame.intrinsics, wanted)
        except ValueError as error:
            raise CaptureError(f"{where}: {error}") from error
        optics[key] = Optics(camera.resized(*stored), frame.lens)
    mask = frame.mask_path if frame.mask_path is not None and frame.mask_path.is_file() else None
    if mask is None and frame.mask_path is not None and options.missing == "error":
        raise CaptureError(f"{where}: its mask {frame.mask_path} is missing. Pass `missing='skip'` to go on without.")
    turns, exif = (0, True) if is_upright else (turns, False)
    return Photo(frame.path, optics[key], turns, exif, options.background, mask)


def _fits(stored: tuple[int, int], wanted: tuple[int, int], frame: Frame) -> bool:
    """Whether pixels of the size `stored` are those that the camera is for, or a smaller copy of them."""
    if stored == wanted or wanted == (1, 1):
        return True
    height, width = (a / b for a, b in zip(stored, wanted))
    return frame.is_scaled and abs(height - width) <= 1.5 * max(1 / extent for extent in wanted)


def inside(root: Path, name: str, where: str) -> Path:
    """The path `root` / `name`; raises [`CaptureError`] if it is none, or leads out of `root`, by links too.

    Args:
        root (`Path`): folder of the capture.
        name (`str`): what a file says, relative to the folder.
        where (`str`): what errors call it.
    """
    path = os.path.join(root, name.replace("\\", "/"))
    parent, base = os.path.split(path)
    try:
        resolved = os.path.realpath(path) if os.path.islink(path) else os.path.join(_resolved(parent), base)
        is_inside = base not in ("", ".", "..") and resolved.startswith(os.path.join(_resolved(str(root)), ""))
    except (ValueError, OSError) as error:
        raise CaptureError(f"{where}: {printable(name)!r} is not a path ({error}).") from error
    if not is_inside:
        raise CaptureError(f"{where}: the path {printable(name)!r} leaves the folder of the capture.")
    return Path(path)


@lru_cache(maxsize=4096)
def _resolved(folder: str) -> str:
    return os.path.realpath(folder)


def clear_caches() -> None:
    """Forgets where links led: they may lead elsewhere by now."""
    _resolved.cache_clear()


def image_files(folder: Path) -> list[Path]:
    """The images of a folder, by name.

    Args:
        folder (`Path`): where they lie.
    """
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def file_size(file: Path, most: int) -> int:
    """Size in bytes; raises [`CaptureError`] for files above `most`.

    Args:
        file (`Path`): to be measured.
        most (`int`): bytes that are allowed.
    """
    size = file.stat().st_size
    if size > most:
        raise CaptureError(f"{file}: {size} bytes are more than the {most} that are allowed.")
    return size


def finite(value: object, where: str, positive: bool = False) -> float:
    """`value` as a number; raises [`CaptureError`] where it is none.

    Args:
        value (`object`): what a file says.
        where (`str`): what errors call it.
        positive (`bool`, defaults to `False`): whether it must be above zero.
    """
    try:
        number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise CaptureError(f"{where} must be a finite number, got {printable(str(value)[:40])!r}.")
    if positive and number <= 0:
        raise CaptureError(f"{where} must be positive, got {value}.")
    return number


def intrinsics_of(focal_x: float, focal_y: float, center_x: float, center_y: float) -> tuple[tuple[float, ...], ...]:
    """3 x 3 numbers.

    Args:
        focal_x (`float`): pixels.
        focal_y (`float`): pixels.
        center_x (`float`): pixels from the left edge.
        center_y (`float`): pixels from the top edge.
    """
    return (focal_x, 0.0, center_x), (0.0, focal_y, center_y), (0.0, 0.0, 1.0)


def printable(text: str) -> str:
    """Names of files need not be UTF-8; what is printed must be.

    Args:
        text (`str`): any name.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def listed(names: Iterable[str], limit: int = 10) -> str:
    """The first names, and how many more there are.

    Args:
        names (`Iterable[str]`): all of them.
        limit (`int`, defaults to `10`): how many are spelled out.
    """
    names = [printable(name) for name in names]
    return ", ".join(names[:limit]) + (f", and {len(names) - limit} more" if len(names) > limit else "")
