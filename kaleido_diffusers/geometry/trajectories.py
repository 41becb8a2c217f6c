"""Camera paths. Each function takes the cameras of a capture and returns new `Cameras` `[num_views]` that fly through
it, with the lens and image size of the first camera unless said otherwise."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from .cameras import Cameras, look_at, nearest_to_lines


__all__ = [
    "ABOUT_FOCUS",
    "PATHS",
    "arc",
    "camera_path",
    "dolly",
    "dolly_zoom",
    "focus_point",
    "keyframes",
    "lemniscate",
    "lone_focus",
    "looking_distances",
    "orbit",
    "pan",
    "spiral",
    "tilt",
    "up_direction",
]


def focus_point(cameras: Cameras) -> torch.Tensor:
    """The world point `[3]` nearest to all optical axes in the least-squares sense.

    Axes that are (nearly) parallel meet nowhere; a weak pull towards one camera spread in front of the cameras decides
    there.

    Args:
        cameras ([`Cameras`]): `[V]`.
    """
    centers, forward = cameras.centers, cameras.forward
    spread = (centers - centers.mean(0)).norm(dim=-1).max().clamp_min(1e-6)
    guess = (centers + 2 * spread * forward).mean(0)
    matrix, vector = nearest_to_lines(centers, forward)
    weight = 1e-3
    eye = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.solve(matrix + weight * eye, vector + weight * guess)


def looking_distances(cameras: Cameras, targets: Cameras) -> torch.Tensor:
    """Depths `[M]`, along the axes of `targets` `[M]`, of the point that they and `cameras` `[V]` look at, see
    [`focus_point`]; twice the extent of the cameras where that lies behind a target or next to it."""
    together = Cameras.cat([cameras, targets])
    extent = (together.centers - together.centers.mean(0)).norm(dim=-1).max().clamp_min(1e-6)
    depths = ((focus_point(together) - targets.centers) * targets.forward).sum(-1)
    return torch.where(depths > 0.1 * extent, depths, 2 * extent)


def up_direction(cameras: Cameras) -> torch.Tensor:
    """The world's up `[3]` (unit length), as photographers who keep the horizon level have it: the direction most
    orthogonal to the cameras' right axes, on the side of their mean up.

    Args:
        cameras ([`Cameras`]): `[V]`.
    """
    right, up = cameras.world_from_camera[:, :3, 0], -cameras.world_from_camera[:, :3, 1]
    mean_up = F.normalize(up.mean(0), dim=0)
    eye = torch.eye(3, dtype=torch.float32).to(right)
    scatter = (right.unsqueeze(-1) * right.unsqueeze(-2)).mean(0) + 1e-3 * (eye - torch.outer(mean_up, mean_up))
    candidate = torch.linalg.eigh(scatter).eigenvectors[:, 0]
    return candidate * (1.0 if candidate @ mean_up >= 0 else -1.0)


def orbit(
    cameras: Cameras,
    num_views: int = 80,
    degrees: float = 360.0,
    elevation: float | None = None,
    radius: float | None = None,
    focus: torch.Tensor | None = None,
    start: float = 0.0,
) -> Cameras:
    """A circle around the point that the cameras look at, starting at the first camera's side.

    Args:
        cameras (`Cameras` of shape `[V]`): the capture.
        num_views (`int`): views on the path. A full circle does not repeat its first view.
        degrees (`float`): the arc; negative turns the other way.
        elevation (`float`, *optional*): degrees above the focus point; the capture's median when not given.
        radius (`float`, *optional*): distance to the focus point in world units; the capture's median when not given.
        focus (`torch.Tensor` of shape `[3]`, *optional*): centre of the circle; what the cameras look at when not
            given, which cameras in one place do not tell.
        start (`float`): degrees from the first camera's side at which it begins, positive to the right as seen from
            the focus point.
    """
    _check_path(cameras, num_views)
    focus, up = _focus(cameras, focus), up_direction(cameras)
    offsets = cameras.centers - focus
    distances = offsets.norm(dim=-1)
    if radius is None:
        radius = float(distances.median())
    if elevation is None:
        heights = (offsets @ up / distances.clamp_min(1e-12)).clamp(-1, 1)
        elevation = float(torch.rad2deg(torch.asin(heights)).median())
    if not radius > 0:
        raise ValueError(f"`radius` must be positive, got {radius}.")
    if not -89 <= elevation <= 89:
        raise ValueError(f"`elevation` must lie between -89 and 89 degrees, got {elevation}.")
    ahead, side = _compass(cameras, offsets, up)
    angles = math.radians(start) + _turn(degrees, num_views, focus)
    horizontal = torch.cos(angles)[:, None] * ahead + torch.sin(angles)[:, None] * side
    tilt = math.radians(elevation)
    centers = focus + radius * (math.cos(tilt) * horizontal + math.sin(tilt) * up)
    return _like(cameras[0], look_at(centers, focus, up))


def arc(cameras: Cameras, num_views: int = 80, focus: torch.Tensor | None = None) -> Cameras:
    """The part of an [`orbit`] along which the photos were taken: all of it but the widest gap between neighbours, and
    a full circle where no gap is wider than 45 degrees. At least 20 degrees, to both sides of the photos.

    Args:
        cameras (`Cameras` of shape `[V]`): the capture.
        num_views (`int`): views on the path.
        focus (`torch.Tensor` of shape `[3]`, *optional*): as in [`orbit`].
    """
    _check_path(cameras, num_views)
    focus, up = _focus(cameras, focus), up_direction(cameras)
    offsets = cameras.centers - focus
    ahead, side = _compass(cameras, offsets, up)
    angles = torch.rad2deg(torch.atan2(offsets @ side, offsets @ ahead)).sort().values
    gaps = torch.cat([angles[1:], angles[:1] + 360]) - angles
    widest = int(gaps.argmax())
    if gaps[widest] <= _SMALL_GAP:
        return orbit(cameras, num_views, focus=focus)
    span, start = 360 - float(gaps[widest]), float(angles[(widest + 1) % len(angles)])
    more = max(0.0, _LEAST_ARC - span)
    return orbit(cameras, num_views, degrees=span + more, focus=focus, start=start - more / 2)


def _compass(cameras: Cameras, offsets: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two level directions `[3]`: to the first camera's side, and at right angles to it. `offsets` `[V, 3]` are the
    cameras' from the focus point."""
    ahead = offsets[0] - (offsets[0] @ up) * up
    if ahead.norm() < 1e-6 * offsets.norm(dim=-1).median():
        ahead = cameras.world_from_camera[0, :3, 0]
    ahead = F.normalize(ahead - (ahead @ up) * up, dim=0)
    return ahead, torch.linalg.cross(up, ahead)


def spiral(
    cameras: Cameras,
    num_views: int = 80,
    turns: float = 2.0,
    amplitude: float = 0.25,
    focus: torch.Tensor | None = None,
) -> Cameras:
    """The LLFF spiral: the first camera swings on circles and back and forth, looking at the focus point.

    Args:
        cameras (`Cameras` of shape `[V]`): the capture.
        num_views (`int`): views on the path.
        turns (`float`): circles on the way.
        amplitude (`float`): radius of the circles, as a fraction of the first camera's distance to the focus point.
        focus (`torch.Tensor` of shape `[3]`, *optional*): as in [`orbit`].
    """
    _check_path(cameras, num_views)
    focus = _focus(cameras, focus)
    pose = cameras.world_from_camera[0]
    right, up, forward, center = pose[:3, 0], -pose[:3, 1], pose[:3, 2], pose[:3, 3]
    reach = amplitude * (focus - center).norm()
    angles = torch.linspace(0, 2 * math.pi * turns, num_views, dtype=pose.dtype, device=pose.device)[:, None]
    swing = torch.sin(angles) * right + (1 - torch.cos(angles)) * 0.5 * up + 0.5 * torch.sin(angles / 2) * forward
    return _like(cameras[0], look_at(center + reach * swing, focus, up))


def lemniscate(
    cameras: Cameras, num_views: int = 80, amplitude: float = 0.25, focus: torch.Tensor | None = None
) -> Cameras:
    """A lying figure of eight (Bernoulli's lemniscate) that crosses itself where the first camera stands, looking at
    the focus point. It is closed and does not repeat its first view.

    Args:
        cameras (`Cameras` of shape `[V]`): the capture.
        num_views (`int`): views on the path.
        amplitude (`float`): how far it reaches to the right and to the left, as a fraction of the first camera's
            distance to the focus point.
        focus (`torch.Tensor` of shape `[3]`, *optional*): as in [`orbit`].
    """
    _check_path(cameras, num_views)
    focus = _focus(cameras, focus)
    pose = cameras.world_from_camera[0]
    right, up, center = pose[:3, 0], -pose[:3, 1], pose[:3, 3]
    reach = amplitude * (focus - center).norm()
    sine, cosine = (fn(_turn(360.0, num_views, pose))[:, None] for fn in (torch.sin, torch.cos))
    swing = (sine * right + sine * cosine * up) / (1 + cosine**2)
    return _like(cameras[0], look_at(center + reach * swing, focus, up))


def dolly(cameras: Cameras, num_views: int = 80, distance: float = 0.5, focus: torch.Tensor | None = None) -> Cameras:
    """The first camera travels straight ahead along its optical axis.

    Args:
        cameras (`Cameras` of shape `[V]`): the capture.
        num_views (`int`): views on the path.
        distance (`float`): how far it goes, as a fraction of its distance to the focus point; negative backs off.
        focus (`torch.Tensor` of shape `[3]`, *optional*): as in [`orbit`]; it says how far, not where to.
    """
    _check_path(cameras, num_views)
    pose = cameras.world_from_camera[0]
    reach = distance * (_focus(cameras, focus) - pose[:3, 3]).norm()
    poses = pose.repeat(num_views, 1, 1)
    poses[:, :3, 3] += torch.linspace(0, 1, num_views, dtype=torch.float32).to(pose)[:, None] * reach * pose[:3, 2]
    return _like(cameras[0], poses)


def dolly_zoom(
    cameras: Cameras, num_views: int = 80, factor: float = 2.0, focus: torch.Tensor | None = None
) -> Cameras:
    """The Vertigo shot: the first camera backs off to `factor` times its distance from the focus point (below 1 it
    comes nearer) while its focal length grows as much, so that what stands at the focus point (by default, what the
    cameras look at) keeps its size.

    Args:
        cameras ([`Cameras`]): of the capture, `[V]`.
        num_views (`int`, defaults to `80`): of the path.
        factor (`float`, defaults to `2.0`): how many times as far it goes.
        focus (`torch.Tensor`, *optional*): `[3]`, the point that keeps its size.
    """
    _check_path(cameras, num_views)
    if not factor > 0:
        raise ValueError(f"`factor` must be positive, got {factor}.")
    first = cameras[0]
    pose = first.world_from_camera
    depth = (_focus(cameras, focus) - pose[:3, 3]) @ pose[:3, 2]
    if depth <= 0:
        raise ValueError("`dolly_zoom` needs a first camera that faces the point the cameras look at.")
    zoom = torch.logspace(0, math.log2(factor), num_views, base=2, dtype=pose.dtype, device=pose.device)
    poses = pose.repeat(num_views, 1, 1)
    poses[:, :3, 3] -= ((zoom - 1) * depth)[:, None] * pose[:3, 2]
    intrinsics = first.intrinsics.repeat(num_views, 1, 1)
    intrinsics[:, :2, :2] *= zoom[:, None, None]
    return Cameras(poses, intrinsics, first.image_sizes)


def pan(cameras: Cameras, num_views: int = 80, degrees: float = 60.0) -> Cameras:
    """The first camera turns about the world's up, where it stands.

    Args:
        cameras (`Cameras` of shape `[V]`): the capture; all of it tells where up is, see [`up_direction`].
        num_views (`int`): views on the path. A full circle does not repeat its first view.
        degrees (`float`): the turn to the right; negative turns to the left.
    """
    _check_path(cameras, num_views)
    return _turned(cameras[0], -up_direction(cameras), _turn(degrees, num_views, cameras.centers))


def tilt(cameras: Cameras, num_views: int = 80, degrees: float = 30.0) -> Cameras:
    """The first camera turns about its right axis, where it stands.

    Args:
        cameras (`Cameras` of shape `[V]`): the capture.
        num_views (`int`): views on the path. A full circle does not repeat its first view.
        degrees (`float`): the turn upwards; negative turns downwards.
    """
    _check_path(cameras, num_views)
    right = cameras.world_from_camera[0, :3, 0]
    return _turned(cameras[0], right, _turn(degrees, num_views, cameras.centers))


def keyframes(cameras: Cameras, num_views: int = 80, closed: bool = False) -> Cameras:
    """A smooth path through the given cameras: Catmull-Rom in the centres, its counterpart on rotations (de Casteljau
    on geodesics, Shoemake 1985) in the orientations, so that velocity and angular velocity are continuous. Focal
    lengths and principal points follow too; `closed` returns to the first camera. The images must share one size.

    Args:
        cameras ([`Cameras`]): to pass through, `[V]`.
        num_views (`int`, defaults to `80`): of the path.
        closed (`bool`, defaults to `False`): whether it ends where it began.
    """
    if len(cameras.shape) != 1 or len(cameras) < 2:
        raise ValueError(f"`keyframes` needs at least two cameras, got shape {list(cameras.shape)}.")
    _check_path(cameras, num_views)
    cameras = cameras.to(torch.float64)
    if (cameras.image_sizes != cameras.image_sizes[0]).any():
        sizes = cameras.image_sizes.unique(dim=0).tolist()
        raise ValueError(f"`keyframes` needs cameras of one image size, got (height, width) {sizes}.")
    order = torch.arange(len(cameras) + closed) % len(cameras)
    keys = cameras[order]
    count = len(order)
    like = {"dtype": torch.float64, "device": cameras.device}
    place = torch.linspace(0, count - 1, num_views, **like)
    segment = place.floor().long().clamp_max(count - 2)
    t = (place - segment)[:, None]

    centers = _cubic(keys.centers, segment, t, closed)
    lens = torch.stack([keys.intrinsics[:, i, j] for i, j in _LENS], dim=-1)
    lens[:, :2] = lens[:, :2].log()
    lens = _cubic(lens, segment, t, closed)
    poses = torch.eye(4, **like).repeat(num_views, 1, 1)
    poses[:, :3, 3] = centers
    poses[:, :3, :3] = _rotation_spline(keys.world_from_camera[:, :3, :3], segment, t, closed)
    intrinsics = torch.eye(3, **like).repeat(num_views, 1, 1)
    lens[:, :2] = lens[:, :2].exp()
    for column, (i, j) in enumerate(_LENS):
        intrinsics[:, i, j] = lens[:, column]
    return Cameras(poses, intrinsics, keys.image_sizes[0])


PATHS: dict[str, Callable[..., Cameras]] = {  # all are called as path(cameras, num_views=...)
    "arc": arc,
    "orbit": orbit,
    "spiral": spiral,
    "dolly": dolly,
    "dolly-zoom": dolly_zoom,
    "pan": pan,
    "tilt": tilt,
    "lemniscate": lemniscate,
    "keyframes": keyframes,
}
ABOUT_FOCUS = ("arc", "orbit", "spiral", "dolly", "dolly-zoom", "lemniscate")  # those that take `focus`

_SMALL_GAP, _LEAST_ARC = 45.0, 20.0  # degrees
_LENS = ((0, 0), (1, 1), (0, 1), (0, 2), (1, 2))


def _check_path(cameras: Cameras, num_views: int) -> None:
    if len(cameras.shape) != 1 or not len(cameras):
        raise ValueError(f"A path needs cameras of shape [V], got {list(cameras.shape)}.")
    if num_views < 1:
        raise ValueError(f"`num_views` must be at least 1, got {num_views}.")


def _focus(cameras: Cameras, focus: torch.Tensor | None) -> torch.Tensor:
    """The point `[3]` that a path turns about."""
    if focus is not None:
        focus = torch.as_tensor(focus).to(cameras.centers)
        if focus.shape != (3,) or not focus.isfinite().all():
            raise ValueError(f"`focus` must be a finite point [3], got {focus.tolist()}.")
        return focus
    if cameras.in_one_place:
        raise ValueError(
            "Cameras in one place do not tell how far away the scene is: pass `focus`, a point [3] of it."
        )
    return focus_point(cameras)


def lone_focus(cameras: Cameras) -> torch.Tensor | None:
    """What a camera that is alone is taken to look at: a point `[3]` one unit ahead, since one photo does not tell how
    far away its scene is. `None` for several, which tell it themselves.

    Args:
        cameras ([`Cameras`]): `[V]`.
    """
    return cameras.centers[0] + cameras.forward[0] if len(cameras) == 1 else None


def camera_path(name: str, cameras: Cameras, num_views: int = 80) -> Cameras:
    """
    A path by its name, about what the cameras look at.

    Args:
        name (`str`): one of [`PATHS`].
        cameras (`Cameras` of shape `[V]`): the capture; one camera alone will do, but for `keyframes`.
        num_views (`int`): views on the path.
    """
    options = {"focus": lone_focus(cameras)} if name in ABOUT_FOCUS else {}
    return PATHS[name](cameras, num_views=num_views, **options)


def _turn(degrees: float, num_views: int, like: torch.Tensor) -> torch.Tensor:
    """Angles `[num_views]` in radians from 0 to `degrees`; those of a full circle stop one short of its start."""
    full_circle = abs(abs(degrees) - 360.0) < 1e-9
    angles = torch.linspace(0, math.radians(degrees), num_views + full_circle, dtype=like.dtype, device=like.device)
    return angles[:num_views]


def _turned(camera: Cameras, axis: torch.Tensor, angles: torch.Tensor) -> Cameras:
    """A camera turned where it stands about a world axis `[3]` of unit length by `angles` `[K]` in radians."""
    poses = camera.world_from_camera.repeat(len(angles), 1, 1)
    poses[:, :3, :3] = _so3_exp(angles[:, None] * axis) @ poses[:, :3, :3]
    return _like(camera, poses)


def _like(camera: Cameras, poses: torch.Tensor) -> Cameras:
    return Cameras(poses, camera.intrinsics, camera.image_sizes)


def _tangents(steps: torch.Tensor, closed: bool) -> torch.Tensor:
    """Catmull-Rom tangents `[K, C]` at the keys from the steps `[K-1, C]` between them."""
    first = (steps[0] + steps[-1]) / 2 if closed else steps[0]
    last = first if closed else steps[-1]
    return torch.cat([first[None], (steps[1:] + steps[:-1]) / 2, last[None]])


def _cubic(values: torch.Tensor, segment: torch.Tensor, t: torch.Tensor, closed: bool) -> torch.Tensor:
    """Catmull-Rom through `values` `[K, C]` at `segment + t`, as Bezier segments."""
    tangents = _tangents(values.diff(dim=0), closed)
    a, d = values[segment], values[segment + 1]
    b, c = a + tangents[segment] / 3, d - tangents[segment + 1] / 3
    return (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d


def _rotation_spline(rotations: torch.Tensor, segment: torch.Tensor, t: torch.Tensor, closed: bool) -> torch.Tensor:
    """The same on rotations `[K, 3, 3]`: Bezier segments built by de Casteljau with geodesics for straight lines."""
    tangents = _tangents(_so3_log(rotations[:-1].mT @ rotations[1:]), closed)
    a, d = rotations[segment], rotations[segment + 1]
    b = a @ _so3_exp(tangents[segment] / 3)
    c = d @ _so3_exp(-tangents[segment + 1] / 3)
    points = [a, b, c, d]
    while len(points) > 1:
        points = [p @ _so3_exp(t * _so3_log(p.mT @ q)) for p, q in zip(points, points[1:])]
    return points[0]


def _so3_exp(vectors: torch.Tensor) -> torch.Tensor:
    """Rotation matrices `[..., 3, 3]` of rotation vectors `[..., 3]` (axis times angle)."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    return torch.linalg.matrix_exp(skew)


def _so3_log(rotations: torch.Tensor) -> torch.Tensor:
    """Rotation vectors `[..., 3]` of rotation matrices `[..., 3, 3]`, stable at 0 and at pi.

    The quaternion is the main eigenvector of Bar-Itzhack's matrix (2000).
    """
    r = rotations
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in r.unbind(-2))
    rows = [
        [xx - yy - zz, yx + xy, zx + xz, zy - yz],
        [yx + xy, yy - xx - zz, zy + yz, xz - zx],
        [zx + xz, zy + yz, zz - xx - yy, yx - xy],
        [zy - yz, xz - zx, yx - xy, xx + yy + zz],
    ]
    matrix = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    quaternion = torch.linalg.eigh(matrix).eigenvectors[..., -1]
    quaternion = torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)
    vector, scalar = quaternion[..., :3], quaternion[..., 3:]
    sine = vector.norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, scalar)
    return torch.where(sine > 1e-12, vector / sine.clamp_min(1e-12) * angle, 2 * vector)
