"""A capture: photos with cameras, whatever tool wrote them."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import torch

from ..geometry.cameras import Cameras
from .images import THREADS, CaptureError, as_image_tensor, fit_cameras, fit_views


__all__ = ["CaptureError", "Scene", "SceneImages"]

CACHE_BYTES = 256_000_000  # of decoded photos that a scene keeps


class SceneImages(Sequence):
    """
    Images that are decoded when they are asked for. An index gives a PIL image; a slice, or a list of indices, again
    images that are not decoded yet; a loop decodes ahead in threads. The last that were decoded are kept, up to
    `CACHE_BYTES`.

    Args:
        loaders (`Sequence[Callable]`): one for each image.
    """

    def __init__(self, loaders: Sequence[Callable[[], PIL.Image.Image]]):
        self.loaders = list(loaders)
        self._cache = _ImageCache()

    def _part(self, loaders: list) -> "SceneImages":
        part = SceneImages(loaders)
        part._cache = self._cache
        return part

    def __len__(self) -> int:
        return len(self.loaders)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self._part(self.loaders[index])
        if isinstance(index, Sequence):
            return self._part([self.loaders[i] for i in index])
        return self._cache.get(self.loaders[index])

    def __iter__(self):
        return self.map(lambda image: image)

    def map(self, function: Callable[[PIL.Image.Image], object]):
        """`function` of each image, in order, computed a few images ahead in threads."""
        with ThreadPoolExecutor(THREADS) as pool:
            waiting = []
            for loader in self.loaders:
                waiting.append(pool.submit(lambda loader=loader: function(self._cache.get(loader))))
                if len(waiting) > THREADS:
                    yield waiting.pop(0).result()
            yield from (future.result() for future in waiting)

    def __repr__(self) -> str:
        return f"SceneImages({len(self)})"


class _ImageCache:
    """The images that were asked for last, up to `CACHE_BYTES`."""

    def __init__(self):
        self._images: OrderedDict[Callable, PIL.Image.Image] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, loader: Callable[[], PIL.Image.Image]) -> PIL.Image.Image:
        with self._lock:
            image = self._images.get(loader)
            if image is not None:
                self._images.move_to_end(loader)
        return (self._keep(loader, loader()) if image is None else image).copy()

    def _keep(self, loader: Callable, image: PIL.Image.Image) -> PIL.Image.Image:
        with self._lock:
            if loader not in self._images:
                self._images[loader] = image
                self._bytes += _size(image)
            while self._bytes > CACHE_BYTES:
                self._bytes -= _size(self._images.popitem(last=False)[1])
        return image

    def __reduce__(self):
        return _ImageCache, ()


def _size(image: PIL.Image.Image) -> int:
    return image.width * image.height * len(image.getbands())


@dataclass(frozen=True)
class Scene:
    """
    A capture.

    Attributes:
        images (`Sequence[PIL.Image.Image]`): RGB photos, decoded on access.
        cameras (`Cameras` of shape `[V]`): their cameras, distortion-free.
        name (`str`): what to call it.
        times (`torch.Tensor` of shape `[V]`, *optional*): seconds, in captures of a moving world.
        masks (`Sequence[PIL.Image.Image]`, *optional*): white where the object is.
        points (`torch.Tensor` of shape `[P, 3]`, *optional*): sparse points in the world.
        image_paths (`list[Path]`, *optional*): where the photos lie.
        splits (`dict[str, list[int]]`, *optional*): views of the splits that the capture comes with: `train`, `val`,
            `test`, and `train_N`, `test_N` of each `train_test_split_N.json`.
    """

    images: Sequence[PIL.Image.Image]
    cameras: Cameras
    name: str
    times: torch.Tensor | None = None
    masks: Sequence[PIL.Image.Image] | None = None
    points: torch.Tensor | None = None
    image_paths: list[Path] | None = None
    splits: dict[str, list[int]] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def fitted(self, indices: Sequence[int], height: int, width: int) -> tuple[torch.Tensor, Cameras]:
        """Some of the photos, cropped and resized: `[V, 3, height, width]` in [0, 1], and their cameras `[V]`.

        Args:
            indices (`Sequence[int]`): numbers of the photos.
            height (`int`): pixels.
            width (`int`): pixels.
        """
        indices = list(indices)
        cameras = fit_cameras(self.cameras[indices], height, width)

        def fit(image: PIL.Image.Image) -> torch.Tensor:
            return fit_views(as_image_tensor(image), None, height, width)[0]

        images = _pick(self.images, indices)
        fitted = images.map(fit) if isinstance(images, SceneImages) else map(fit, images)
        return torch.stack(list(fitted)), cameras

    def select(self, indices: Sequence[int]) -> "Scene":
        """The scene with some of its views, in the order of `indices`, without splits."""
        indices = list(indices)
        return Scene(
            images=_pick(self.images, indices),
            cameras=self.cameras[indices],
            name=self.name,
            times=None if self.times is None else self.times[indices],
            masks=None if self.masks is None else _pick(self.masks, indices),
            points=self.points,
            image_paths=None if self.image_paths is None else _pick(self.image_paths, indices),
        )


def _pick(sequence: Sequence, indices: list[int]) -> Sequence:
    return sequence[indices] if isinstance(sequence, SceneImages) else [sequence[i] for i in indices]
