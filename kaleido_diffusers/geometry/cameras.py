"""Cameras: poses and intrinsics, and the geometry that the rest of the package asks of them.

Conventions, the same everywhere in this package:

- A pose is `world_from_camera`, a rigid 4x4 matrix. Camera axes are OpenCV's: +X right, +Y down, +Z forward.
- Intrinsics are a 3x3 matrix `K` in pixels of the image that they belong to. The centre of the top-left pixel is
  (0.5, 0.5), so `K` scales with the image and a crop subtracts from the principal point.
- Names carry frames: `b_from_a @ points_a = points_b`.
- Leading dimensions, written `...`, are free.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F


__all__ = [
    "Cameras",
    "SceneFrame",
    "check_rigid",
    "common_focus",
    "convert_axes",
    "farthest_views",
    "homogeneous",
    "invert_intrinsics",
    "invert_rigid",
    "look_at",
    "nearest_to_lines",
    "normalize_intrinsics",
    "pytorch3d_from_world_from_camera",
    "rotations_from_quaternions",
    "scene_frame",
    "through_shorter_lenses",
    "view_distances",
    "world_from_camera_from_pytorch3d",
]

AxesName = Literal["opencv", "opengl", "pytorch3d"]

# Signs of the camera axes seen from OpenCV's. Blender, NeRF and nerfstudio write "opengl".
_AXES_SIGNS = {"opencv": (1.0, 1.0, 1.0), "opengl": (1.0, -1.0, -1.0), "pytorch3d": (-1.0, -1.0, 1.0)}
_FARTHEST = 1e15  # units: squares of more leave float32, and of what stands so far nothing can be told apart
_SHORTEST_FOCAL = 0.02  # image widths: a field of view of 175 degrees
_LONGEST_FOCAL = 1e6  # image widths: a field of view of a fifth of a second of arc
_RIGID_TOLERANCE = 1e-4


def homogeneous(poses: torch.Tensor) -> torch.Tensor:
    """Poses `[..., 4, 4]`: those of shape `[..., 3, 4]`, as many programs write them, get their last row.

    Args:
        poses (`torch.Tensor`): `[..., 3, 4]` or anything else, which comes back as it is.
    """
    if poses.shape[-2:] != (3, 4):
        return poses
    last = poses.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*poses.shape[:-2], 1, 4)
    return torch.cat([poses, last], dim=-2)


def invert_rigid(b_from_a: torch.Tensor) -> torch.Tensor:
    """`a_from_b` of a rigid `b_from_a` `[..., 4, 4]`: transposed rotation, no solve."""
    a_from_b = torch.zeros_like(b_from_a)
    rotation = b_from_a[..., :3, :3].mT
    a_from_b[..., :3, :3] = rotation
    a_from_b[..., :3, 3:] = -(rotation @ b_from_a[..., :3, 3:])
    a_from_b[..., 3, 3] = 1.0
    return a_from_b


def invert_intrinsics(intrinsics: torch.Tensor) -> torch.Tensor:
    """The inverse of upper triangular matrices with a last row of [0, 0, 1], written down: no solve, which ONNX does
    not know.

    Args:
        intrinsics (`torch.Tensor`): `[..., 3, 3]`, in any unit.
    """
    (fx, skew, cx), (_, fy, cy), (_, zero, one) = (row.unbind(-1) for row in intrinsics.unbind(-2))
    entries = [1 / fx, -skew / (fx * fy), (skew * cy - cx * fy) / (fx * fy), zero, 1 / fy, -cy / fy, zero, zero, one]
    return torch.stack(entries, dim=-1).unflatten(-1, (3, 3))


def check_rigid(poses: torch.Tensor, name: str = "poses") -> None:
    """Raises `ValueError` unless every matrix of `poses` `[..., 4, 4]` is finite, orthonormal to 1e-4 and not a
    reflection; the error names the argument and the first matrix that is not.

    Args:
        poses (`torch.Tensor`): `[..., 4, 4]`.
        name (`str`, defaults to `"poses"`): what errors call it.
    """
    if poses.ndim < 2 or poses.shape[-2:] != (4, 4):
        raise ValueError(f"`{name}` must have shape [..., 4, 4], got {list(poses.shape)}.")
    matrices = poses.detach().reshape(-1, 4, 4).to(torch.float64)
    rotation = matrices[:, :3, :3]
    last_row = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64, device=matrices.device)
    finite = matrices.isfinite().all(-1).all(-1)
    orthonormal = (rotation.mT @ rotation - torch.eye(3, dtype=torch.float32).to(rotation)).abs().amax(
        (-2, -1)
    ) < _RIGID_TOLERANCE
    proper = torch.linalg.det(rotation) > 0
    affine = (matrices[:, 3] - last_row).abs().amax(-1) < _RIGID_TOLERANCE
    faults = [
        (finite, "has NaN or infinite entries"),
        (matrices[:, :3, 3].abs().amax(-1) <= _FARTHEST, f"stands more than {_FARTHEST:g} units from the origin"),
        (affine, "has a last row other than [0, 0, 0, 1]"),
        (orthonormal, "has a rotation part that is not orthonormal (scaled or sheared)"),
        (proper, "is a reflection (determinant -1), not a rotation: are its axes converted?"),
    ]
    for good, fault in faults:
        if not good.all():
            index = int((~good).nonzero()[0, 0])
            raise ValueError(
                f"`{name}` must hold rigid world_from_camera matrices, but number {index} {fault}; its rows are"
                f" {', '.join(str([float(f'{x:.4g}') for x in row]) for row in matrices[index].tolist())}."
            )


def rotations_from_quaternions(quaternions: torch.Tensor) -> torch.Tensor:
    """Rotation matrices `[..., 3, 3]` of unit quaternions `[..., 4]`, (w, x, y, z).

    Args:
        quaternions (`torch.Tensor`): `[..., 4]`, (w, x, y, z).
    """
    w, x, y, z = quaternions.unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def convert_axes(world_from_camera: torch.Tensor, source: AxesName, target: AxesName = "opencv") -> torch.Tensor:
    """Renames the camera axes of `world_from_camera` `[..., 4, 4]` from one convention to another.

    `"opencv"` is right, down, forward; `"opengl"` (also Blender, NeRF, nerfstudio) right, up, backward;
    `"pytorch3d"` left, up, forward. The world frame stays as it is.

    Args:
        world_from_camera (`torch.Tensor`): `[..., 4, 4]`.
        source (`AxesName`): convention that the poses have.
        target (`AxesName`, defaults to `"opencv"`): convention that they get.
    """
    signs = [s * t for s, t in zip(_AXES_SIGNS[source], _AXES_SIGNS[target])]
    return world_from_camera * world_from_camera.new_tensor([*signs, 1.0])


def world_from_camera_from_pytorch3d(R: torch.Tensor, T: torch.Tensor) -> torch.Tensor:
    """OpenCV `world_from_camera` `[..., 4, 4]` of PyTorch3D's `R` `[..., 3, 3]`, `T` `[..., 3]`.

    PyTorch3D multiplies row vectors: `points_camera = points_world @ R + T`.
    """
    camera_from_world = torch.zeros(*R.shape[:-2], 4, 4, dtype=R.dtype, device=R.device)
    camera_from_world[..., :3, :3] = R.mT
    camera_from_world[..., :3, 3] = T
    camera_from_world[..., 3, 3] = 1.0
    return convert_axes(invert_rigid(camera_from_world), "pytorch3d", "opencv")


def pytorch3d_from_world_from_camera(world_from_camera: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """PyTorch3D's `R` `[..., 3, 3]` and `T` `[..., 3]`: the inverse of [`world_from_camera_from_pytorch3d`].

    Args:
        world_from_camera (`torch.Tensor`): `[..., 4, 4]`, OpenCV axes.
    """
    camera_from_world = invert_rigid(convert_axes(world_from_camera, "opencv", "pytorch3d"))
    return camera_from_world[..., :3, :3].mT.contiguous(), camera_from_world[..., :3, 3].contiguous()


def look_at(center: torch.Tensor, target: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """OpenCV `world_from_camera` `[..., 4, 4]` of a camera at `center` `[..., 3]` that looks at `target` `[..., 3]`,
    its image upright along `up` `[..., 3]`. `up` must not lie along the line of sight."""
    center, target, up = torch.broadcast_tensors(center, target, up)
    forward = F.normalize(target - center, dim=-1)
    right = torch.linalg.cross(forward, up)
    if (torch.linalg.vector_norm(right, dim=-1) < 1e-9 * torch.linalg.vector_norm(up, dim=-1)).any():
        raise ValueError("`look_at` needs an `up` that does not lie along the line of sight.")
    right = F.normalize(right, dim=-1)
    down = torch.linalg.cross(forward, right)
    world_from_camera = torch.zeros(*center.shape[:-1], 4, 4, dtype=center.dtype, device=center.device)
    world_from_camera[..., :3, :] = torch.stack([right, down, forward, center], dim=-1)
    world_from_camera[..., 3, 3] = 1.0
    return world_from_camera


def normalize_intrinsics(intrinsics: torch.Tensor, image_sizes: torch.Tensor) -> torch.Tensor:
    """Intrinsics `[..., 3, 3]` in pixels to intrinsics in units of the image: fx / W, fy / H, cx / W, cy / H.

    `image_sizes` `[..., 2]` are (height, width).

    Args:
        intrinsics (`torch.Tensor`): `[..., 3, 3]` in pixels.
        image_sizes (`torch.Tensor`): `[..., 2]`, (height, width).
    """
    height, width = image_sizes.to(intrinsics).unbind(-1)
    return intrinsics / torch.stack([width, height, torch.ones_like(width)], dim=-1).unsqueeze(-1)


@dataclass(frozen=True, eq=False)
class SceneFrame:
    """The frame and unit in which the model sees a scene.

    Attributes:
        world_from_scene (`torch.Tensor` of shape `[..., 4, 4]`): rigid pose of the scene frame in the world.
        scale (`torch.Tensor` of shape `[...]`): world units in one scene unit.
    """

    world_from_scene: torch.Tensor
    scale: torch.Tensor

    def normalize(self, world_from_camera: torch.Tensor) -> torch.Tensor:
        """`[..., V, 4, 4]` world_from_camera to scene_from_camera, translations in scene units.

        Args:
            world_from_camera (`torch.Tensor`): `[..., V, 4, 4]`.
        """
        scene_from_camera = invert_rigid(self.world_from_scene).unsqueeze(-3) @ world_from_camera
        scene_from_camera[..., :3, 3] /= self.scale[..., None, None]
        return scene_from_camera

    def denormalize(self, scene_from_camera: torch.Tensor) -> torch.Tensor:
        """The inverse of [`~SceneFrame.normalize`].

        Args:
            scene_from_camera (`torch.Tensor`): `[..., V, 4, 4]`, in scene units.
        """
        scaled = scene_from_camera.clone()
        scaled[..., :3, 3] *= self.scale[..., None, None]
        return self.world_from_scene.unsqueeze(-3) @ scaled


def scene_frame(
    world_from_camera: torch.Tensor,  # [..., V, 4, 4], references first
    num_references: int,
    camera_scale: float = 1.0,
) -> SceneFrame:
    """The frame of the first view, with the spread of the references as the unit of length.

    The unit is the largest distance between two reference centres. With one reference, or with references that (up to
    rounding) stand in one place, it is the largest distance from the first to any view; without references the
    largest distance between any two views. Where that is zero, it is 1. Normalised translations are multiplied by
    `camera_scale`.

    Args:
        world_from_camera (`torch.Tensor`): `[..., V, 4, 4]`, references first.
        num_references (`int`): N.
        camera_scale (`float`, defaults to `1.0`): multiplies normalised translations.
    """
    if not 0 <= num_references <= world_from_camera.shape[-3]:
        raise ValueError(
            f"`num_references` must lie between 0 and the {world_from_camera.shape[-3]} views, got {num_references}."
        )
    if not camera_scale > 0 or not math.isfinite(camera_scale):
        raise ValueError(f"`camera_scale` must be a positive number, got {camera_scale}.")
    centers = world_from_camera[..., :3, 3]
    reach = torch.linalg.vector_norm(centers - centers[..., :1, :], dim=-1).amax(-1)
    chosen = centers[..., : num_references or None, :]
    unit = _diameter(chosen)
    rounding = 64 * torch.finfo(centers.dtype).eps * (centers.abs().amax((-2, -1)) + reach)
    unit = torch.where(unit > rounding, unit, reach)
    unit = torch.where(unit > rounding, unit, torch.ones_like(unit))
    return SceneFrame(world_from_camera[..., 0, :, :].clone(), unit / camera_scale)


def nearest_to_lines(points: torch.Tensor, directions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Equations `[..., 3, 3]` and `[..., 3]` that the point nearest to lines solves, in the least-squares sense.

    Args:
        points (`torch.Tensor`): `[..., V, 3]`, one on each line.
        directions (`torch.Tensor`): `[..., V, 3]`, of unit length.
    """
    eye = torch.eye(3, dtype=directions.dtype, device=directions.device)
    across = eye - directions.unsqueeze(-1) * directions.unsqueeze(-2)
    return across.mean(-3), (across @ points.unsqueeze(-1)).squeeze(-1).mean(-2)


def common_focus(world_from_camera: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
    """The point `[..., 3]` that cameras look at together: the nearest to all optical axes, in the least-squares sense.

    NaN where there is none: where it is outside of one of the pictures, or the axes are parallel, or meet in the
    cameras.

    Args:
        world_from_camera (`torch.Tensor`): `[..., V, 4, 4]`.
        intrinsics (`torch.Tensor`): `[..., V, 3, 3]`, normalised by width and height.
    """
    first = world_from_camera[..., :1, :3, 3]
    centers, axes = world_from_camera[..., :3, 3] - first, world_from_camera[..., :3, 2]
    matrix, vector = nearest_to_lines(centers, axes)
    # The least eigenvalue is the mean squared sine of the angles between the axes and their middle: half a degree
    parallel = torch.linalg.eigvalsh(matrix)[..., 0] < 7.6e-5
    eye = torch.eye(3, dtype=axes.dtype, device=axes.device)
    focus = torch.linalg.solve(matrix + parallel[..., None, None] * eye, vector).unsqueeze(-2)
    seen = (intrinsics @ world_from_camera[..., :3, :3].mT @ (focus - centers).unsqueeze(-1)).squeeze(-1)
    reach = centers.norm(dim=-1).amax(-1, keepdim=True)
    rounding = 64 * torch.finfo(axes.dtype).eps * (first.abs().amax(-1) + reach)
    ahead = (seen[..., 2] > 0.05 * reach) & (reach > rounding)
    inside = ((seen[..., :2] / seen[..., 2:] - 0.5).abs() <= 0.5).all(-1)
    is_common = (ahead & inside).all(-1, keepdim=True) & ~parallel.unsqueeze(-1)
    return torch.where(is_common, focus.squeeze(-2) + first.squeeze(-2), torch.nan)


def through_shorter_lenses(
    world_from_camera: torch.Tensor, intrinsics: torch.Tensor, focus: torch.Tensor, zoom: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Poses and intrinsics of cameras that see about the same through lenses whose focal length is multiplied by `zoom`.

    A camera goes ahead along its optical axis until what is as far as `focus` has its old size: by `1 - zoom` of the
    distance to it. Things much nearer or farther than `focus` change their size, the less, the longer the lenses are.

    Args:
        world_from_camera (`torch.Tensor`): `[..., V, 4, 4]`.
        intrinsics (`torch.Tensor`): `[..., V, 3, 3]`, normalised by width and height.
        focus (`torch.Tensor`): `[..., 3]`, of [`common_focus`]; where it is NaN, nothing changes.
        zoom (`torch.Tensor`): `[..., 1]`, above 0 and at most 1.
    """
    centers, axes = world_from_camera[..., :3, 3], world_from_camera[..., :3, 2]
    distance = (focus.unsqueeze(-2) - centers).norm(dim=-1)
    zoom = torch.where(distance.isnan(), 1.0, zoom)
    poses, intrinsics = world_from_camera.clone(), intrinsics.clone()
    poses[..., :3, 3] += ((1 - zoom) * distance.nan_to_num()).unsqueeze(-1) * axes
    intrinsics[..., :2, :2] *= zoom[..., None, None]
    return poses, intrinsics


def _diameter(points: torch.Tensor) -> torch.Tensor:
    """The largest distance between two of the points `[..., V, 3]`, in pieces where V squared would not fit. Points
    near the middle, which cannot be an end of it, are left out then."""
    if points.shape[-2] <= 1024:
        return (points.unsqueeze(-2) - points.unsqueeze(-3)).norm(dim=-1).amax((-2, -1))
    found = []
    for cloud in points.reshape(-1, *points.shape[-2:]):
        start = (cloud - cloud.mean(0)).norm(dim=-1)
        end = (cloud - cloud[start.argmax()]).norm(dim=-1)
        best = (cloud - cloud[end.argmax()]).norm(dim=-1).max()
        cloud = torch.unique(cloud[start + start.max() >= best * (1 - 1e-9)], dim=0)
        for part in cloud.split(max(1, (1 << 20) // len(cloud))):
            best = torch.maximum(best, (part.unsqueeze(1) - cloud).norm(dim=-1).max())
        found.append(best)
    return torch.stack(found).reshape(points.shape[:-2])


def view_distances(
    poses_a: torch.Tensor | None = None,  # [..., A, 4, 4], normalised scene
    poses_b: torch.Tensor | None = None,  # [..., B, 4, 4]
    times_a: torch.Tensor | None = None,  # [..., A] seconds
    times_b: torch.Tensor | None = None,  # [..., B]
) -> torch.Tensor:
    """How far apart views are, `[..., A, B]`: distance of the centres in scene units, plus the angle between the
    cameras in radians, plus the time between them in seconds. What is not given counts nothing.

    Args:
        poses_a (`torch.Tensor`, *optional*): `[..., A, 4, 4]` in scene units.
        poses_b (`torch.Tensor`, *optional*): `[..., B, 4, 4]` in scene units.
        times_a (`torch.Tensor`, *optional*): `[..., A]`, seconds.
        times_b (`torch.Tensor`, *optional*): `[..., B]`, seconds.
    """
    if (poses_a is None) != (poses_b is None) or (times_a is None) != (times_b is None):
        raise ValueError("`view_distances` needs poses, or times, of both sides.")
    total = 0.0
    if poses_a is not None and poses_b is not None:
        centers_a, centers_b = poses_a[..., :3, 3], poses_b[..., :3, 3]
        total = (centers_a.unsqueeze(-2) - centers_b.unsqueeze(-3)).norm(dim=-1)
        trace = torch.einsum("...aij,...bij->...ab", poses_a[..., :3, :3], poses_b[..., :3, :3])
        total = total + torch.acos(((trace - 1) / 2).clamp(-1, 1))
    if times_a is not None and times_b is not None:
        total = total + (times_a.unsqueeze(-1) - times_b.unsqueeze(-2)).abs()
    if not torch.is_tensor(total):
        raise ValueError("`view_distances` needs poses or times.")
    return total


def farthest_views(distances: torch.Tensor, count: int, chosen: Sequence[int] = ()) -> list[int]:
    """Greedy farthest-point choice of `count` views from their `distances` `[V, V]`, far from each other and from the
    views already `chosen`; the first of an empty choice is the most central view. Returns indices in the order chosen.
    """
    if not 0 <= count <= distances.shape[0] - len(chosen):
        raise ValueError(f"`count` must lie between 0 and {distances.shape[0] - len(chosen)}, got {count}.")
    picked: list[int] = []
    taken = list(chosen)
    for _ in range(count):
        if taken:
            gap = distances[:, taken].amin(-1).clone()
            gap[taken] = -1.0
            index = int(gap.argmax())
        else:
            index = int(distances.sum(-1).argmin())
        picked.append(index)
        taken.append(index)
    return picked


class Cameras:
    """A batch of pinhole cameras. Immutable: every method returns new cameras.

    Args:
        world_from_camera (`torch.Tensor` or array of shape `[..., 4, 4]` or `[..., 3, 4]`): rigid poses, OpenCV axes.
        intrinsics (`torch.Tensor` or array of shape `[..., 3, 3]` or `[3, 3]`): `K` in pixels.
        image_sizes (`torch.Tensor` or array of shape `[..., 2]` or `[2]`): (height, width) in pixels.

    Poses and intrinsics are kept in float64. Raises `ValueError` for poses that are not rigid, NaN, and focal lengths
    that are not positive; warns (`UserWarning`) about principal points outside the image, which crops have.
    """

    __slots__ = ("world_from_camera", "intrinsics", "image_sizes")

    world_from_camera: torch.Tensor
    intrinsics: torch.Tensor
    image_sizes: torch.Tensor

    def __init__(self, world_from_camera, intrinsics, image_sizes):
        world_from_camera = homogeneous(_as_tensor(world_from_camera, "world_from_camera"))
        world_from_camera = world_from_camera.to(torch.float64, copy=True)
        check_rigid(world_from_camera, "world_from_camera")
        shape, device = world_from_camera.shape[:-2], world_from_camera.device
        intrinsics = _as_tensor(intrinsics, "intrinsics").to(device, torch.float64, copy=True)
        image_sizes = _as_tensor(image_sizes, "image_sizes").to(device, copy=True)
        intrinsics = _expand(intrinsics, shape, (3, 3), "intrinsics")
        image_sizes = _expand(image_sizes, shape, (2,), "image_sizes")
        _check_sizes(image_sizes)
        image_sizes = image_sizes.to(torch.int64)
        _check_intrinsics(intrinsics, image_sizes)
        self._set(world_from_camera, intrinsics, image_sizes)

    @classmethod
    def from_fov(cls, world_from_camera, fov: float, image_sizes) -> "Cameras":
        """Cameras with a horizontal field of view of `fov` degrees, square pixels and a centred principal point.

        `world_from_camera` `[..., 4, 4]`; `image_sizes` `[..., 2]` or `[2]`, (height, width).
        """
        if isinstance(fov, (list, tuple)) or getattr(fov, "ndim", 0):
            raise ValueError(
                f"`fov` must be one number of degrees for all cameras, got {fov}. Where they differ, pass"
                " `intrinsics`, one for each."
            )
        if not 0 < fov < 180:
            raise ValueError(f"`fov` must lie between 0 and 180 degrees, got {fov}.")
        if fov < math.pi:
            warnings.warn(f"`fov` is in degrees: {fov:g} is a very long lens. Is it in radians?", stacklevel=2)
        height, width = _as_tensor(image_sizes, "image_sizes").to(torch.float64).unbind(-1)
        intrinsics = torch.zeros(*width.shape, 3, 3, dtype=torch.float64)
        intrinsics[..., 0, 0] = intrinsics[..., 1, 1] = width / 2 / math.tan(math.radians(fov) / 2)
        intrinsics[..., 0, 2], intrinsics[..., 1, 2], intrinsics[..., 2, 2] = width / 2, height / 2, 1.0
        return cls(world_from_camera, intrinsics, image_sizes)

    @classmethod
    def from_normalized(cls, world_from_camera, intrinsics, image_sizes) -> "Cameras":
        """Cameras of intrinsics in units of the image, fx / W, fy / H, cx / W, cy / H; see [`normalize_intrinsics`].

        `world_from_camera` `[..., 4, 4]`; `intrinsics` `[..., 3, 3]` or `[3, 3]`; `image_sizes` `[..., 2]` or `[2]`,
        (height, width).
        """
        intrinsics = _as_tensor(intrinsics, "intrinsics").to(torch.float64)
        height, width = _as_tensor(image_sizes, "image_sizes").to(intrinsics).unbind(-1)
        unit = torch.stack([width, height, torch.ones_like(width)], dim=-1).unsqueeze(-1)
        return cls(world_from_camera, intrinsics * unit, image_sizes)

    @classmethod
    def cat(cls, cameras: Sequence["Cameras"]) -> "Cameras":
        """Concatenates cameras along their first dimension.

        Args:
            cameras (`Sequence[Cameras]`): of the same trailing dimensions.
        """
        return cls._joined(torch.cat, cameras)

    @classmethod
    def stack(cls, cameras: Sequence["Cameras"]) -> "Cameras":
        """Stacks cameras along a new first dimension.

        Args:
            cameras (`Sequence[Cameras]`): of the same shape.
        """
        return cls._joined(torch.stack, cameras)

    @property
    def shape(self) -> torch.Size:
        """The leading dimensions."""
        return self.world_from_camera.shape[:-2]

    @property
    def device(self) -> torch.device:
        return self.world_from_camera.device

    @property
    def camera_from_world(self) -> torch.Tensor:
        """`[..., 4, 4]`."""
        return invert_rigid(self.world_from_camera)

    @property
    def centers(self) -> torch.Tensor:
        """Camera centres in the world, `[..., 3]`."""
        return self.world_from_camera[..., :3, 3]

    @property
    def in_one_place(self) -> bool:
        """Whether all centres are the same but for what float32 cannot tell apart, as in a panorama from a tripod."""
        centers = self.centers.reshape(-1, 3)
        return not len(centers) or bool((centers - centers[0]).abs().amax() <= 1e-7 * centers.abs().amax())

    @property
    def forward(self) -> torch.Tensor:
        """Unit viewing directions in the world, `[..., 3]`."""
        return self.world_from_camera[..., :3, 2]

    @property
    def normalized_intrinsics(self) -> torch.Tensor:
        """`[..., 3, 3]` in units of the image: fx / W, fy / H, cx / W, cy / H."""
        return normalize_intrinsics(self.intrinsics, self.image_sizes)

    @property
    def fov(self) -> torch.Tensor:
        """Horizontal and vertical fields of view in degrees, `[..., 2]`."""
        height, width = self.image_sizes.to(self.intrinsics).unbind(-1)
        edges = []
        for axis, extent in ((0, width), (1, height)):
            focal, center = self.intrinsics[..., axis, axis], self.intrinsics[..., axis, 2]
            edges.append(torch.atan(center / focal) + torch.atan((extent - center) / focal))
        return torch.rad2deg(torch.stack(edges, dim=-1))

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("A single camera has no length.")
        return self.shape[0]

    def __getitem__(self, index) -> "Cameras":
        """Indexes the leading dimensions, as a tensor would be indexed."""
        index = index if isinstance(index, tuple) else (index,)
        open_ended = any(entry is Ellipsis for entry in index)
        if sum(entry is not None and entry is not Ellipsis for entry in index) > len(self.shape):
            raise IndexError(f"Too many indices for cameras of shape {list(self.shape)}.")
        matrix_index = index + (slice(None),) * 2 * open_ended
        size_index = index + (slice(None),) * open_ended
        return Cameras._trusted(
            self.world_from_camera[matrix_index], self.intrinsics[matrix_index], self.image_sizes[size_index]
        )

    def __iter__(self) -> Iterator["Cameras"]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Cameras(shape={list(self.shape)}, dtype={self.world_from_camera.dtype}, device={self.device})"

    def __setattr__(self, _name, _value):
        raise AttributeError("`Cameras` is immutable; make new cameras instead.")

    def __reduce__(self):
        return Cameras._trusted, (self.world_from_camera, self.intrinsics, self.image_sizes)

    def to(self, device=None, dtype: torch.dtype | None = None) -> "Cameras":
        """Moves to a device, and to a floating dtype for poses and intrinsics.

        Args:
            device (`Any`, defaults to `None`): where to.
            dtype (`torch.dtype`, *optional*): of poses and intrinsics.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        return Cameras._trusted(
            self.world_from_camera.to(device=device, dtype=dtype),
            self.intrinsics.to(device=device, dtype=dtype),
            self.image_sizes.to(device=device),
        )

    def with_poses(self, world_from_camera: torch.Tensor) -> "Cameras":
        """The same lenses at other poses `[..., 4, 4]`.

        Args:
            world_from_camera (`torch.Tensor`): `[..., 4, 4]`.
        """
        return Cameras(world_from_camera, self.intrinsics, self.image_sizes)

    def resized(self, height: int, width: int) -> "Cameras":
        """The cameras of the images resized to `height` x `width` pixels."""
        size = self.image_sizes.new_tensor([height, width])
        scale = size.to(self.intrinsics) / self.image_sizes
        return self._rescaled(scale, torch.zeros_like(scale), size)

    def cropped(self, top: int, left: int, height: int, width: int) -> "Cameras":
        """The cameras of the images cropped to the box that starts at pixel (`top`, `left`). A box that reaches
        outside the image is a crop with padding.

        Args:
            top (`int`): pixels; may be negative.
            left (`int`): pixels; may be negative.
            height (`int`): pixels.
            width (`int`): pixels.
        """
        offset = self.intrinsics.new_tensor([top, left])
        return self._rescaled(torch.ones_like(offset), offset, self.image_sizes.new_tensor([height, width]))

    def rolled(self, quarter_turns: int) -> "Cameras":
        """The upright cameras of images turned counter-clockwise by quarter turns (`torch.rot90`).

        Args:
            quarter_turns (`int`): how many.
        """
        cameras = self
        for _ in range(quarter_turns % 4):
            fx, skew, cx = cameras.intrinsics[..., 0, :].unbind(-1)
            if (skew != 0).any():
                raise ValueError("Cameras with skew cannot be rolled: their intrinsics would not stay triangular.")
            fy, cy = cameras.intrinsics[..., 1, 1:].unbind(-1)
            intrinsics = torch.zeros_like(cameras.intrinsics)
            intrinsics[..., 0, 0], intrinsics[..., 0, 2] = fy, cy
            intrinsics[..., 1, 1], intrinsics[..., 1, 2] = fx, cameras.image_sizes[..., 1] - cx
            intrinsics[..., 2, 2] = 1.0
            right, down, forward, center = cameras.world_from_camera.unbind(-1)
            poses = torch.stack([down, -right, forward, center], dim=-1)
            cameras = Cameras._trusted(poses, intrinsics, cameras.image_sizes.flip(-1))
        return cameras

    def normalized(self, frame: SceneFrame) -> "Cameras":
        """The cameras in the frame and unit of a scene, see [`scene_frame`].

        Args:
            frame (`SceneFrame`): of the scene.
        """
        return Cameras._trusted(frame.normalize(self.world_from_camera), self.intrinsics, self.image_sizes)

    def denormalized(self, frame: SceneFrame) -> "Cameras":
        """The inverse of [`~Cameras.normalized`].

        Args:
            frame (`SceneFrame`): of the scene.
        """
        return Cameras._trusted(frame.denormalize(self.world_from_camera), self.intrinsics, self.image_sizes)

    def relative_to(self, other: "Cameras") -> torch.Tensor:
        """Relative poses `other_from_self` `[..., 4, 4]`, broadcast over the leading dimensions.

        Args:
            other ([`Cameras`]): whose frame the poses are given in.
        """
        return other.camera_from_world @ self.world_from_camera

    def project(self, points_world: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Projects points `[..., P, 3]` into each camera.

        Args:
            points_world (`torch.Tensor`): `[..., P, 3]`.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: pixels `[..., P, 2]` (x, y) and depths `[..., P]` along the viewing
            direction; a depth that is not positive lies behind the camera, and its pixel means nothing.
        """
        camera_from_world = self.camera_from_world
        rotation, translation = camera_from_world[..., :3, :3], camera_from_world[..., :3, 3]
        points_camera = points_world.to(rotation) @ rotation.mT + translation.unsqueeze(-2)
        pixels = points_camera @ self.intrinsics.mT
        return pixels[..., :2] / pixels[..., 2:], points_camera[..., 2]

    def unproject(self, pixels: torch.Tensor, depths: torch.Tensor) -> torch.Tensor:
        """The world points `[..., P, 3]` seen at `pixels` `[..., P, 2]` (x, y) and `depths` `[..., P]`."""
        pixels = F.pad(pixels.to(self.intrinsics), (0, 1), value=1.0)
        points_camera = pixels @ invert_intrinsics(self.intrinsics).mT * depths.to(pixels).unsqueeze(-1)
        rotation, translation = self.world_from_camera[..., :3, :3], self.world_from_camera[..., :3, 3]
        return points_camera @ rotation.mT + translation.unsqueeze(-2)

    def rays(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rays through the pixel centres: origins and unit directions in the world, each `[..., H, W, 3]`.

        Raises `ValueError` when the images differ in size.
        """
        sizes = self.image_sizes.reshape(-1, 2).unique(dim=0)
        if len(sizes) != 1:
            raise ValueError(f"Rays need one image size for all cameras, got (height, width) {sizes.tolist()}.")
        height, width = sizes[0].tolist()
        y, x = torch.meshgrid(
            torch.arange(height, device=self.device, dtype=self.intrinsics.dtype) + 0.5,
            torch.arange(width, device=self.device, dtype=self.intrinsics.dtype) + 0.5,
            indexing="ij",
        )
        pixels = torch.stack([x, y], dim=-1).reshape(-1, 2)
        points_world = self.unproject(pixels, torch.ones_like(pixels[:, 0]))
        origins = self.centers.unsqueeze(-2).expand_as(points_world)
        directions = F.normalize(points_world - origins, dim=-1)
        grid = (*self.shape, height, width, 3)
        return origins.reshape(grid), directions.reshape(grid)

    def plucker(self) -> torch.Tensor:
        """Plücker coordinates (d, o x d) of the rays through the pixel centres, `[..., H, W, 6]`."""
        origins, directions = self.rays()
        return torch.cat([directions, torch.linalg.cross(origins, directions)], dim=-1)

    def _rescaled(self, scale: torch.Tensor, offset: torch.Tensor, size: torch.Tensor) -> "Cameras":
        """Intrinsics after moving the origin by `offset` (y, x) pixels, then scaling by `scale` (y, x)."""
        scale, offset = scale.flip(-1), offset.flip(-1)
        intrinsics = self.intrinsics.clone()
        intrinsics[..., :2, 2] -= offset
        intrinsics[..., :2, :] *= scale.unsqueeze(-1)
        return Cameras._trusted(self.world_from_camera, intrinsics, size.expand_as(self.image_sizes))

    @classmethod
    def _joined(cls, join, cameras: Sequence["Cameras"]) -> "Cameras":
        if not cameras:
            raise ValueError("At least one `Cameras` is needed.")
        return cls._trusted(
            join([c.world_from_camera for c in cameras]),
            join([c.intrinsics for c in cameras]),
            join([c.image_sizes for c in cameras]),
        )

    def _set(self, world_from_camera, intrinsics, image_sizes):
        object.__setattr__(self, "world_from_camera", world_from_camera)
        object.__setattr__(self, "intrinsics", intrinsics)
        object.__setattr__(self, "image_sizes", image_sizes)

    @classmethod
    def _trusted(cls, world_from_camera, intrinsics, image_sizes) -> "Cameras":
        """Cameras made from checked cameras: no second check."""
        cameras = object.__new__(cls)
        cameras._set(world_from_camera, intrinsics, image_sizes)
        return cameras


def _as_tensor(value, name: str) -> torch.Tensor:
    try:
        if isinstance(value, Sequence) and len(value) and torch.is_tensor(value[0]):
            value = torch.stack(list(value))
        tensor = value if torch.is_tensor(value) else torch.as_tensor(value)
        if tensor.is_floating_point():
            tensor = torch.as_tensor(value, dtype=torch.float64)  # lists of floats would have come as float32
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`{name}` must be a tensor or an array of numbers, got {type(value).__name__}.") from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"`{name}` must hold real numbers, got {tensor.dtype}.")
    return tensor


def _expand(value: torch.Tensor, batch: torch.Size, event: tuple[int, ...], name: str) -> torch.Tensor:
    """One value for all cameras, or one for each."""
    if value.shape == event or value.shape == (*batch, *event):
        return value.expand(*batch, *event)
    wanted = " or ".join(str(list(shape)) for shape in dict.fromkeys([event, (*batch, *event)]))
    raise ValueError(f"`{name}` must have shape {wanted}, got {list(value.shape)}.")


def _check_sizes(image_sizes: torch.Tensor) -> None:
    if not ((image_sizes > 0) & (image_sizes == image_sizes.round())).all():
        raise ValueError(f"`image_sizes` must be positive whole (height, width), got {image_sizes.tolist()}.")


def _check_intrinsics(intrinsics: torch.Tensor, image_sizes: torch.Tensor) -> None:
    focal = intrinsics.diagonal(dim1=-2, dim2=-1)[..., :2]
    if not intrinsics.isfinite().all():
        raise ValueError("`intrinsics` must be finite, got NaN or infinity.")
    if not (focal > 0).all():
        raise ValueError(f"`intrinsics` must have positive focal lengths, got {focal.amin().item()}.")
    if not (focal >= _SHORTEST_FOCAL * image_sizes.flip(-1)).all():
        raise ValueError(
            f"`intrinsics` have a focal length of {focal.amin().item():g} pixels, which no photo of this size has: are"
            " they divided by width and height? `Cameras.from_normalized` takes such."
        )
    if not (focal <= _LONGEST_FOCAL * image_sizes.flip(-1)).all():
        raise ValueError(
            f"`intrinsics` must have focal lengths of at most {_LONGEST_FOCAL:g} image widths, got"
            f" {focal.amax().item():g} pixels."
        )
    lower = torch.stack([intrinsics[..., 1, 0], intrinsics[..., 2, 0], intrinsics[..., 2, 1]], dim=-1)
    if (lower != 0).any() or (intrinsics[..., 2, 2] != 1).any():
        raise ValueError("`intrinsics` must be upper triangular with a last row of [0, 0, 1].")
    center = intrinsics[..., :2, 2]
    outside = ((center < 0) | (center > image_sizes.flip(-1))).any(-1)
    if outside.any():
        warnings.warn(
            f"The principal point of {int(outside.sum())} of {outside.numel()} cameras lies outside the image. That is"
            " right for off-centre crops; otherwise `intrinsics` and `image_sizes` do not belong together.",
            stacklevel=3,
        )
    in_corner = ((center > 0) & (center <= 1) & (image_sizes.flip(-1) > 16)).all(-1)
    if in_corner.any():
        warnings.warn(
            f"The principal point of {int(in_corner.sum())} of {in_corner.numel()} cameras lies in the first pixel. Is"
            " it divided by width and height, where focal lengths are in pixels?",
            stacklevel=3,
        )
