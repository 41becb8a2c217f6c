"""A photo on disk, and what its pixels need until a pinhole camera fits them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import PIL.Image
import torch

from ..geometry.cameras import Cameras
from .images import CaptureError, as_image_tensor, load_image, load_mask, tensor_to_image
from .lenses import Lens, undistort, undistorted_camera


__all__ = ["Optics", "Photo", "photo_cameras"]


@dataclass(frozen=True, eq=False)
class Optics:
    """
    What photos of one camera share.

    Attributes:
        camera (`Cameras` of shape `[]`): intrinsics and size of the stored pixels, lens distortion aside; its pose
            is the identity.
        lens ([`Lens`], *optional*): the distortion.
    """

    camera: Cameras
    lens: Lens | None = None

    @cached_property
    def straight(self) -> Cameras:
        """The camera without distortion; raises [`CaptureError`] where there is none."""
        return self.camera if self.lens is None else undistorted_camera(self.camera, self.lens)


@dataclass(frozen=True)
class Photo:
    """
    A photo, and how to load it as its camera sees it.

    Attributes:
        path (`Path`): the file.
        optics ([`Optics`]): of the stored pixels; of the upright photo when `exif` is set.
        turns (`int`): quarter turns, counter-clockwise, that make the undistorted photo upright.
        exif (`bool`): whether to apply the EXIF rotation before all else.
        background (`tuple[int, int, int]`): colour behind transparent pixels.
        mask_path (`Path`, *optional*): picture of what belongs to the object (white) and what does not (black).
    """

    path: Path
    optics: Optics
    turns: int = 0
    exif: bool = False
    background: tuple[int, int, int] = (255, 255, 255)
    mask_path: Path | None = None

    def load(self) -> PIL.Image.Image:
        """The photo as an RGB image, undistorted and upright. Raises [`CaptureError`] for damaged files."""
        if self.optics.lens is None and not self.turns:
            return load_image(self.path, self.background, exif=self.exif)
        return self._straight(as_image_tensor(self.path, "photo", self.background, exif=self.exif))

    def load_mask(self) -> PIL.Image.Image:
        """The mask, 8-bit grey, undistorted and upright as the photo; resized where the photo is a smaller copy.
        Raises [`CaptureError`] for damaged files, and for a mask of another shape than the photo."""
        mask = load_mask(self.mask_path, like=self.path if self.exif else None)
        height, width = self.optics.camera.image_sizes.tolist()
        if abs(mask.width * height / mask.height - width) > 1.5:
            raise CaptureError(f"{self.mask_path}: the mask has {mask.size} pixels, its photo {(width, height)}.")
        if mask.size != (width, height):
            mask = mask.resize((width, height), PIL.Image.Resampling.BOX)
        return self._straight(as_image_tensor(mask)).convert("L")

    def _straight(self, tensor: torch.Tensor) -> PIL.Image.Image:
        if self.optics.lens is not None:
            tensor, _ = undistort(tensor, self.optics.camera, self.optics.lens)
        return tensor_to_image(torch.rot90(tensor, self.turns, (-2, -1)))


def photo_cameras(photos: Sequence[Photo], world_from_camera: torch.Tensor, described: Sequence[str]) -> Cameras:
    """
    The cameras of photos as [`~Photo.load`] returns them.

    Args:
        photos (`Sequence[Photo]` of length V):
            The photos.
        world_from_camera (`torch.Tensor` of shape `[V, 4, 4]`):
            Rigid poses of the stored pixels, OpenCV axes.
        described (`Sequence[str]` of length V):
            What to call each photo in an error.

    Returns:
        `Cameras` of shape `[V]`.
    """
    straight = []
    for photo, description in zip(photos, described):
        try:
            straight.append(photo.optics.straight)
        except CaptureError as error:
            raise CaptureError(f"{description}: {error}") from error
    cameras = Cameras.stack(straight).with_poses(world_from_camera)
    turned = [index for index, photo in enumerate(photos) if photo.turns]
    if not turned:
        return cameras
    parts = {turns: cameras.rolled(turns) for turns in {photos[index].turns for index in turned}}
    return Cameras.stack([parts[p.turns][i] if p.turns else cameras[i] for i, p in enumerate(photos)])
