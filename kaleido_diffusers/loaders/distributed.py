"""Folders of torch.distributed.checkpoint, read without running what is in them."""

import pickle
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata


__all__ = ["DistributedReader", "names_outside"]


class _MetadataUnpickler(pickle.Unpickler):
    """Knows the classes of the `.metadata` of torch.distributed.checkpoint, plain values, and nothing else."""

    ALLOWED = {
        "torch.distributed.checkpoint.metadata": (
            "Metadata MetadataIndex StorageMeta TensorStorageMetadata BytesStorageMetadata ChunkStorageMetadata"
            " TensorProperties _MEM_FORMAT_ENCODING".split()
        ),
        "torch.distributed.checkpoint.filesystem": ["_StorageInfo"],
        "torch.serialization": ["_get_layout"],
        "torch": ["Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))],
    }

    def find_class(self, module: str, name: str) -> Any:
        if module in ("pathlib", "pathlib._local") and name in ("PosixPath", "WindowsPath"):
            return PurePosixPath  # where it was saved, on whatever system
        if name not in self.ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return super().find_class(module, name)


class DistributedReader(FileSystemReader):
    """
    torch would unpickle the metadata of a folder, and what in it is no tensor. Here an unpickler that knows only the
    classes of that metadata reads it, and only tensors are asked for, which torch loads by `weights_only`.

    Args:
        folder (`Path`): which holds `.metadata` and the files that it names. A damaged `.metadata` raises anything.
    """

    def __init__(self, folder: Path):
        super().__init__(folder)
        self._folder = folder
        with open(folder / ".metadata", "rb") as stream:
            self._metadata = _MetadataUnpickler(stream).load()

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Any:
        """What was read already; `_args` and `_kwargs` are those of torch."""
        return self._metadata

    @property
    def tensors(self) -> dict[str, TensorStorageMetadata]:
        """What is known of each tensor, by its name."""
        entries = self._metadata.state_dict_metadata
        return {key: entry for key, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}

    @property
    def files(self) -> dict[str, int]:
        """Names of the files of tensors, and the fewest bytes that they must have."""
        sizes: dict[str, int] = {}
        for info in self._metadata.storage_data.values():
            sizes[info.relative_path] = max(sizes.get(info.relative_path, 0), info.offset + info.length)
        return sizes

    def check_sizes(self) -> None:
        """Raises `OSError` or `ValueError` where a file lies elsewhere, is gone, or is cut short."""
        if outside := names_outside(self.files):
            raise ValueError(f"names files outside of it: {', '.join(outside)}")
        for name, size in self.files.items():
            if (found := (self._folder / name).stat().st_size) < size:
                raise ValueError(f"{name} has {found} bytes of {size}")


def names_outside(names: Iterable[str]) -> list[str]:
    """Those of `names` that lead out of the folder that they are relative to."""
    return [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]
