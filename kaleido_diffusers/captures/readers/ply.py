"""Points of PLY files, text and binary, as nerfstudio names them in `ply_file_path`."""

from pathlib import Path

import numpy as np
import torch

from ..images import CaptureError


__all__ = ["read_ply_points"]

_MAX_HEADER = 65_536  # bytes
_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2"},
    **{"int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8"},
}
_ORDERS = {"ascii": None, "binary_little_endian": "<", "binary_big_endian": ">"}


def read_ply_points(file: Path) -> torch.Tensor:
    """The finite `x`, `y`, `z` of the element `vertex`, `[P, 3]`, float64. Raises [`CaptureError`] for other files.

    Args:
        file (`Path`): a PLY file.
    """
    try:
        order, count, fields, start = _header(file)
        names = [name for name, _ in fields]
        if order is None:
            lines = file.read_bytes()[start:].decode("ascii", "replace").split("\n")[:count]
            rows = np.array([[float(word) for word in line.split()[: len(names)]] for line in lines], dtype=np.float64)
            columns = rows.reshape(count, len(names))
            table = {name: columns[:, number] for number, name in enumerate(names)}
        else:
            layout = np.dtype([(name, order + kind) for name, kind in fields])
            if count * layout.itemsize > file.stat().st_size - start:
                raise ValueError("it is cut short")
            table = np.fromfile(file, dtype=layout, count=count, offset=start)
        points = np.stack([np.asarray(table[axis], dtype=np.float64) for axis in "xyz"], axis=-1)
    except (ValueError, KeyError, IndexError, OSError, MemoryError, OverflowError) as error:
        raise CaptureError(f"{file}: not a PLY file of points that can be read ({error}).") from error
    return torch.from_numpy(points[np.isfinite(points).all(-1)])


def _header(file: Path) -> tuple[str | None, int, list[tuple[str, str]], int]:
    """Byte order (none for text), number of vertices, their fields, and where they begin."""
    with open(file, "rb") as stream:
        data = stream.read(_MAX_HEADER)
    end = data.find(b"end_header")
    if not data.startswith(b"ply") or end < 0:
        raise ValueError("there is no header")
    start = data.index(b"\n", end) + 1
    order, count, fields, element = "", 0, [], None
    for words in (line.split() for line in data[:end].decode("ascii", "replace").splitlines()):
        if words[:1] == ["format"]:
            order = words[1]
        elif words[:1] == ["element"]:
            if element is None and words[1] != "vertex":
                raise ValueError(f"the element {words[1]!r} comes before the points")
            element = words[1]
            count = int(words[2]) if element == "vertex" else count
        elif words[:1] == ["property"] and element == "vertex":
            fields.append((words[2], _TYPES[words[1]]))
    if order not in _ORDERS or count < 0:
        raise ValueError(f"the format {order!r} is not known")
    return _ORDERS[order], count, fields, start
