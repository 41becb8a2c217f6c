"""One photo without any pose as a capture: its camera is the world."""

import math
from functools import partial
from pathlib import Path

import torch

from ...geometry.cameras import Cameras
from ..images import UNREAD_SUFFIXES, CaptureError, load_image, open_image
from ..scene import Scene, SceneImages
from .assembly import IMAGE_SUFFIXES, printable


__all__ = ["UnknownLensError", "is_photo", "photo_scene"]

_EXIF_DETAILS = 0x8769
_FOCAL_LENGTH_35MM = 0xA405
_DIAGONAL_35MM = math.hypot(36.0, 24.0)


class UnknownLensError(CaptureError):
    """A photo whose EXIF data do not tell its field of view."""


def is_photo(path: str | Path) -> bool:
    """Whether `path` is called as an image is, be it one that is not read."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES + UNREAD_SUFFIXES


def photo_scene(path: str | Path, fov: float | None = None) -> Scene:
    """
    A capture of one photo, whose camera stands at the origin.

    Args:
        path (`str` or `Path`):
            The photo.
        fov (`float`, *optional*):
            Horizontal field of view of the upright photo in degrees; taken from the EXIF focal length (in 35 mm
            equivalents) when not given.

    Raises [`CaptureError`] when the photo cannot be read, [`UnknownLensError`] when neither tells the field of view.
    """
    path = Path(path)
    image = load_image(path)
    with open_image(path) as header:
        focal = header.getexif().get_ifd(_EXIF_DETAILS).get(_FOCAL_LENGTH_35MM)
    if fov is None:
        if not isinstance(focal, (int, float)) or not focal > 0:
            raise UnknownLensError(f"{path}: the field of view is not known: its EXIF data do not tell, pass `fov`.")
        pixels = focal / _DIAGONAL_35MM * math.hypot(image.width, image.height)
        fov = math.degrees(2 * math.atan(image.width / 2 / pixels))
    cameras = Cameras.from_fov(torch.eye(4, dtype=torch.float64)[None], fov, [image.height, image.width])
    return Scene(SceneImages([partial(load_image, path)]), cameras, printable(path.stem), image_paths=[path])
