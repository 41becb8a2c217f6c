"""A small capture, as the app keeps it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..bundled import sample_capture
from ..captures.images import to_uint8
from ..captures.pictures import points_near
from ..captures.readers import load_scene
from ..captures.scene import Scene
from ..geometry.cameras import Cameras
from ..geometry.choosing import split_views
from ..geometry.views import ViewGeometry, Views


__all__ = ["SAMPLES", "Capture", "load_sample", "small_capture"]

# Captures that ship, and what to call them
SAMPLES = {"skull": "Skull (photos)", "room": "Room (drawn)", "sample": "Table (drawn)"}
_POINTS = 4000  # sparse points that are kept to be drawn


@dataclass(frozen=True)
class Capture:
    """
    What the app keeps of a capture: photos as small as the model takes them.

    Attributes:
        name (`str`): what to call it.
        views (`Views` of shape `[V]`): the photos, uint8, cropped square, and where they were taken.
        held_out (`list[int]`): photos to compare with, which are no references then.
        points (`torch.Tensor` of shape `[P, 3]`, *optional*): sparse points.
        notes (`list[str]`): what a visitor should know, a sentence each.
    """

    name: str
    views: Views
    held_out: list[int]
    points: torch.Tensor | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.views)

    @property
    def pixels(self) -> torch.Tensor:
        """The photos, `[V, 3, size, size]`, uint8."""
        return self.views.pixels

    @property
    def cameras(self) -> Cameras:
        """Cameras of the photos."""
        return self.views.cameras


def small_capture(scene: Scene, size: int, notes: Sequence[str] = ()) -> Capture:
    """A scene as the app keeps it, its photos `size` pixels wide and high.

    Args:
        scene ([`Scene`]): the capture.
        size (`int`): pixels a side.
        notes (`Sequence[str]`, defaults to `()`): what the visitor should know of it.
    """
    fitted, cameras = scene.fitted(range(len(scene)), size, size)
    views = [split_views(len(scene), scene.splits, split, order=scene.text_order) for split in ("test", "train")]
    points = None
    if scene.points is not None and len(scene.points):
        points = points_near(scene.points[:: -(-len(scene.points) // _POINTS)].to(cameras.centers), cameras.centers)
    return Capture(
        name=scene.name,
        views=Views.seen(to_uint8(fitted), ViewGeometry.of(cameras)),
        held_out=views[0] if all(views) else [],
        points=points,
        notes=tuple(notes),
    )


def load_sample(name: str, size: int) -> Capture:
    """A capture that ships with the package.

    Args:
        name (`str`): one of `SAMPLES`.
        size (`int`): pixels a side.
    """
    return replace(small_capture(load_scene(sample_capture(name)), size), name=SAMPLES[name])
