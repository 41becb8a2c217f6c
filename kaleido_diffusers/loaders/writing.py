"""Files of safetensors, written one tensor after the other."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..files import written_whole
from .errors import CheckpointError


__all__ = ["DTYPE_NAMES", "write_safetensors"]

DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def write_safetensors(
    path: str | os.PathLike,
    tensors: Mapping[str, torch.Tensor],
    dtypes: Mapping[str, torch.dtype],
    metadata: Mapping[str, str],
) -> None:
    """
    Writes a file, whole or not at all, one tensor after the other: memory holds one converted tensor at a time, where
    `safetensors.torch.save_file` needs all of them.

    Args:
        path (`str` or `os.PathLike`): the file.
        tensors (`Mapping[str, torch.Tensor]`): what to write.
        dtypes (`Mapping[str, torch.dtype]`): precision of each, of 16 to 64 bits.
        metadata (`Mapping[str, str]`): goes into the header.

    Raises:
        [`CheckpointError`]: if values are not finite, or would not be in their precision.
    """
    path = Path(path)
    order = sorted(tensors, key=lambda name: (-dtypes[name].itemsize, name))  # aligned, as the library lays them out
    header: dict[str, dict[str, Any]] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].numel() * dtypes[name].itemsize
        form = {"dtype": DTYPE_NAMES[dtypes[name]], "shape": list(tensors[name].shape)}
        header[name] = {**form, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with written_whole(path) as part, open(part, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in tqdm(order, desc=path.name, delay=2, disable=None):
            values = tensors[name].detach().to("cpu", dtypes[name]).contiguous()
            if not torch.stack(values.aminmax()).isfinite().all():
                raise CheckpointError(f"`{name}` has values that are not finite in {dtypes[name]}.")
            stream.write(values.flatten().view(torch.uint8).numpy().data)
