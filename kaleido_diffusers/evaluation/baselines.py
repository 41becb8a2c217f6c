"""What a model must beat: the nearest reference, and a blend of the references over a sweep of planes."""

import torch
import torch.nn.functional as F

from ..geometry.cameras import Cameras, scene_frame, view_distances
from ..geometry.trajectories import looking_distances


__all__ = ["nearest_reference", "plane_sweep", "reference_distances"]


def nearest_reference(images: torch.Tensor, cameras: Cameras, targets: Cameras) -> torch.Tensor:
    """For each target the reference nearest in place and direction, `[M, 3, H, W]`.

    Args:
        images (`torch.Tensor` of shape `[N, 3, H, W]`): references.
        cameras (`Cameras` of shape `[N]`): their cameras.
        targets (`Cameras` of shape `[M]`): where to.
    """
    return images[reference_distances(cameras, targets).argmin(-1)]


def plane_sweep(
    images: torch.Tensor, cameras: Cameras, targets: Cameras, num_planes: int = 48, window: int = 5
) -> torch.Tensor:
    """
    For each pixel of a target, the mean of the references on that plane, of many parallel to the target's image, on
    which they agree best (Collins 1996); nothing is learned and no depth is given.

    Planes are spaced evenly in inverse depth, from a quarter to four times the distance at which the cameras look.
    Nearer references weigh more. Pixels that no reference sees take the colour of the nearest reference.

    Args:
        images (`torch.Tensor` of shape `[N, 3, H, W]`): references in [0, 1].
        cameras (`Cameras` of shape `[N]`): their cameras.
        targets (`Cameras` of shape `[M]`): where to.
        num_planes (`int`, defaults to `48`): depths tried.
        window (`int`, defaults to `5`): pixels over which agreement is averaged.

    Returns:
        `torch.Tensor` of shape `[M, 3, H, W]`.
    """
    distances = reference_distances(cameras, targets)
    fallback = images[distances.argmin(-1)]
    weights = torch.softmax(-4 * distances, dim=-1).float()
    swept = [
        _sweep(images, cameras, target, weight, fill, num_planes, window)
        for target, weight, fill in zip(targets, weights, fallback)
    ]
    return torch.stack(swept)


def reference_distances(cameras: Cameras, targets: Cameras) -> torch.Tensor:
    """How far targets are from references, `[M, N]`, in the unit of the scene (see [`view_distances`]).

    Args:
        cameras (`Cameras` of shape `[N]`): of the references.
        targets (`Cameras` of shape `[M]`): where to.
    """
    poses = torch.cat([cameras.world_from_camera, targets.world_from_camera])
    poses = scene_frame(poses, len(cameras)).normalize(poses)
    return view_distances(poses[len(cameras) :], poses[: len(cameras)])


def _sweep(images, cameras: Cameras, target: Cameras, weight, fill, num_planes: int, window: int) -> torch.Tensor:
    """One target `[3, H, W]`."""
    height, width = target.image_sizes.tolist()
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) + 0.5 for n in (height, width)), indexing="ij")
    pixels = torch.stack([x, y], dim=-1).reshape(-1, 2)
    depth = float(looking_distances(cameras, target[None]))
    # Where the references see a point of a ray is linear in its depth: (x, y, 1) times the depth there. Pixels are
    # measured from -1 to 1 over each reference.
    from_world = cameras.intrinsics @ cameras.camera_from_world[:, :3]
    from_world[:, :2] *= 2 / cameras.image_sizes.flip(-1)[:, :, None]
    from_world[:, :2] -= from_world[:, 2:]
    rays = target.unproject(pixels, torch.ones(len(pixels), dtype=torch.float64)) - target.centers
    start = (from_world[:, :, :3] @ target.centers + from_world[:, :, 3]).T[:, :, None, None].float()
    step = (from_world[:, :, :3] @ rays.T).transpose(0, 1).unflatten(-1, (height, width)).float()
    best_cost = torch.full((height, width), torch.inf, dtype=torch.float32)
    best_color = fill.clone()
    for inverse in torch.linspace(4.0, 0.25, num_planes, dtype=torch.float64).tolist():
        seen = torch.add(start, step, alpha=depth / inverse)
        grid = (seen[:2] / seen[2]).movedim(0, -1)
        valid = (grid.abs().amax(-1) <= 1) & (seen[2] > 0)
        warped = F.grid_sample(images, grid.clamp(-2, 2), align_corners=False, padding_mode="border")
        share = weight[:, None, None] * valid
        total = share.sum(0)
        share /= total.clamp_min(1e-8)
        color = torch.einsum("nhw,nchw->chw", share, warped)
        spread = torch.einsum("nhw,nchw->hw", share, (warped - color).square_())
        cost = spread + 0.02 * (1 - total) ** 2 + 1e-4 * (inverse - 1) ** 2
        cost = F.avg_pool2d(cost[None, None], window, 1, window // 2, count_include_pad=False)[0, 0]
        better = (cost < best_cost) & (total > 1e-6)
        best_cost = torch.where(better, cost, best_cost)
        best_color = torch.where(better, color, best_color)
    return best_color
