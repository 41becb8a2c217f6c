"""Poses in text files beside the frames: 7-Scenes (`frame-NNNNNN.color.png` and `.pose.txt`, a 4 x 4
`world_from_camera` each) and TUM RGB-D (`rgb.txt` and `groundtruth.txt`: timestamps, positions, quaternions). OpenCV
axes, one camera for all frames."""

import math
import warnings
from bisect import bisect_left
from pathlib import Path

import torch

from ...geometry.cameras import rotations_from_quaternions
from ..images import CaptureError
from ..lenses import RadialTangentialLens
from ..scene import Scene
from .assembly import IMAGE_SUFFIXES, Frame, ReadOptions, assemble, inside, intrinsics_of, load_text, printable


__all__ = ["find_seven_scenes", "find_tum", "read_seven_scenes", "read_tum"]

INTRINSICS_FILES = ("color-intrinsics.txt", "camera-intrinsics.txt", "intrinsics.txt", "calibration.txt")

_MAX_BYTES = 64_000_000
_FARTHEST = 0.02  # seconds between a TUM frame and its pose


def find_seven_scenes(path: Path) -> Path | None:
    """The folder, when it holds `frame-*.pose.txt`.

    Args:
        path (`Path`): file or folder to look at.
    """
    return path if path.is_dir() and next(path.glob("frame-*.pose.txt"), None) else None


def find_tum(path: Path) -> Path | None:
    """The folder, when it holds `rgb.txt` and `groundtruth.txt`.

    Args:
        path (`Path`): file or folder to look at.
    """
    return path if all((path / name).is_file() for name in ("rgb.txt", "groundtruth.txt")) else None


def read_seven_scenes(folder: Path, options: ReadOptions) -> Scene:
    """Reads a sequence; the intrinsics stand in one of `INTRINSICS_FILES`, that of the colour camera first. The centre
    of the picture is taken to be at half its size, as such files have it.

    Args:
        folder (`Path`): the folder.
        options (`ReadOptions`): how captures are read.
    """
    (intrinsics, lens), root = _calibration(folder), options.images or folder
    frames = []
    for file in sorted(folder.glob("frame-*.pose.txt")):
        stem = file.name.removesuffix(".pose.txt")
        named = [root / f"{stem}{middle}{suffix}" for middle in (".color", "") for suffix in IMAGE_SUFFIXES]
        path = next((candidate for candidate in named if candidate.is_file()), named[0])
        frames.append(Frame(stem, path, _table(file, (4, 4)).tolist(), intrinsics, lens=lens))
    return assemble(folder, frames, options, folder)


def read_tum(folder: Path, options: ReadOptions) -> Scene:
    """Reads a sequence; each frame gets the pose nearest in time, frames without one within 0.02 s are left out. The
    intrinsics stand in one of `INTRINSICS_FILES`, as OpenCV counts: from the centre of the first pixel.

    Args:
        folder (`Path`): the folder.
        options (`ReadOptions`): how captures are read.
    """
    (intrinsics, lens), root = _calibration(folder, first_pixel=0.5), options.images or folder
    file = folder / "groundtruth.txt"
    truth = sorted(_rows(file, 8))
    stamps = [row[0] for row in truth]
    frames, left_out = [], []
    for stamp, name in _names(folder / "rgb.txt"):
        place = bisect_left(stamps, stamp)
        near = min(truth[max(place - 1, 0) : place + 1], key=lambda row: abs(row[0] - stamp), default=None)
        if near is None or not abs(near[0] - stamp) <= _FARTHEST:
            left_out.append(name)
            continue
        pose = torch.eye(4, dtype=torch.float64)
        x, y, z, w = near[4:]
        quaternion = torch.tensor([w, x, y, z], dtype=torch.float64)
        norm = float(torch.linalg.vector_norm(quaternion))
        is_lost = norm == 0 or not math.isfinite(norm)  # left to `assemble`
        if not is_lost and abs(norm - 1) >= 1e-2:
            raise CaptureError(f"{file}, time {near[0]}: the rotation is not a unit quaternion.")
        pose[:3, :3] = rotations_from_quaternions(quaternion / norm)
        pose[:3, 3] = torch.tensor(near[1:4], dtype=torch.float64)
        path = inside(root, name, f"{folder / 'rgb.txt'}")
        frames.append(Frame(f"{stamp:020.6f}", path, pose.tolist(), intrinsics, lens=lens, root=root))
    if not frames:
        raise CaptureError(f"{file}: no pose is within {_FARTHEST} s of a frame of rgb.txt.")
    if left_out:
        warnings.warn(
            f"{file}: {len(left_out)} frames have no pose within {_FARTHEST} s and are left out.", stacklevel=4
        )
    return assemble(file, frames, options, folder)


def _calibration(
    folder: Path, first_pixel: float = 0.0
) -> tuple[tuple[tuple[float, ...], ...], RadialTangentialLens | None]:
    """Intrinsics and lens of the only camera: 3 x 3 numbers, or a line of `fx fy cx cy` and OpenCV's `k1 k2 p1 p2 k3`,
    of which the last or all may be left out. `first_pixel` is where its centre lies in our pixels."""
    file = next((folder / name for name in INTRINSICS_FILES if (folder / name).is_file()), None)
    if file is None:
        raise CaptureError(f"{folder}: holds no intrinsics. Looked for: {', '.join(INTRINSICS_FILES)}.")
    rows = _rows(file)
    terms: list[float] = []
    if len(rows) == 3 and all(len(row) == 3 for row in rows):
        if rows[0][1] or rows[1][0] or rows[2] != [0.0, 0.0, 1.0]:
            raise CaptureError(f"{file}: a camera with skew is not supported.")
        values = [rows[0][0], rows[1][1], rows[0][2], rows[1][2]]
    elif rows and len(rows[0]) in (4, 8, 9):
        values, terms = rows[0][:4], rows[0][4:]
    else:
        raise CaptureError(f"{file}: must hold 3 x 3 numbers, or fx fy cx cy and none, 4 or 5 terms of distortion.")
    if not all(math.isfinite(value) for value in values + terms) or min(values[:2]) <= 0:
        raise CaptureError(f"{file}: must hold finite numbers, focal lengths above zero; got {values + terms}.")
    lens = RadialTangentialLens(**dict(zip(("k1", "k2", "p1", "p2", "k3"), terms))) if any(terms) else None
    return intrinsics_of(*values[:2], *(center + first_pixel for center in values[2:])), lens


def _table(file: Path, shape: tuple[int, int]) -> torch.Tensor:
    rows = _rows(file)
    if len(rows) != shape[0] or any(len(row) != shape[1] for row in rows):
        raise CaptureError(f"{file}: must hold {shape[0]} x {shape[1]} numbers.")
    return torch.tensor(rows, dtype=torch.float64)


def _rows(file: Path, columns: int | None = None) -> list[list[float]]:
    rows = []
    for words in _words(file):
        try:
            rows.append([_number(word) for word in words])
        except ValueError as error:
            raise CaptureError(f"{file}: {printable(str(error))}.") from error
        if columns is not None and len(words) != columns:
            raise CaptureError(f"{file}: a line has {len(words)} numbers, {columns} are needed.")
    return rows


def _number(word: str) -> float:
    """A number; what Windows prints for none (`-1.#IND`, `1.#QNAN`, `1.#INF`) is NaN."""
    return math.nan if "#" in word else float(word)


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
    lines = load_text(file, _MAX_BYTES).replace(",", " ").splitlines()
    return [line.split() for line in lines if line.strip() and not line.startswith("#")]
