"""Weights with what is known of them, from any file or folder."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError
from .formats import OpenedWeights, open_dict, open_weights
from .names import RENAMES, Renames, WhichWeights, rename, select_weights


__all__ = ["CONFIG_KEY", "SCHEDULER_KEY", "Checkpoint", "checkpoint_from_dict", "read_checkpoint"]

CONFIG_KEY, SCHEDULER_KEY = "kaleido_config", "kaleido_scheduler"  # in the header of our single files


@dataclass
class Checkpoint:
    """
    Weights with what is known of them. Tensors of files are memory mapped: they cost memory when they are read.

    Args:
        path (`str`): where they came from, for people.
        tensors (`dict[str, torch.Tensor]`): weights under our names; fused and unusual shapes are still as they came.
        weights (`str`): `"raw"` or `"ema"`: which were taken.
        origins (`dict[str, str]`): the name in the checkpoint of each tensor.
        config (`dict`, *optional*): config of the transformer, where something tells it.
        scheduler (`dict`, *optional*): config of the scheduler, likewise.
    """

    path: str
    tensors: dict[str, torch.Tensor]
    weights: str
    origins: dict[str, str]
    config: dict[str, Any] | None = None
    scheduler: dict[str, Any] | None = None


def read_checkpoint(
    path: str | os.PathLike, weights: WhichWeights = "auto", renames: Renames | None = None
) -> Checkpoint:
    """
    Reads weights. No code of the checkpoint is run: pickles are loaded with `weights_only=True`, and the metadata of a
    torch.distributed.checkpoint folder by an unpickler that knows only the classes of that metadata.

    Args:
        path (`str` or `os.PathLike`):
            A `.safetensors`, `.gguf`, `.pt`, `.pth`, `.bin` or `.ckpt` file, an index of safetensors shards, or a
            folder: of a pipeline, of a transformer, a `checkpoint-N` of training, or one of
            torch.distributed.checkpoint.
        weights (`str`, defaults to `"auto"`):
            `"raw"` or averaged (`"ema"`) ones; `"auto"` takes averaged ones where there are any.
        renames (`list[tuple[str, str | None]]`, *optional*):
            Rules to apply; [`RENAMES`] when not given, see [`read_renames`].

    Raises:
        [`CheckpointError`]: for what is not there, cannot be read, or could run code.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint.")
    source, taken = _transformer_folder(path, weights) if path.is_dir() else (path, None)
    opened = open_weights(source)
    names, found = select_weights(opened.keys, "auto" if taken else weights)
    checkpoint = _fetched(str(path), opened, names, taken or found, renames)
    folder = path / "transformer" if source == path / "state" else source if source.is_dir() else source.parent
    if source.is_dir() or source.name.startswith("diffusion_pytorch_model"):
        checkpoint.config = checkpoint.config or _json_of_class(folder / "config.json", "KaleidoTransformer3DModel")
        checkpoint.scheduler = checkpoint.scheduler or _json_of_class(
            folder.parent / "scheduler" / "scheduler_config.json"
        )
    return checkpoint


def checkpoint_from_dict(
    content: Mapping, weights: WhichWeights = "auto", renames: Renames | None = None
) -> Checkpoint:
    """
    A [`Checkpoint`] of weights that are in memory.

    Args:
        content (`Mapping`): a state dict, or a nested dictionary that holds one.
        weights (`str`, defaults to `"auto"`): as in [`read_checkpoint`].
        renames (`list[tuple[str, str | None]]`, *optional*): as in [`read_checkpoint`].
    """
    opened = open_dict(content, "The dictionary")
    names, taken = select_weights(opened.keys, weights)
    return _fetched("The dictionary", opened, names, taken, renames)


def _fetched(
    path: str, opened: OpenedWeights, names: dict[str, str], taken: str, renames: Renames | None
) -> Checkpoint:
    origins: dict[str, str] = {}
    for name, key in names.items():
        renamed = rename(name, RENAMES if renames is None else renames)
        if renamed in origins:
            raise CheckpointError(f"{path}: `{key}` and `{origins[renamed]}` are both `{renamed}`.")
        if renamed is not None:
            origins[renamed] = key
    tensors = {name: opened.fetch(key).detach() for name, key in origins.items()}
    try:
        config, scheduler = (json.loads(opened.header.get(key, "null")) for key in (CONFIG_KEY, SCHEDULER_KEY))
    except ValueError as error:
        raise CheckpointError(f"{path}: its header is not JSON where it should be ({error}).") from error
    return Checkpoint(path, tensors, taken, origins, config, scheduler)


def _transformer_folder(path: Path, weights: WhichWeights) -> tuple[Path, str | None]:
    """The folder that holds weights, and which they are where it has one folder for raw and one for averaged ones."""
    folders = {"raw": path / "transformer", "ema": path / "transformer_ema"}
    there = [which for which, folder in folders.items() if folder.is_dir()]
    if not there:
        return path, None
    if (
        path / "state" / ".metadata"
    ).is_file():  # of a sharded run: one file for both, and no weights in `transformer`
        return path / "state", None
    wanted = there[-1] if weights == "auto" else weights
    if wanted not in there:
        raise CheckpointError(f"{path} holds no {wanted} weights: no folder `{folders[wanted].name}`.")
    return folders[wanted], wanted


def _json_of_class(path: Path, class_name: str | None = None) -> dict[str, Any] | None:
    """A config file, unless it is not there or is that of another class."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from error
    if class_name is not None and content.get("_class_name") != class_name:
        return None
    return content
