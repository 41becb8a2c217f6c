"""nerfstudio's and instant-ngp's `transforms.json`, DL3DV's folders of the same kind, and Blender's
`transforms_{train,val,test}.json` (NeRF-synthetic): `world_from_camera` matrices with OpenGL camera axes, intrinsics
in pixels for all frames or for each."""

import math
from pathlib import Path
from typing import Any

import torch

from ...geometry.cameras import convert_axes
from ..images import CaptureError, open_image
from ..lenses import FisheyeLens, Lens, RadialTangentialLens
from ..scene import Scene
from .assembly import Frame, ReadOptions, assemble, finite, inside, intrinsics_of, load_json, smaller_copy


__all__ = ["find_blender", "find_transforms", "read_blender", "read_transforms"]

BLENDER_SPLITS = ("train", "val", "test")

_SPLIT_LISTS = {"train": "train_filenames", "val": "val_filenames", "test": "test_filenames"}
_COMMON = ("k1", "k2", "k3", "p1", "p2")
_RATIONAL = (*_COMMON, "k4", "k5", "k6")
_FISHEYE = ("k1", "k2", "k3", "k4")
_MODELS = {
    **dict.fromkeys(("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL"), _COMMON),
    "FULL_OPENCV": _RATIONAL,
    "OPENCV_FISHEYE": _FISHEYE,
}
_EXTENSIONS = (".png", ".jpg", ".jpeg")


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
    return assemble(file, _frames(file, data, options), options, file.parent, splits=splits)


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
        part = _frames(file, load_json(file), options)
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
    listed = data.get("frames")
    if not isinstance(listed, list) or not listed:
        raise CaptureError(f"{file}: `frames` must be a list with at least one frame.")
    common = {key: value for key, value in data.items() if key != "frames"}
    return [_frame(file, common, frame, number, options) for number, frame in enumerate(listed)]


def _frame(file: Path, common: dict[str, Any], frame: Any, number: int, options: ReadOptions) -> Frame:
    if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
        raise CaptureError(f"{file}: frame {number} must be an object with a `file_path`.")
    name, root = frame["file_path"].replace("\\", "/"), options.images or file.parent
    merged, where = {**common, **frame}, f"{file}, frame {name!r}"
    path = _with_extension(inside(root, name, f"{file}, frame {number}, `file_path`"))
    if options.images and not _is_file(path):  # the folder of the photos themselves
        path = _with_extension(options.images / path.name)
    mask = frame.get("mask_path")
    if mask is not None and not isinstance(mask, str):
        raise CaptureError(f"{where}: `mask_path` must be a name.")
    size = _size(merged, where) or _size_of_photo(merged, root, path, where)
    return Frame(
        name=name,
        path=path,
        world_from_camera=_pose(frame, where),
        intrinsics=_intrinsics(merged, size, where),
        size=size,
        lens=_lens(merged, where),
        time=finite(frame["time"], f"{where}: `time`") if "time" in frame else None,
        mask_path=None if mask is None else inside(file.parent, mask, f"{where}, `mask_path`"),
        root=root,
    )


def _with_extension(path: Path) -> Path:
    """Blender leaves the extension out."""
    if path.name.lower().endswith(_EXTENSIONS):
        return path
    named = (path.with_name(path.name + extension) for extension in ("", *_EXTENSIONS))
    return next((candidate for candidate in named if _is_file(candidate)), path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (ValueError, OSError):
        return False


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
    if not _is_file(path):
        path = smaller_copy(root, path)
        if path is None:
            return 1, 1  # the frame is left out, or refused, as one without photo
        if any(key in frame for key in ("fl_x", "fl_y", "cx", "cy")):
            raise CaptureError(f"{where}: without `w` and `h` the pixels of its lens are not those of {path}.")
    with open_image(path) as image:
        return image.height, image.width


def _intrinsics(frame: dict[str, Any], size: tuple[int, int], where: str) -> tuple[tuple[float, ...], ...]:
    """Of the stored pixels."""
    height, width = size
    focal_x, focal_y = _focal(frame, "x", width, where), _focal(frame, "y", height, where)
    if focal_x is None:
        raise CaptureError(f"{where}: neither `fl_x` nor `camera_angle_x` is given.")
    center = (
        finite(frame[key], f"{where}: `{key}`") if key in frame else half
        for key, half in (("cx", width / 2), ("cy", height / 2))
    )
    return intrinsics_of(focal_x, focal_x if focal_y is None else focal_y, *center)


def _focal(frame: dict[str, Any], axis: str, extent: float, where: str) -> float | None:
    """Focal length in pixels, from itself or from the field of view in radians."""
    if f"fl_{axis}" in frame:
        return finite(frame[f"fl_{axis}"], f"{where}: `fl_{axis}`", positive=True)
    if f"camera_angle_{axis}" in frame:
        angle = finite(frame[f"camera_angle_{axis}"], f"{where}: `camera_angle_{axis}`", positive=True)
        if angle >= math.pi:
            raise CaptureError(f"{where}: `camera_angle_{axis}` must be below pi, got {angle}.")
        return extent / 2 / math.tan(angle / 2)
    return None


_OPENCV_FROM_OPENGL = convert_axes(torch.ones(4, 4), "opengl", "opencv")[0].tolist()


def _pose(frame: dict[str, Any], where: str) -> list[list[float]]:
    """OpenCV `world_from_camera`."""
    matrix = frame.get("transform_matrix")
    rows = matrix if isinstance(matrix, list) and len(matrix) == 4 else ()
    if not rows or not all(isinstance(row, list) and len(row) == 4 for row in rows):
        raise CaptureError(f"{where}: `transform_matrix` must be 4 x 4 numbers.")
    try:
        return [[value * sign for value, sign in zip(row, _OPENCV_FROM_OPENGL)] for row in rows]
    except (TypeError, OverflowError) as error:
        raise CaptureError(f"{where}: `transform_matrix` must be 4 x 4 numbers ({error}).") from error


def _lens(frame: dict[str, Any], where: str) -> Lens | None:
    """The distortion that the numbers describe, whatever the model is called: tools write `k1` beside `PINHOLE`."""
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
