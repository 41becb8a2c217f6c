"""Choosing views of a capture: which to keep back, which to take as references, which to train on together."""

from collections.abc import Sequence

import torch

from .cameras import Cameras, farthest_views, scene_frame, view_distances
from .trajectories import looking_distances


__all__ = [
    "INVENTED",
    "choose_references",
    "coverage",
    "held_out_views",
    "reference_order",
    "sample_view_subset",
    "seen_share",
    "split_views",
    "tour",
]

INVENTED = 0.5  # of a view that references see, below which most of it is the model's own

_GRID = 6  # points along each side of a target's picture
_DEPTHS = (0.5, 0.75, 1.0, 1.4, 2.0)  # of the distance that the cameras look at
_ANGLE = 30.0  # degrees between two rays to a point after which the one says little of the other
_MOST_TARGETS = 32
_CHUNK = 64  # cameras looked at together


def held_out_views(num_views: int, every: int = 8) -> list[int]:
    """Every `every`-th view, from the first: the split of the NeRF literature.

    Args:
        num_views (`int`): of the capture.
        every (`int`, defaults to `8`): how far they are apart.
    """
    if every < 1:
        raise ValueError(f"`every` must be at least 1, got {every}.")
    return list(range(0, num_views, every))


def split_views(
    num_views: int,
    splits: dict[str, list[int]] | None,
    split: str,
    every: int | None = None,
    number: str | None = None,
    order: Sequence[int] | None = None,
) -> list[int]:
    """The views of a capture's split.

    Args:
        num_views (`int`): of the capture.
        splits (`dict[str, list[int]]`, *optional*): what its files name. Without a test split, what is not in the
            others is held out, or the validation split; without any, every eighth view.
        split (`str`): `"train"`, `"validation"` (`"test"`, where the files name none) or `"test"`.
        every (`int`, *optional*): hold out every so many views, whatever the files name.
        number (`str`, *optional*): take the split of `train_test_split_<number>.json`; raises `ValueError` where the
            capture has none.
        order (`Sequence[int]`, *optional*): views in the order in which every n-th is counted; theirs when not given.
    """
    if every is not None and number is not None:
        raise ValueError("`every` and `number` are two ways to say which views are held out: give one.")
    splits = {} if every is not None else splits or {}
    if number is not None:
        if f"test_{number}" not in splits:
            known = sorted(key.removeprefix("test_") for key in splits if key.startswith("test_"))
            raise ValueError(f"The capture has no split {number!r}; it has {', '.join(known) or 'none'}.")
        splits = {key: splits[f"{key}_{number}"] for key in ("train", "test")}
    views, validation = range(num_views), splits.get("val", [])
    if "test" in splits:
        test = splits["test"]
    elif "train" in splits or validation:
        train = splits.get("train", [view for view in views if view not in validation])
        test = [view for view in views if view not in train and view not in validation] or validation
        test = test or [train[place] for place in held_out_views(len(train))]
    else:
        places = held_out_views(num_views, 8 if every is None else every)
        test = places if order is None else sorted(order[place] for place in places)
    if split == "test":
        return test
    if split == "validation":
        return validation or test
    return [view for view in splits.get("train", views) if view not in test and view not in validation]


def coverage(cameras: Cameras, targets: Cameras) -> torch.Tensor:
    """
    How well cameras see what targets see: `[V, P]`, from 0 (not at all) to 1 (along the same rays, as sharply), for
    points spread over the frustums of the targets, from half to twice the distance that the cameras look at. What
    hides what is not known.

    Args:
        cameras (`Cameras` of shape `[V]`): the candidates.
        targets (`Cameras` of shape `[M]`): what is to be seen; of a long path, some views are enough.
    """
    targets = targets[
        torch.linspace(0, len(targets) - 1, min(len(targets), _MOST_TARGETS), dtype=torch.float32).round().long()
    ]
    depths = looking_distances(cameras, targets)[:, None] * torch.tensor(_DEPTHS, dtype=torch.float64)
    steps = (torch.arange(_GRID, dtype=torch.float64) + 0.5) / _GRID
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).reshape(-1, 1, 2)
    pixels = (grid * targets.image_sizes.flip(-1)[:, None, None]).expand(-1, -1, len(_DEPTHS), -1)
    shape = pixels.shape[:-1]
    points = targets.unproject(pixels.flatten(1, 2), depths[:, None].expand(shape).flatten(1, 2))
    own = points - targets.centers[:, None]
    sharpness = targets.intrinsics[:, None, 0, 0] / own.norm(dim=-1)
    points, own, sharpness = points.flatten(0, 1), own.flatten(0, 1), sharpness.flatten()
    chunks = [range(start, min(start + _CHUNK, len(cameras))) for start in range(0, len(cameras), _CHUNK)]
    return torch.cat([_seen(cameras[list(chunk)], points, own, sharpness) for chunk in chunks])


def seen_share(cameras: Cameras, targets: Cameras) -> torch.Tensor:
    """
    How well the best of some cameras sees what each target sees: `[M]`, from 0 to 1, the mean of [`coverage`]. Below
    `INVENTED`, a view is for the most part invented.

    Args:
        cameras (`Cameras` of shape `[V]`): of what is known.
        targets (`Cameras` of shape `[M]`): of what is to be seen.
    """
    return torch.stack([coverage(cameras, targets[[view]]).amax(0).mean() for view in range(len(targets))])


def tour(cameras: Cameras) -> list[int]:
    """
    An order of cameras in which each is near the one before, in place and direction: of the walks from any of them to
    the nearest that is left, the shortest.

    Args:
        cameras (`Cameras` of shape `[V]`): to pass through.
    """
    poses = scene_frame(cameras.world_from_camera, len(cameras)).normalize(cameras.world_from_camera)
    distances = view_distances(poses, poses)
    walks = []
    for start in range(len(cameras)):
        walk, length = [start], 0.0
        left = distances.clone()
        while len(walk) < len(cameras):
            left[:, walk[-1]] = torch.inf
            nearest = int(left[walk[-1]].argmin())
            length += float(distances[walk[-1], nearest])
            walk.append(nearest)
        walks.append((length, walk))
    return min(walks)[1]


def _seen(cameras: Cameras, points: torch.Tensor, own: torch.Tensor, sharpness: torch.Tensor) -> torch.Tensor:
    """How well cameras see points `[P, 3]` that their targets see along `own` `[P, 3]` with `sharpness` `[P]`."""
    seen, ahead = cameras.project(points.expand(len(cameras), -1, 3))
    inside = ((seen >= 0) & (seen <= cameras.image_sizes.flip(-1)[:, None])).all(-1) & (ahead > 0)
    rays = points - cameras.centers[:, None]
    angles = torch.rad2deg(torch.cosine_similarity(rays, own[None], dim=-1).clamp(-1, 1).acos())
    ratio = cameras.intrinsics[:, None, 0, 0] / rays.norm(dim=-1).clamp_min(1e-9) / sharpness
    return inside * torch.exp(-angles / _ANGLE) * ratio.clamp(max=1.0)


def reference_order(
    cameras: Cameras, count: int, candidates: Sequence[int], targets: Cameras | None = None
) -> list[int]:
    """
    `count` of the `candidates`, best first: the first k of them are a good choice of k.

    With `targets`, each adds most to what is covered of their views (see [`coverage`]; greedy, which is within 1 - 1/e
    of the best choice: Nemhauser et al. 1978). Without, each is the farthest in place and direction from those before
    it, and the first is the most central.

    Args:
        cameras ([`Cameras`]): of the capture, `[V]`.
        count (`int`): how many to choose.
        candidates (`Sequence[int]`): views that may be chosen.
        targets ([`Cameras`], *optional*): what is to be seen.
    """
    candidates = list(candidates)
    if not 1 <= count <= len(candidates):
        raise ValueError(f"The number of references must lie between 1 and {len(candidates)}, got {count}.")

    def spread(chosen: list[int]) -> list[int]:
        poses = cameras[candidates].world_from_camera
        poses = scene_frame(poses, len(poses)).normalize(poses)
        return chosen + farthest_views(view_distances(poses, poses), count - len(chosen), chosen)

    if targets is None:
        return [candidates[index] for index in spread([])]
    scores = coverage(cameras[candidates], targets)
    chosen: list[int] = []
    covered = torch.zeros(scores.shape[1], dtype=scores.dtype)
    while len(chosen) < count:
        gains = (scores - covered).clamp_min(0).sum(-1)
        gains[chosen] = 0.0
        if gains.max() <= 1e-9:
            chosen = spread(chosen)
            break
        chosen.append(int(gains.argmax()))
        covered = torch.maximum(covered, scores[chosen[-1]])
    return [candidates[index] for index in chosen]


def choose_references(
    cameras: Cameras, count: int, candidates: Sequence[int], targets: Cameras | None = None
) -> list[int]:
    """`count` of the `candidates` in rising order, chosen as by [`reference_order`].

    Args:
        cameras ([`Cameras`]): of the capture, `[V]`.
        count (`int`): how many to choose.
        candidates (`Sequence[int]`): views that may be chosen.
        targets ([`Cameras`], *optional*): what is to be seen.
    """
    return sorted(reference_order(cameras, count, candidates, targets))


def sample_view_subset(
    num_views: int,
    cameras: Cameras | None,
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
        cameras (`Cameras` of shape `[V]`, *optional*):
            Theirs.
        times (`torch.Tensor` of shape `[V]`, *optional*):
            Seconds.
        count (`int`):
            How many to draw.
        generator (`torch.Generator`):
            Source of randomness.
        mix (`tuple[float, float, float]`, defaults to `(0.3, 0.2, 0.5)`):
            Probabilities of a neighbourhood (one view, and those that see most of what it sees, see [`coverage`];
            without cameras, those nearest in time), of a spread choice (farthest points: large baselines), and of a
            random one.

    Returns:
        `list[int]`: indices, in random order.
    """
    if count > num_views:
        raise ValueError(f"`count` is {count}, but the scene has {num_views} views.")
    draw = torch.rand((), generator=generator, dtype=torch.float32).item() * sum(mix)
    order = torch.randperm(num_views, generator=generator).tolist()
    if draw >= mix[0] + mix[1] or (cameras is None and times is None):
        return order[:count]
    if draw < mix[0]:
        if cameras is not None:
            closeness = coverage(cameras, cameras[order[:1]]).mean(-1)
        else:
            assert times is not None, "without both, the choice is random"
            closeness = -(times - times[order[0]]).abs()
        closeness[order[0]] = torch.inf
        chosen = closeness.argsort(descending=True)[:count].tolist()
    else:
        poses = None if cameras is None else cameras.world_from_camera
        poses = None if poses is None else scene_frame(poses, 0).normalize(poses)
        chosen = [order[0], *farthest_views(view_distances(poses, poses, times, times), count - 1, chosen=order[:1])]
    return [chosen[i] for i in torch.randperm(count, generator=generator).tolist()]
