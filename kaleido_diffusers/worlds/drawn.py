"""Drawn worlds as a source of training views: staged, seen by cameras that share what they see, moved."""

import math
import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ..geometry.views import Views
from .assets import find_assets
from .drawing import Drawing, Item, renderer
from .staging import Stage, build_stage
from .synthetic import SPLITS


__all__ = ["DRAWN_KINDS", "WorldSource"]

# Kinds with the stages that they mix
DRAWN_KINDS = {
    "worlds": {"objects": 0.42, "rooms": 0.24, "outdoors": 0.14, "scenes": 0.08, "photos": 0.12},
    "objects": {"objects": 1.0},
    "rooms": {"rooms": 1.0},
    "outdoors": {"outdoors": 1.0},
    "scenes": {"scenes": 1.0},
    "photos": {"photos": 1.0},
    "motion": {"objects": 0.5, "rooms": 0.2, "outdoors": 0.3},
    "clips": {"objects": 0.4, "rooms": 0.25, "outdoors": 0.25, "photos": 0.1},
}
_TRIES = 12
_SHARED = 0.25  # least part of a view that another view also shows


class WorldSource:
    """
    Worlds drawn by OpenGL when they are asked for, in any process; see [`Renderer`].

    Args:
        kind (`str`): one of `DRAWN_KINDS`. `"motion"`: things move, the camera too in half of the worlds; with cameras
            and times. `"clips"`: moving things, a camera on a path; times and no cameras.
        split (`str`): `"train"`, `"validation"` or `"test"`: other seeds, and other assets.
        num_scenes (`int`): how many seeds of the split.
        num_views (`int`): views of each world, at most 64.
        size (`int` or `tuple`): height and width in pixels, or both in one.
        spread (`tuple` of 2): least and greatest arc of the cameras of a world around what they look at, in radians;
            drawn log-uniformly for each world.
        assets (`Sequence[str]`): folders, see [`find_assets`].
        zoom (`float`): part of the worlds whose views differ in their field of view.
    """

    def __init__(
        self,
        kind: str = "worlds",
        split: str = "train",
        num_scenes: int = 100_000,
        num_views: int = 12,
        size: int | tuple[int, int] = 128,
        spread: tuple[float, float] = (0.03, 1.2),
        assets: Sequence[str | os.PathLike] = (),
        zoom: float = 0.3,
    ):
        if kind not in DRAWN_KINDS:
            raise ValueError(f"`kind` must be one of {', '.join(DRAWN_KINDS)}, got {kind!r}.")
        if split not in SPLITS:
            raise ValueError(f"`split` must be one of {', '.join(SPLITS)}, got {split!r}.")
        self.first_seed, available = SPLITS[split]
        if not 0 < num_scenes <= available:
            raise ValueError(f"`num_scenes` must lie between 1 and {available}, got {num_scenes}.")
        if not assets:
            raise ValueError("`assets` must name a folder of photos and meshes that worlds are drawn from.")
        if not 0 < spread[0] <= spread[1]:
            raise ValueError(f"`spread` must be two rising numbers above 0, got {spread}.")
        self.kind, self.num_scenes, self.num_views, self.zoom = kind, num_scenes, num_views, zoom
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.spread = tuple(spread)
        self.assets = find_assets(assets, split)
        self._mix = DRAWN_KINDS[kind]

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> Views:
        if not 0 <= index < self.num_scenes:
            raise IndexError(index)
        for attempt in range(_TRIES):
            rng = np.random.default_rng([self.first_seed + index, attempt])
            names = list(self._mix)
            name = names[int(rng.choice(len(names), p=list(self._mix.values())))]
            if name == "scenes" and not self.assets.scenes:
                name = "rooms"
            sample = self._draw(build_stage(name, self.assets, rng, max(256, max(self.size))), rng)
            if sample is not None:
                return sample
        raise RuntimeError(f"World {index} of {self.kind!r} shows nothing after {_TRIES} tries.")

    def _draw(self, stage: Stage, rng: np.random.Generator) -> Views | None:
        """Views of a stage; nothing if no good ones are found."""
        fov = math.exp(rng.uniform(*np.log(stage.fov)))
        spread = math.exp(rng.uniform(*np.log(self.spread)))
        moves = self.kind in ("motion", "clips")
        base = _find_stand(stage, rng, fov)
        if base is None:
            return None
        path = _Path(base, spread, rng, stage, smooth=moves or rng.random() < 0.5)
        still = self.kind == "motion" and rng.random() < 0.5
        times = np.sort(rng.uniform(0, 1, self.num_views)) if rng.random() < 0.3 else np.linspace(0, 1, self.num_views)
        drawing, seconds = stage.drawing, times * rng.uniform(0.8, 4.0)
        if moves:
            drawing = _moved(drawing, _near(stage, base[1]), seconds, rng)
        fovs = np.full(self.num_views, fov)
        if not moves and rng.random() < self.zoom:
            fovs = np.clip(fov * np.exp(rng.uniform(-0.5, 0.5, self.num_views)), 25, 90)
        intrinsics = _intrinsics(fovs, self.size)
        grades = _exposure(drawing, base, fov, rng) * np.exp(rng.normal(0, 0.06, (self.num_views, 1)))
        grades = grades * np.exp(rng.normal(0, 0.03, 3) + rng.normal(0, 0.012, (self.num_views, 3)))
        poses = np.stack([path.pose(0.0 if still else t, 0.0 if still else 1.0) for t in times])
        poses[0] = path.pose(0.0, 0.0) if not moves else poses[0]
        views, depth = renderer().draw(drawing, poses, intrinsics, self.size, grades)
        has_sky = drawing.panorama is not None
        good = _good(views, depth, poses, intrinsics, path.distance, has_sky)
        for attempt in range(1, 4):
            if good.all() or not good[0]:
                break
            bad = np.nonzero(~good)[0]
            poses[bad] = [path.pose(times[i], 0.6**attempt) for i in bad]
            chosen = _only(drawing, bad)
            views, depth = views.copy(), depth.copy()
            views[bad], depth[bad] = renderer().draw(chosen, poses[bad], intrinsics[bad], self.size, grades[bad])
            good = _good(views, depth, poses, intrinsics, path.distance, has_sky)
        if not good.all():
            return None
        pictures = torch.from_numpy(np.ascontiguousarray(views.transpose(0, 3, 1, 2)))
        clock = torch.from_numpy(seconds)
        if self.kind == "clips":
            return Views(pixels=pictures, times=clock)
        cameras = torch.from_numpy(poses), torch.from_numpy(intrinsics).float()
        poses, intrinsics = cameras
        return Views(pixels=pictures, poses=poses, intrinsics=intrinsics, times=clock if moves else None)


# Cameras


class _Path:
    """Cameras about a first one: on an arc around what it looks at, or beside it as in a walk.

    `spread` is the arc in radians; `distance` how far the first camera is from what it looks at.
    """

    def __init__(self, base: tuple, spread: float, rng: np.random.Generator, stage: Stage, smooth: bool):
        self.eye, self.focus = base
        self.spread, self.rng, self.stage, self.smooth = spread, rng, stage, smooth
        self.distance = float(np.linalg.norm(self.focus - self.eye))
        self.arc = rng.random() < 0.6
        self.roll = rng.normal(0, 0.03)
        self.phase, self.rise = rng.uniform(0, 2 * math.pi, 3), rng.uniform(0.1, 0.6)
        self.waves = rng.uniform(0.4, 1.2, 3)

    def pose(self, time: float, amount: float) -> np.ndarray:
        """A pose `[4, 4]`; `amount` 0 is the first camera."""
        rng, s = self.rng, self.spread * amount
        if self.smooth:
            side = (2 * time - 1) * 0.5
            along, up = 0.5 * np.sin(self.waves[:2] * 2 * math.pi * time + self.phase[:2])
            shake = rng.normal(0, 0.03, 3)
        else:
            side, along, up = rng.uniform(-0.5, 0.5, 3)
            shake = rng.normal(0, 0.06, 3)
        near = min(s, 1.0)
        forward = (self.focus - self.eye) / self.distance
        right = np.cross(forward, [0, 0, 1.0])
        right /= max(np.linalg.norm(right), 1e-6)
        if self.arc:
            azimuth, elevation = s * side, s * self.rise * up
            back = self.eye - self.focus
            back = _turn([0, 0, 1.0], azimuth) @ _turn(right, elevation) @ back * math.exp(0.5 * near * along)
            eye, focus = self.focus + back, self.focus + shake * near * self.distance
        else:
            step = self.distance * near * (right * side * 1.2 + forward * along + np.array([0, 0, 0.35 * up]))
            eye = self.eye + step
            focus = self.focus + 0.5 * step * (self.rise > 0.35) + 1.5 * shake * near * self.distance
        eye = np.clip(eye, self.stage.low, self.stage.high)
        return _look(eye, focus, self.roll + rng.normal(0, 0.02) * near)


def _turn(axis, angle: float) -> np.ndarray:
    """A rotation about an axis (Rodrigues)."""
    x, y, z = np.asarray(axis, float) / max(np.linalg.norm(axis), 1e-9)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * k + (1 - math.cos(angle)) * k @ k


def _look(eye, focus, roll: float) -> np.ndarray:
    forward = focus - eye
    forward = forward / max(np.linalg.norm(forward), 1e-9)
    right = np.cross(forward, [0, 0, 1.0])
    right = right / np.linalg.norm(right) if np.linalg.norm(right) > 1e-4 else np.array([1.0, 0, 0])
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1) @ _turn([0, 0, 1], roll)
    pose[:3, 3] = eye
    return pose


def _intrinsics(fovs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Normalised intrinsics `[V, 3, 3]`; the field of view is that of the shorter side."""
    height, width = size
    focal = 0.5 * min(size) / np.tan(np.radians(fovs) / 2)
    matrix = np.zeros((len(fovs), 3, 3))
    matrix[:, 0, 0], matrix[:, 1, 1] = focal / width, focal / height
    matrix[:, :2, 2], matrix[:, 2, 2] = 0.5, 1.0
    return matrix


def _find_stand(stage: Stage, rng: np.random.Generator, fov: float) -> tuple | None:
    """Where the first camera stands and what it looks at; of many places, seen small, one that shows something."""
    if not stage.needs_search:
        return stage.stand(rng, fov)
    for _ in range(3):
        stands = [stage.stand(rng, fov) for _ in range(16)]
        poses = np.stack([_look(*stand, 0.0) for stand in stands])
        views, depth = renderer().draw(
            stage.drawing, poses, _intrinsics(np.full(16, fov), (32, 32)), (32, 32), smooth=False
        )
        solid = np.where(np.isfinite(depth), depth, 1e3)
        middle, near = np.median(solid, axis=(1, 2)), np.quantile(solid, 0.08, axis=(1, 2))
        detail = np.abs(np.diff(views.mean(-1), axis=-1)).mean((1, 2))
        fine = (near > 0.35) & (middle > 1.1) & (np.isfinite(depth).mean((1, 2)) > 0.5) & (detail > 5)
        if fine.any():
            best = max(np.nonzero(fine)[0], key=lambda i: min(detail[i], 12) + rng.uniform(0, 4))
            eye, focus = stands[best]
            ahead = float(np.clip(np.median(solid[best, 8:24, 8:24]), 0.5, 12))
            return eye, eye + (focus - eye) / np.linalg.norm(focus - eye) * ahead
    return None


def _exposure(drawing: Drawing, base: tuple, fov: float, rng: np.random.Generator) -> float:
    """Exposure as a camera chooses it: things, seen small, come to a middle brightness, with some error."""
    poses = _look(*base, 0.0)[None]
    small, lens = (32, 32), _intrinsics(np.array([fov]), (32, 32))
    view, depth = renderer().draw(_only(drawing, np.array([0])), poses, lens, small, smooth=False)
    seen = np.isfinite(depth[0])
    gray = view[0].mean(-1)[seen if seen.mean() > 0.02 else slice(None)] / 255
    wanted = rng.uniform(0.33, 0.56)
    return float(np.clip((wanted / max(gray.mean(), 0.05)) ** 1.8, 0.45, 2.2))


def _good(views, depth, poses, intrinsics, distance: float, has_sky: bool) -> np.ndarray:
    """Which views `[V]` show something, are not blocked, and share what they see with others that do."""
    gray = views.mean(-1)
    seen = np.isfinite(depth)
    close = np.where(seen, depth, 1e9) < min(0.18 * distance, 0.35)
    fine = (gray.std((1, 2)) > 9) & (close.mean((1, 2)) < 0.12) & (seen.mean((1, 2)) > 0.06)
    bright = gray.mean((1, 2))
    fine &= (bright < 246) & ((bright > 14) | (not has_sky) & (bright > 2.5))
    if not fine[0]:
        return fine
    share = _shared(depth, poses, intrinsics, has_sky)
    share = np.minimum(share, share.T)
    accepted = np.zeros(len(fine), dtype=bool)
    accepted[0] = True
    for _ in range(len(fine)):
        more = fine & (share[:, accepted] > _SHARED).any(-1) | accepted
        if (more == accepted).all():
            break
        accepted = more
    return accepted


def _shared(depth, poses, intrinsics, has_sky: bool) -> np.ndarray:
    """Part `[V, V]` of the first view that the second shows too, by depth, on a grid of 10 x 10 points."""
    views, height, width = depth.shape
    rows = ((np.arange(10) + 0.5) / 10 * height).astype(int)
    columns = ((np.arange(10) + 0.5) / 10 * width).astype(int)
    z = depth[:, rows][:, :, columns].reshape(views, -1)
    counted = np.ones_like(z, bool) if has_sky else np.isfinite(z)
    z = np.where(np.isfinite(z), z, 250.0)
    y, x = np.meshgrid((rows + 0.5) / height, (columns + 0.5) / width, indexing="ij")
    rays = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3)
    rays = rays @ np.linalg.inv(intrinsics).swapaxes(1, 2)
    points = (rays * z[..., None]) @ poses[:, :3, :3].swapaxes(1, 2) + poses[:, None, :3, 3]
    seen = points[:, None] - poses[None, :, None, :3, 3]
    seen = (seen @ poses[None, :, :3, :3]) @ intrinsics[None].swapaxes(-1, -2)  # [V, V, n, 3]
    far = np.maximum(seen[..., 2], 1e-6)
    u, v = seen[..., 0] / far * width, seen[..., 1] / far * height
    inside = (seen[..., 2] > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    u, v = (np.clip(a, 0, size - 1).astype(int) for a, size in ((u, width), (v, height)))
    there = np.minimum(depth[np.arange(views)[None, :, None], v, u], 250.0)
    agree = inside & (np.abs(there - far) < 0.08 * far) & counted[:, None]
    return agree.sum(-1) / np.maximum(counted.sum(-1), 1)[:, None]


# Motion


def _near(stage: Stage, focus: np.ndarray) -> list[int]:
    """The movers nearest to what the first camera looks at."""
    places = [stage.drawing.items[number].place[:3, 3] for number in stage.movers]
    order = np.argsort([np.linalg.norm(place - focus) for place in places])
    return [stage.movers[number] for number in order[:4]]


def _moved(drawing: Drawing, movers: list[int], seconds: np.ndarray, rng: np.random.Generator) -> Drawing:
    """Some of the things in motion: back and forth, hopping, turning."""
    items = list(drawing.items)
    chosen = rng.permutation(movers)[: int(rng.integers(1, 4))] if movers else []
    for number in chosen:
        items[number] = _in_motion(items[number], seconds, rng)
    return replace(drawing, items=items)


def _in_motion(item: Item, seconds: np.ndarray, rng: np.random.Generator) -> Item:
    mesh, place = item.mesh, item.place
    foot = place[:3, :3] @ np.array([*(mesh.low + mesh.high)[:2] / 2, mesh.low[2]]) + place[:3, 3]
    length = float(np.linalg.norm(place[:3, :3] @ (mesh.high - mesh.low)))
    direction, speed = rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 3.0)
    reach = length * rng.uniform(0.15, 0.7) * (rng.random() < 0.8)
    spin = rng.uniform(-2.5, 2.5) * (rng.random() < 0.7 or reach == 0)
    hop = length * rng.uniform(0.1, 0.5) * (rng.random() < 0.3)
    phase = rng.uniform(0, 2 * math.pi)
    places = np.repeat(place[None], len(seconds), axis=0)
    for view, second in enumerate(seconds):
        swing = reach * (math.sin(speed * second + phase) - math.sin(phase))
        shift = np.array([math.cos(direction) * swing, math.sin(direction) * swing, hop * abs(math.sin(3 * second))])
        turn = _turn([0, 0, 1.0], spin * second)
        places[view, :3, :3] = turn @ place[:3, :3]
        places[view, :3, 3] = turn @ (place[:3, 3] - foot) + foot + shift
    return replace(item, place=places)


def _only(drawing: Drawing, views: np.ndarray) -> Drawing:
    """A drawing for some of its views."""
    items = [item if item.place.ndim == 2 else replace(item, place=item.place[views]) for item in drawing.items]
    return replace(drawing, items=items)
