"""A photo on disk, and what its pixels need until a pinhole camera fits them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from ..geometry.cameras import Cameras
from .images import CaptureError, center_box, crop_and_resize, load_image, load_mask
from .lenses import Lens, seen_straight, undistorted_camera


__all__ = ["Optics", "Photo", "photo_cameras"]

_FINER = 4  # a lens is undone at so many times the size that is wanted, along either side, if the photo has it
_TURNS = (None, PIL.Image.Transpose.ROTATE_90, PIL.Image.Transpose.ROTATE_180, PIL.Image.Transpose.ROTATE_270)


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
        return self._straight(load_image(self.path, self.background, exif=self.exif))

    def load_fitted(self, height: int, width: int) -> tuple[torch.Tensor, tuple[int, int]]:
        """What [`fit_image`] makes of a photo with a lens, `[3, height, width]` in [0, 1], and the size that it had,
        (height, width). The lens is undone at no more than four times the size that is asked for.

        Args:
            height (`int`): rows wanted.
            width (`int`): columns wanted.
        """
        optics, turns = self.optics, self.turns
        upright = optics.straight.rolled(turns)
        rows, columns = upright.image_sizes.tolist()
        box = center_box(rows, columns, height, width)
        scale = max(1.0, min(box[2] / height, box[3] / width) / _FINER)
        sizes = [max(1, round(extent / scale)) for extent in box[2:]]
        straight = upright.cropped(*box).resized(*sizes).rolled(-turns)
        image, camera = load_image(self.path, self.background, exif=self.exif), optics.camera
        if scale > 1:
            stored = [max(1, round(extent / scale)) for extent in camera.image_sizes.tolist()]
            image, camera = image.resize(stored[::-1], PIL.Image.Resampling.BOX), camera.resized(*stored)
        photo = torch.from_numpy(np.array(image)).movedim(-1, 0).float() / 255
        photo = torch.rot90(seen_straight(photo, camera, optics.lens, straight), turns, (-2, -1))
        return crop_and_resize(photo, None, (0, 0, *sizes), (height, width))[0], (rows, columns)

    def load_mask(self) -> PIL.Image.Image:
        """The mask, 8-bit grey, undistorted and upright as the photo; resized where the photo is a smaller copy.
        Raises [`CaptureError`] for damaged files, and for a mask of another shape than the photo."""
        mask = load_mask(self.mask_path, like=self.path if self.exif else None)
        height, width = self.optics.camera.image_sizes.tolist()
        if abs(mask.width * height / mask.height - width) > 1.5:
            raise CaptureError(f"{self.mask_path}: the mask has {mask.size} pixels, its photo {(width, height)}.")
        if mask.size != (width, height):
            mask = mask.resize((width, height), PIL.Image.Resampling.BOX)
        return self._straight(mask)

    def _straight(self, image: PIL.Image.Image) -> PIL.Image.Image:
        """An 8-bit image, undistorted and upright."""
        optics = self.optics
        if optics.lens is not None:
            pixels = torch.from_numpy(np.array(image)).reshape(image.height, image.width, -1).movedim(-1, 0)
            pixels = seen_straight(pixels, optics.camera, optics.lens, optics.straight).movedim(0, -1)
            image = PIL.Image.fromarray(pixels.squeeze(-1).contiguous().numpy())
        turn = _TURNS[self.turns % 4]
        return image if turn is None else image.transpose(turn)


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
