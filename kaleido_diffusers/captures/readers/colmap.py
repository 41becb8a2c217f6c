"""COLMAP models, text and binary: `cameras`, `images` and `points3D`.

Written out here, though pycolmap reads them: a damaged file makes that reader hang or take all memory, and most
captures need nothing else of it."""

import codecs
import mmap
import os
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ...geometry.cameras import invert_rigid, rotations_from_quaternions
from ..images import CaptureError
from ..lenses import ColmapLens, FisheyeLens, Lens, RadialTangentialLens
from ..scene import Scene
from .assembly import Frame, ReadOptions, assemble, intrinsics_of, listed
from .places import inside, mask_of, natural_order, photo_in, printable, warn_of_unlisted_photos, warn_of_unused_masks
from .ply import read_ply_points


__all__ = ["find_colmap", "half_of_colmap", "read_colmap"]

# Names and numbers of parameters by COLMAP's model id (src/colmap/sensor/models.h).
MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
    12: ("SIMPLE_DIVISION", 4),
    13: ("DIVISION", 5),
    14: ("SIMPLE_FISHEYE", 3),
    15: ("FISHEYE", 4),
    16: ("EUCM", 6),
}

_ONE_FOCAL = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE")
_ONE_FOCAL += ("SIMPLE_DIVISION", "SIMPLE_FISHEYE")
_FORMULAS = {
    "SIMPLE_RADIAL": (RadialTangentialLens, ("k1",)),
    "RADIAL": (RadialTangentialLens, ("k1", "k2")),
    "OPENCV": (RadialTangentialLens, ("k1", "k2", "p1", "p2")),
    "FULL_OPENCV": (RadialTangentialLens, ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")),
    "OPENCV_FISHEYE": (FisheyeLens, ("k1", "k2", "k3", "k4")),
    "SIMPLE_RADIAL_FISHEYE": (FisheyeLens, ("k1",)),
    "RADIAL_FISHEYE": (FisheyeLens, ("k1", "k2")),
}
_PLACES = ("sparse/0", "sparse", "colmap/sparse/0", "")
_LONGEST_NAME = 4096


def find_colmap(path: Path) -> Path | None:
    """The folder of the model: `sparse/0` or its like, or the folder itself.

    Args:
        path (`Path`): file or folder to look at.
    """
    if not path.is_dir():
        return None
    for place in _PLACES:
        if place and path.name and place.rpartition("/")[2] == "0":
            parent = (path / place).parent
            models = [folder for folder in (*_numbered(parent), parent) if _suffix(folder)]
        else:
            models = [path / place] if _suffix(path / place) else []
        if len(models) > 1:
            return _largest(models)
        if models:
            return models[0]
    return None


def half_of_colmap(path: Path) -> str | None:
    """What is missing of a model, in a sentence; `None` where there is no trace of one.

    Args:
        path (`Path`): folder of the capture.
    """
    for folder in (path / place for place in _PLACES):
        files = sorted(f"{name}{suffix}" for name in ("cameras", "images") for suffix in (".bin", ".txt"))
        there = [file for file in files if (folder / file).is_file()]
        if there:
            return f"{folder} holds {' and '.join(there)}: a model needs both cameras and images, both .bin or .txt."
    return None


def _numbered(folder: Path) -> list[Path]:
    """The models that COLMAP left in `sparse`: a folder for each part of the photos that it could not join."""
    models = [path for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    return sorted(models, key=lambda path: natural_order(path.name))


def _suffix(model: Path) -> str | None:
    """Whether a model is there in binary or text: its suffix."""
    return next(
        (s for s in (".bin", ".txt") if all((model / f"{name}{s}").is_file() for name in ("cameras", "images"))), None
    )


def _largest(models: list[Path]) -> Path:
    """The model with the most images, the first of equals; a warning names the others."""
    counts = {}
    for model in models:
        suffix = _suffix(model)
        try:
            counts[model] = len(_guarded(model / f"images{suffix}", _READERS[suffix]["images"]))
        except CaptureError:  # damaged: it is refused when it is the only one
            counts[model] = 0
    largest = max(models, key=counts.get)
    others = listed(f"{model} with {counts[model]}" for model in models if model != largest)
    warnings.warn(
        f"{largest.parent} holds {len(models)} models that do not share a frame: {largest.name}, the largest, with"
        f" {counts[largest]} photos is read; not {others}. Pass the folder of a model to read that.",
        stacklevel=4,
    )
    return largest


def read_colmap(model: Path, options: ReadOptions) -> Scene:
    """Reads a model. The photos lie in `images/` beside `sparse/`, or where `options.images` says; masks, if any, in
    `masks/` beside them, called as the photo with `.png` after it.

    Args:
        model (`Path`): folder of the model.
        options (`ReadOptions`): how captures are read.
    """
    capture = model.parent if model.parent.name != "sparse" else model.parent.parent
    if capture.name == "colmap" and not (capture / "images").is_dir():  # as nerfstudio lays it out
        capture = capture.parent
    root = options.images or next((f / "images" for f in (capture, model) if (f / "images").is_dir()), capture)
    suffix = _suffix(model) or ".txt"
    read = _READERS[suffix]
    cameras = _guarded(model / f"cameras{suffix}", read["cameras"])
    images = _guarded(model / f"images{suffix}", read["images"])
    # Points may lack, or have no bytes, in a model of known poses; tools replace them by text
    others = (s for s in (suffix, ".bin", ".txt") if (model / f"points3D{s}").is_file())
    kind = next(others, suffix)
    points = model / f"points3D{kind}"
    points = _guarded(points, _READERS[kind]["points"]) if points.is_file() and points.stat().st_size else []
    if not points and (model / "points3D.ply").is_file():  # as the 3D Gaussian Splatting code leaves them
        points = read_ply_points(model / "points3D.ply").tolist()
    where = model / f"images{suffix}"
    poses = _world_from_camera(where, images)
    parents = {name.rpartition("/")[0] for *_, name in images}
    folders = frozenset(part for parent in parents for part in parent.split("/")) if len(parents) > 1 else ()
    places = (place / name for place in (root.parent, capture) for name in ("masks", "mask"))
    mask_folders = list(dict.fromkeys(places))
    frames = []
    for (_, _, camera_id, name), pose in zip(images, poses):
        if camera_id not in cameras:
            raise CaptureError(f"{where}: image {printable(name)!r} has camera {camera_id}, which is not listed.")
        camera = cameras[camera_id]
        if options.images:
            path = photo_in(root, name, folders)
        else:
            path = inside(root, name, f"{where}, name")
        frames.append(
            Frame(
                name=name,
                path=path,
                world_from_camera=pose,
                intrinsics=camera.intrinsics,
                size=(camera.height, camera.width),
                lens=camera.lens,
                mask_path=mask_of(mask_folders, path.relative_to(root).as_posix()),
                root=root.parent,
                is_scaled=True,
            )
        )
    warn_of_unused_masks(where, mask_folders, [frame.mask_path for frame in frames])
    warn_of_unlisted_photos(where, root, [frame.path for frame in frames])
    points = torch.tensor(points, dtype=torch.float64).reshape(-1, 3)
    if not points.isfinite().all():
        raise CaptureError(f"{model / f'points3D{suffix}'}: a point is not finite.")
    points = points if len(points) else None
    return assemble(where, frames, options, capture, points=points, splits=_splits(capture, model, frames))


def _splits(capture: Path, model: Path, frames: list[Frame]) -> dict[str, list[str]]:
    """Frames that `train.txt` and `test.txt` beside the model or the photos name, a line each, as the scenes of 3D
    Gaussian Splatting have them."""
    known, splits = {frame.name for frame in frames}, {}
    for split in ("train", "test"):
        file = next((f / f"{split}.txt" for f in (model, capture) if (f / f"{split}.txt").is_file()), None)
        names = [] if file is None else [line for line in _guarded(file, lambda stream: list(_lines(stream))) if line]
        if names and known.issuperset(names):
            splits[split] = names
    return splits


@dataclass(frozen=True)
class ColmapCamera:
    """Intrinsics in pixels, and the lens."""

    height: int
    width: int
    intrinsics: tuple[tuple[float, ...], ...]
    lens: Lens | None


def camera_of(where: str, model: str, width: int, height: int, params: tuple[float, ...]) -> ColmapCamera:
    """A camera of COLMAP's `cameras`, checked; `where` opens the message of an error."""
    counts = dict(MODELS.values())
    if model not in counts:
        raise CaptureError(f"{where}: the camera model {printable(model)!r} is not known.")
    if len(params) != counts[model] or not torch.tensor(params, dtype=torch.float64).isfinite().all():
        raise CaptureError(f"{where}: {model} needs {counts[model]} finite parameters, got {params}.")
    if not (0 < width < 2**31 and 0 < height < 2**31):
        raise CaptureError(f"{where}: the size {width} x {height} is no image's.")
    focal = (params[0], *params) if model in _ONE_FOCAL else params
    if focal[0] <= 0 or focal[1] <= 0:
        raise CaptureError(f"{where}: the focal length must be positive, got {min(focal[:2])}.")
    intrinsics, terms = intrinsics_of(*focal[:4]), focal[4:]
    if model in ("SIMPLE_PINHOLE", "PINHOLE"):
        return ColmapCamera(height, width, intrinsics, None)
    if model in _FORMULAS:
        lens, names = _FORMULAS[model]
        is_straight = lens is RadialTangentialLens and not any(terms)
        return ColmapCamera(height, width, intrinsics, None if is_straight else lens(**dict(zip(names, terms))))
    try:
        return ColmapCamera(height, width, intrinsics, ColmapLens(model, width, height, params))
    except (CaptureError, ValueError, RuntimeError) as error:
        raise CaptureError(f"{where}: {error}") from error


def _guarded(file: Path, read):
    """What `read` makes of a file; whatever a damaged one raises becomes a [`CaptureError`] that names it."""
    try:
        if not file.stat().st_size:
            raise CaptureError(f"{file}: the file is empty.")
        with open(file, "rb") as stream:
            return read(stream)
    except CaptureError:
        raise
    except (struct.error, ValueError, OverflowError, IndexError, OSError, MemoryError) as error:
        raise CaptureError(f"{file}: damaged or cut short ({error}).") from error


class _Bytes:
    """A binary file, read from front to back."""

    def __init__(self, stream):
        self.file, self.position = stream.name, 0
        self.data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    def take(self, layout: str) -> tuple:
        layout = struct.Struct("<" + layout)
        values = layout.unpack_from(self.data, self.position)
        self.position += layout.size
        return values

    def skip(self, count: int, size: int) -> None:
        self.position += count * size
        if self.position > len(self.data):
            raise CaptureError(f"{self.file}: damaged or cut short ({count} entries of {size} bytes are not there).")

    def name(self) -> str:
        end = self.data.find(b"\0", self.position, self.position + _LONGEST_NAME)
        if end < 0:
            raise CaptureError(f"{self.file}: damaged or cut short (a name does not end).")
        name = os.fsdecode(self.data[self.position : end])
        self.position = end + 1
        return name

    def count(self, smallest: int) -> int:
        """A number of entries, each of at least `smallest` bytes."""
        (count,) = self.take("Q")
        if count * smallest > len(self.data) - self.position:
            raise CaptureError(f"{self.file}: damaged or cut short ({count} entries are not there).")
        return count


def _binary_cameras(stream) -> dict[int, ColmapCamera]:
    data, cameras = _Bytes(stream), {}
    for _ in range(data.count(24)):
        camera_id, model, width, height = data.take("iiQQ")
        if model not in MODELS:
            raise CaptureError(f"{stream.name}: camera {camera_id} has a model that is not known ({model}).")
        name, number = MODELS[model]
        params = data.take(f"{number}d")
        cameras[camera_id] = camera_of(f"{stream.name}, camera {camera_id}", name, width, height, params)
    return cameras


def _binary_images(stream) -> list[tuple]:
    data, images = _Bytes(stream), []
    for _ in range(data.count(73)):
        _, *pose, camera_id = data.take("i7di")
        images.append((pose[:4], pose[4:], camera_id, data.name()))
        (observations,) = data.take("Q")
        data.skip(observations, 24)
    return images


def _binary_points(stream) -> list[tuple[float, ...]]:
    data, points = _Bytes(stream), []
    for _ in range(data.count(51)):
        points.append(data.take("Q3d3Bd")[1:4])
        (track,) = data.take("Q")
        data.skip(track, 8)
    return points


def _lines(stream) -> Iterator[str]:
    """Lines without comments and byte order mark, empty ones too: an image may have no observations."""
    if stream.read(3) != codecs.BOM_UTF8:
        stream.seek(0)
    for line in stream:
        if not line.startswith(b"#"):
            yield os.fsdecode(line).strip()


def _text_cameras(stream) -> dict[int, ColmapCamera]:
    cameras = {}
    for line in filter(None, _lines(stream)):
        camera_id, model, width, height, *params = line.split()
        params = tuple(float(value) for value in params)
        where = f"{stream.name}, camera {printable(camera_id)}"
        cameras[int(camera_id)] = camera_of(where, model, int(width), int(height), params)
    return cameras


def _text_images(stream) -> list[tuple]:
    images, lines = [], _lines(stream)
    line = next(lines, None)
    while line is not None:
        if not line:
            line = next(lines, None)
            continue
        images.append(_text_image(stream.name, line))
        line = next(lines, None)  # its observations, which may be empty, or left out by a tool
        if line is None or not line or _are_observations(line):
            line = next(lines, None)
        elif not _is_image(line):
            raise CaptureError(
                f"{stream.name}: {printable(line[:80])!r} is neither an image nor observations, x, y and a number for"
                " each."
            )
    return images


def _text_image(file: str, line: str) -> tuple:
    if not _is_image(line):
        raise CaptureError(f"{file}: {printable(line[:80])!r} is not an image: a number, 7 of its pose, camera, name.")
    _, *pose, camera_id, name = line.split(maxsplit=9)
    pose = [float(value) for value in pose]
    return pose[:4], pose[4:], int(camera_id), name


def _is_image(line: str) -> bool:
    words = line.split(maxsplit=9)
    return len(words) == 10 and all(map(_is_number, words[:8])) and words[8].lstrip("-").isdecimal()


def _are_observations(line: str) -> bool:
    words = line.split()
    return len(words) % 3 == 0 and all(map(_is_number, words)) and all(w.lstrip("-").isdecimal() for w in words[2::3])


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _text_points(stream) -> list[tuple[float, ...]]:
    return [tuple(float(value) for value in line.split(maxsplit=4)[1:4]) for line in filter(None, _lines(stream))]


_READERS = {
    ".bin": {"cameras": _binary_cameras, "images": _binary_images, "points": _binary_points},
    ".txt": {"cameras": _text_cameras, "images": _text_images, "points": _text_points},
}


def _world_from_camera(where: Path, images: list[tuple]) -> list[list[list[float]]]:
    """Poses of the stored quaternions (w, x, y, z) and translations, which are those of `camera_from_world`."""
    if not images:
        raise CaptureError(f"{where}: lists no images.")
    quaternions = torch.tensor([image[0] for image in images], dtype=torch.float64)
    norms = torch.linalg.vector_norm(quaternions, dim=-1)
    lost = ~norms.isfinite() | (norms == 0)  # left to `assemble`
    quaternions[lost], norms = torch.nan, norms.where(~lost, 1.0)
    wrong = (norms - 1).abs() > 1e-2
    if wrong.any():
        name = printable(images[int(wrong.nonzero()[0, 0])][3])
        raise CaptureError(f"{where}, image {name!r}: the rotation is not a unit quaternion.")
    camera_from_world = torch.eye(4, dtype=torch.float64).repeat(len(images), 1, 1)
    camera_from_world[:, :3, :3] = rotations_from_quaternions(quaternions / norms[:, None])
    camera_from_world[:, :3, 3] = torch.tensor([image[1] for image in images], dtype=torch.float64)
    return invert_rigid(camera_from_world).tolist()
