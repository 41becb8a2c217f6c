"""What readers share: from frames that a file lists to a scene of photos that are there, upright and straight."""

import codecs
import json
import math
import os
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ...geometry.cameras import Cameras, check_rigid
from ..images import THREADS, CaptureError, open_image, upright_turns
from ..lenses import Lens
from ..photos import Optics, Photo, photo_cameras
from ..scene import Scene, SceneImages
from .places import IMAGE_SUFFIXES, as_on_disk, clear_caches, image_files, inside, natural_order, printable


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
    "is_copy",
    "listed",
    "load_array",
    "load_json",
    "load_text",
    "printable",
    "scene_name",
    "smaller_copy",
]

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
        is_measured (`bool`): whether `size` is that of the stored photo, because the file does not say one.
        upright_intrinsics (3 x 3 numbers, *optional*): what `intrinsics` would be if the file means the photo as its
            EXIF turns it; the same when not given.
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
    is_measured: bool = False
    upright_intrinsics: tuple[tuple[float, ...], ...] | None = None


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
    frames = sorted(frames, key=lambda frame: natural_order(frame.name))
    if not frames:
        raise CaptureError(f"{where}: lists no frames.")
    splits = {**(splits or {}), **_split_files(folder, sorted(frame.name for frame in frames))}
    splits = _known(where, splits, [frame.name for frame in frames])
    frames = _present(where, [_sized(where, frame, options.downscale) for frame in frames], options.missing)
    frames = _posed(where, frames, options.missing)
    _check_paths(where, frames)
    poses = _checked_poses(where, frames)
    photos, described = _photos(where, frames, options)
    has_masks = _has_masks(where, frames, [photo.mask_path is not None for photo in photos])
    times, names = [frame.time for frame in frames], [frame.name for frame in frames]
    if None in times and any(time is not None for time in times):
        raise CaptureError(f"{where}: {times.count(None)} of {len(times)} frames have no `time`, the others have one.")
    return Scene(
        images=SceneImages(
            [photo.load for photo in photos],
            [None if photo.optics.lens is None else photo.load_fitted for photo in photos],
        ),
        cameras=photo_cameras(photos, poses, described),
        name=scene_name(folder),
        times=None if None in times else torch.tensor(times, dtype=torch.float64),
        masks=SceneImages([photo.load_mask for photo in photos]) if has_masks else None,
        points=points,
        image_paths=[photo.path for photo in photos],
        splits=_indexed(where, splits, names),
        text_order=None if names == sorted(names) else sorted(range(len(names)), key=names.__getitem__),
    )


def _photos(where: Path, frames: list[Frame], options: ReadOptions) -> tuple[list[Photo], list[str]]:
    """The photos of frames that are there, and what errors call them."""
    described = [f"{where}, frame {frame.name!r}" for frame in frames]
    headers = _headers([frame.path for frame in frames])
    readings = _exif_readings(where, frames, headers)
    optics: dict[tuple, Optics] = {}
    photos = [
        _photo(frame, *header, is_upright, optics, options, description)
        for frame, header, is_upright, description in zip(frames, headers, readings, described)
    ]
    scaled = [
        frame
        for frame, (stored, _) in zip(frames, headers)
        if frame.is_scaled and frame.size not in (None, (1, 1), stored, stored[::-1]) and not is_copy(frame.path)
    ]
    if scaled:
        height, width = scaled[0].size
        warnings.warn(
            f"{where}: {len(scaled)} of {len(frames)} photos have another size than their camera ({scaled[0].path} is"
            f" for {width} x {height} pixels): the lens is scaled.",
            stacklevel=5,
        )
    return photos, described


def is_copy(path: Path) -> bool:
    """Whether a photo lies in `images_2` or its like, whose name says that it is smaller.

    Args:
        path (`Path`): of the photo.
    """
    return any(path.parent.name.endswith(f"_{scale}") for scale in _SCALES)


def _has_masks(where: Path, frames: list[Frame], there: list[bool]) -> bool:
    """Whether every photo has a mask; warns where only some do or named ones are missing, and none are used."""
    if (any(there) or any(frame.mask_path for frame in frames)) and not all(there):
        warnings.warn(
            f"{where}: {there.count(False)} of {len(there)} photos have no masks: none are used.",
            stacklevel=5,
        )
    return all(there)


def _posed(where: Path, frames: list[Frame], missing: str) -> list[Frame]:
    """The frames that have a pose: where tracking was lost, tools write NaN, infinity, null or zeros. Refused unless
    `missing` is `"skip"`."""
    lost = [frame.name for frame in frames if _is_lost(frame.world_from_camera)]
    if not lost:
        return frames
    if missing == "error":
        raise CaptureError(
            f"{where}: {len(lost)} of {len(frames)} frames have no pose ({listed(lost)}): their matrices have NaN,"
            " infinite or null entries, or hold zeros. Pass `missing='skip'` to go on without them."
        )
    if len(lost) == len(frames):
        raise CaptureError(f"{where}: none of the {len(frames)} frames has a pose of finite numbers.")
    warnings.warn(
        f"{where}: skipped {len(lost)} of {len(frames)} frames without a pose ({listed(lost)}).", stacklevel=5
    )
    return [frame for frame in frames if not _is_lost(frame.world_from_camera)]


def _is_lost(pose: Any) -> bool:
    """Whether a pose stands for none: NaN, infinity or null in it, or zeros alone."""
    numbers = [value for row in pose for value in row] if all(isinstance(row, (list, tuple)) for row in pose) else []
    if any(value is None or isinstance(value, float) and not math.isfinite(value) for value in numbers):
        return True
    return bool(numbers) and not any(value for row in pose[:3] for value in row)


def _check_paths(where: Path, frames: list[Frame]) -> None:
    """One photo is not seen by two cameras: raises [`CaptureError`]. Warns of names whose case is another."""
    first: dict[str, Frame] = {}
    for frame in frames:
        other = first.setdefault(os.path.normpath(frame.path), frame)
        if other is not frame and (other.world_from_camera, other.intrinsics) != (
            frame.world_from_camera,
            frame.intrinsics,
        ):
            raise CaptureError(
                f"{where}: the frames {printable(other.name)!r} and {printable(frame.name)!r} have different cameras,"
                f" but both find the photo {printable(str(frame.path))}. Is `images` the folder that holds both?"
            )
    other_case = [frame for frame in frames if _differs_in_case(Path(frame.name).name, frame.path.name)]
    if other_case:
        name, path = printable(other_case[0].name), printable(other_case[0].path.name)
        warnings.warn(
            f"{where}: {len(other_case)} of {len(frames)} photos are called as listed but for upper and lower case or"
            f" accents ({name} is {path}): they are taken.",
            stacklevel=5,
        )


def _differs_in_case(listed: str, found: str) -> bool:
    listed, found = (unicodedata.normalize("NFC", name) for name in (listed, found))
    return listed != found and listed.casefold() == found.casefold()


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


def _indexed(where: Path, splits: dict[str, Iterable[str]], names: list[str]) -> dict[str, list[int]] | None:
    """Views of each split, without those whose photos are missing. A split that is empty then counts as not given."""
    index, indexed = {name: number for number, name in enumerate(names)}, {}
    for key, chosen in splits.items():
        indexed[key] = [index[name] for name in chosen if name in index]
        if chosen and not indexed[key]:
            warnings.warn(
                f"{where}: no photo of the {key} split is there: it counts as not given.",
                stacklevel=5,
            )
    empty = {key for key, views in indexed.items() if not views}
    # The halves of a numbered split mean nothing alone.
    empty |= {f"{half}_{key.partition('_')[2]}" for key in empty if "_" in key for half in ("train", "test")}
    return {key: views for key, views in indexed.items() if key not in empty} or None


def load_json(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds; raises [`CaptureError`] otherwise, and for files above `MAX_JSON_BYTES`.

    Args:
        file (`Path`): a JSON file.
    """
    file_size(file, MAX_JSON_BYTES)
    try:
        data = file.read_bytes()
        data = json.loads(data.decode(json.detect_encoding(data)))  # a byte order mark, and UTF-16, as Windows writes
    except (ValueError, RecursionError) as error:
        raise CaptureError(f"{file}: not valid JSON ({error}).") from error
    if not isinstance(data, dict):
        raise CaptureError(f"{file}: must hold a JSON object, got a {type(data).__name__}.")
    return data


def load_text(file: Path, most: int) -> str:
    """The text of a file, without a byte order mark; UTF-16, as Windows writes it, too. Names of files need not be
    UTF-8, see `os.fsdecode`. Raises [`CaptureError`] for files above `most` bytes.

    Args:
        file (`Path`): a text file.
        most (`int`): bytes that are allowed.
    """
    file_size(file, most)
    data = file.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    return os.fsdecode(data.removeprefix(codecs.BOM_UTF8))


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
    if not frame.path.is_file():
        frame = replace(frame, path=as_on_disk(root, frame.path))
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
    folder, *rest = Path(os.path.relpath(path, root)).parts
    if not rest or folder == "..":
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
            f"{where}: {len(absent)} of {len(frames)} images are missing ({listed(absent)}).{_hint(frames)} Pass"
            " `missing='skip'` to go on without them."
        )
    present = [frame for frame, is_there in zip(frames, there) if is_there]
    if not present:
        raise CaptureError(
            f"{where}: none of the {len(absent)} images that it lists exists ({listed(absent)}).{_hint(frames)}"
        )
    if absent:
        warnings.warn(
            f"{where}: skipped {len(absent)} of {len(frames)} frames without an image ({listed(absent)}).",
            stacklevel=5,
        )
    return present


def _hint(frames: list[Frame]) -> str:
    """Where the first photo that is missing may be found: under another suffix, or in a folder to be named."""
    frame = next(frame for frame in frames if not frame.path.is_file())
    path, root = frame.path, frame.root or frame.path.parent
    others = (as_on_disk(root, path.with_suffix(suffix)) for suffix in IMAGE_SUFFIXES) if path.name else ()
    other = next((other for other in others if other.is_file()), None)
    if other is not None:
        return f" There is a {printable(other.name)}: is the suffix listed wrongly?"
    return f" Looked for {printable(str(path))}; `images` (--images) names another folder of photos."


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


def _exif_readings(where: Path, frames: list[Frame], headers: list[tuple[tuple[int, int], int]]) -> list[bool]:
    """Whether each camera is for the photo as its EXIF turns it, rather than for the stored pixels. A tool does one or
    the other: what some photos prove holds for those of the same camera, and for the capture if all agree."""
    proofs = [_proof(frame, *header) for frame, header in zip(frames, headers)]
    cameras = [(frame.intrinsics, frame.size) for frame in frames]
    by_camera: dict[tuple, set[bool]] = {}
    for camera, proof in zip(cameras, proofs):
        if proof is not None:
            by_camera.setdefault(camera, set()).add(proof)
    of_all = set().union(*by_camera.values())
    readings, unproven = [], []
    for frame, (_, turns), camera, proof in zip(frames, headers, cameras, proofs):
        known = next((k for k in (by_camera.get(camera, ()), of_all) if len(k) == 1), ())
        if turns and proof is None and not known:
            unproven.append(frame.name)
        readings.append(bool(turns) and (next(iter(known), False) if proof is None else proof))
    if unproven:
        warnings.warn(
            f"{where}: {len(unproven)} of {len(frames)} photos have an EXIF rotation, and nothing proves whether their"
            f" cameras are for the stored pixels or for the turned photo ({listed(unproven, 3)}): the stored pixels"
            " are taken. If views come out turned, save the photos upright, without EXIF.",
            stacklevel=6,
        )
    return readings


def _proof(frame: Frame, stored: tuple[int, int], turns: int) -> bool | None:
    """Whether the camera must be for the turned photo (true) or for the stored pixels (false), by the size that it is
    for; where none is given, by square pixels and a principal point in the middle."""
    upright = stored[::-1]
    if turns % 2 == 0 or stored == upright:
        return None
    if frame.size not in (None, (1, 1)) and not frame.is_measured:
        fits = [_fits(size, frame.size, frame) for size in (stored, upright)]
        return fits[1] if fits[0] != fits[1] else None
    faults = zip(
        _faults(frame.intrinsics, stored, frame.size == (1, 1)),
        _faults(frame.upright_intrinsics or frame.intrinsics, upright, frame.size == (1, 1)),
        (0.02, 0.05),
    )
    return next((b < a for a, b, bound in faults if min(a, b) < bound < abs(a - b)), None)


def _faults(intrinsics: tuple, size: tuple[int, int], is_normalised: bool) -> tuple[float, float]:
    """How far a lens is from square pixels, and its centre from that of the picture."""
    (focal_x, _, center_x), (_, focal_y, center_y), _ = intrinsics
    height, width = size
    if is_normalised:
        focal_x, focal_y, center_x, center_y = focal_x * width, focal_y * height, center_x * width, center_y * height
    square = abs(math.log(focal_x / focal_y)) if focal_x > 0 and focal_y > 0 else math.inf
    return square, max(abs(center_x / width - 0.5), abs(center_y / height - 0.5))


def _photo(
    frame: Frame,
    stored: tuple[int, int],
    turns: int,
    is_upright: bool,
    optics: dict,
    options: ReadOptions,
    where: str,
) -> Photo:
    """The photo of a frame. `optics` collects what photos share."""
    intrinsics, size = frame.intrinsics, frame.size
    if is_upright and turns % 2:
        intrinsics, stored = frame.upright_intrinsics or intrinsics, stored[::-1]
        size = size[::-1] if size and frame.is_measured else size
    wanted = size or stored
    if not _fits(stored, wanted, frame):
        raise CaptureError(
            f"{frame.path}: the image is {stored[1]} x {stored[0]} pixels, its camera is for {wanted[1]} x"
            f" {wanted[0]} ({where})."
        )
    key = (intrinsics, wanted, stored, frame.lens)
    if key not in optics:
        try:
            camera = Cameras(torch.eye(4, dtype=torch.float64), intrinsics, wanted)
        except ValueError as error:
            raise CaptureError(f"{where}: {error}") from error
        optics[key] = Optics(camera.resized(*stored), frame.lens)
    mask = frame.mask_path if frame.mask_path is not None and frame.mask_path.is_file() else None
    if mask is None and frame.mask_path is not None and options.missing == "error":
        raise CaptureError(f"{where}: its mask {frame.mask_path} is missing. Pass `missing='skip'` to go on without.")
    turns = 0 if is_upright else turns
    return Photo(frame.path, optics[key], turns, is_upright, options.background, mask)


def _fits(stored: tuple[int, int], wanted: tuple[int, int], frame: Frame) -> bool:
    """Whether pixels of the size `stored` are those that the camera is for, or a smaller copy of them."""
    if stored == wanted or wanted == (1, 1):
        return True
    height, width = (a / b for a, b in zip(stored, wanted))
    return frame.is_scaled and abs(height - width) <= 1.5 * max(1 / extent for extent in wanted)


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


def listed(names: Iterable[str], limit: int = 10) -> str:
    """The first names, and how many more there are.

    Args:
        names (`Iterable[str]`): all of them.
        limit (`int`, defaults to `10`): how many are spelled out.
    """
    names = [printable(name) for name in names]
    return ", ".join(names[:limit]) + (f", and {len(names) - limit} more" if len(names) > limit else "")
