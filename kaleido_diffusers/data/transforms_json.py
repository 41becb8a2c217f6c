"""Readers of nerfstudio's and instant-ngp's `transforms.json` and of Blender's `transforms_train.json`:
`world_from_camera` matrices with OpenGL camera axes (converted to OpenCV's here), intrinsics in pixels for all frames
or for each."""

import json
import math
import warnings
from pathlib import Path
from typing import Any, Literal

import torch

from ..cameras import Cameras, check_rigid, convert_axes
from .images import CaptureError, open_image
from .scene import Photo, Scene, SceneImages


__all__ = ["read_blender", "read_transforms_json"]

MAX_JSON_BYTES = 64_000_000

_CAMERA_MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")
_DISTORTION = ("k1", "k2", "k3", "p1", "p2")
_EXTENSIONS = (".png", ".jpg", ".jpeg")


def read_transforms_json(
    file: Path, missing: Literal["error", "skip"] = "error", background: tuple[int, int, int] = (255, 255, 255)
) -> Scene:
    """Reads one `transforms.json`; see [`load_scene`] for the arguments and errors."""
    data = _load_json(file)
    frames = data.get("frames")
    if not isinstance(frames, list) or not frames:
        raise CaptureError(f"{file}: `frames` must be a list with at least one frame.")
    entries = [_entry(file, frame, number) for number, frame in enumerate(frames)]
    entries.sort(key=lambda entry: entry[0])
    absent = [name for name, path, _ in entries if not path.is_file()]
    if absent and missing == "error":
        raise CaptureError(
            f"{file}: {len(absent)} of {len(entries)} images are missing ({_some(absent)}). Pass `missing='skip'` to"
            " go on without them."
        )
    entries = [entry for entry in entries if entry[1].is_file()]
    if not entries:
        raise CaptureError(f"{file}: none of the {len(absent)} images that it lists exists ({_some(absent)}).")
    if absent:
        warnings.warn(
            f"{file}: skipped {len(absent)} of {len(frames)} frames without an image ({_some(absent)}).", stacklevel=3
        )

    photos, times = [], []
    for name, path, frame in entries:
        merged = {**data, **frame}
        where = f"{file}, frame {name!r}"
        photos.append(Photo(path, _camera(merged, path, where), _distortion(merged, where), background))
        times.append(_number(frame, "time", where) if "time" in frame else None)
    return Scene(
        images=SceneImages([photo.load for photo in photos]),
        cameras=Cameras.stack([photo.camera for photo in photos]),
        name=file.parent.resolve().name,
        times=None if None in times else torch.tensor(times, dtype=torch.float64),
        image_paths=[photo.path for photo in photos],
    )


def read_blender(
    folder: Path, missing: Literal["error", "skip"] = "error", background: tuple[int, int, int] = (255, 255, 255)
) -> Scene:
    """Reads `transforms_{train,val,test}.json` (NeRF-synthetic), which name images without extension; the files become
    splits of one scene. See [`load_scene`] for the arguments and errors."""
    scenes = {}
    for split in ("train", "val", "test"):
        file = folder / f"transforms_{split}.json"
        if file.is_file():
            scenes[split] = read_transforms_json(file, missing, background)
    splits, start = {}, 0
    for split, scene in scenes.items():
        splits[split] = list(range(start, start + len(scene)))
        start += len(scene)
    parts = list(scenes.values())
    times = [scene.times for scene in parts]
    return Scene(
        images=SceneImages([loader for scene in parts for loader in scene.images.loaders]),
        cameras=Cameras.cat([scene.cameras for scene in parts]),
        name=folder.resolve().name,
        times=None if any(time is None for time in times) else torch.cat(times),
        image_paths=[path for scene in parts for path in scene.image_paths],
        splits=splits,
    )


def _load_json(file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    if size > MAX_JSON_BYTES:
        raise CaptureError(f"{file}: {size} bytes are more than the {MAX_JSON_BYTES} that are allowed.")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CaptureError(f"{file}: not valid JSON ({error}).") from error
    if not isinstance(data, dict):
        raise CaptureError(f"{file}: must hold a JSON object, got a {type(data).__name__}.")
    return data


def _entry(file: Path, frame: Any, number: int) -> tuple[str, Path, dict[str, Any]]:
    """Name, path and fields of one frame; the path must stay inside the folder of `file`."""
    if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
        raise CaptureError(f"{file}: frame {number} must be an object with a `file_path`.")
    name = frame["file_path"].replace("\\", "/")
    folder = file.parent.resolve()
    try:
        path = folder / name
        if not path.is_file() and path.suffix.lower() not in _EXTENSIONS:  # Blender leaves the extension out
            named = (path.with_name(path.name + extension) for extension in _EXTENSIONS)
            path = next((candidate for candidate in named if candidate.is_file()), path)
        inside = path.resolve().is_relative_to(folder)
    except (ValueError, OSError) as error:
        raise CaptureError(f"{file}: the `file_path` {name!r} of frame {number} is not a path ({error}).") from error
    if not inside:
        raise CaptureError(f"{file}: the `file_path` {name!r} leaves the folder of the capture.")
    return name, path, frame


def _camera(frame: dict[str, Any], path: Path, where: str) -> Cameras:
    """Camera `[]` of the stored pixels."""
    if "w" in frame and "h" in frame:
        width, height = (_number(frame, key, where, positive=True) for key in ("w", "h"))
    else:
        with open_image(path) as image:
            width, height = image.size
    if width != int(width) or height != int(height):
        raise CaptureError(f"{where}: `w` and `h` must be whole numbers, got {width} and {height}.")
    focal_x = _focal(frame, "x", width, where)
    focal_y = _focal(frame, "y", height, where)
    if focal_x is None:
        raise CaptureError(f"{where}: neither `fl_x` nor `camera_angle_x` is given.")
    intrinsics = torch.eye(3, dtype=torch.float64)
    intrinsics[0, 0] = focal_x
    intrinsics[1, 1] = focal_x if focal_y is None else focal_y
    intrinsics[0, 2] = _number(frame, "cx", where) if "cx" in frame else width / 2
    intrinsics[1, 2] = _number(frame, "cy", where) if "cy" in frame else height / 2
    return Cameras(_pose(frame, where), intrinsics, torch.tensor([int(height), int(width)]))


def _focal(frame: dict[str, Any], axis: str, extent: float, where: str) -> float | None:
    """Focal length in pixels, from itself or from the field of view in radians."""
    if f"fl_{axis}" in frame:
        return _number(frame, f"fl_{axis}", where, positive=True)
    if f"camera_angle_{axis}" in frame:
        angle = _number(frame, f"camera_angle_{axis}", where, positive=True)
        if angle >= math.pi:
            raise CaptureError(f"{where}: `camera_angle_{axis}` must be below pi, got {angle}.")
        return extent / 2 / math.tan(angle / 2)
    return None


def _pose(frame: dict[str, Any], where: str) -> torch.Tensor:
    """OpenCV `world_from_camera` `[4, 4]`."""
    try:
        matrix = torch.tensor(frame.get("transform_matrix"), dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CaptureError(f"{where}: `transform_matrix` must be 4 x 4 numbers ({error}).") from error
    if matrix.shape != (4, 4):
        raise CaptureError(f"{where}: `transform_matrix` must be 4 x 4, got shape {list(matrix.shape)}.")
    try:
        check_rigid(matrix, "transform_matrix")
    except ValueError as error:
        raise CaptureError(f"{where}: {error}") from error
    return convert_axes(matrix, "opengl", "opencv")


def _distortion(frame: dict[str, Any], where: str) -> dict[str, float]:
    model = frame.get("camera_model", "OPENCV")
    if model not in _CAMERA_MODELS or frame.get("is_fisheye"):
        model = "fisheye" if frame.get("is_fisheye") else model
        raise CaptureError(f"{where}: `camera_model` {model!r} is not supported; known: {', '.join(_CAMERA_MODELS)}.")
    for name in ("k4", "k5", "k6", "distortion_params"):
        if any(frame[name]) if isinstance(frame.get(name), list) else frame.get(name):
            raise CaptureError(f"{where}: `{name}` cannot be undone here; undistort the photos first.")
    return {name: _number(frame, name, where) for name in _DISTORTION if name in frame}


def _number(frame: dict[str, Any], key: str, where: str, positive: bool = False) -> float:
    value = frame[key]
    try:
        number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise CaptureError(f"{where}: `{key}` must be a finite number, got {str(value)[:40]!r}.")
    if positive and number <= 0:
        raise CaptureError(f"{where}: `{key}` must be positive, got {value}.")
    return number


def _some(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f", and {len(names) - limit} more" if len(names) > limit else "")
