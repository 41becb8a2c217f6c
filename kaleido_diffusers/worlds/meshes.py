"""Worlds of textured meshes: a few of them on a photographed ground under a panorama, with exact cameras.

Slower than [`SyntheticSource`] and closer to photos; meant to be rendered ahead (`kaleido shard`). Rays are cast by
Embree through trimesh, textures are filtered by mip maps. World axes: +Z up, meshes about one unit in size.
"""

import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import PIL.Image
import torch

from ..captures.images import CaptureError
from .samples import SceneSample
from .synthetic import SPLITS, Dice, place_cameras


__all__ = ["MeshSource", "is_mesh_folder"]

_SUFFIXES = (".glb", ".gltf", ".obj")
_HELD_OUT_EVERY = 9  # meshes of the test split: by name, every ninth from the fifth on
_SOLIDS = ("box", "ball", "can", "cone", "ring")


def is_mesh_folder(path: str | os.PathLike) -> bool:
    """Whether a folder holds meshes, at any depth, and is no capture that a mesh lies in.

    Args:
        path (`str` or `os.PathLike`): the folder.
    """
    path = Path(path)
    if not path.is_dir() or any(path.glob("transforms*.json")):
        return False
    return any(found.suffix in _SUFFIXES for found in path.rglob("*"))


@dataclass
class _Part:
    """A textured surface. `texels` is how many texels of the finest level lie along a unit of length; the ground
    `fades` into the surroundings."""

    vertices: np.ndarray  # [v, 3]
    faces: np.ndarray  # [f, 3]
    normals: np.ndarray  # [v, 3]
    uv: np.ndarray  # [v, 2], v up
    levels: list[np.ndarray]  # [h, w, 3] linear RGB, each half as large as the one before
    texels: float
    fades: bool = False


class MeshSource:
    """
    Worlds of meshes, rendered when they are asked for.

    Args:
        meshes (`str` or `Path`): folder of `.glb`, `.gltf` or `.obj` files with textures, searched to any depth. An
            `index.json` with `file` and `up` (`"y"` or `"z"`) says which way is up; `"y"` without it.
        textures (`str` or `Path`, *optional*): folder of photos for the ground and for simple solids; those named
            `pano_*` are equirectangular surroundings. Plain colours when not given.
        split (`str`): `"train"`, `"validation"` (the same meshes in other worlds) or `"test"` (every ninth mesh by
            name, which the other splits never use).
        num_scenes (`int`): how many seeds of the split.
        num_views (`int`): views of each scene.
        size (`int`): height and width in pixels.
        spread (`float`): how far the cameras of a scene are apart, from 0 to 1.
        samples (`int`): rays along each side of a pixel.
    """

    def __init__(
        self,
        meshes: str | os.PathLike,
        textures: str | os.PathLike | None = None,
        split: Literal["train", "validation", "test"] = "train",
        num_scenes: int = 1000,
        num_views: int = 12,
        size: int = 64,
        spread: float = 1.0,
        samples: int = 3,
    ):
        if split not in SPLITS:
            raise ValueError(f"`split` must be one of {', '.join(SPLITS)}, got {split!r}.")
        files = [path for path in Path(meshes).rglob("*") if path.suffix in _SUFFIXES]
        files.sort(key=lambda path: (path.stem, path.relative_to(meshes).as_posix()))
        held_out = files[4::_HELD_OUT_EVERY]
        self.files = held_out if split == "test" else [path for path in files if path not in held_out]
        if not self.files:
            raise CaptureError(f"{meshes}: holds no meshes ({', '.join(_SUFFIXES)}) for the split {split!r}.")
        photos = [] if textures is None else sorted(Path(textures).glob("*.jpg"))
        self.panoramas = [path for path in photos if path.stem.startswith("pano_")]
        self.photos = [path for path in photos if path not in self.panoramas]
        self.first_seed, self.num_scenes, self.num_views = SPLITS[split][0], num_scenes, num_views
        self.size, self.spread, self.samples = size, spread, samples
        index = Path(meshes) / "index.json"
        entries = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else []
        self._up = {(Path(meshes) / entry["file"]).resolve(): entry.get("up", "y") for entry in entries}
        self._cache: dict = {}

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> SceneSample:
        if not 0 <= index < self.num_scenes:
            raise IndexError(index)
        dice = Dice(self.first_seed + index)
        parts, center, radius = self._arrange(dice)
        has_ground = dice.chance(0.7)
        if has_ground:
            parts.append(_ground(self._pick(self.photos, dice), dice))
        surroundings = self._pick(self.panoramas, dice)
        poses = place_cameras(dice, center, radius, self.num_views, "views", self.spread, has_ground)
        focal = 0.5 / math.tan(math.radians(dice.uniform(35, 60).item()) / 2)
        light = np.array([dice.uniform(-1, 1).item(), dice.uniform(-1, 1).item(), dice.uniform(0.8, 1.6).item()])
        scene = _RayScene(parts, surroundings, light / np.linalg.norm(light), dice.uniform(0.35, 0.6).item())
        views = [scene.render(pose.double().numpy(), focal, self.size, self.samples) for pose in poses]
        intrinsics = torch.tensor([[focal, 0.0, 0.5], [0.0, focal, 0.5], [0.0, 0.0, 1.0]])
        return SceneSample(
            torch.from_numpy(np.stack(views)), poses.double(), intrinsics.expand(self.num_views, 3, 3).clone()
        )

    def _arrange(self, dice: Dice) -> tuple[list[_Part], torch.Tensor, torch.Tensor]:
        """One to four meshes, standing on z = 0 and apart; their centres and radii."""
        parts, centers, radii = [], [], []
        for number in range(dice.integer(1, 5)):
            if self.photos and dice.chance(0.25):
                found = [_photo_solid(_SOLIDS[dice.integer(0, len(_SOLIDS))], self._pick(self.photos, dice))]
            else:
                found = self._load(self.files[dice.integer(0, len(self.files))])
            angle, wanted = dice.uniform(0, 2 * math.pi).item(), dice.uniform(0.3, 0.6).item()
            corners = np.concatenate([part.vertices for part in found])
            low, high = corners.min(0), corners.max(0)
            scale = wanted / max(np.linalg.norm(high - low) / 2, 1e-9)
            for _ in range(20):
                place = (0.3 + 0.25 * number) * dice.uniform(-1, 1, 2)
                gaps = [(place - other[:2]).norm() - own - wanted for other, own in zip(centers, radii)]
                if min(gaps, default=1.0) > -0.1 * wanted:
                    break
            turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
            bottom = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
            for part in found:
                vertices = (part.vertices - bottom) * scale @ turn.T + np.array([*place.tolist(), 0.0])
                normals = part.normals @ turn.T
                parts.append(replace(part, vertices=vertices, normals=normals, texels=part.texels / scale))
            centers.append(torch.tensor([*place.tolist(), float((high[2] - low[2]) * scale / 2)]))
            radii.append(wanted)
        return parts, torch.stack(centers), torch.tensor(radii)

    def _pick(self, paths: list[Path], dice: Dice) -> list[np.ndarray]:
        """The levels of one of the pictures, or of a plain colour."""
        if not paths:
            return [dice.uniform(0.1, 0.9, 1, 1, 3).numpy().astype(np.float32)]
        path = paths[dice.integer(0, len(paths))]
        if path not in self._cache:
            self._cache[path] = _mip_map(PIL.Image.open(path))
        return self._cache[path]

    def _load(self, path: Path) -> list[_Part]:
        if path not in self._cache:
            self._cache[path] = _load_mesh(path, self._up.get(path.resolve(), "y"))
        return self._cache[path]


# Surfaces


def _mip_map(image: PIL.Image.Image) -> list[np.ndarray]:
    """Levels of a picture in linear RGB, each the mean of 2 x 2 pixels of the one before."""
    if image.mode in ("RGBA", "LA", "P"):
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    width, height = (2 ** max(0, round(math.log2(side))) for side in image.size)
    pixels = np.asarray(image.convert("RGB").resize((width, height)), dtype=np.float32) / 255
    levels = [np.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4).astype(np.float32)]
    while min(levels[-1].shape[:2]) > 1:
        last = levels[-1]
        levels.append((last[::2, ::2] + last[1::2, ::2] + last[::2, 1::2] + last[1::2, 1::2]) / 4)
    return levels


def _load_mesh(path: Path, up: str) -> list[_Part]:
    import trimesh

    parts = []
    try:
        geometries = [g for g in trimesh.load_scene(path).dump() if isinstance(g, trimesh.Trimesh)]
    except Exception as error:  # whatever a damaged file makes a reader raise
        raise CaptureError(f"{path}: cannot be read as a mesh ({error}).") from error
    for geometry in geometries:
        material = getattr(geometry.visual, "material", None)
        image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
        uv = getattr(geometry.visual, "uv", None)
        if image is None or uv is None:
            color = np.asarray(geometry.visual.to_color().main_color[:3], dtype=np.uint8)
            image, uv = PIL.Image.fromarray(color.reshape(1, 1, 3)), np.zeros((len(geometry.vertices), 2))
        vertices, normals = np.asarray(geometry.vertices), np.asarray(geometry.vertex_normals)
        if up == "y":
            swap = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=float)
            vertices, normals = vertices @ swap.T, normals @ swap.T
        parts.append(_part(vertices, np.asarray(geometry.faces), normals, np.asarray(uv), _mip_map(image)))
    if not parts:
        raise CaptureError(f"{path}: holds no surface.")
    return parts


def _part(vertices, faces, normals, uv, levels: list[np.ndarray]) -> _Part:
    a, b = (vertices[faces[:, i]] - vertices[faces[:, 0]] for i in (1, 2))
    area = np.linalg.norm(np.cross(a, b), axis=-1).sum()
    a, b = (uv[faces[:, i]] - uv[faces[:, 0]] for i in (1, 2))
    pixels = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() * levels[0].shape[0] * levels[0].shape[1]
    return _Part(vertices, faces, normals, uv, levels, math.sqrt(pixels / max(area, 1e-12)))


def _photo_solid(name: str, levels: list[np.ndarray]) -> _Part:
    """A simple solid wrapped in a photo: each face shows the photo along the axis that it faces most."""
    from trimesh import creation

    solid = {
        "box": lambda: creation.box((1.0, 0.8, 1.2)),
        "ball": lambda: creation.icosphere(4, 0.6),
        "can": lambda: creation.cylinder(0.45, 1.2, sections=48),
        "cone": lambda: creation.cone(0.6, 1.2, sections=48),
        "ring": lambda: creation.torus(0.5, 0.2, 48, 24),
    }[name]()
    vertices = solid.vertices[solid.faces].reshape(-1, 3)  # every face has corners of its own
    faces = np.arange(len(vertices)).reshape(-1, 3)
    normals = solid.vertex_normals[solid.faces] if name in ("ball", "ring") else None
    if normals is None:
        normals = np.repeat(solid.face_normals[:, None], 3, axis=1)
    axis = np.abs(solid.face_normals).argmax(-1)
    along = np.array([[1, 2], [0, 2], [0, 1]])[axis].repeat(3, axis=0)
    uv = np.take_along_axis(vertices, along, axis=1) / 1.2 + 0.5
    return _part(vertices, faces, normals.reshape(-1, 3), uv, levels)


def _ground(levels: list[np.ndarray], dice: Dice) -> _Part:
    half, period = 40.0, dice.uniform(1.5, 4.0).item()
    vertices = np.array([[-half, -half, 0], [half, -half, 0], [half, half, 0], [-half, half, 0]], dtype=float)
    faces, normals = np.array([[0, 1, 2], [0, 2, 3]]), np.tile([0.0, 0.0, 1.0], (4, 1))
    return replace(_part(vertices, faces, normals, vertices[:, :2] / period, levels), fades=True)


# Rendering


class _RayScene:
    """Surfaces under a light and a panorama."""

    def __init__(self, parts: list[_Part], surroundings: list[np.ndarray], light: np.ndarray, ambient: float):
        import trimesh

        try:
            from trimesh.ray.ray_pyembree import RayMeshIntersector
        except ImportError as error:
            raise ImportError("Meshes need Embree: pip install 'kaleido-diffusers[meshes]'.") from error
        offsets = np.cumsum([0, *(len(part.vertices) for part in parts)])
        self.parts, self.surroundings, self.light, self.ambient = parts, surroundings, light, ambient
        self.faces = np.concatenate([part.faces + offset for part, offset in zip(parts, offsets)])
        self.vertices, self.normals, self.uv = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("vertices", "normals", "uv")
        )
        self.part = np.repeat(np.arange(len(parts)), [len(part.faces) for part in parts])
        self.caster = RayMeshIntersector(trimesh.Trimesh(self.vertices, self.faces, process=False), scale_to_box=False)

    def render(self, pose: np.ndarray, focal: float, size: int, samples: int) -> np.ndarray:
        """One view `[3, size, size]`, uint8, of a camera `[4, 4]` (world_from_camera, OpenCV axes)."""
        steps = ((np.arange(size * samples) + 0.5) / (size * samples) - 0.5) / focal
        y, x = np.meshgrid(steps, steps, indexing="ij")
        directions = np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3) @ pose[:3, :3].T
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        origins = np.broadcast_to(pose[:3, 3], directions.shape)
        colors = self._sky(directions, 1 / (focal * size))
        face, ray, points = self.caster.intersects_id(origins, directions, multiple_hits=False, return_locations=True)
        if len(ray):
            distance = np.linalg.norm(points - origins[ray], axis=-1)
            shaded = self._shade(face, points, directions[ray], distance / (focal * size))
            fades = np.array([part.fades for part in self.parts])[self.part[face]]
            near = np.exp(-0.01 * distance**2 * fades)[:, None]
            colors[ray] = shaded * near + colors[ray] * (1 - near)
        colors = colors.reshape(size, samples, size, samples, 3).mean((1, 3)).clip(0, 1)
        colors = np.where(colors <= 0.0031308, 12.92 * colors, 1.055 * colors ** (1 / 2.4) - 0.055)
        return (colors * 255).round().astype(np.uint8).transpose(2, 0, 1)

    def _sky(self, directions: np.ndarray, footprint: float) -> np.ndarray:
        u = np.arctan2(directions[:, 1], directions[:, 0]) / (2 * math.pi) + 0.5
        v = np.arcsin(directions[:, 2].clip(-1, 1)) / math.pi + 0.5
        texels = self.surroundings[0].shape[1] / (2 * math.pi)
        return _sample(self.surroundings, np.stack([u, v], axis=-1), np.full(len(u), footprint * texels))

    def _shade(self, face, points, directions, footprint) -> np.ndarray:
        """Linear RGB `[n, 3]` of surface points: textures under one light with hard shadows. `footprint` `[n]` is the
        width of a pixel at the point."""
        corners = self.faces[face]
        weights = _barycentric(self.vertices[corners], points)[..., None]
        normal = (self.normals[corners] * weights).sum(1)
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True).clip(1e-9)
        normal *= -np.sign((normal * directions).sum(-1, keepdims=True))  # thin surfaces have two sides
        uv = (self.uv[corners] * weights).sum(1)
        facing = (-(normal * directions).sum(-1)).clip(0.15, 1)
        width = footprint / facing
        albedo = np.zeros_like(points)
        for number in np.unique(self.part[face]):
            chosen, part = self.part[face] == number, self.parts[number]
            albedo[chosen] = _sample(part.levels, uv[chosen], width[chosen] * part.texels)
        diffuse = (normal @ self.light).clip(0, None)
        lit = diffuse > 0
        starts = points[lit] + normal[lit] * 2e-3
        diffuse[lit] *= ~self.caster.intersects_any(starts, np.broadcast_to(self.light, starts.shape))
        return albedo * (self.ambient * (0.75 + 0.25 * normal[:, 2]) + (1.15 - self.ambient) * diffuse)[:, None]


def _barycentric(triangles: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Weights `[n, 3]` of the corners `[n, 3, 3]` for points in the triangles."""
    a, b, p = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0], points - triangles[:, 0]
    aa, ab, bb, pa, pb = ((x * y).sum(-1) for x, y in ((a, a), (a, b), (b, b), (p, a), (p, b)))
    scale = np.maximum(aa * bb - ab * ab, 1e-30)
    second, third = (bb * pa - ab * pb) / scale, (aa * pb - ab * pa) / scale
    return np.stack([1 - second - third, second, third], axis=-1).clip(0, 1)


def _sample(levels: list[np.ndarray], uv: np.ndarray, texels: np.ndarray) -> np.ndarray:
    """Bilinear look-up `[n, 3]`, repeating, in the level whose texels are as wide as a pixel's footprint."""
    level = np.round(np.log2(np.maximum(texels, 1.0))).astype(int).clip(0, len(levels) - 1)
    colors = np.zeros((len(uv), 3))
    for number in np.unique(level):
        chosen, picture = level == number, levels[number]
        height, width = picture.shape[:2]
        x, y = uv[chosen, 0] * width - 0.5, (1 - uv[chosen, 1]) * height - 0.5
        left, top = np.floor(x).astype(int), np.floor(y).astype(int)
        fx, fy = (x - left)[:, None], (y - top)[:, None]
        columns, rows = (left % width, (left + 1) % width), (top % height, (top + 1) % height)
        upper = picture[rows[0], columns[0]] * (1 - fx) + picture[rows[0], columns[1]] * fx
        lower = picture[rows[1], columns[0]] * (1 - fx) + picture[rows[1], columns[1]] * fx
        colors[chosen] = upper * (1 - fy) + lower * fy
    return colors
