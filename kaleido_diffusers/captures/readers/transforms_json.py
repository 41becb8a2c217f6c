"""nerfstudio's and instant-ngp's `transforms.json`, DL3DV's folders of the same kind, and Blender's
`transforms_{train,val,test}.json` (NeRF-synthetic): `world_from_camera` matrices with OpenGL camera axes, intrinsics
in pixels for all frames or for each."""

import math
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from ...geometry.cameras import convert_axes
from ..images import CaptureError, open_image
from ..lenses import FisheyeLens, Lens, RadialTangentialLens
from ..scene import Scene
from .assembly import Frame, ReadOptions, assemble, finite, intrinsics_of, is_copy, listed, load_json, smaller_copy
from .places import as_on_disk, inside, is_file, mask_of, photo_in, warn_of_unused_masks
from .ply import read_ply_points


__all__ = ["find_blender", "find_transforms", "read_blender", "read_transforms"]

BLENDER_SPLITS = ("train", "val", "test")

_SPLIT_LISTS = {"train": "train_filenames", "val": "val_filenames", "test": "test_filenames"}
_FRAME_LISTS = {"train": "train_frames", "val": "val_frames", "test": "test_frames"}  # ScanNet++
_MASK_FOLDERS = ("masks", "resized_anon_masks", "anon_masks")
_COMMON = ("k1", "k2", "k3", "p1", "p2")
_RATIONAL = (*_COMMON, "k4", "k5", "k6")
_FISHEYE = ("k1", "k2", "k3", "k4")
_MODELS = {
    **dict.fromkeys(("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL"), _COMMON),
    "FULL_OPENCV": _RATIONAL,
    "OPENCV_FISHEYE": _FISHEYE,
}
_EXTENSIONS = (".png", ".jpg", ".jpeg")
# Other ways to say that a lens is no pinhole, of instant-ngp, nerfstudio and Metashape; none can be undone.
_OTHER_LENSES = ("equirectangular", "latlong", "orthographic", "rolling_shutter", "ftheta", "fisheye624_params")
_OTHER_TERMS = ("distortion", "dist_coeffs", "distortion_coefficients", "b1", "b2", "s1", "s2", "s3", "s4", "skew")
_PROJECTIONS = ("camera_type", "projection", "projection_type", "lens_type", "lens_model")
_LENS_KEYS = ("is_fisheye", "distortion_params")  # read, or refused, below
_OF_LENSES = re.compile("fisheye|distort|lens|panoram|equirect|spherical", re.IGNORECASE)
_OF_DISTORTION = re.compile("fisheye|distort|panoram|equirect|spherical", re.IGNORECASE)
_CURVED = re.compile("fish-?eye|equirect|latlong|panoram|spheric|omni|f-?theta|cylind|division", re.IGNORECASE)
_STRAIGHT = ("perspective", "persp", "pinhole", "simple_pinhole", "opencv", "rectilinear")


def find_transforms(path: Path) -> Path | None:
    """The `transforms.json` of a capture: itself, in its folder, or in `nerfstudio/` of a DL3DV scene. Any JSON file
    that is named itself.

    Args:
        path (`Path`): file or folder to look at.
    """
    if path.is_file():
        return path if path.suffix == ".json" else None
    return next((f for f in (path / "transforms.json", path / "nerfstudio/transforms.json") if f.is_file()), None)


def find_blender(path: Path) -> Path | None:
    """The folder, when it holds `transforms_train.json`.

    Args:
        path (`Path`): file or folder to look at.
    """
    return path if (path / "transforms_train.json").is_file() else None


def read_transforms(file: Path, options: ReadOptions) -> Scene:
    """Reads one `transforms.json`. Poses stay in the frame of the file: an `applied_transform` has been applied to
    them by the tool that names it.

    Args:
        file (`Path`): the file.
        options (`ReadOptions`): how captures are read.
    """
    data = load_json(file)
    splits = {
        split: [name.replace("\\", "/") for name in _strings(data[key], f"{file}: `{key}`")]
        for split, key in _SPLIT_LISTS.items()
        if key in data
    }
    frames = _frames(file, data, options)
    for split, key in _FRAME_LISTS.items():
        if data.get(key):
            more = _frames(file, {**data, "frames": data[key]}, options)
            splits.setdefault(split, [frame.name for frame in more])
            splits.setdefault("train", [frame.name for frame in frames])
            known = {frame.name for frame in frames}
            frames += [frame for frame in more if frame.name not in known]
    return assemble(file, frames, options, file.parent, points=_points(file, data), splits=splits)


def _points(file: Path, data: dict[str, Any]) -> torch.Tensor | None:
    """The sparse points that `ply_file_path` names; warns where they are not there."""
    name = data.get("ply_file_path")
    if name is None:
        return None
    if not isinstance(name, str):
        raise CaptureError(f"{file}: `ply_file_path` must be a name.")
    path = as_on_disk(file.parent, inside(file.parent, name, f"{file}, `ply_file_path`"))
    if not is_file(path):
        warnings.warn(f"{file}: its points {path} (`ply_file_path`) are missing: there are none.", stacklevel=5)
        return None
    points = read_ply_points(path)
    return points if len(points) else None


def read_blender(folder: Path, options: ReadOptions) -> Scene:
    """Reads `transforms_{train,val,test}.json`, whose frames have no file extension; the files become splits of one
    scene, in this order.

    Args:
        folder (`Path`): the folder.
        options (`ReadOptions`): how captures are read.
    """
    frames, splits = [], {}
    for number, split in enumerate(BLENDER_SPLITS):
        file = folder / f"transforms_{split}.json"
        if not file.is_file():
            continue
        data = load_json(file)
        if number and data.get("frames") == []:  # of no views: as if it was not there
            continue
        part = _frames(file, data, options)
        for frame in part:
            frame.name = f"{number}/{frame.name}"
        splits[split] = sorted(frame.name for frame in part)
        frames += part
    return assemble(folder / "transforms_train.json", frames, options, folder, splits=splits)


def _strings(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise CaptureError(f"{where} must be a list of names.")
    return value


def _frames(file: Path, data: dict[str, Any], options: ReadOptions) -> list[Frame]:
    listed_frames = data.get("frames")
    if not isinstance(listed_frames, list) or not listed_frames:
        raise CaptureError(f"{file}: `frames` must be a list with at least one frame.")
    common = {key: value for key, value in data.items() if key != "frames"}
    folders = _folders_of(listed_frames)
    frames = [_frame(file, common, frame, number, options, folders) for number, frame in enumerate(listed_frames)]
    bad = [frame["file_path"] for frame in listed_frames if frame.get("is_bad")]
    if bad:
        warnings.warn(
            f"{file}: {len(bad)} of {len(frames)} frames are marked `is_bad` ({listed(bad)}): they are read all the"
            " same.",
            stacklevel=5,
        )
    places = [folder for root in _mask_roots(file, options) for folder in (root / name for name in _MASK_FOLDERS)]
    if not any(isinstance(frame.get("mask_path"), str) for frame in listed_frames):
        warn_of_unused_masks(file, places, [frame.mask_path for frame in frames])
    return frames


def _folders_of(frames: list) -> frozenset[str]:
    """Names of the folders that photos lie in, where they lie in several."""
    names = (frame.get("file_path") for frame in frames if isinstance(frame, dict))
    parents = {name.replace("\\", "/").rpartition("/")[0] for name in names if isinstance(name, str)}
    return frozenset(part for parent in parents for part in parent.split("/")) if len(parents) > 1 else frozenset()


def _mask_roots(file: Path, options: ReadOptions) -> list[Path]:
    return [file.parent, *((options.images, options.images.parent) if options.images else ())]


def _frame(
    file: Path, common: dict[str, Any], frame: Any, number: int, options: ReadOptions, folders: frozenset[str]
) -> Frame:
    if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
        raise CaptureError(f"{file}: frame {number} must be an object with a `file_path`.")
    name, root = frame["file_path"].replace("\\", "/"), options.images or file.parent
    merged, where = {**common, **frame}, f"{file}, frame {name!r}"
    try:
        if options.images:
            path = photo_in(options.images, name, folders, ("", *_EXTENSIONS))
        else:
            path = _with_extension(root, inside(root, name, f"{file}, frame {number}, `file_path`"))
    except (ValueError, OSError) as error:
        raise error if isinstance(error, CaptureError) else CaptureError(f"{where}: not a path ({error}).") from error
    size = _size(merged, where)
    measured = size is None
    size = size or _size_of_photo(merged, root, path, where)
    return Frame(
        name=name,
        path=path,
        world_from_camera=_pose(frame, where),
        intrinsics=_intrinsics(common, frame, size, where),
        size=size,
        lens=_lens(merged, where),
        time=finite(frame["time"], f"{where}: `time`") if "time" in frame else None,
        mask_path=_mask(file, frame, name, options, where),
        root=root,
        is_scaled=is_copy(path),
        is_measured=measured,
        upright_intrinsics=_intrinsics(common, frame, size[::-1], where) if measured else None,
    )


def _mask(file: Path, frame: dict[str, Any], name: str, options: ReadOptions, where: str) -> Path | None:
    """The mask that a frame names; in a folder of masks, if it is not where the name says."""
    mask = frame.get("mask_path")
    if mask is None:
        return None
    if not isinstance(mask, str):
        raise CaptureError(f"{where}: `mask_path` must be a name.")
    named = None
    if not options.images:
        named = as_on_disk(file.parent, inside(file.parent, mask, f"{where}, `mask_path`"))
    roots = _mask_roots(file, options)
    bare = mask.replace("\\", "/").rpartition("/")[2]
    candidates = [named] if named else [photo_in(root, mask, frozenset()) for root in roots[:1]]
    candidates += [root / folder / bare for root in roots for folder in _MASK_FOLDERS]
    found = next((path for path in candidates if is_file(path) and path.resolve() != file.resolve()), None)
    return found or mask_of([root / folder for root in roots for folder in _MASK_FOLDERS], name) or candidates[0]


def _with_extension(root: Path, path: Path) -> Path:
    """The photo as it is on disk: Blender leaves the extension out, other tools mistake its case."""
    named = [path]
    if not path.name.lower().endswith(_EXTENSIONS):
        named += [path.with_name(path.name + extension) for extension in _EXTENSIONS]
    found = next((candidate for candidate in named if is_file(candidate)), None)
    return found or next((there for candidate in named if is_file(there := as_on_disk(root, candidate))), path)


def _size(frame: dict[str, Any], where: str) -> tuple[int, int] | None:
    if "w" not in frame or "h" not in frame:
        return None
    height, width = (finite(frame[key], f"{where}: `{key}`", positive=True) for key in ("h", "w"))
    if width != int(width) or height != int(height):
        raise CaptureError(f"{where}: `w` and `h` must be whole numbers, got {width} and {height}.")
    return int(height), int(width)


def _size_of_photo(frame: dict[str, Any], root: Path, path: Path, where: str) -> tuple[int, int]:
    """What pixels the intrinsics count in where `w` and `h` are not given: those of the photo as listed. An angle fits
    a smaller copy as well."""
    if not is_file(path):
        path = smaller_copy(root, path)
        if path is None:
            return 1, 1  # the frame is left out, or refused, as one without photo
        if any(key in frame for key in ("fl_x", "fl_y", "cx", "cy")):
            raise CaptureError(f"{where}: without `w` and `h` the pixels of its lens are not those of {path}.")
    with open_image(path) as image:
        return image.height, image.width


def _intrinsics(
    common: dict[str, Any], frame: dict[str, Any], size: tuple[int, int], where: str
) -> tuple[tuple[float, ...], ...]:
    """Of the pixels of a photo of this size. What a frame says of its lens goes before what all share."""
    height, width = size
    merged = {**common, **frame}
    ways = [way for way in _FOCAL if way.format("x") in frame]
    hidden = [way.format(axis) for way in _FOCAL if ways and way not in ways for axis in "xy"]
    source = {key: value for key, value in merged.items() if key in frame or key not in hidden}
    focal_x, focal_y = _focal(source, "x", width, where), _focal(source, "y", height, where)
    if focal_x is None:
        raise CaptureError(f"{where}: neither `fl_x` nor `camera_angle_x` is given, nor `x_fov`.")
    center = (
        finite(merged[key], f"{where}: `{key}`") if key in merged else half
        for key, half in (("cx", width / 2), ("cy", height / 2))
    )
    return intrinsics_of(focal_x, focal_x if focal_y is None else focal_y, *center)


_FOCAL = ("{}_fov", "fl_{}", "camera_angle_{}")


def _focal(frame: dict[str, Any], axis: str, extent: float, where: str) -> float | None:
    """Focal length in pixels: from the field of view in degrees, from itself, or from the angle in radians, in the
    order of instant-ngp."""
    if f"{axis}_fov" in frame:
        degrees = finite(frame[f"{axis}_fov"], f"{where}: `{axis}_fov`", positive=True)
        if degrees >= 180 or degrees < math.pi:  # narrower than any lens: an angle in radians
            raise CaptureError(f"{where}: `{axis}_fov` must be in degrees, from {math.pi:.2f} to 180, got {degrees}.")
        return extent / 2 / math.tan(math.radians(degrees) / 2)
    if f"fl_{axis}" in frame:
        return finite(frame[f"fl_{axis}"], f"{where}: `fl_{axis}`", positive=True)
    if f"camera_angle_{axis}" in frame:
        angle = finite(frame[f"camera_angle_{axis}"], f"{where}: `camera_angle_{axis}`", positive=True)
        if angle >= math.pi:
            raise CaptureError(
                f"{where}: `camera_angle_{axis}` must be below pi, got {angle}: it is in radians, `{axis}_fov` in"
                " degrees."
            )
        return extent / 2 / math.tan(angle / 2)
    return None


_OPENCV_FROM_OPENGL = convert_axes(torch.ones(4, 4, dtype=torch.float32), "opengl", "opencv")[0].tolist()


def _pose(frame: dict[str, Any], where: str) -> list[list[float]]:
    """OpenCV `world_from_camera`."""
    matrix = frame.get("transform_matrix")
    if matrix is None and "transform_matrix" in frame:
        return [[math.nan] * 4] * 4  # lost, see `assemble`
    rows = matrix if isinstance(matrix, list) and len(matrix) == 4 else ()
    if not rows or not all(isinstance(row, list) and len(row) == 4 for row in rows):
        raise CaptureError(f"{where}: `transform_matrix` must be 4 x 4 numbers.")
    try:
        return [
            [None if value is None else value * sign for value, sign in zip(row, _OPENCV_FROM_OPENGL)] for row in rows
        ]
    except (TypeError, OverflowError) as error:
        raise CaptureError(f"{where}: `transform_matrix` must be 4 x 4 numbers ({error}).") from error


def _lens(frame: dict[str, Any], where: str) -> Lens | None:
    """The distortion that the numbers describe, whatever the model is called: tools write `k1` beside `PINHOLE`."""
    _refuse_other_lenses(frame, where)
    model = "OPENCV_FISHEYE" if frame.get("is_fisheye") else frame.get("camera_model", "OPENCV")
    if not isinstance(model, str) or model not in _MODELS:
        raise CaptureError(f"{where}: `camera_model` {model!r} is not supported; known: {', '.join(_MODELS)}.")
    terms = {name: finite(frame[name], f"{where}: `{name}`") for name in _MODELS[model] if name in frame}
    for name in ("distortion_params", *_RATIONAL):
        value = () if name in _MODELS[model] else frame.get(name)
        if any(value) if isinstance(value, (list, tuple)) else value:
            raise CaptureError(f"{where}: `{name}` cannot be undone in the camera model {model}.")
    if model == "OPENCV_FISHEYE":
        return FisheyeLens(**terms)
    return RadialTangentialLens(**terms) if any(terms.values()) else None


def _tells_a_lens(key: str, value: Any) -> bool:
    """Whether a key that is not known may tell of a lens that is no pinhole: by a word for one, or by numbers that are
    not zero of a distortion. Other words name things, other numbers measure them (`lens` in millimetres)."""
    if isinstance(value, str):
        return bool(_OF_LENSES.search(key) and _CURVED.search(value))
    if not _OF_DISTORTION.search(key):
        return False
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return any(isinstance(entry, (bool, int, float)) and entry for entry in values)


def _refuse_other_lenses(frame: dict[str, Any], where: str) -> None:
    """Raises [`CaptureError`] for a lens that is told by a key which is not understood here."""
    for key, value in frame.items():
        told = any(value) if isinstance(value, (list, tuple)) else value
        if told and (key in _OTHER_LENSES or key.startswith("ftheta_") or key in _OTHER_TERMS):
            raise CaptureError(
                f"{where}: `{key}` names a lens that cannot be undone; known are `camera_model`"
                f" {', '.join(_MODELS)} with k1 to k6, p1 and p2. Undistort the photos with the tool that wrote it."
            )
        if key not in _LENS_KEYS and _tells_a_lens(key, value):
            raise CaptureError(
                f"{where}: `{key}` {value!r} tells of a lens in a way that is not known; known are `camera_model`"
                f" {', '.join(_MODELS)} with k1 to k6, p1 and p2."
            )
        if key in _PROJECTIONS and not (isinstance(value, str) and value.lower() in _STRAIGHT):
            raise CaptureError(f"{where}: `{key}` {value!r} is not supported; known: {', '.join(_STRAIGHT)}.")
