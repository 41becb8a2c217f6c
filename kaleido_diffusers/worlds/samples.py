"""All views of one scene as tensors, and sequences of them to train on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ..captures.scene import Scene
from ..geometry.cameras import Cameras


__all__ = ["InMemory", "SceneSample", "SceneSource", "scene_sample"]


@dataclass
class SceneSample:
    """
    All views of one scene.

    Attributes:
        views (`torch.Tensor` of shape `[V, C, H, W]`): uint8 pixels, or latents in floating point.
        poses (`torch.Tensor` of shape `[V, 4, 4]`, *optional*): `world_from_camera`, float64; not in video.
        intrinsics (`torch.Tensor` of shape `[V, 3, 3]`, *optional*): normalised by width and height.
        times (`torch.Tensor` of shape `[V]`, *optional*): seconds.
    """

    views: torch.Tensor
    poses: torch.Tensor | None = None
    intrinsics: torch.Tensor | None = None
    times: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.views)

    @property
    def cameras(self) -> Cameras | None:
        """Cameras of the views, if they have any."""
        if self.poses is None:
            return None
        height, width = self.views.shape[-2:]
        scale = torch.tensor([width, height, 1.0], dtype=torch.float64)[:, None]
        return Cameras(self.poses, self.intrinsics.double() * scale, [height, width])

    def select(self, views: Sequence[int]) -> "SceneSample":
        """Some of the views, in the order given.

        Args:
            views (`Sequence[int]`): their numbers, in the order wanted.
        """
        views = list(views)
        return SceneSample(*(None if x is None else x[views] for x in vars(self).values()))


def scene_sample(scene: Scene, size: int, views: Sequence[int]) -> SceneSample:
    """Some of the views of a capture, cropped and resized to `size` x `size` pixels.

    Args:
        scene ([`Scene`]): the capture.
        size (`int`): pixels a side.
        views (`Sequence[int]`): numbers of the photos.
    """
    images, cameras = scene.fitted(views, size, size)
    return SceneSample(
        (images * 255).round().to(torch.uint8),
        cameras.world_from_camera,
        cameras.normalized_intrinsics.float(),
        None if scene.times is None else scene.times[list(views)],
    )


class SceneSource(Protocol):
    """A sequence of scenes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> SceneSample: ...


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

    def __getitem__(self, index: int) -> SceneSample:
        return self._samples[index]
