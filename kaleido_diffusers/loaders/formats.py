"""Files of weights, opened: the names of their tensors, what reads one of them, headers. No code in them is run."""

import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.models.model_loading_utils import load_gguf_checkpoint
from safetensors import safe_open

from .errors import CheckpointError


__all__ = ["OpenedWeights", "is_weights_file", "open_dict", "open_weights"]

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")


class OpenedWeights(NamedTuple):
    """Names of the tensors of a file, what reads one of them, and the header."""

    keys: Iterable[str]
    fetch: Callable[[str], torch.Tensor]
    header: dict[str, str]


def is_weights_file(path: str | os.PathLike) -> bool:
    """Whether a file is named as weights are: `.safetensors`, `.gguf`, `.pt`, `.pth`, `.bin`, `.ckpt`, or an index of
    shards.

    Args:
        path (`str` or `os.PathLike`): the file.
    """
    name = Path(path).name
    return name.endswith((".safetensors", ".safetensors.index.json", ".gguf", *TORCH_SUFFIXES))


def open_weights(source: Path) -> OpenedWeights:
    """Opens a file of weights, or the only one in a folder. [`CheckpointError`] where it cannot be read.

    Args:
        source (`Path`): the file or folder.
    """
    if source.is_dir():
        if (source / ".metadata").is_file():
            return _open_distributed(source)
        source = _only_weights_file(source)
    if source.name.endswith(".index.json"):
        return _open_shards(source)
    if source.suffix == ".safetensors":
        return _open_safetensors(source)
    if source.suffix in TORCH_SUFFIXES:
        return _open_torch(source)
    if source.suffix == ".gguf":
        return _open_gguf(source)
    listed = ", ".join((".safetensors", ".gguf", *TORCH_SUFFIXES))
    raise CheckpointError(f"{source}: weights are {listed}, or an .index.json.")


def _only_weights_file(folder: Path) -> Path:
    indices = sorted(folder.glob("*.safetensors.index.json"))
    found = indices or sorted(path for path in folder.iterdir() if is_weights_file(path))
    if len(found) > 1:
        found = [path for path in found if path.name.startswith("diffusion_pytorch_model.safetensors")] or found
    if len(found) != 1:
        listed = ", ".join(path.name for path in found) or "none"
        raise CheckpointError(f"{folder} must hold one file of weights, or an index of shards; it holds {listed}.")
    return found[0]


def _open_safetensors(path: Path) -> OpenedWeights:
    try:
        file = safe_open(path, framework="pt")
    except Exception as error:  # its own type, or an OSError
        raise _unreadable(path, error) from error
    return OpenedWeights(file.keys(), file.get_tensor, file.metadata() or {})


def _open_shards(index: Path) -> OpenedWeights:
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = {name: (index.parent / name) for name in sorted(set(shard_of.values()))}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of shards ({type(error).__name__}: {error}).") from error
    _check_inside(index.parent, shards)
    absent = [name for name, path in shards.items() if not path.is_file()]
    if absent:
        raise CheckpointError(f"{index} names files that are missing: {', '.join(absent)}.")
    opened = {name: _open_safetensors(path) for name, path in shards.items()}
    keys = {name: set(shard.keys) for name, shard in opened.items()}
    absent = [key for key, name in shard_of.items() if key not in keys[name]]
    if absent:
        raise CheckpointError(f"{index} names tensors that its files do not hold: {', '.join(absent)}.")
    return OpenedWeights(shard_of, lambda key: opened[shard_of[key]].fetch(key), {})


def _open_torch(path: Path) -> OpenedWeights:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an odd protocol of a damaged pickle
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever torch raises on what it does not know
        raise _unreadable(path, error) from error
    return open_dict(content, str(path))


def open_dict(content: Any, path: str) -> OpenedWeights:
    """Weights in memory, nested dictionaries joined by dots.

    Args:
        content (`Any`): what should be a dictionary of tensors; [`CheckpointError`] for anything else.
        path (`str`): what errors call it.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors.")
    flat = {}

    def flatten(branch: Mapping, prefix: str) -> None:
        for key, value in branch.items():
            if isinstance(value, Mapping):
                flatten(value, f"{prefix}{key}.")
            elif torch.is_tensor(value):
                flat[f"{prefix}{key}"] = value

    flatten(content, "")
    return OpenedWeights(flat, flat.__getitem__, {})


def _open_gguf(path: Path) -> OpenedWeights:
    """Tensors of GGUF, quantised ones as diffusers' `GGUFParameter`."""
    try:
        return open_dict(load_gguf_checkpoint(path), str(path))
    except ImportError as error:
        raise ImportError(f"{path}: GGUF files are read by another package: pip install gguf") from error
    except Exception as error:  # at damaged files its reader raises anything
        raise _unreadable(path, error) from error


def _open_distributed(folder: Path) -> OpenedWeights:
    """A folder of torch.distributed.checkpoint, see [`DistributedReader`]."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    from .distributed import DistributedReader  # slow to import, and seldom needed

    try:
        reader = DistributedReader(folder)
        entries, files = reader.tensors, reader.files
    except Exception as error:  # damaged pickles raise anything
        raise _unreadable(folder / ".metadata", error) from error
    _check_inside(folder, files)

    def fetch(key: str) -> torch.Tensor:
        try:
            tensor = torch.empty(entries[key].size, dtype=entries[key].properties.dtype)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that one process is alone, and an odd protocol of a damaged pickle
                load({key: tensor}, storage_reader=reader, no_dist=True)
        except (Exception, CheckpointException) as error:  # the latter is no Exception
            raise _unreadable(f"{folder}: tensor `{key}`", error) from error
        return tensor

    return OpenedWeights(entries, fetch, {})


def _check_inside(folder: Path, names: Iterable[str]) -> None:
    outside = [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        raise CheckpointError(f"{folder} names files outside of it: {', '.join(outside)}.")


def _unreadable(what: str | Path, error: BaseException) -> CheckpointError:
    message = str(error)
    forbidden = re.search(r"GLOBAL ([\w.]+)", message)
    if forbidden:
        return CheckpointError(
            f"{what} is refused: it asks for `{forbidden[1]}`, and a pickle that loads more than tensors can run any"
            " code. Save its state dict alone, best as safetensors."
        )
    reason = "not a file of tensors" if isinstance(error, pickle.UnpicklingError) else message.partition("\n")[0][:200]
    return CheckpointError(f"{what} cannot be read, it may be truncated or damaged ({reason}).")
