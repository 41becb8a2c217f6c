"""A capture: photos with cameras, whatever tool wrote them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import PIL.Image
import PIL.ImageOps
import torch

from ..cameras import Cameras
from .images import (
    CaptureError,
    as_image_tensor,
    fit_views,
    load_image,
    open_image,
    rotate_views,
    tensor_to_image,
    undistort,
    undistorted_camera,
    upright_turns,
)


__all__ = ["CaptureError", "Photo", "Scene", "SceneImages"]


@dataclass(frozen=True)
class Photo:
    """
    A photo on disk, and what its pixels need until a pinhole camera fits them.

    Attributes:
        path (`Path`): the file.
        stored_camera (`Cameras` of shape `[]`): camera of the stored pixels, lens distortion aside.
        distortion (`dict[str, float]`): OpenCV's `k1, k2, k3, p1, p2`; empty for none.
        background (`tuple[int, int, int]`): colour behind transparent pixels.

    Raises [`CaptureError`] when the file is missing, not an image, or of another size than its camera.
    """

    path: Path
    stored_camera: Cameras
    distortion: dict[str, float] = field(default_factory=dict)
    background: tuple[int, int, int] = (255, 255, 255)

    @cached_property
    def _orientation(self) -> tuple[bool, int]:
        """Whether the camera is that of the upright photo, and the quarter turns that make the photo upright."""
        with open_image(self.path) as image:
            turns = upright_turns(image)
            stored = (image.height, image.width)
        expected = tuple(self.stored_camera.image_sizes.tolist())
        if stored == expected:
            return False, turns
        if turns % 2 and stored[::-1] == expected:
            return True, turns
        raise CaptureError(
            f"{self.path}: the image is {stored[1]} x {stored[0]} pixels, its camera is for {expected[1]} x"
            f" {expected[0]}."
        )

    @cached_property
    def camera(self) -> Cameras:
        """Camera of the photo as [`~Photo.load`] returns it: without distortion, and upright."""
        is_upright, turns = self._orientation
        camera = self.stored_camera
        if any(self.distortion.values()):
            try:
                camera = undistorted_camera(camera, self.distortion)
            except CaptureError as error:
                raise CaptureError(f"{self.path}: {error}") from error
        return camera if is_upright else camera.rolled(turns)

    def load(self) -> PIL.Image.Image:
        """The photo as an RGB image, undistorted and upright."""
        is_upright, turns = self._orientation
        distorted = any(self.distortion.values())
        if not distorted and (is_upright or not turns):
            return load_image(self.path, self.background, exif=is_upright)
        tensor = as_image_tensor(self.path, "photo", self.background, exif=is_upright)
        if distorted:
            tensor, _ = undistort(tensor, self.stored_camera, self.distortion)
        tensor, _ = rotate_views(tensor, None, 0 if is_upright else turns)
        return tensor_to_image(tensor)


class SceneImages(Sequence):
    """Images that are decoded when they are asked for. An index gives a PIL image; a slice, or a list of indices,
    again images that are not decoded yet."""

    def __init__(self, loaders: Sequence[Callable[[], PIL.Image.Image]]):
        self.loaders = list(loaders)

    def __len__(self) -> int:
        return len(self.loaders)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return SceneImages(self.loaders[index])
        if isinstance(index, Sequence):
            return SceneImages([self.loaders[i] for i in index])
        return self.loaders[index]()

    def __repr__(self) -> str:
        return f"SceneImages({len(self)})"


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
        splits (`dict[str, list[int]]`, *optional*): views of the splits that the capture comes with (train, test).
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
        """Some of the photos, cropped and resized: `[V, 3, height, width]` in [0, 1], and their cameras `[V]`."""
        views = [fit_views(as_image_tensor(self.images[i]), self.cameras[i], height, width) for i in indices]
        return torch.stack([image for image, _ in views]), Cameras.stack([camera for _, camera in views])

    def select(self, indices: Sequence[int]) -> "Scene":
        """The scene with some of its views, in the order of `indices`."""
        indices = list(indices)

        def pick(sequence):
            return sequence[indices] if isinstance(sequence, SceneImages) else [sequence[i] for i in indices]

        return Scene(
            images=pick(self.images),
            cameras=self.cameras[indices],
            name=self.name,
            times=None if self.times is None else self.times[indices],
            masks=None if self.masks is None else pick(self.masks),
            points=self.points,
            image_paths=None if self.image_paths is None else pick(self.image_paths),
        )
