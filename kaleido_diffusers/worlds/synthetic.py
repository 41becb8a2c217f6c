"""Endless synthetic worlds with exact cameras and motion, ray cast in batched torch on CPU or GPU.

A world is a handful of textured solids, on a plain background (`"object"`) or on a ground among walls under a sky
(`"scene"`). World axes: +Z up. Every world follows from its seed alone, on any device and in any batch.

Rays that miss the bounding sphere of a solid cost nothing more; the others meet polytopes and quadrics in closed form
and tori, cones and blends by sphere tracing (Hart 1996). Textures are solid (functions of the point in the frame of
the object) and band-limited by the footprint of the pixel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
import torch.nn.functional as F

from ..geometry.cameras import look_at


__all__ = [
    "SHAPES",
    "SPLITS",
    "TEXTURES",
    "Dice",
    "Worlds",
    "check_worlds",
    "make_worlds",
    "place_cameras",
    "render",
    "sample_views",
]

SHAPES = ("none", "wall", "box", "prism", "pyramid", "octahedron", "ellipsoid", "cylinder", "cone", "torus", "blend")
TEXTURES = ("plain", "checks", "stripes", "dots", "gradient", "noise", "marble")

# First seed and number of seeds of the named splits: a model never trains on what it is scored on.
SPLITS = {"train": (0, 10**9), "validation": (10**9, 10**6), "test": (2 * 10**9, 10**6)}

MAX_SOLIDS = 9
MAX_WALLS = 3
_POLYTOPES = ("box", "prism", "pyramid", "octahedron")
_TRACED = ("cone", "torus", "blend")
_FAR = 1e9
_SURFACE = 1e-4  # how far secondary rays start from the surface that they leave


@dataclass
class Worlds:
    """B worlds of K solids, of which the last are walls (boxes along the axes that do not move). The ground takes the
    last place of the materials."""

    shape: torch.Tensor  # [B, K] index into SHAPES
    size: torch.Tensor  # [B, K, 3] half extents
    center: torch.Tensor  # [B, K, 3] at time 0
    rotation: torch.Tensor  # [B, K, 3, 3] world_from_object at time 0
    velocity: torch.Tensor  # [B, K, 3] units a second
    spin: torch.Tensor  # [B, K] radians a second about the world's up
    texture: torch.Tensor  # [B, K + 1] index into TEXTURES
    colors: torch.Tensor  # [B, K + 1, 2, 3] linear RGB
    frequency: torch.Tensor  # [B, K + 1] texture periods in a unit of length
    offset: torch.Tensor  # [B, K + 1, 3] shift of the texture
    gloss: torch.Tensor  # [B, K + 1] strength of the highlight
    has_ground: torch.Tensor  # [B] bool: the plane z = 0
    sky: torch.Tensor  # [B, 2, 3] linear RGB at the horizon and above
    light: torch.Tensor  # [B, 3] unit vector to the light
    ambient: torch.Tensor  # [B]

    def __len__(self) -> int:
        return len(self.shape)

    def to(self, device: str | torch.device) -> "Worlds":
        """The same on another `device`."""
        return Worlds(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    @classmethod
    def stack(cls, worlds: Sequence["Worlds"]) -> "Worlds":
        """Joins single worlds (without the dimension B) into a batch.

        Args:
            worlds (`Sequence[Worlds]`): to be joined.
        """
        return cls(**{f.name: torch.stack([getattr(world, f.name) for world in worlds]) for f in fields(cls)})

    @property
    def radius(self) -> torch.Tensor:
        """Radius `[B, K]` of the bounding sphere of each solid; 0 for walls and for none."""
        return self.size.norm(dim=-1) * (self.shape > SHAPES.index("wall"))


# Making worlds


def make_worlds(
    seeds: Sequence[int],
    level: Literal["object", "scene", "mixed"] = "mixed",
    motion: float = 0.0,
    max_solids: int = 6,
) -> Worlds:
    """
    Worlds of the given seeds.

    Args:
        seeds (`Sequence[int]`):
            One for each world; see `SPLITS`.
        level (`str`, defaults to `"mixed"`):
            `"object"`: solids on a plain background. `"scene"`: solids on a ground, among walls, under a sky.
            `"mixed"`: either, by the seed.
        motion (`float`, defaults to `0.0`):
            Probability that a solid moves.
        max_solids (`int`, defaults to `6`):
            Most solids in a world, walls aside.
    """
    check_worlds(level, max_solids)
    return Worlds.stack([_make_world(int(seed), level, motion, max_solids) for seed in seeds])


def check_worlds(level: str, max_solids: int) -> None:
    """Raises `ValueError` for worlds that [`make_worlds`] does not know.

    Args:
        level (`str`): as there.
        max_solids (`int`): as there.
    """
    if level not in ("object", "scene", "mixed"):
        raise ValueError(f"`level` must be 'object', 'scene' or 'mixed', got {level!r}.")
    if not 1 <= max_solids <= MAX_SOLIDS:
        raise ValueError(f"`max_solids` must lie between 1 and {MAX_SOLIDS}, got {max_solids}.")


class Dice:
    """Random draws of one world, on the CPU.

    Args:
        seed (`int`): decides all of them.
    """

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        """Numbers between `low` and `high`.

        Args:
            low (`float`): smallest.
            high (`float`): largest.
            shape (`int`): of the result.
        """
        return low + (high - low) * torch.rand(shape, generator=self.generator, dtype=torch.float32)

    def integer(self, low: int, high: int) -> int:
        """An integer from `low` to `high - 1`.

        Args:
            low (`int`): smallest.
            high (`int`): one above the largest.
        """
        return int(torch.randint(low, high, (), generator=self.generator))

    def chance(self, probability: float) -> bool:
        """True with this probability.

        Args:
            probability (`float`): from 0 to 1.
        """
        return bool(torch.rand((), generator=self.generator, dtype=torch.float32) < probability)


def _make_world(seed: int, level: str, motion: float, max_solids: int) -> Worlds:
    dice = Dice(seed)
    is_scene = level == "scene" or (level == "mixed" and dice.chance(0.5))
    count, slots = dice.integer(1, max_solids + 1), MAX_SOLIDS + MAX_WALLS
    shape = torch.zeros(slots, dtype=torch.long)
    size, center = torch.zeros(slots, 3, dtype=torch.float32), torch.zeros(slots, 3, dtype=torch.float32)
    rotation = torch.eye(3, dtype=torch.float32).repeat(slots, 1, 1)
    for index in range(count):
        shape[index] = dice.integer(SHAPES.index("box"), len(SHAPES))
        name = SHAPES[shape[index]]
        scale = dice.uniform(0.25, 0.6).item() * (1.0 if is_scene or count < 4 else 0.8)
        size[index] = scale * dice.uniform(0.55, 1.0, 3)
        if name in _TRACED:
            size[index] = scale * 0.8
        rotation[index] = _turn(dice.uniform(0, 2 * math.pi).item())
        if not is_scene:
            rotation[index] = _random_rotation(dice)
        center[index] = _free_place(dice, size, center, index, is_scene)
        if is_scene and name == "torus":  # lies lower than its bounding cube
            center[index, 2] *= 0.4
    first = dice.integer(0, 4)
    for number in range(dice.integer(0, MAX_WALLS + 1) if is_scene else 0):
        index, turn = MAX_SOLIDS + number, (first + number) % 4
        shape[index] = SHAPES.index("wall")
        height = dice.uniform(0.8, 2.0).item()
        size[index] = torch.tensor([0.1, 3.6, height] if turn % 2 == 0 else [3.6, 0.1, height], dtype=torch.float32)
        center[index] = _turn(turn * math.pi / 2) @ torch.tensor([3.5, 0.0, height], dtype=torch.float32)
    moves = dice.uniform(0, 1, slots) < motion
    moves[count:] = False
    velocity = dice.uniform(-0.5, 0.5, slots, 3) * moves[:, None]
    velocity[:, 2] *= 0.0 if is_scene else 1.0

    materials = slots + 1
    colors = _colors(dice, materials)
    elevation, azimuth = math.radians(dice.uniform(35, 75).item()), dice.uniform(0, 2 * math.pi).item()
    return Worlds(
        shape=shape,
        size=size,
        center=center,
        rotation=rotation,
        velocity=velocity,
        spin=dice.uniform(-1.5, 1.5, slots) * moves,
        texture=torch.randint(0, len(TEXTURES), (materials,), generator=dice.generator),
        colors=colors,
        frequency=_frequencies(dice, count, materials),
        offset=dice.uniform(-5, 5, materials, 3),
        gloss=dice.uniform(0, 0.5, materials) * (dice.uniform(0, 1, materials) < 0.5),
        has_ground=torch.tensor(is_scene),
        sky=_sky(dice, is_scene),
        light=torch.tensor(
            [
                math.cos(elevation) * math.cos(azimuth),
                math.cos(elevation) * math.sin(azimuth),
                math.sin(elevation),
            ],
            dtype=torch.float32,
        ),
        ambient=dice.uniform(0.25, 0.45),
    )


def _turn(angle: float) -> torch.Tensor:
    """Rotation about the world's up."""
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float32)


def _random_rotation(dice: Dice) -> torch.Tensor:
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=dice.generator, dtype=torch.float32))
    q = q * r.diagonal().sign()
    return q * torch.linalg.det(q).sign()


def _free_place(dice: Dice, size: torch.Tensor, center: torch.Tensor, index: int, is_scene: bool) -> torch.Tensor:
    """A place for solid `index` where its bounding sphere touches no earlier one, if twenty tries find one."""
    reach = 1.6 if is_scene else 0.25 + 0.2 * index
    radii = size.norm(dim=-1)
    for _ in range(20):
        place = dice.uniform(-reach, reach, 3)
        if is_scene:
            place[2] = size[index, 2]
        gaps = (center[:index] - place).norm(dim=-1) - radii[:index] - radii[index]
        if not index or gaps.min() > -0.1 * radii[index]:
            break
        reach *= 1.06
    return place


def _colors(dice: Dice, count: int) -> torch.Tensor:
    """Pairs of colours `[count, 2, 3]` that stand apart: any hue, and a second one of another lightness."""
    hue = dice.uniform(0, 1, count, 2, 1)
    phase = torch.tensor([0.0, 1 / 3, 2 / 3], dtype=torch.float32)
    saturated = 0.5 + 0.5 * torch.cos(2 * math.pi * (hue + phase))
    saturation = dice.uniform(0.2, 1.0, count, 2, 1)
    value = dice.uniform(0.45, 0.95, count, 1, 1).expand(-1, 2, -1).clone()
    value[:, 1] *= dice.uniform(0.25, 0.75, count, 1)
    return value * (1 - saturation + saturation * saturated)


def _frequencies(dice: Dice, count: int, materials: int) -> torch.Tensor:
    frequency = dice.uniform(1.2, 4.0, materials)
    frequency[count:] = dice.uniform(0.5, 1.5, materials - count)
    return frequency


def _sky(dice: Dice, is_scene: bool) -> torch.Tensor:
    if not is_scene:
        return dice.uniform(0.05, 1.0, 3).expand(2, -1).clone()
    horizon = dice.uniform(0.6, 0.95, 1, 3)
    above = torch.tensor([[0.15, 0.35, 0.75]], dtype=torch.float32) * dice.uniform(0.6, 1.2) + dice.uniform(
        0, 0.2, 1, 3
    )
    return torch.cat([horizon, above])


# Cameras


def sample_views(
    worlds: Worlds,
    num_views: int,
    seed: int,
    kind: Literal["views", "video"] = "views",
    spread: float = 1.0,
    duration: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Cameras that see the solids of each world.

    Args:
        worlds (`Worlds`):
            B worlds.
        num_views (`int`):
            V.
        seed (`int`):
            With the worlds, decides the cameras.
        kind (`str`, defaults to `"views"`):
            `"views"`: anywhere around, all at time 0. `"video"`: along a smooth path, evenly spaced in time.
        spread (`float`, defaults to `1.0`):
            How far apart, from 0 to 1: the azimuths fill this part of the circle.
        duration (`float`, defaults to `1.0`):
            Seconds of a video.

    Returns:
        `tuple`: world_from_camera `[B, V, 4, 4]`, normalised intrinsics `[B, V, 3, 3]`, times `[B, V]`.
    """
    if kind not in ("views", "video"):
        raise ValueError(f"`kind` must be 'views' or 'video', got {kind!r}.")
    poses, intrinsics = [], []
    for index in range(len(worlds)):
        dice = Dice(seed * 1_000_003 + index)
        is_scene = bool(worlds.has_ground[index])
        solids = worlds.radius[index] > 0
        pose = place_cameras(
            dice, worlds.center[index, solids], worlds.radius[index, solids], num_views, kind, spread, is_scene
        )
        fov = math.radians(dice.uniform(45, 65).item() if is_scene else dice.uniform(35, 50).item())
        lens = torch.eye(3, dtype=torch.float32)
        lens[0, 0] = lens[1, 1] = 0.5 / math.tan(fov / 2)
        lens[:2, 2] = 0.5
        poses.append(pose)
        intrinsics.append(lens.expand(num_views, -1, -1))
    times = (
        torch.linspace(0, duration, num_views, dtype=torch.float32)
        if kind == "video"
        else torch.zeros(num_views, dtype=torch.float32)
    )
    return torch.stack(poses), torch.stack(intrinsics), times.expand(len(worlds), -1)


def place_cameras(
    dice: Dice,
    center: torch.Tensor,
    radius: torch.Tensor,
    num_views: int,
    kind: Literal["views", "video"] = "views",
    spread: float = 1.0,
    has_ground: bool = False,
) -> torch.Tensor:
    """
    Cameras around solids, looking at them.

    Args:
        dice (`Dice`): decides them.
        center (`torch.Tensor` of shape `[K, 3]`): of the solids.
        radius (`torch.Tensor` of shape `[K]`): of their bounding spheres, which no camera enters.
        num_views (`int`): V.
        kind (`str`): as in [`sample_views`].
        spread (`float`): as in [`sample_views`].
        has_ground (`bool`): stay above z = 0 and within 3.2 units of the middle.

    Returns:
        `torch.Tensor` of shape `[V, 4, 4]`: `world_from_camera`.
    """
    focus = center.mean(0)
    reach = ((center - focus).norm(dim=-1) + radius).max().item()
    distance = reach * (2.0 if has_ground else 2.6)
    first = dice.uniform(0, 2 * math.pi)
    low, high = (10, 50) if has_ground else (-30, 60)
    if kind == "video":
        fraction = torch.linspace(0, 1, num_views, dtype=torch.float32)
        azimuth = first + 2 * math.pi * spread * dice.uniform(-0.25, 0.25) * fraction
        elevation = dice.uniform(low, high) + dice.uniform(-10, 10) * fraction
        away = distance * (1 + dice.uniform(-0.2, 0.2) * fraction)
        aim = focus + 0.15 * reach * dice.uniform(-1, 1, 3)
    else:
        azimuth = first + 2 * math.pi * spread * dice.uniform(-0.5, 0.5, num_views)
        middle = dice.uniform(low, high)
        elevation = middle + spread * (dice.uniform(low, high, num_views) - middle)
        away = distance * dice.uniform(1 - 0.25 * spread, 1 + 0.25 * spread, num_views)
        aim = focus + 0.15 * reach * spread * dice.uniform(-1, 1, num_views, 3)
    elevation = torch.deg2rad(elevation)
    direction = torch.stack(
        [elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], dim=-1
    )
    places = focus + away[:, None] * direction
    if has_ground:  # above the ground and between the walls
        places[:, 2].clamp_(min=0.2)
        places[:, :2].clamp_(-3.2, 3.2)
    places = _outside(places, center, radius)
    return look_at(places, aim.expand_as(places), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float32))


def _outside(places: torch.Tensor, centers: torch.Tensor, radii: torch.Tensor) -> torch.Tensor:
    """Lifts cameras out of the solids."""
    for _ in range(20):
        inside = ((places[:, None] - centers).norm(dim=-1) < radii * 1.1 + 0.05).any(-1)
        if not inside.any():
            break
        places[:, 2] += 0.15 * inside
    return places


# Rendering


def render(
    worlds: Worlds,
    poses: torch.Tensor,  # [B, V, 4, 4] world_from_camera
    intrinsics: torch.Tensor,  # [B, V, 3, 3] normalised
    times: torch.Tensor | None = None,  # [B, V] seconds
    size: tuple[int, int] = (64, 64),
    samples: int = 3,
    rays_at_once: int = 400_000,
) -> torch.Tensor:
    """
    Ray casts views with hard shadows and highlights.

    Args:
        worlds (`Worlds`):
            B worlds.
        poses (`torch.Tensor` of shape `[B, V, 4, 4]`):
            `world_from_camera`, OpenCV axes.
        intrinsics (`torch.Tensor` of shape `[B, V, 3, 3]`):
            Normalised by width and height.
        times (`torch.Tensor` of shape `[B, V]`, *optional*):
            Seconds; 0 when not given.
        size (`tuple[int, int]`, defaults to `(64, 64)`):
            Height and width.
        samples (`int`, defaults to `3`):
            Rays along each side of a pixel.
        rays_at_once (`int`, defaults to `400_000`):
            Bounds the memory.

    Returns:
        `torch.Tensor` of shape `[B, V, 3, H, W]`: sRGB in [0, 1].
    """
    batch, views = poses.shape[:2]
    height, width = size
    device, dtype = poses.device, torch.float32
    y, x = torch.meshgrid(
        (torch.arange(height * samples, device=device, dtype=dtype) + 0.5) / (height * samples),
        (torch.arange(width * samples, device=device, dtype=dtype) + 0.5) / (width * samples),
        indexing="ij",
    )
    pixels = torch.stack([x, y, torch.ones_like(x)], dim=-1).reshape(-1, 3)
    scene = torch.arange(batch, device=device).repeat_interleave(views)
    poses, intrinsics = poses.flatten(0, 1).to(dtype), intrinsics.flatten(0, 1).to(dtype)
    times = (
        torch.zeros(batch * views, device=device, dtype=torch.float32) if times is None else times.flatten().to(dtype)
    )
    at_once = max(1, rays_at_once // len(pixels))
    images = []
    for start in range(0, batch * views, at_once):
        part = slice(start, start + at_once)
        directions = F.normalize(pixels @ torch.linalg.inv(intrinsics[part]).mT @ poses[part, :3, :3].mT, dim=-1)
        footprint = 1 / (intrinsics[part, 0, 0] * width)  # radians in a pixel
        solids = _Solids(worlds, scene[part], times[part])
        colors = _shade(solids, poses[part, None, :3, 3], directions, footprint)
        colors = colors.view(-1, height, samples, width, samples, 3).mean((2, 4))
        images.append(_srgb(colors).permute(0, 3, 1, 2))
    return torch.cat(images).unflatten(0, (batch, views))


class _Solids:
    """The solids of worlds at the time of each view, leading dimension the views `v`."""

    def __init__(self, worlds: Worlds, scene: torch.Tensor, times: torch.Tensor):
        for field in fields(worlds):
            setattr(self, field.name, getattr(worlds, field.name)[scene])
        self.radius = worlds.radius[scene]
        self.center = self.center + self.velocity * times[:, None, None]
        angle = self.spin * times[:, None]
        c, s, o, i = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
        turn = torch.stack([c, -s, o, s, c, o, o, o, i], dim=-1).unflatten(-1, (3, 3))
        self.rotation = turn @ self.rotation
        self.used = int((self.radius > 0).sum(-1).max())  # solids take the first places


def _shade(solids: _Solids, origins: torch.Tensor, directions: torch.Tensor, footprint: torch.Tensor) -> torch.Tensor:
    """Linear RGB `[v, n, 3]` of rays from `origins` `[v, 1, 3]`; `footprint` `[v]` is the angle of a pixel."""
    distance, place, normal = _cast(solids, origins, directions)
    sky = solids.sky[:, None]
    height = (directions[..., 2:] * 1.5).clamp(0, 1)
    colors = torch.lerp(sky[..., 0, :], sky[..., 1, :], height).expand_as(directions).contiguous()
    hit = distance < _FAR
    view = hit.nonzero()[:, 0]
    points = origins + torch.where(hit, distance, torch.zeros_like(distance))[..., None] * directions

    light = solids.light[:, None]
    diffuse = (normal * light).sum(-1).clamp_min(0)
    lit = hit & (diffuse > 0)
    away = points + normal * (_SURFACE * (1 + distance[..., None].clamp_max(100)))
    blocked, _, _ = _cast(solids, away, light, lit)
    diffuse = diffuse * (blocked >= _FAR)

    distance, place, normal, diffuse = distance[hit], place[hit], normal[hit], diffuse[hit]
    direction, light = directions[hit], solids.light[view]
    facing = (normal * direction).sum(-1)
    albedo = _albedo(solids, view, place, points[hit], footprint[view] * distance / (-facing).clamp_min(0.05))
    half = F.normalize(light - direction, dim=-1)
    highlight = solids.gloss[view, place] * (normal * half).sum(-1).clamp_min(0) ** 40 * (diffuse > 0)
    ambient = solids.ambient[view]
    soft = ambient * (0.7 + 0.3 * normal[:, 2])
    shaded = albedo * (soft + (1 - ambient) * 1.1 * diffuse)[:, None] + highlight[:, None]
    fog = (1 - torch.exp(-0.004 * distance**2)) * (place == solids.shape.shape[1])
    colors[hit] = torch.lerp(shaded, solids.sky[view, 0], fog[:, None])
    return colors


def _srgb(linear: torch.Tensor) -> torch.Tensor:
    linear = linear.clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp_min(1e-8) ** (1 / 2.4) - 0.055)


def _cast(
    solids: _Solids,
    origins: torch.Tensor,  # [v, n, 3], or [v, 1, 3] for rays from one point
    directions: torch.Tensor,  # [v, n, 3], or [v, 1, 3] for parallel rays
    active: torch.Tensor | None = None,  # [v, n] bool: shadow rays, which the ground cannot stop
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Distance `[v, n]` to the nearest surface (`_FAR` for none), number of its solid (K: the ground), its normal."""
    slots = solids.shape.shape[1]
    shape = torch.broadcast_shapes(origins.shape, directions.shape)[:-1]
    nearest = torch.full(shape, _FAR, device=origins.device, dtype=torch.float32)
    normals = torch.zeros(*shape, 3, device=origins.device, dtype=torch.float32)
    if active is None:
        slope = directions[..., 2]
        on_ground = solids.has_ground[:, None] & (slope < 0) & (origins[..., 2] > 0)
        nearest = torch.where(on_ground, -origins[..., 2] / slope.clamp_max(-1e-9), nearest)
        normals[..., 2] = 1.0

    place = torch.full(shape, slots, device=origins.device)
    _meet_walls(solids, origins, directions, nearest, place, normals)

    # Which rays pass the bounding sphere of which solid: products of matrices, for all pairs at once
    center, radius = solids.center[:, : solids.used], solids.radius[:, None, : solids.used]
    along = directions @ center.mT - (directions * origins).sum(-1, keepdim=True)  # [v, n, used]
    square = (origins * origins).sum(-1, keepdim=True) - 2 * origins @ center.mT + center.square().sum(-1)[:, None]
    close = (square - along.square() < radius.square()) & (along > -radius) & (radius > 0)
    if active is not None:
        close &= active.unsqueeze(-1)
    view, ray, slot = close.nonzero().unbind(-1)
    one_origin, one_direction = (0 * ray if x.shape[1] == 1 else ray for x in (origins, directions))
    offset = origins[view, one_origin] - center[view, slot]
    distance, normal = _intersect(solids, view, slot, offset, directions[view, one_direction], along[close])

    flat = view * shape[1] + ray
    nearest = nearest.flatten().scatter_reduce(0, flat, distance, "amin")
    won = (distance == nearest[flat]) & (distance < _FAR)
    place.view(-1)[flat[won]] = slot[won]
    normals.view(-1, 3)[flat[won]] = normal[won]
    return nearest.view(shape), place, normals


def _meet_walls(solids: _Solids, origins, directions, nearest, place, normals) -> None:
    """Lets walls come nearer, in place: boxes along the axes, by slabs (Kay and Kajiya 1986)."""
    for slot in range(MAX_SOLIDS, MAX_SOLIDS + MAX_WALLS):
        views = (solids.shape[:, slot] > 0).nonzero().squeeze(-1)
        if not len(views):
            continue
        center, size = solids.center[views, None, slot], solids.size[views, None, slot]
        d, o = directions[views], origins[views] - center
        inverse = 1 / torch.where(d.abs() < 1e-9, 1e-9, d)
        middle, half = -o * inverse, size * inverse.abs()
        enter, axis = (middle - half).max(-1)
        leave = (middle + half).amin(-1)
        better = (enter < leave) & (enter > 0) & (enter < nearest[views])
        nearest[views] = torch.where(better, enter, nearest[views])
        place[views] = torch.where(better, slot, place[views])
        facing = F.one_hot(axis, 3) * -d.sign()
        normals[views] = torch.where(better.unsqueeze(-1), facing, normals[views])


def _intersect(solids: _Solids, view, slot, offset, directions, middle) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance `[p]` and world normal `[p, 3]` for pairs of a ray and a solid: `offset` `[p, 3]` is the origin seen
    from the centre of the solid, `middle` `[p]` where the ray passes it."""
    rotation = solids.rotation[view, slot]
    o = (offset.unsqueeze(-2) @ rotation).squeeze(-2)
    d = (directions.unsqueeze(-2) @ rotation).squeeze(-2)
    size, kind = solids.size[view, slot], solids.shape[view, slot]
    distance = torch.full_like(middle, _FAR)
    normal = torch.zeros_like(o)
    for name in SHAPES[SHAPES.index("box") :]:
        pairs = (kind == SHAPES.index(name)).nonzero().squeeze(-1)
        if not len(pairs):
            continue
        if name in _TRACED:
            scale = size[pairs, 0]
            near = (middle[pairs] / scale - 1.8).clamp_min(0)
            t, normal[pairs] = _trace(name, o[pairs] / scale[:, None], d[pairs], near)
            distance[pairs] = torch.where(t < _FAR, t * scale, t)
        else:
            meet = _meet_polytope if name in _POLYTOPES else _meet_quadric
            distance[pairs], normal[pairs] = meet(name, o[pairs] / size[pairs], d[pairs] / size[pairs])
    # Solids in closed form are stretched unit shapes, whose normals come in the unit frame.
    stretch = torch.where(_is_traced(kind)[:, None], torch.ones_like(size), size)
    normal = F.normalize(normal / stretch, dim=-1)
    return distance, (rotation @ normal.unsqueeze(-1)).squeeze(-1)


def _is_traced(kind: torch.Tensor) -> torch.Tensor:
    return torch.isin(kind, torch.tensor([SHAPES.index(name) for name in _TRACED], device=kind.device))


def _planes(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Outward normals `[P, 3]` and offsets `[P]` of a polytope inside the cube of half extent 1."""
    if name == "box":
        normals = torch.cat([torch.eye(3, dtype=torch.float32), -torch.eye(3, dtype=torch.float32)])
        return normals, torch.ones(6, dtype=torch.float32)
    if name == "prism":  # six sides
        angles = torch.arange(6, dtype=torch.float32) * math.pi / 3
        sides = torch.stack([angles.cos(), angles.sin(), torch.zeros(6, dtype=torch.float32)], dim=-1)
        caps = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]], dtype=torch.float32)
        return torch.cat([sides, caps]), torch.cat(
            [torch.full((6,), math.cos(math.pi / 6), dtype=torch.float32), torch.ones(2, dtype=torch.float32)]
        )
    if name == "pyramid":  # base at -1, apex at (0, 0, 1)
        sides = torch.tensor(
            [[2.0, 0.0, 1.0], [-2.0, 0.0, 1.0], [0.0, 2.0, 1.0], [0.0, -2.0, 1.0]], dtype=torch.float32
        ) / math.sqrt(5)
        return torch.cat([sides, torch.tensor([[0.0, 0.0, -1.0]], dtype=torch.float32)]), torch.cat(
            [torch.full((4,), 1 / math.sqrt(5), dtype=torch.float32), torch.ones(1, dtype=torch.float32)]
        )
    signs = torch.tensor(
        [[x, y, z] for x in (1.0, -1.0) for y in (1.0, -1.0) for z in (1.0, -1.0)], dtype=torch.float32
    )
    return signs / math.sqrt(3), torch.full((8,), 1 / math.sqrt(3), dtype=torch.float32)


def _meet_polytope(name: str, o: torch.Tensor, d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where rays enter a convex polytope: the last plane that they cross inwards, if no other is crossed outwards
    before (Kay and Kajiya 1986). Rays that start inside do not meet it."""
    normals, offsets = (x.to(o) for x in _planes(name))
    slope, height = d @ normals.T, offsets - o @ normals.T
    t = height / torch.where(slope.abs() < 1e-9, torch.full_like(slope, 1e-9), slope)
    enter, plane = torch.where(slope < 0, t, torch.full_like(t, -_FAR)).max(-1)
    leave = torch.where(slope >= 0, t, torch.full_like(t, _FAR)).amin(-1)
    hit = (enter < leave) & (enter > 0)
    return torch.where(hit, enter, torch.full_like(enter, _FAR)), normals[plane]


def _meet_quadric(name: str, o: torch.Tensor, d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where rays enter the unit sphere, or the unit cylinder between z = -1 and 1."""
    mask = torch.tensor([1.0, 1.0, 1.0 if name == "ellipsoid" else 0.0], dtype=torch.float32).to(o)
    a = (d * d * mask).sum(-1).clamp_min(1e-12)
    b = (o * d * mask).sum(-1)
    c = (o * o * mask).sum(-1) - 1
    root = b * b - a * c
    hit, root = root > 0, root.clamp_min(0).sqrt()
    enter, leave = (-b - root) / a, (-b + root) / a
    on_cap = torch.zeros_like(hit)
    if name == "cylinder":
        dz = torch.where(d[:, 2].abs() < 1e-9, torch.full_like(d[:, 2], 1e-9), d[:, 2])
        low, high = torch.sort(torch.stack([(-1 - o[:, 2]) / dz, (1 - o[:, 2]) / dz]), dim=0).values
        on_cap = low > enter
        enter, leave = torch.maximum(enter, low), torch.minimum(leave, high)
    hit &= (enter < leave) & (enter > 0)
    normal = (o + enter[:, None] * d) * mask
    cap = torch.zeros_like(d)
    cap[:, 2] = -d[:, 2].sign()
    return torch.where(hit, enter, torch.full_like(enter, _FAR)), torch.where(on_cap[:, None], cap, normal)


def _signed_distance(name: str, p: torch.Tensor) -> torch.Tensor:
    """Signed distance `[n]` (a lower bound outside) of points `[n, 3]` to a unit solid."""
    flat = p[:, :2].norm(dim=-1)
    if name == "torus":
        return torch.sqrt((flat - 0.9) ** 2 + p[:, 2] ** 2) - 0.4
    if name == "cone":  # base of radius 1 at z = -1, apex at z = 1
        side = (2 * flat + p[:, 2] - 1) / math.sqrt(5)
        return torch.maximum(side, -p[:, 2] - 1)
    # Three balls, joined smoothly (polynomial minimum, Quilez 2013)
    places = torch.tensor([[0.0, 0.0, -0.45], [0.45, 0.0, 0.3], [-0.4, 0.35, 0.4]], dtype=torch.float32).to(p)
    radii = (0.6, 0.45, 0.4)
    balls = [(p - place).norm(dim=-1) - radius for place, radius in zip(places, radii)]
    total, k = balls[0], 0.25
    for ball in balls[1:]:
        h = (0.5 + 0.5 * (ball - total) / k).clamp(0, 1)
        total = torch.lerp(ball, total, h) - k * h * (1 - h)
    return total


def _trace(name: str, o: torch.Tensor, d: torch.Tensor, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sphere tracing: steps as long as the distance to the surface."""
    t, end = start.clone(), start + 4.5
    active = torch.arange(len(t), device=t.device)
    done = torch.zeros_like(t, dtype=torch.bool)
    for _ in range(160):
        step = _signed_distance(name, o[active] + t[active, None] * d[active])
        t[active] += step
        done[active[step < 1e-4]] = True
        active = active[(step >= 1e-4) & (t[active] < end[active])]
        if not len(active):
            break
    points = o + t[:, None] * d
    corners = torch.tensor(
        [[1.0, -1.0, -1.0], [-1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, 1.0, 1.0]], dtype=torch.float32
    ).to(o)
    normal = sum(corner * _signed_distance(name, points + 2e-3 * corner)[:, None] for corner in corners)
    return torch.where(done, t, torch.full_like(t, _FAR)), F.normalize(normal, dim=-1)


# Textures


def _albedo(solids: _Solids, view, place, points, width) -> torch.Tensor:
    """Linear RGB `[n, 3]` of surface points; `width` is the footprint of their pixel."""
    slot = place.clamp_max(solids.shape.shape[1] - 1)
    on_ground = (place == solids.shape.shape[1]).unsqueeze(-1)
    local = ((points - solids.center[view, slot]).unsqueeze(-2) @ solids.rotation[view, slot]).squeeze(-2)
    local = torch.where(on_ground, points, local)
    frequency = solids.frequency[view, place]
    uvw = local * frequency[:, None] + solids.offset[view, place]
    width = (width * frequency).clamp_min(1e-6)
    texture = solids.texture[view, place]
    blend = torch.zeros_like(width)
    for index, name in enumerate(TEXTURES[1:], start=1):
        chosen = (texture == index).nonzero().squeeze(-1)
        if len(chosen):
            blend[chosen] = _pattern(name, uvw[chosen], width[chosen], on_ground[chosen].squeeze(-1))
    colors = solids.colors[view, place]
    return torch.lerp(colors[:, 0], colors[:, 1], blend[:, None])


def _pattern(name: str, p: torch.Tensor, width: torch.Tensor, on_ground: torch.Tensor) -> torch.Tensor:
    """How much of the second colour, in [0, 1], averaged over `width` periods."""
    if name == "checks":
        wave = _square(p, width[:, None])
        wave = torch.where(on_ground[:, None] & (torch.arange(3, device=p.device) == 2), torch.ones_like(wave), wave)
        return 0.5 + 0.5 * wave.prod(-1)
    if name == "stripes":
        return 0.5 + 0.5 * _square((p[:, :1] + 0.35 * p[:, 1:2] + 0.6 * p[:, 2:]), width[:, None]).squeeze(-1)
    if name == "dots":
        cell = p - p.round()
        cell = torch.where(on_ground[:, None] & (torch.arange(3, device=p.device) == 2), torch.zeros_like(cell), cell)
        edge = (0.33 - cell.norm(dim=-1)) / width.clamp_min(0.02)
        mean = torch.where(on_ground, p.new_tensor(0.34), p.new_tensor(0.15))
        return torch.lerp((0.5 + edge).clamp(0, 1), mean.to(p), (2 * width - 0.5).clamp(0, 1))
    if name == "gradient":
        return (0.5 + 0.5 * torch.sin(p @ torch.tensor([0.9, 0.5, 1.1], dtype=torch.float32).to(p))).clamp(0, 1)
    if name == "noise":
        return (0.5 + 1.1 * _noise(2 * p, 2 * width)).clamp(0, 1)
    turbulence = 2.5 * _noise(1.3 * p, 1.3 * width)  # marble
    calm = (1 - 1.5 * width).clamp(0, 1)
    return 0.5 + 0.5 * calm * torch.sin(2 * math.pi * (p[:, 0] * 0.7 + p[:, 2] * 0.4) + 2 * math.pi * 0.5 * turbulence)


def _square(x: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    """A square wave of period 2 (-1 and 1), averaged over a box of `width`: the difference of its integral, a
    triangle wave (Quilez, box-filtered checkers)."""

    def triangle(x):
        return (x - 2 * (x / 2).round()).abs()

    return ((triangle(x + width / 2) - triangle(x - width / 2)) / width).clamp(-1, 1)


def _noise(p: torch.Tensor, width: torch.Tensor, octaves: int = 3) -> torch.Tensor:
    """Value noise around 0, octaves finer than the footprint left out."""
    total = torch.zeros_like(width)
    for octave in range(octaves):
        scale = 2.0**octave
        fade = (1.5 - 2 * width * scale).clamp(0, 1)
        total += fade / scale * (_value_noise(p * scale + 17.0 * octave) - 0.5)
    return total


def _value_noise(p: torch.Tensor) -> torch.Tensor:
    cell = p.floor()
    f = p - cell
    f = f * f * f * (f * (6 * f - 15) + 10)
    cell = cell.long()
    total = 0.0
    for corner in range(8):
        bits = [corner >> axis & 1 for axis in range(3)]
        weight = 1.0
        for axis, bit in enumerate(bits):
            weight = weight * (f[:, axis] if bit else 1 - f[:, axis])
        total = total + weight * _hash(cell + torch.tensor(bits, device=p.device))
    return total


def _hash(cell: torch.Tensor) -> torch.Tensor:
    """Integers `[n, 3]` to [0, 1)."""
    mixed = cell[:, 0] * 73856093 ^ cell[:, 1] * 19349663 ^ cell[:, 2] * 83492791
    mixed = (mixed & 0x7FFFFFFF) * 1103515245 + 12345 & 0x7FFFFFFF
    mixed = (mixed >> 13 ^ mixed) * 1274126177 & 0x7FFFFFFF
    return (mixed >> 7 & 0xFFFF).to(torch.float32) / 65536
