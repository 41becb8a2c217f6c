"""All views of one scene as tensors, and sequences of them to train on."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from ..captures.images import to_uint8
from ..captures.scene import Scene
from ..geometry.views import ViewGeometry, Views


__all__ = ["InMemory", "SceneSource", "scene_sample"]


def scene_sample(scene: Scene, size: int, views: Sequence[int]) -> Views:
    """Some of the views of a capture, cropped and resized to `size` x `size` pixels, uint8.

    Args:
        scene ([`Scene`]): the capture.
        size (`int`): pixels a side.
        views (`Sequence[int]`): numbers of the photos.
    """
    images, cameras = scene.fitted(views, size, size)
    geometry = ViewGeometry.of(cameras, None if scene.times is None else scene.times[list(views)])
    return Views.seen(to_uint8(images), geometry)


class SceneSource(Protocol):
    """A sequence of scenes: uint8 pixels or floating-point latents `[V, C, H, W]`, poses in float64."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Views: ...


class InMemory:
    """
    Another source, decoded or rendered once, kept as uint8.

    Args:
        source (`SceneSource`): what to read.
        progress (`Callable`, *optional*): wraps the indices, to show progress.
    """

    def __init__(self, source: SceneSource, progress=None):
        indices: Iterable[int] = range(len(source))
        self._samples = [source[index] for index in (progress(indices) if progress else indices)]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Views:
        return self._samples[index]
