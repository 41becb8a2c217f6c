"""What a run does a second, for its log."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ..models.operations import forward_operations
from .objective import ViewPartition


__all__ = ["Meter", "step_operations", "step_tokens"]


def step_operations(config: Mapping[str, Any], partition: ViewPartition, rows: int, height: int, width: int) -> int:
    """
    Floating-point operations of one training step: the backward pass costs twice the forward one. What gradient
    checkpointing computes again is not counted.

    Args:
        config (`Mapping[str, Any]`): the transformer's.
        partition ([`ViewPartition`]): of the views.
        rows (`int`): scenes of the step, all processes together.
        height (`int`): of a view as the transformer sees it.
        width (`int`): likewise.
    """
    memory = () if partition.drop_references else tuple(map(len, partition.references))
    targets = tuple(map(len, partition.targets))
    return 3 * rows * forward_operations(config, memory, targets, height=height, width=width)


def step_tokens(config: Mapping[str, Any], partition: ViewPartition, rows: int, height: int, width: int) -> int:
    """
    Tokens that pass through the transformer in a step. Args: as for [`step_operations`].

    Args:
        config (`Mapping[str, Any]`): the transformer's.
        partition ([`ViewPartition`]): of the views.
        rows (`int`): scenes of the step.
        height (`int`): of a view.
        width (`int`): of a view.
    """
    views = len(partition.order) - (partition.num_references if partition.drop_references else 0)
    return rows * views * (height // config["patch_size"]) * (width // config["patch_size"])


class Meter:
    """
    Counts operations, tokens and seconds between two lines of the log.

    Args:
        cards (`int`): processes, one a card.
        peak (`float`): operations a second that a card can do at most.
    """

    def __init__(self, cards: int, peak: float):
        self.cards, self.peak = cards, peak
        self.restart()

    def restart(self) -> None:
        """Begins anew, behind a line of the log."""
        self._started, self._aside = time.monotonic(), {"waiting": 0.0, "pauses": 0.0}
        self._steps = self._operations = self._tokens = 0

    @contextmanager
    def aside(self, what: str) -> Iterator[None]:
        """Around `what`: `"waiting"` for data, or `"pauses"`, which are no part of a step."""
        started = time.monotonic()
        yield
        self._aside[what] += time.monotonic() - started

    def count(self, operations: int, tokens: int) -> None:
        """A step of all processes together.

        Args:
            operations (`int`): see [`step_operations`].
            tokens (`int`): see [`step_tokens`].
        """
        self._steps += 1
        self._operations += operations
        self._tokens += tokens

    def scores(self) -> dict[str, float]:
        """Since the restart: seconds a step, the share of them that went into waiting for data, tokens and operations
        a second and card, their share of the peak (MFU), and the most memory that this process has taken, in GiB."""
        seconds = time.monotonic() - self._started - self._aside["pauses"]
        speed = self._operations / self.cards / seconds
        return {
            "seconds": seconds / self._steps,
            "data_share": self._aside["waiting"] / seconds,
            "tokens_per_second": self._tokens / self.cards / seconds,
            "tflops": speed / 1e12,
            "mfu": speed / self.peak,
            "memory_gib": _peak_memory() / 2**30,
        }


def _peak_memory() -> int:
    """Bytes: of the accelerator, or of the process where there is none that tells."""
    module = torch.get_device_module() if torch.accelerator.is_available() else None
    if module is not None and hasattr(module, "max_memory_allocated"):
        return module.max_memory_allocated()
    if sys.platform == "win32":
        return 0  # which Windows tells nobody without a library
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
