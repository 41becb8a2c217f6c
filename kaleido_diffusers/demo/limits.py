"""What the app allows, and how far along work is."""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


__all__ = ["Limits", "Progress", "Stopped", "in_background"]


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask of the app, and what all of them together may take."""

    photos: int = 80
    """Most photos of a capture."""
    megapixels: float = 150.0
    """Most million pixels of a photo; large ones are reduced while they are read."""
    upload_mb: int = 500
    """Most megabytes of an upload, packed or unpacked."""
    stored_mb: int = 2000
    """Most megabytes of uploads and results on the disk, all visitors together."""
    references: int = 12
    """Most photos given to the model."""
    views: int = 48
    """Most views of a path."""
    steps: int = 50
    """Most denoising steps."""
    pose_minutes: float = 10.0
    """Most minutes that finding cameras may take."""
    waiting: int = 40
    """Most requests that may wait for their turn; further ones are told to come back later."""
    sessions: int = 100
    """Visitors whose captures are kept; the one unheard of for longest is forgotten first."""
    keep_minutes: float = 60.0
    """Minutes after which uploads, results and what is kept of a visitor are deleted."""

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"`{name}` must be positive, got {value}.")

    def sentence(self, size: int) -> str:
        """What visitors are told, given the side of the views in pixels.

        Args:
            size (`int`): pixels a side of the views.
        """
        return (
            f"At most {self.photos} photos or one video, {self.upload_mb} MB together;"
            f" {self.references} references, {self.views} views of {size} x {size} pixels, {self.steps} steps. One"
            " request is worked on at a time, the others wait in line. Uploads and results are deleted after"
            f" {self.keep_minutes:g} minutes."
        )


@dataclass(frozen=True)
class Progress:
    """How far along work is: `done` of `total`, and a sentence, `text`, that says what is being done. `news` is what
    there is to show of it, if anything. `is_last` when nothing is left to be stopped."""

    text: str
    done: int = 0
    total: int = 0
    news: Any = None
    is_last: bool = False


class Stopped(Exception):
    """The visitor stopped the work."""


def in_background(work: Callable[[Callable[[Any], None]], None], cancelled: threading.Event) -> Iterator[Any]:
    """
    Runs `work(report)` in a thread; yields what it reports as it comes, and raises what it raises.

    Args:
        work (`Callable`): takes a function to report with. It must end soon after `cancelled` is set.
        cancelled (`threading.Event`): set when the consumer stops listening, at the latest.
    """
    reports: queue.SimpleQueue = queue.SimpleQueue()
    end = object()
    errors = []

    def run() -> None:
        try:
            work(reports.put)
        except Exception as error:  # raised again below, where someone hears it
            errors.append(error)
        finally:
            reports.put(end)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while (report := reports.get()) is not end:
            yield report
    except GeneratorExit:
        cancelled.set()
        raise
    finally:
        thread.join()
    if errors:
        raise errors[0]
