"""RealEstate10K's camera files: a line with the clip's address, then a line a frame: timestamp in microseconds, focal
lengths and principal point divided by width and height, two zeros, and the 3 x 4 `camera_from_world`, OpenCV axes."""

from pathlib import Path

import torch

from ...geometry.cameras import invert_rigid
from ..images import CaptureError
from ..scene import Scene
from .assembly import IMAGE_SUFFIXES, Frame, ReadOptions, assemble, intrinsics_of, load_text, printable


__all__ = ["find_real_estate", "read_real_estate"]

_FOLDERS = ("images", "frames", "rgb", "")
_MAX_BYTES = 64_000_000
_COLUMNS = 19


def find_real_estate(path: Path) -> Path | None:
    """The camera file: itself, or the only one in its folder.

    Args:
        path (`Path`): file or folder to look at.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.txt"))
    found = [file for file in files if file.suffix == ".txt" and _is_camera_file(file)]
    return found[0] if len(found) == 1 else None


def _is_camera_file(file: Path) -> bool:
    try:
        with open(file, "rb") as stream:
            first, second = stream.readline(4096), stream.readline(4096)
    except OSError:
        return False
    return b"://" in first and len(second.split()) == _COLUMNS


def read_real_estate(file: Path, options: ReadOptions) -> Scene:
    """Reads one camera file. The frames are images called after their timestamps, in a folder called as the file,
    in `images/`, `frames/` or `rgb/`, or beside it.

    Args:
        file (`Path`): the file.
        options (`ReadOptions`): how captures are read.
    """
    numbers, rows = [], []
    for number, line in enumerate(load_text(file, _MAX_BYTES).splitlines()[1:], start=2):
        if not line.strip():
            continue
        words = line.split()
        try:
            if len(words) != _COLUMNS or not words[0].isdigit():
                raise ValueError(f"{len(words)} words, {_COLUMNS} needed")
            rows.append([float(word) for word in words[1:]])
            if any(rows[-1][4:6]):
                raise ValueError("a lens with distortion, which the format does not describe")
        except ValueError as error:
            raise CaptureError(f"{file}, line {number}: not a camera ({printable(str(error))}).") from error
        numbers.append(words[0])
    values = torch.tensor(rows, dtype=torch.float64).reshape(-1, _COLUMNS - 1)
    camera_from_world = torch.eye(4, dtype=torch.float64).repeat(len(rows), 1, 1)
    camera_from_world[:, :3] = values[:, 6:].reshape(-1, 3, 4)
    poses = invert_rigid(camera_from_world).tolist()
    root = options.images or next((f for f in _candidates(file) if f.is_dir()), file.parent)
    frames = []
    for stamp, pose, lens in zip(numbers, poses, values[:, :4].tolist()):
        named = (root / f"{stamp}{suffix}" for suffix in IMAGE_SUFFIXES)
        path = next((candidate for candidate in named if candidate.is_file()), root / f"{stamp}.png")
        frames.append(Frame(stamp.zfill(20), path, pose, intrinsics_of(*lens), size=(1, 1)))
    return assemble(file, frames, options, file.with_suffix(""))


def _candidates(file: Path) -> list[Path]:
    return [file.with_suffix(""), *(file.parent / folder for folder in _FOLDERS)]
