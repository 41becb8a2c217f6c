"""Lenses that bend: from the direction of a ray to where a photo shows it, and photos made straight again."""

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from ..geometry.cameras import Cameras
from .images import CaptureError


__all__ = [
    "ColmapLens",
    "FisheyeLens",
    "Lens",
    "RadialTangentialLens",
    "seen_straight",
    "undistort",
    "undistorted_camera",
]

_MOST_ZOOM = 4.0
_GRID = 65
_BAND = 128  # rows
_CELLS = 256  # along the longer side of a picture, at least, and no longer than so many pixels:
_LONGEST_STEP = 16


class Lens(Protocol):
    """Where a lens moves the points of the plane at depth 1."""

    def bend(self, points: torch.Tensor) -> torch.Tensor:
        """Undistorted `[..., 2]` (x / z, y / z), float64, to distorted, likewise.

        Args:
            points (`torch.Tensor`): undistorted `[..., 2]`, float64.
        """


@dataclass(frozen=True)
class RadialTangentialLens:
    """OpenCV's model of common lenses: radial `k1`, `k2`, `k3`, and `k4`, `k5`, `k6`, which divide; tangential `p1`
    and `p2`."""

    k1: float = 0.0
    k2: float = 0.0
    k3: float = 0.0
    k4: float = 0.0
    k5: float = 0.0
    k6: float = 0.0
    p1: float = 0.0
    p2: float = 0.0

    def bend(self, points: torch.Tensor) -> torch.Tensor:
        """See [`Lens`].

        Args:
            points (`torch.Tensor`): undistorted `[..., 2]`, float64.
        """
        x, y = points.unbind(-1)
        square = x**2 + y**2
        radial = 1 + square * (self.k1 + square * (self.k2 + square * self.k3))
        radial = radial / (1 + square * (self.k4 + square * (self.k5 + square * self.k6)))
        bent_x = x * radial + 2 * self.p1 * x * y + self.p2 * (square + 2 * x**2)
        bent_y = y * radial + self.p1 * (square + 2 * y**2) + 2 * self.p2 * x * y
        return torch.stack([bent_x, bent_y], dim=-1)


@dataclass(frozen=True)
class FisheyeLens:
    """OpenCV's fisheye model: the distance from the centre is a polynomial in the angle from the axis, with
    coefficients `k1`, `k2`, `k3` and `k4`."""

    k1: float = 0.0
    k2: float = 0.0
    k3: float = 0.0
    k4: float = 0.0

    def bend(self, points: torch.Tensor) -> torch.Tensor:
        """See [`Lens`].

        Args:
            points (`torch.Tensor`): undistorted `[..., 2]`, float64.
        """
        radius = torch.linalg.vector_norm(points, dim=-1, keepdim=True)
        angle = radius.atan()
        square = angle**2
        bent = angle * (1 + square * (self.k1 + square * (self.k2 + square * (self.k3 + square * self.k4))))
        return torch.where(radius > 1e-12, points * bent / radius.clamp(min=1e-12), points)


@dataclass(frozen=True)
class ColmapLens:
    """Any camera model of COLMAP, computed by pycolmap.

    Args:
        model (`str`): COLMAP's name of it.
        width (`int`): of the photo.
        height (`int`): of the photo.
        params (`tuple[float, ...]`): in COLMAP's order, focal lengths and principal point among them.
    """

    model: str
    width: int
    height: int
    params: tuple[float, ...]
    _camera: object = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        try:
            import pycolmap
        except ImportError as error:
            raise CaptureError(
                f"the camera model {self.model} needs pycolmap: pip install 'kaleido-diffusers[captures]'."
            ) from error
        options = {"model": self.model, "width": self.width, "height": self.height, "params": self.params}
        object.__setattr__(self, "_camera", pycolmap.Camera(**options))

    def bend(self, points: torch.Tensor) -> torch.Tensor:
        """See [`Lens`].

        Args:
            points (`torch.Tensor`): undistorted `[..., 2]`, float64.
        """
        camera = self._camera
        flat = F.pad(points.reshape(-1, 2), (0, 1), value=1.0)
        pixels = torch.from_numpy(np.asarray(camera.img_from_cam(flat.numpy()), dtype=np.float64))
        center = torch.tensor([camera.principal_point_x, camera.principal_point_y], dtype=torch.float64)
        focal = torch.tensor([camera.focal_length_x, camera.focal_length_y], dtype=torch.float64)
        return ((pixels - center) / focal).reshape(points.shape)

    def __reduce__(self):
        return ColmapLens, (self.model, self.width, self.height, self.params)


def undistort(image: torch.Tensor, camera: Cameras, lens: Lens) -> tuple[torch.Tensor, Cameras]:
    """
    Takes the lens distortion out of a photo.

    The focal lengths grow just so much that no pixel of the result lies outside the photo; the size and the principal
    point stay. Bilinear.

    Args:
        image (`torch.Tensor` of shape `[C, H, W]`):
            The photo.
        camera (`Cameras` of shape `[]`):
            Its camera, the lens aside.
        lens ([`Lens`]):
            The lens.

    Returns:
        The image `[C, H, W]` and its camera. Raises [`CaptureError`] for a lens that folds the image over itself.
    """
    undistorted = undistorted_camera(camera, lens)
    return seen_straight(image, camera, lens, undistorted), undistorted


def seen_straight(image: torch.Tensor, camera: Cameras, lens: Lens, straight: Cameras) -> torch.Tensor:
    """
    What a camera without distortion, in the place of the one that took a photo, would have seen. Bilinear: it should
    have no fewer pixels than the photo where it looks.

    Args:
        image (`torch.Tensor` of shape `[C, H, W]`):
            The photo, uint8 or floating point.
        camera (`Cameras` of shape `[]`):
            The one that took it, the lens aside.
        lens ([`Lens`]):
            Its lens.
        straight (`Cameras` of shape `[]`):
            The one without distortion.

    Returns:
        `torch.Tensor` of shape `[C, H', W']`, the size of `straight`.
    """
    rows, columns = image.shape[-2:]
    height, width = straight.image_sizes.tolist()
    # A lens bends little over a few pixels: where each of them comes from is computed for some, and between them
    step = min(max(max(height, width) // _CELLS, 1), _LONGEST_STEP)
    y, x = (_nodes(extent, step) for extent in (height, width))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    nodes = _photo_pixels(grid, straight.intrinsics, camera.intrinsics, lens)  # [Y, X, 2]
    result = image.new_empty((image.shape[0], height, width))
    options = dict(mode="bilinear", padding_mode="border", align_corners=False)
    for top in range(0, height, _BAND):  # in bands: as floating point, pixels and where they come from take much room
        bottom = min(top + _BAND, height)
        pixels = _between(nodes, top, bottom, (height, width))  # [y, x, 2]
        first = min(max(math.floor(float(pixels[..., 1].min())) - 1, 0), rows - 1)
        last = max(min(math.ceil(float(pixels[..., 1].max())) + 1, rows), first + 1)
        part = image[:, first:last].to(torch.float32)
        pixels = pixels - pixels.new_tensor([0, first])
        grid = (2 * pixels / pixels.new_tensor([columns, last - first]) - 1).to(torch.float32)
        band = F.grid_sample(part[None], grid[None], **options)[0]
        result[:, top:bottom] = band if image.is_floating_point() else band.round()
    return result


def _nodes(extent: int, step: int) -> torch.Tensor:
    """Centres of the first pixel, the last, and of some between them, no more than `step` apart."""
    count = -(-(extent - 1) // step) + 1
    return torch.linspace(0.5, extent - 0.5, count, dtype=torch.float64)


def _between(nodes: torch.Tensor, top: int, bottom: int, size: tuple[int, int]) -> torch.Tensor:
    """Values `[y, W, 2]` of the rows from `top` to `bottom` of a picture of `size`, given some `[Y, X, 2]`, of which
    the first and the last are its corners."""
    height, width = size
    place = torch.arange(top, bottom, dtype=torch.float64) * ((len(nodes) - 1) / max(height - 1, 1))
    before = place.floor().long().clamp(max=max(len(nodes) - 2, 0))
    after = (before + 1).clamp(max=len(nodes) - 1)
    rows = torch.lerp(nodes[before], nodes[after], (place - before)[:, None, None])  # [y, X, 2]
    spread = F.interpolate(rows.permute(2, 0, 1), size=width, mode="linear", align_corners=True)
    return spread.permute(1, 2, 0)


def undistorted_camera(camera: Cameras, lens: Lens) -> Cameras:
    """The camera of the photo once its lens distortion is taken out, see [`undistort`].

    Args:
        camera ([`Cameras`]): of the photo as it was taken.
        lens (`Lens`): its distortion.
    """
    height, width = camera.image_sizes.tolist()
    x, y = (torch.linspace(0, extent, _GRID, dtype=torch.float64) for extent in (width, height))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    border = torch.cat([grid[0], grid[-1], grid[:, 0], grid[:, -1]])
    size = torch.tensor([width, height], dtype=torch.float64)

    def zoomed(zoom: float) -> torch.Tensor:
        intrinsics = camera.intrinsics.clone()
        intrinsics[:2, :2] *= zoom
        return intrinsics

    def inside(zoom: float) -> bool:
        pixels = _photo_pixels(border, zoomed(zoom), camera.intrinsics, lens)
        return bool(((pixels >= -1e-9) & (pixels <= size + 1e-9)).all())

    low, high = 1.0, _MOST_ZOOM
    center = camera.intrinsics[:2, 2]
    if not ((center > 0) & (center < size)).all():
        raise CaptureError(f"the principal point {center.tolist()} lies outside the photo: {lens} cannot be undone.")
    if not inside(high):
        raise CaptureError(f"{lens} folds the image over itself and cannot be undone.")
    if inside(low):
        high = low
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if inside(middle) else (middle, high)
    if _folds(_photo_pixels(grid, zoomed(high), camera.intrinsics, lens)):
        raise CaptureError(f"{lens} folds the image over itself and cannot be undone.")
    return Cameras(camera.world_from_camera, zoomed(high), camera.image_sizes)


def _folds(pixels: torch.Tensor) -> bool:
    """Whether a grid of pixels `[Y, X, 2]` turns over anywhere."""
    right, down = pixels[:-1].diff(dim=1), pixels[:, :-1].diff(dim=0)
    turn = right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]
    return not bool((turn > 0).all())


def _photo_pixels(
    pixels: torch.Tensor, intrinsics: torch.Tensor, photo_intrinsics: torch.Tensor, lens: Lens
) -> torch.Tensor:
    """Where in the photo the undistorted `pixels` `[..., 2]` were seen."""
    directions = F.pad(pixels, (0, 1), value=1.0) @ torch.linalg.inv(intrinsics).T
    return (F.pad(lens.bend(directions[..., :2]), (0, 1), value=1.0) @ photo_intrinsics.T)[..., :2]
