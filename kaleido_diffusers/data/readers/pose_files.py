"""Poses in text files beside the frames: 7-Scenes (`frame-NNNNNN.color.png` and `.pose.txt`, a 4 x 4
`world_from_camera` each) and TUM RGB-D (`rgb.txt` and `groundtruth.txt`: timestamps, positions, quaternions). OpenCV
axes, one pinhole camera for all frames."""

import os
from bisect import bisect_left
from pathlib import Path

import torch

from ..images import CaptureError
from ..scene import Scene
from .assembly import IMAGE_SUFFIXES, Frame, ReadOptions, assemble, file_size, inside, intrinsics_of, printable
from .colmap import rotations_from_quaternions


__all__ = ["find_seven_scenes", "find_tum", "read_seven_scenes", "read_tum"]

INTRINSICS_FILES = ("color-intrinsics.txt", "camera-intrinsics.txt", "intrinsics.txt", "calibration.txt")

_MAX_BYTES = 64_000_000
_FARTHEST = 0.02  # seconds between a TUM frame and its pose


def find_seven_scenes(path: Path) -> Path | None:
    """The folder, when it holds `frame-*.pose.txt`."""
    return path if path.is_dir() and next(path.glob("frame-*.pose.txt"), None) else None


def find_tum(path: Path) -> Path | None:
    """The folder, when it holds `rgb.txt` and `groundtruth.txt`."""
    return path if all((path / name).is_file() for name in ("rgb.txt", "groundtruth.txt")) else None


def read_seven_scenes(folder: Path, options: ReadOptions) -> Scene:
    """Reads a sequence; the intrinsics stand in one of `INTRINSICS_FILES`, that of the colour camera first."""
    intrinsics, root = _intrinsics(folder), options.images or folder
    frames = []
    for file in sorted(folder.glob("frame-*.pose.txt")):
        stem = file.name.removesuffix(".pose.txt")
        named = [root / f"{stem}{middle}{suffix}" for middle in (".color", "") for suffix in IMAGE_SUFFIXES]
        path = next((candidate for candidate in named if candidate.is_file()), named[0])
        frames.append(Frame(stem, path, _table(file, (4, 4)).tolist(), intrinsics))
    return assemble(folder, frames, options, folder)


def read_tum(folder: Path, options: ReadOptions) -> Scene:
    """Reads a sequence; each frame gets the pose nearest in time, frames without one within 0.02 s are left out. The
    intrinsics stand in one of `INTRINSICS_FILES`."""
    intrinsics, root = _intrinsics(folder), options.images or folder
    file = folder / "groundtruth.txt"
    truth = sorted(_rows(file, 8))
    stamps = [row[0] for row in truth]
    frames = []
    for stamp, name in _names(folder / "rgb.txt"):
        place = bisect_left(stamps, stamp)
        near = min(truth[max(place - 1, 0) : place + 1], key=lambda row: abs(row[0] - stamp), default=None)
        if near is None or abs(near[0] - stamp) > _FARTHEST:
            continue
        pose = torch.eye(4, dtype=torch.float64)
        x, y, z, w = near[4:]
        quaternion = torch.tensor([w, x, y, z], dtype=torch.float64)
        norm = torch.linalg.vector_norm(quaternion)
        if not abs(norm - 1) < 1e-2:
            raise CaptureError(f"{file}, time {near[0]}: the rotation is not a unit quaternion.")
        pose[:3, :3] = rotations_from_quaternions(quaternion / norm)
        pose[:3, 3] = torch.tensor(near[1:4], dtype=torch.float64)
        frames.append(Frame(f"{stamp:020.6f}", inside(root, name, f"{folder / 'rgb.txt'}"), pose.tolist(), intrinsics))
    if not frames:
        raise CaptureError(f"{file}: no pose is within {_FARTHEST} s of a frame of rgb.txt.")
    return assemble(file, frames, options, folder)


def _intrinsics(folder: Path) -> tuple[tuple[float, ...], ...]:
    """Of the only camera: 3 x 3 numbers, or `fx fy cx cy` at the head of a line."""
    file = next((folder / name for name in INTRINSICS_FILES if (folder / name).is_file()), None)
    if file is None:
        raise CaptureError(f"{folder}: holds no intrinsics. Looked for: {', '.join(INTRINSICS_FILES)}.")
    rows = _rows(file)
    if len(rows) == 3 and all(len(row) == 3 for row in rows):
        values = rows[0][0], rows[1][1], rows[0][2], rows[1][2]
    elif rows and len(rows[0]) >= 4:
        values = rows[0][:4]
    else:
        raise CaptureError(f"{file}: must hold 3 x 3 numbers, or fx fy cx cy.")
    if not all(0 < focal < float("inf") for focal in values[:2]):
        raise CaptureError(f"{file}: the focal lengths must be positive, got {list(values[:2])}.")
    return intrinsics_of(*values)


def _table(file: Path, shape: tuple[int, int]) -> torch.Tensor:
    rows = _rows(file)
    if len(rows) != shape[0] or any(len(row) != shape[1] for row in rows):
        raise CaptureError(f"{file}: must hold {shape[0]} x {shape[1]} numbers.")
    return torch.tensor(rows, dtype=torch.float64)


def _rows(file: Path, columns: int | None = None) -> list[list[float]]:
    rows = []
    for words in _words(file):
        try:
            rows.append([float(word) for word in words])
        except ValueError as error:
            raise CaptureError(f"{file}: {printable(str(error))}.") from error
        if columns is not None and len(words) != columns:
            raise CaptureError(f"{file}: a line has {len(words)} numbers, {columns} are needed.")
    return rows


def _names(file: Path) -> list[tuple[float, str]]:
    names = []
    for words in _words(file):
        try:
            names.append((float(words[0]), words[1]))
        except (ValueError, IndexError) as error:
            raise CaptureError(
                f"{file}: {printable(' '.join(words)[:80])!r} is not a timestamp and a name."
            ) from error
    return names


def _words(file: Path) -> list[list[str]]:
    file_size(file, _MAX_BYTES)
    lines = os.fsdecode(file.read_bytes()).replace(",", " ").splitlines()
    return [line.split() for line in lines if line.strip() and not line.startswith("#")]
