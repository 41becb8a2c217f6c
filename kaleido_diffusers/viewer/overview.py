"""Where the page opens: all the photos in sight, beside the panel, and a view from among them."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from ..geometry.cameras import Cameras, rotations_from_quaternions
from ..geometry.choosing import INVENTED, seen_share
from ..geometry.trajectories import keyframes


__all__ = ["among", "free_of_panel", "is_at", "stand_back"]

_PHONE = 576  # pixels of width up to which viser's panel lies below, not beside
_BESIDE, _BELOW = 415, 0.6  # what it covers: pixels of the width with its margins; at most that part of the height
_LEAST = 0.35  # of the width, which is left where a panel beside would leave less
_MARGIN = 0.9  # of what is free, to be filled


def free_of_panel(width: int) -> tuple[float, float, float, float]:
    """What the panel leaves of a window: from left, right, bottom and top, as parts of the window from its middle, -1
    to 1, up and to the right.

    Args:
        width (`int`): of the window in pixels.
    """
    if width <= _PHONE:
        return -1.0, 1.0, 2 * _BELOW - 1, 1.0
    return -1.0, 2 * max(1 - _BESIDE / width, _LEAST) - 1, -1.0, 1.0


def stand_back(
    seen: torch.Tensor, side: torch.Tensor, reach: float, fov: float, width: int, height: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Position of an upright camera, and a point ahead of it: as near as shows all points where the panel is not.

    Args:
        seen (`torch.Tensor` of shape `[N, 3]`): points, where +Z is up.
        side (`torch.Tensor` of shape `[3]`): from their middle, whence to look.
        reach (`float`): of what stands at each point.
        fov (`float`): vertical field of view in radians.
        width (`int`): of the window in pixels.
        height (`int`): likewise.
    """
    middle = (seen.amin(0) + seen.amax(0)) / 2
    back = F.normalize(side, dim=0)
    right = F.normalize(torch.linalg.cross(back.new_tensor([0.0, 0.0, 1.0]), back), dim=0)
    up = torch.linalg.cross(back, right)
    left, rightmost, low, high = (_MARGIN * end for end in free_of_panel(width))
    nearer = (seen - middle) @ back + reach
    away, ends = nearer.max(), []
    for axis, first, last, aspect in ((right, left, rightmost, width / height), (up, low, high, 1.0)):
        slope = math.tan(fov / 2) * aspect
        across, room = (seen - middle) @ axis / slope, reach / slope
        ends.append((axis, slope, first, last, across, room))
        # Seen at (across + shift) / (away - nearer), and so between first and last of all for some shift
        spread = (last * nearer + across).max() - (first * nearer + across).min() + 2 * room
        away = torch.maximum(away, spread / (last - first))
    stand = middle
    for axis, slope, first, last, across, room in ends:
        least = (first * (away - nearer) - across).max() + room
        most = (last * (away - nearer) - across).min() - room
        stand = stand - (least + most) / 2 * slope * axis
    return stand + away * back, stand


def is_at(camera, position: np.ndarray, ahead: np.ndarray) -> bool:
    """Whether a browser's camera stands in a place and looks at another, to a thousandth of their distance.

    Args:
        camera (`viser.CameraHandle`): of the browser.
        position (`np.ndarray` of shape `[3]`): the one.
        ahead (`np.ndarray` of shape `[3]`): the other.
    """
    near = 1e-3 * np.linalg.norm(ahead - position)
    turn = rotations_from_quaternions(F.normalize(torch.from_numpy(camera.wxyz).double(), dim=0))
    aside = np.linalg.norm(np.cross(turn[:, 2].numpy(), ahead - position))
    return bool(np.linalg.norm(camera.position - position) < near and aside < near)


def among(cameras: Cameras) -> torch.Tensor:
    """A pose `[4, 4]` in the middle of some cameras: half way from the one that is nearest to all to its neighbour, or
    that one's own, where they see too little of what is seen from between them.

    Args:
        cameras ([`Cameras`] of shape `[V]`): of photos.
    """
    gaps = torch.cdist(cameras.centers, cameras.centers)
    middle = int(gaps.sum(-1).argmin())
    if len(cameras) > 1 and not cameras.in_one_place:
        gaps[middle, middle] = torch.inf
        between = keyframes(cameras[[middle, int(gaps[middle].argmin())]], 3)[1:2]
        if seen_share(cameras, between)[0] >= INVENTED:
            return between.world_from_camera[0]
    return cameras.world_from_camera[middle]
