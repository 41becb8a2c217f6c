"""Choosing views of a capture: which to keep back, which to take as references, which to train on together."""

from collections.abc import Sequence

import torch

from ..cameras import Cameras, farthest_views, scene_frame, view_distances


__all__ = ["choose_references", "held_out_views", "reference_order", "sample_view_subset", "split_views"]


def held_out_views(num_views: int, every: int = 8) -> list[int]:
    """Every `every`-th view, from the first: the split of the NeRF literature."""
    if every < 1:
        raise ValueError(f"`every` must be at least 1, got {every}.")
    return list(range(0, num_views, every))


def split_views(num_views: int, splits: dict[str, list[int]] | None, split: str) -> list[int]:
    """The views of a capture's split.

    Args:
        num_views (`int`): of the capture.
        splits (`dict[str, list[int]]`, *optional*): what its files name; every eighth view is held out without them.
        split (`str`): `"train"`, `"validation"` (`"test"`, where the files name none) or `"test"`.
    """
    splits = splits or {}
    test = splits.get("test") or held_out_views(num_views)
    if split == "test":
        return test
    if split == "validation":
        return splits.get("val") or test
    return splits.get("train") or [view for view in range(num_views) if view not in test]


def reference_order(cameras: Cameras, count: int, candidates: Sequence[int]) -> list[int]:
    """`count` of the `candidates`, each the farthest in place and direction from those before it; the first is the
    most central. The first k of them are a good choice of k."""
    candidates = list(candidates)
    if not 1 <= count <= len(candidates):
        raise ValueError(f"The number of references must lie between 1 and {len(candidates)}, got {count}.")
    poses = cameras[candidates].world_from_camera
    poses = scene_frame(poses, len(poses)).normalize(poses)
    return [candidates[index] for index in farthest_views(view_distances(poses, poses), count)]


def choose_references(cameras: Cameras, count: int, candidates: Sequence[int]) -> list[int]:
    """`count` of the `candidates`, well spread over positions and directions, in rising order."""
    return sorted(reference_order(cameras, count, candidates))


def sample_view_subset(
    num_views: int,
    poses: torch.Tensor | None,
    times: torch.Tensor | None,
    count: int,
    generator: torch.Generator,
    mix: tuple[float, float, float] = (0.3, 0.2, 0.5),
) -> list[int]:
    """
    Draws views of a scene to train on together.

    Args:
        num_views (`int`):
            V.
        poses (`torch.Tensor` of shape `[V, 4, 4]`, *optional*):
            `world_from_camera`.
        times (`torch.Tensor` of shape `[V]`, *optional*):
            Seconds.
        count (`int`):
            How many to draw.
        generator (`torch.Generator`):
            Source of randomness.
        mix (`tuple[float, float, float]`, defaults to `(0.3, 0.2, 0.5)`):
            Probabilities of a neighbourhood (one view and those nearest to it: small baselines), of a spread choice
            (farthest points: large baselines), and of a random one.

    Returns:
        `list[int]`: indices, in random order.
    """
    if count > num_views:
        raise ValueError(f"`count` is {count}, but the scene has {num_views} views.")
    draw = torch.rand((), generator=generator).item() * sum(mix)
    order = torch.randperm(num_views, generator=generator).tolist()
    if draw >= mix[0] + mix[1] or (poses is None and times is None):
        return order[:count]
    if poses is not None:
        poses = scene_frame(poses, 0).normalize(poses)
    distances = view_distances(poses, poses, times, times)
    if draw < mix[0]:
        chosen = distances[order[0]].argsort()[:count].tolist()
    else:
        chosen = [order[0], *farthest_views(distances, count - 1, chosen=order[:1])]
    return [chosen[i] for i in torch.randperm(count, generator=generator).tolist()]
