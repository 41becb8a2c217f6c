"""Choosing views of a capture: which to keep back, and which to take as references."""

from collections.abc import Sequence

from ..cameras import Cameras, farthest_views, scene_frame, view_distances


__all__ = ["choose_references", "held_out_views"]


def held_out_views(num_views: int, every: int = 8) -> list[int]:
    """Every `every`-th view, from the first: the split of the NeRF literature."""
    if every < 1:
        raise ValueError(f"`every` must be at least 1, got {every}.")
    return list(range(0, num_views, every))


def choose_references(cameras: Cameras, count: int, candidates: Sequence[int]) -> list[int]:
    """`count` of the `candidates`, well spread over positions and directions (farthest points), in rising order."""
    candidates = list(candidates)
    if not 1 <= count <= len(candidates):
        raise ValueError(f"The number of references must lie between 1 and {len(candidates)}, got {count}.")
    chosen = cameras[candidates]
    poses = scene_frame(chosen.world_from_camera, len(chosen)).normalize(chosen.world_from_camera)
    return sorted(candidates[index] for index in farthest_views(view_distances(poses, poses), count))
