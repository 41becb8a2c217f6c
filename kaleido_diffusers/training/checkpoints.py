"""Checkpoints of a run, `checkpoint-N`. A whole model's is a folder of diffusers with `state/state.pt` beside it, a
sharded one's is written by `torch.distributed.checkpoint`, by all processes at once, while training goes on. A run of
either kind, over any number of processes, resumes from both."""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from ..files import remove_folder, remove_written, write_json
from ..loaders.distributed import DistributedReader


__all__ = [
    "ShardWriter",
    "is_sharded",
    "latest_checkpoint",
    "load_shards",
    "read_progress",
    "remove_old",
    "remove_run",
    "set_damaged_aside",
    "whole_states",
]

_PROGRESS = "progress.json"  # of a sharded checkpoint: what is no tensor


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest `checkpoint-N` of a run, which is complete.

    Args:
        folder (`Path`): of the run.
    """
    numbers = _numbers(folder)
    return folder / f"checkpoint-{numbers[-1]}" if numbers else None


def is_sharded(checkpoint: Path) -> bool:
    """Whether a `checkpoint` was written by a sharded run."""
    return (checkpoint / "state" / ".metadata").is_file() or (checkpoint / _PROGRESS).is_file()


def set_damaged_aside(folder: Path) -> None:
    """Renames the newest checkpoints of the run in `folder` that cannot be read to `checkpoint-N.damaged`, with a
    warning, down to the first that can."""
    while (newest := latest_checkpoint(folder)) is not None:
        try:
            _check(newest)
            return
        except Exception as error:  # whatever a damaged file makes its reader raise
            aside, number = newest.with_name(f"{newest.name}.damaged"), 1
            while aside.exists():
                aside, number = newest.with_name(f"{newest.name}.damaged-{number}"), number + 1
            os.rename(newest, aside)
            before = latest_checkpoint(folder)
            goes_on = f"training goes on from {before.name}" if before else "training starts anew"
            reason = (str(error).splitlines() or [""])[0]
            warnings.warn(f"{newest} is damaged ({reason}) and now called {aside.name}: {goes_on}.", stacklevel=3)


def _check(checkpoint: Path) -> None:
    """Raises whatever it does if the checkpoint cannot be read."""
    if is_sharded(checkpoint):
        read_progress(checkpoint)
        DistributedReader(checkpoint / "state").check_sizes()
        return
    torch.load(checkpoint / "state" / "state.pt", map_location="cpu", weights_only=True, mmap=True)
    for name in ("transformer", "transformer_ema"):
        files = sorted((checkpoint / name).glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{name} holds no weights")
        for file in files:
            safe_open(file, "pt").__enter__()


def read_progress(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says beside its tensors: `step`, `config` and the like; of a whole model's, `optimizers` too.

    Args:
        checkpoint (`Path`): its folder.
    """
    if is_sharded(checkpoint):
        return json.loads((checkpoint / _PROGRESS).read_text(encoding="utf-8"))
    return torch.load(checkpoint / "state" / "state.pt", map_location="cpu", weights_only=True, mmap=True)


def whole_states(saved: list[dict], optimizers: list[torch.optim.Optimizer]) -> Iterator[dict[str, torch.Tensor]]:
    """The states in `saved`, state dicts of whole `optimizers`, one for each of their parameters in their order."""
    for optimizer, state in zip(optimizers, saved, strict=True):
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        yield from (state["state"].get(number, {}) for number in range(count))


def load_shards(checkpoint: Path, tensors: dict[str, Any], is_alone: bool) -> None:
    """
    Reads a sharded checkpoint into tensors, whole or split over any number of processes, in place.

    Args:
        checkpoint (`Path`): its folder.
        tensors (`dict[str, Any]`): by name, nested as they were saved.
        is_alone (`bool`): whether this process reads whole tensors for itself.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no process group is there
        try:
            dcp.load(tensors, storage_reader=DistributedReader(checkpoint / "state"), no_dist=is_alone)
        except CheckpointException as error:  # which is no Exception
            raise ValueError(f"{checkpoint} cannot be resumed from: {error}") from error


def remove_old(folder: Path, keep: int, best: str) -> None:
    """
    Takes away all but the newest checkpoints of a run, and all best weights but the last.

    Args:
        folder (`Path`): of the run.
        keep (`int`): checkpoints that stay.
        best (`str`): name of the folder of best weights that stays.
    """
    for number in _numbers(folder)[:-keep]:
        remove_folder(folder / f"checkpoint-{number}")
    for other in folder.glob("best-*"):
        if other.name != best:
            remove_folder(other)


def remove_run(folder: Path) -> None:
    """Removes all that training writes into its folder, and nothing else.

    Args:
        folder (`Path`): of the run.
    """
    remove_written(folder, "checkpoint-*", "best-*", "adapter", "pipeline", "log.jsonl", "validation-*.png")


def _numbers(folder: Path) -> list[int]:
    """Steps of the complete checkpoints of a run."""
    names = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")]
    return sorted(int(name) for name in names if name.isdigit())


class ShardWriter:
    """
    Writes sharded checkpoints beside the training: tensors are copied at once, and written by a thread into
    `.checkpoint-N.part`, which gets its name when all processes have written all.

    Args:
        folder (`Path`): of the run.
        is_main (`bool`): whether this is the main process.
    """

    def __init__(self, folder: Path, is_main: bool):
        self.folder, self.is_main = folder, is_main
        self._group = dist.new_group(backend="gloo")  # its own: a thread must not mix with what training sends
        self._number, self._future = 0, None

    def save(
        self,
        number: int,
        tensors: dict[str, Any],
        progress: Mapping[str, Any],
        describe: Callable[[Path], None],
    ) -> None:
        """
        Begins to write `checkpoint-N`; waits for the one before. All processes call it.

        Args:
            number (`int`): N.
            tensors (`dict[str, Any]`): by name, nested; sharded or, if all processes have them alike, whole.
            progress (`Mapping[str, Any]`): what is no tensor, for JSON.
            describe (`Callable`): writes what else belongs to it into its folder; called by the main process.
        """
        self.finish()
        if (self.folder / f"checkpoint-{number}").exists():
            return
        part = self._part(number)
        if self.is_main:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            write_json(part / _PROGRESS, dict(progress))
            describe(part)
        dist.barrier(self._group)
        writer = dcp.FileSystemWriter(part / "state")
        self._number, self._future = number, dcp.async_save(tensors, storage_writer=writer, process_group=self._group)

    def finish(self) -> None:
        """Waits until the checkpoint that is being written is there. All processes call it; they have to before one of
        them ends."""
        if self._future is None:
            return
        try:
            self._future.result()
        except CheckpointException as error:
            raise OSError(f"{self._part(self._number)} could not be written: {error}") from error
        self._future = None
        if self.is_main:
            os.rename(self._part(self._number), self.folder / f"checkpoint-{self._number}")
        dist.barrier(self._group)

    def _part(self, number: int) -> Path:
        return self.folder / f".checkpoint-{number}.part"
