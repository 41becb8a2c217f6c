"""What there is to know about a capture before anything is made of it: figures, and warnings."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..geometry.cameras import Cameras, view_distances
from ..geometry.trajectories import focus_point
from .pictures import neighbour_distances, thinned
from .scene import Scene


__all__ = ["CaptureSummary", "capture_summary"]


@dataclass(frozen=True)
class CaptureSummary:
    """
    What there is to know about a capture before it is used. Lengths are in world units.

    Attributes:
        name (`str`): of the capture.
        num_views (`int`): photos.
        image_sizes (`dict[tuple[int, int], int]`): photos of each (height, width), most frequent first.
        fov (`tuple` of two `(float, float)`): least and largest field of view in degrees, horizontal and vertical.
        extent (`float`): largest distance between two cameras.
        focus_distance (`float`, *optional*): median distance to the point that the cameras look at, if they do.
        baselines (`tuple[float, float, float]`): distance to the nearest other camera: least, median, largest.
        times (`tuple[float, float]`, *optional*): first and last second.
        num_masks (`int`): masks.
        num_points (`int`): sparse points.
        splits (`dict[str, int]`): photos of each split.
        warnings (`list[str]`): what is likely wrong, a sentence each.
    """

    name: str
    num_views: int
    image_sizes: dict[tuple[int, int], int]
    fov: tuple[tuple[float, float], tuple[float, float]]
    extent: float
    focus_distance: float | None
    baselines: tuple[float, float, float]
    times: tuple[float, float] | None
    num_masks: int
    num_points: int
    splits: dict[str, int]
    warnings: list[str]

    def table(self) -> str:
        """The figures as aligned lines of text, without the warnings."""
        sizes = [
            f"{width} x {height}" + f" ({count})" * (len(self.image_sizes) > 1)
            for (height, width), count in self.image_sizes.items()
        ]
        horizontal, vertical = (_span(*span, ".1f") for span in self.fov)
        focus = "no common point" if self.focus_distance is None else f"{self.focus_distance:.4g} away (median)"
        least, median, largest = self.baselines
        rows = {
            "photos": str(self.num_views),
            "sizes": f"{', '.join(sizes[:4])}{', ...' * (len(sizes) > 4)}",
            "field of view": f"{horizontal} x {vertical} degrees",
            "extent": f"{self.extent:.4g} between the farthest cameras",
            "looks at": focus,
            "next camera": f"{median:.4g} away (median; {least:.4g} to {largest:.4g})",
            "points": f"{self.num_points:,}" if self.num_points else "none",
            "masks": self.num_masks or "none",
            "times": "none" if self.times is None else f"{_span(*self.times, '.4g')} s",
            "splits": ", ".join(f"{name} {count}" for name, count in self.splits.items()) or "none",
        }
        return "\n".join(f"  {key:<14} {value}" for key, value in rows.items())


def _span(least: float, largest: float, form: str) -> str:
    least, largest = format(least, form), format(largest, form)
    return least if least == largest else f"{least} to {largest}"


def capture_summary(scene: Scene) -> CaptureSummary:
    """Counts, sizes, lenses and distances of a capture, and warnings about what a user is likely to trip over. Photos
    are not decoded.

    Args:
        scene ([`Scene`]): the capture.
    """
    cameras = scene.cameras.to("cpu")
    centers = cameras.centers
    names = [str(view) for view in range(len(cameras))]
    if scene.image_paths is not None:
        names = [path.name for path in scene.image_paths]
    focus = _meeting_point(cameras)
    gaps = neighbour_distances(centers)
    times = scene.times
    points = None if scene.points is None else scene.points.to(centers)
    extent = float(torch.cdist(centers, centers).max())
    warnings = _lens_warnings(cameras, names) + _pose_warnings(cameras, times, extent, names)
    if points is not None and len(points):
        warnings += _point_warnings(cameras, points, extent, names)
    return CaptureSummary(
        name=scene.name,
        num_views=len(cameras),
        image_sizes=dict(Counter(map(tuple, cameras.image_sizes.tolist())).most_common()),
        fov=tuple(zip(cameras.fov.amin(0).tolist(), cameras.fov.amax(0).tolist())),
        extent=extent,
        focus_distance=None if focus is None else float((centers - focus).norm(dim=-1).median()),
        baselines=(float(gaps.min()), float(gaps.median()), float(gaps.max())),
        times=None if times is None else (float(times.min()), float(times.max())),
        num_masks=0 if scene.masks is None else len(scene.masks),
        num_points=0 if points is None else len(points),
        splits={name: len(views) for name, views in (scene.splits or {}).items()},
        warnings=warnings,
    )


def _meeting_point(cameras: Cameras) -> torch.Tensor | None:
    """The point `[3]` that the cameras look at; none where their axes are parallel, or fewer than half see it."""
    forward = cameras.forward
    spread = torch.linalg.eigvalsh(torch.eye(3, dtype=forward.dtype) - (forward.mT @ forward) / len(forward))[0]
    if spread < 1e-3 or (cameras.centers == cameras.centers[0]).all():
        return None
    focus = focus_point(cameras)
    return focus if _sees(cameras, focus[None]).float().mean() >= 0.5 else None


def _sees(cameras: Cameras, points: torch.Tensor) -> torch.Tensor:
    """Which cameras have which points `[P, 3]` in front of them and in the image, `[V, P]`."""
    seen = []
    for camera in cameras:
        pixels, depths = camera.project(points)
        seen.append((depths > 0) & ((pixels >= 0) & (pixels <= camera.image_sizes.flip(-1))).all(-1))
    return torch.stack(seen)


def _lens_warnings(cameras: Cameras, names: Sequence[str]) -> list[str]:
    found = []
    offsets = (cameras.normalized_intrinsics[:, :2, 2] - 0.5).abs().amax(-1)
    if (offsets > 0.1).any():
        found.append(
            f"The principal point is far off centre, by up to {100 * offsets.max():.0f}% of the image, in"
            f" {_which(offsets > 0.1, names)}: crops are so; otherwise the intrinsics belong to another image size."
        )
    fov = cameras.fov.amax(-1)
    if fov.max() > 1.5 * fov.min():
        found.append(f"Fields of view differ much: {fov.min():.0f} to {fov.max():.0f} degrees on the longer side.")
    areas = cameras.image_sizes.prod(-1)
    if areas.max() > 2 * areas.min():
        found.append(f"Image sizes differ much: {areas.min() / 1e6:.2g} to {areas.max() / 1e6:.2g} megapixels.")
    return found


def _pose_warnings(cameras: Cameras, times: torch.Tensor | None, extent: float, names: Sequence[str]) -> list[str]:
    if len(cameras) < 2:
        return []
    found = []
    centers = cameras.centers
    if cameras.in_one_place:
        found.append("All cameras stand at one spot: nothing tells how far away the scene is.")
    away = (centers - centers.median(dim=0).values).norm(dim=-1)
    gaps = neighbour_distances(centers)
    outlier = (away > 5 * away.median()) & (gaps > 5 * gaps.median())
    if outlier.any():
        found.append(
            f"Far from all other cameras: {_which(outlier, names)}, {float(away[outlier].max() / extent):.0%} of the"
            " extent from the middle. Such poses are often wrong, and they set the scale of the scene."
        )
    poses = cameras.world_from_camera.clone()
    poses[:, :3, 3] /= extent or 1.0
    same = view_distances(poses, poses, times, times).triu(1) + poses.new_ones(len(poses), len(poses)).tril()
    twins = (same < 1e-6).any(0)
    if twins.any():
        found.append(f"The same pose as an earlier view: {_which(twins, names)}.")
    return found


def _point_warnings(cameras: Cameras, points: torch.Tensor, extent: float, names: Sequence[str]) -> list[str]:
    found = []
    points = thinned(points[points.isfinite().all(-1)])
    seen = _sees(cameras, points)
    blind = ~seen.any(-1)
    if blind.any():
        found.append(f"No point lies in the image of {_which(blind, names)}: a wrong pose, or it looks elsewhere.")
    lost = float((~seen.any(0)).float().mean())
    if lost > 0.01:
        found.append(f"{lost:.0%} of the points lie in no image: are points and cameras in the same frame?")
    depth = float((points - cameras.centers.mean(0)).norm(dim=-1).median())
    if 1e-6 * depth < extent < 0.01 * depth:
        found.append(f"The cameras hardly move: {extent / depth:.1%} of their distance to the points (median).")
    return found


def _which(chosen: torch.Tensor, names: Sequence[str], limit: int = 4) -> str:
    views = chosen.nonzero().flatten().tolist()
    rest = f", and {len(views) - limit} more" if len(views) > limit else ""
    return f"{len(views)} of {len(chosen)} views ({', '.join(names[view] for view in views[:limit])}{rest})"
