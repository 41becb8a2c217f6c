"""CO3D: `<category>/<sequence>/images/`, with the cameras of a whole category in `<category>/frame_annotations.jgz`,
in PyTorch3D's convention."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ...geometry.cameras import world_from_camera_from_pytorch3d
from ..images import CaptureError
from ..scene import Scene
from .assembly import Frame, ReadOptions, assemble, inside, intrinsics_of, printable


__all__ = ["find_co3d", "read_co3d"]

_FILE = "frame_annotations.jgz"
_CHUNK = 1 << 20
_MAX_ENTRY = 1 << 20


def find_co3d(path: Path) -> Path | None:
    """The folder of a sequence whose category has annotations, or that of the category.

    Args:
        path (`Path`): file or folder to look at.
    """
    return path if path.is_dir() and any((f / _FILE).is_file() for f in (path, path.parent)) else None


def read_co3d(folder: Path, options: ReadOptions) -> Scene:
    """Reads one sequence: that of the folder, or of a category's folder the one that `options.scene` names. The
    annotations are read entry by entry: those of a whole category do not fit in memory.

    Args:
        folder (`Path`): the folder.
        options (`ReadOptions`): how captures are read.
    """
    is_category = (folder / _FILE).is_file()
    category = folder if is_category else folder.parent
    sequence, file = options.scene if is_category else folder.name, category / _FILE
    frames, sequences = [], {}
    for number, entry in enumerate(_entries(file)):
        where = f"{file}, entry {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("sequence_name"), str):
            raise CaptureError(f"{where}: must be an object with a `sequence_name`.")
        sequences[entry["sequence_name"]] = None
        if sequence in (None, entry["sequence_name"]):
            frames.append(_frame(category.parent, entry, where, options))
    if not frames or len(sequences) > 1 and sequence is None:
        names = ", ".join(printable(name) for name in list(sequences)[:20])
        raise CaptureError(f"{file}: has no sequence {sequence!r}; choose one by `scene`: {names}.")
    return assemble(file, frames, options, category / (sequence or next(iter(sequences))))


def _frame(root: Path, entry: dict[str, Any], where: str, options: ReadOptions) -> Frame:
    image, viewpoint = _object(entry, "image", where), _object(entry, "viewpoint", where)
    name = image.get("path")
    if not isinstance(name, str):
        raise CaptureError(f"{where}: `image.path` must be a name.")
    height, width = (int(value) for value in _numbers(image, "size", (2,), where))
    if not (height > 0 and width > 0):
        raise CaptureError(f"{where}: `image.size` must be positive, got {[height, width]}.")
    focal = _numbers(viewpoint, "focal_length", (2,), where)
    center = _numbers(viewpoint, "principal_point", (2,), where)
    kind = viewpoint.get("intrinsics_format", "ndc_norm_image_bounds")
    if kind not in ("ndc_norm_image_bounds", "ndc_isotropic"):
        raise CaptureError(f"{where}: `intrinsics_format` {str(kind)[:40]!r} is not known.")
    half = torch.tensor([width, height], dtype=torch.float64) / 2
    unit = half if kind == "ndc_norm_image_bounds" else half.min().expand(2)
    focal, center = focal * unit, half - center * unit  # PyTorch3D's x runs left, its y up
    if not (focal > 0).all():
        raise CaptureError(f"{where}: `focal_length` must be positive, got {focal.tolist()} pixels.")
    rotation, translation = _numbers(viewpoint, "R", (3, 3), where), _numbers(viewpoint, "T", (3,), where)
    mask = entry.get("mask")
    mask = mask.get("path") if isinstance(mask, dict) else None
    return Frame(
        name=name,
        path=options.images / Path(name).name if options.images else inside(root, name, f"{where}, `image.path`"),
        world_from_camera=world_from_camera_from_pytorch3d(rotation, translation).tolist(),
        intrinsics=intrinsics_of(*focal.tolist(), *center.tolist()),
        size=(height, width),
        mask_path=inside(root, mask, f"{where}, `mask.path`") if isinstance(mask, str) else None,
        root=options.images or root,
    )


def _object(entry: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    value = entry.get(key)
    if not isinstance(value, dict):
        raise CaptureError(f"{where}: `{key}` must be an object.")
    return value


def _numbers(entry: dict[str, Any], key: str, shape: tuple[int, ...], where: str) -> torch.Tensor:
    try:
        value = torch.tensor(entry.get(key), dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CaptureError(f"{where}: `{key}` must be numbers {list(shape)} ({error}).") from error
    if value.shape != shape or not value.isfinite().all():
        raise CaptureError(f"{where}: `{key}` must be finite numbers {list(shape)}.")
    return value


def _entries(file: Path) -> Iterator[Any]:
    """Entries of a gzipped JSON list, decoded one at a time."""
    decoder, text, started = json.JSONDecoder(), "", False
    try:
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            while True:
                chunk = stream.read(_CHUNK)
                text += chunk
                if not started:
                    text = text.lstrip()
                    if text[:1] not in ("[", ""):
                        raise CaptureError(f"{file}: must hold a JSON list.")
                    started, text = bool(text), text[1:]
                position = yield from _decoded(decoder, text)
                text = text[position:]
                if not chunk:
                    break
                if len(text) > _CHUNK + _MAX_ENTRY:
                    raise CaptureError(f"{file}: an entry has more than {_MAX_ENTRY} characters.")
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        if isinstance(error, CaptureError):
            raise
        raise CaptureError(f"{file}: not gzipped JSON that can be read ({error}).") from error
    if text.strip() != "]":
        raise CaptureError(f"{file}: not valid JSON (after the last entry: {printable(text.strip()[:40])!r}).")


def _decoded(decoder: json.JSONDecoder, text: str) -> Iterator[Any]:
    """The complete entries at the head of `text`; returns where they end."""
    position = 0
    while True:
        start = position
        while start < len(text) and text[start] in ", \t\r\n":
            start += 1
        if start == len(text) or text[start] == "]":
            return start
        try:
            entry, end = decoder.raw_decode(text, start)
        except json.JSONDecodeError:
            return start
        if end == len(text):  # a number that may go on in the next chunk
            return start
        yield entry
        position = end
