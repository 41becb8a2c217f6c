"""A capture: photos with cameras, whatever tool wrote them."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from ..geometry.cameras import Cameras
from .images import THREADS, CaptureError, fit_cameras, fit_image


__all__ = ["CaptureError", "Scene", "SceneImages"]

CACHE_BYTES = 256_000_000  # of decoded photos that a scene keeps


Fitter = Callable[[int, int], tuple[torch.Tensor, tuple[int, int]]]


class SceneImages(Sequence):
    """
    Images that are decoded when they are asked for. An index gives a PIL image; a slice, or a list or array of
    indices, again images that are not decoded yet; a loop decodes ahead in threads. The last that were decoded are
    kept, up to `CACHE_BYTES`.

    Args:
        loaders (`Sequence[Callable]`): one for each image.
        fitters (`Sequence[Callable | None]`, *optional*): for images that are sooner made at the size that is asked
            for than decoded and fitted: called with height and width, they give what [`~SceneImages.fitted`] does.
    """

    def __init__(
        self,
        loaders: Sequence[Callable[[], PIL.Image.Image]],
        fitters: Sequence[Fitter | None] | None = None,
    ):
        self.loaders = list(loaders)
        self.fitters = [None] * len(self.loaders) if fitters is None else list(fitters)
        self._cache = _ImageCache()

    def __len__(self) -> int:
        return len(self.loaders)

    def __getitem__(self, index):
        if isinstance(index, (np.ndarray, torch.Tensor)) and index.ndim:
            index = torch.arange(len(self))[torch.as_tensor(index)].tolist()  # numbers, or a mask
        if not isinstance(index, (slice, Sequence)):
            return self._image(self.loaders[index])
        numbers = range(len(self))[index] if isinstance(index, slice) else index
        part = SceneImages([self.loaders[i] for i in numbers], [self.fitters[i] for i in numbers])
        part._cache = self._cache
        return part

    def __iter__(self):
        return _ahead([partial(self._image, loader) for loader in self.loaders])

    def fitted(self, height: int, width: int):
        """Each image as [`fit_image`] makes it, `[3, height, width]` in [0, 1], and the size that it has, (height,
        width); made a few images ahead in threads.

        Args:
            height (`int`): rows wanted.
            width (`int`): columns wanted.
        """
        return _ahead([partial(self._fit, number, height, width) for number in range(len(self))])

    def _image(self, loader: Callable[[], PIL.Image.Image]) -> PIL.Image.Image:
        return self._cache.get(loader, loader).copy()

    def _fit(self, number: int, height: int, width: int) -> tuple[torch.Tensor, tuple[int, int]]:
        fitter = self.fitters[number]
        if fitter is not None:
            return self._cache.get((fitter, height, width), partial(fitter, height, width))
        image = self._image(self.loaders[number])
        return fit_image(image, height, width), (image.height, image.width)

    def __repr__(self) -> str:
        return f"SceneImages({len(self)})"


def _ahead(calls: Sequence[Callable]):
    """What the calls return, in order, computed a few ahead in threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting = []
        for call in calls:
            waiting.append(pool.submit(call))
            if len(waiting) > THREADS:
                yield waiting.pop(0).result()
        yield from (future.result() for future in waiting)


class _ImageCache:
    """The images that were asked for last, up to `CACHE_BYTES`."""

    def __init__(self):
        self._images: OrderedDict = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key, make: Callable):
        with self._lock:
            image = self._images.get(key)
            if image is not None:
                self._images.move_to_end(key)
        return self._keep(key, make()) if image is None else image

    def _keep(self, key, image):
        with self._lock:
            if key not in self._images:
                self._images[key] = image
                self._bytes += _size(image)
            while self._bytes > CACHE_BYTES:
                self._bytes -= _size(self._images.popitem(last=False)[1])
        return image

    def __reduce__(self):
        return _ImageCache, ()


def _size(image: PIL.Image.Image | tuple[torch.Tensor, tuple[int, int]]) -> int:
    return image[0].nbytes if isinstance(image, tuple) else image.width * image.height * len(image.getbands())


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
        text_order (`list[int]`, *optional*): views in the order of the text of their names, by which the field counts
            every n-th photo, where that is another order than theirs (`10` comes before `9`).
    """

    images: Sequence[PIL.Image.Image]
    cameras: Cameras
    name: str
    times: torch.Tensor | None = None
    masks: Sequence[PIL.Image.Image] | None = None
    points: torch.Tensor | None = None
    image_paths: list[Path] | None = None
    splits: dict[str, list[int]] | None = None
    text_order: list[int] | None = None

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

        images = _pick(self.images, indices)
        if isinstance(images, SceneImages):
            return torch.stack([image for image, _ in images.fitted(height, width)]), cameras
        return torch.stack([fit_image(image, height, width) for image in images]), cameras

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
