"""Folders of photos, meshes, scenes and panoramas that worlds are drawn from, parted into splits by name."""

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import PIL.Image

from ..captures.images import CaptureError


__all__ = ["Assets", "Mesh", "MeshFile", "Part", "asset_split", "find_assets", "load_mesh", "load_picture", "shape"]

_MESHES = (".glb", ".gltf", ".obj")
_PICTURES = (".jpg", ".jpeg", ".png")
_CREASE = math.cos(math.radians(45))  # faces that meet at a sharper edge do not share their normal


@dataclass(frozen=True)
class MeshFile:
    """A mesh on disk.

    Attributes:
        path (`Path`): the file.
        up (`str`): `"y"` or `"z"`.
        floor (`float`): height of the floor of a scene, in its units.
    """

    path: Path
    up: str = "y"
    floor: float = 0.0


@dataclass(eq=False)
class Assets:
    """What worlds of one split may show. Not to be changed once worlds are made of it.

    Attributes:
        photos (`list[Path]`): pictures of things and places.
        textures (`list[Path]`): pictures of surfaces.
        meshes (`list[MeshFile]`): single things.
        scenes (`list[MeshFile]`): whole places, to be entered.
        panoramas (`list[Path]`): equirectangular surroundings.
        clips (`list[Path]`): videos.
    """

    photos: list[Path] = field(default_factory=list)
    textures: list[Path] = field(default_factory=list)
    meshes: list[MeshFile] = field(default_factory=list)
    scenes: list[MeshFile] = field(default_factory=list)
    panoramas: list[Path] = field(default_factory=list)
    clips: list[Path] = field(default_factory=list)


@dataclass
class Part:
    """Triangles that share a texture.

    Attributes:
        vertices (`np.ndarray` of shape `[N, 8]`): float32: place, normal, texture coordinates (v up).
        faces (`np.ndarray` of shape `[F, 3]`): int32.
        image (`np.ndarray` of shape `[H, W, 3]`, *optional*): uint8, first row at the top.
        color (`tuple` of 3): linear RGB that multiplies the texture.
    """

    vertices: np.ndarray
    faces: np.ndarray
    image: np.ndarray | None = None
    color: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @cached_property
    def low(self) -> np.ndarray:
        """Least corner of its box."""
        return self.vertices[:, :3].min(0).astype(float)

    @cached_property
    def high(self) -> np.ndarray:
        """Greatest corner of its box."""
        return self.vertices[:, :3].max(0).astype(float)


@dataclass
class Mesh:
    """A thing in its own units, z up.

    Attributes:
        key (`str`): names it in caches.
        parts (`list[Part]`): its triangles.
        low (`np.ndarray` of shape `[3]`): least corner of its box.
        high (`np.ndarray` of shape `[3]`): greatest corner of its box.
    """

    key: str
    parts: list[Part]
    low: np.ndarray
    high: np.ndarray


def asset_split(name: str) -> str:
    """
    The split of an asset, by its name: 90 of a hundred train, 5 validate, 5 test. Crops of one picture (`_c0`, `_c1`)
    and things that a number sets apart (`horse`, `horse2`) stay together.

    Args:
        name (`str`): name of the file, without its folder; the suffix does not count.
    """
    stem = re.sub(r"(_c\d+|_?\d+)$", "", Path(name).stem.lower())
    number = int(hashlib.sha256(stem.encode()).hexdigest(), 16) % 100
    return "train" if number < 90 else "validation" if number < 95 else "test"


def find_assets(folders: Sequence[str | os.PathLike], split: str) -> Assets:
    """
    Lists the assets of a split.

    Args:
        folders (`Sequence[str]`):
            Each holds some of `photos`, `meshes`, `scenes`, `panoramas` and `videos`, or meshes and pictures as they
            lie. An `index.json` beside the files may say `kind` (`"photo"` or `"texture"`), `up` and `train`. Scenes
            and clips are few: they belong to training alone. Raises [`CaptureError`] when nothing is found.
        split (`str`): `"train"`, `"validation"` or `"test"`.
    """
    found = Assets()
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise CaptureError(f"{folder}: there is no such folder of assets.")
        sorted_in = any((folder / name).is_dir() for name in ("photos", "scenes", "panoramas"))
        if sorted_in:
            for path, entry in _listed(folder / "photos", _PICTURES):
                (found.textures if entry.get("kind") == "texture" else found.photos).append(path)
            found.panoramas += [path for path, _ in _listed(folder / "panoramas", _PICTURES)]
            found.meshes += [_mesh_file(*pair) for pair in _listed(folder / "meshes", _MESHES)]
            found.scenes += [_mesh_file(*pair) for pair in _listed(folder / "scenes", _MESHES)]
            found.clips += sorted((folder / "videos").glob("*.mp4"))
        else:
            found.meshes += [_mesh_file(*pair) for pair in _listed(folder, _MESHES)]
            pictures = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in _PICTURES]
            surroundings = [path for path in pictures if path.stem.startswith("pano_")]
            found.photos += [path for path in pictures if path not in surroundings]
            found.panoramas += surroundings
    if not any(vars(found).values()):
        raise CaptureError(f"{', '.join(map(str, folders))}: holds no photos, meshes, scenes or panoramas.")
    for name in ("photos", "textures", "panoramas"):
        setattr(found, name, [path for path in getattr(found, name) if asset_split(path.name) == split])
    found.meshes = [mesh for mesh in found.meshes if asset_split(mesh.path.name) == split]
    if split != "train":
        found.scenes, found.clips = [], []
    return found


def _listed(folder: Path, suffixes: tuple[str, ...]) -> list[tuple[Path, dict]]:
    index = folder / "index.json"
    entries = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else []
    known = {entry["file"]: entry for entry in entries}
    files = [path for path in folder.rglob("*") if path.suffix.lower() in suffixes]
    pairs = [(path, known.get(path.relative_to(folder).as_posix(), {})) for path in files]
    return sorted((p for p in pairs if p[1].get("train", True)), key=lambda pair: (pair[0].name, str(pair[0])))


def _mesh_file(path: Path, entry: dict) -> MeshFile:
    return MeshFile(path, entry.get("up", "y"), entry.get("floor", 0.0))


@lru_cache(maxsize=1024)
def load_picture(path: Path, longest: int = 256) -> np.ndarray:
    """
    Decodes a picture, at most `longest` pixels along its longer side.

    Args:
        path (`Path`): the file.
        longest (`int`, defaults to `256`): pixels.

    Returns:
        `np.ndarray` of shape `[H, W, 3]`: uint8.
    """
    try:
        with PIL.Image.open(path) as image:
            image.draft("RGB", (longest, longest))
            return _shrink(image, longest)
    except OSError as error:
        raise CaptureError(f"{path}: cannot be read as a picture ({error}).") from error


def _shrink(image: PIL.Image.Image, longest: int) -> np.ndarray:
    if image.mode in ("RGBA", "LA", "P"):
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB")
    factor = longest / max(image.size)
    if factor < 1:
        image = image.resize([max(1, round(side * factor)) for side in image.size], PIL.Image.Resampling.BOX)
    return np.asarray(image)


@lru_cache(maxsize=512)
def load_mesh(file: MeshFile, longest: int = 256) -> Mesh:
    """
    Reads a mesh by trimesh, with normals that keep its edges.

    Args:
        file (`MeshFile`): what to read. Raises [`CaptureError`] if it cannot be read.
        longest (`int`, defaults to `256`): most pixels along a texture.
    """
    import trimesh

    try:
        geometries = trimesh.load_scene(file.path).dump()
    except Exception as error:  # whatever a damaged file makes a reader raise
        raise CaptureError(f"{file.path}: cannot be read as a mesh ({error}).") from error
    parts = [_read_part(g, file.up, longest) for g in geometries if isinstance(g, trimesh.Trimesh) and len(g.faces)]
    if not parts:
        raise CaptureError(f"{file.path}: holds no surface.")
    return _mesh(str(file.path), parts)


def _mesh(key: str, parts: list[Part]) -> Mesh:
    low, high = np.min([part.low for part in parts], axis=0), np.max([part.high for part in parts], axis=0)
    return Mesh(key, parts, low, high)


def _read_part(geometry, up: str, longest: int) -> Part:
    material = getattr(geometry.visual, "material", None)
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    uv = getattr(geometry.visual, "uv", None)
    color = (1.0, 1.0, 1.0)
    if image is None or uv is None:
        image, uv = None, np.zeros((len(geometry.vertices), 2))
        plain = geometry.visual if material is None else material
        color = tuple(float(x) ** 2.2 for x in np.asarray(plain.main_color[:3]) / 255.0)
    points = np.asarray(geometry.vertices, dtype=np.float64)
    if up == "y":
        points = points[:, [0, 2, 1]] * [1, -1, 1]
    vertices, faces = with_normals(points, np.asarray(geometry.faces), np.asarray(uv))
    return Part(vertices, faces, None if image is None else _shrink(image, longest), color)


def with_normals(points: np.ndarray, faces: np.ndarray, uv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices `[N, 8]` and faces `[F, 3]`: normals are shared by the faces that meet at a point, except over edges
    of more than 45 degrees."""
    corners = points[faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flat = across / np.maximum(np.linalg.norm(across, axis=-1, keepdims=True), 1e-20)
    size = max(float(np.ptp(points, axis=0).max()), 1e-9)
    _, same = np.unique(np.round(points / size * 1e5).astype(np.int64), axis=0, return_inverse=True)
    smooth = np.zeros((same.max() + 1, 3))
    np.add.at(smooth, same.reshape(-1)[faces].reshape(-1), across.repeat(3, axis=0))
    smooth /= np.maximum(np.linalg.norm(smooth, axis=-1, keepdims=True), 1e-20)
    normals = smooth[same.reshape(-1)[faces]]
    sharp = np.zeros(len(smooth), dtype=bool)
    sharp[same.reshape(-1)[faces[(normals * flat[:, None]).sum(-1) < 0.92]]] = True
    _keep_edges(normals.reshape(-1, 3), same.reshape(-1)[faces].reshape(-1), sharp, across.repeat(3, axis=0))
    rows = np.concatenate([corners, normals, uv[faces]], axis=-1).reshape(-1, 8).astype(np.float32)
    _, first, inverse = np.unique(
        rows.view(np.dtype((np.void, 32))).reshape(-1), return_index=True, return_inverse=True
    )
    return np.ascontiguousarray(rows[first]), inverse.reshape(-1, 3).astype(np.int32)


def _keep_edges(normals: np.ndarray, point: np.ndarray, sharp: np.ndarray, across: np.ndarray) -> None:
    """Normals `[3F, 3]` of the corners at sharp points, in place: the mean over those faces at the point that differ
    less than 45 degrees from the corner's own. `point` `[3F]` is the point of a corner, `across` its face's normal."""
    corners = np.nonzero(sharp[point])[0]
    corners = corners[np.argsort(point[corners], kind="stable")]
    if not len(corners):
        return
    first = np.concatenate([[True], np.diff(point[corners]) > 0])
    row = np.cumsum(first) - 1
    column = np.arange(len(corners)) - np.nonzero(first)[0][row]
    few = column < 24  # beyond that, a corner keeps the smooth normal
    corners, row, column = corners[few], row[few], column[few]
    table = np.zeros((row.max() + 1, column.max() + 1, 3))
    table[row, column] = across[corners]
    unit = table / np.maximum(np.linalg.norm(table, axis=-1, keepdims=True), 1e-20)
    mean = (unit @ unit.swapaxes(1, 2) >= _CREASE) @ table
    mean /= np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-20)
    normals[corners] = mean[row, column]


# Simple shapes


@lru_cache(maxsize=256)
def shape(name: str, seed: int = 0) -> Mesh:
    """
    A simple shape inside the cube of half extent 0.5, with texture coordinates.

    Args:
        name (`str`): `"box"`, `"ball"`, `"can"`, `"cone"`, `"ring"`, `"lathe"` (a vessel), `"blob"` (a lumpy ball),
            `"plane"` (facing up), `"sheet"` (a plane with bumps below z = 0), `"relief"` (a plane with bumps above).
        seed (`int`, defaults to `0`): which lathe or blob.
    """
    rng = np.random.default_rng([seed, 77])
    if name == "box":
        points, faces, uv = _box()
    elif name == "plane":
        points = np.array([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]])
        faces, uv = np.array([[0, 1, 2], [0, 2, 3]]), points[:, :2] + 0.5
    elif name in ("sheet", "relief"):
        points, faces, uv = _bumps(name, rng)
    else:
        points, faces, uv = _turned(name, rng)
    vertices, faces = with_normals(points, faces, uv)
    return _mesh(f"{name}:{seed}", [Part(vertices, faces)])


def _box() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    points, uv, faces = [], [], []
    for axis in range(3):
        for sign in (-0.5, 0.5):
            a, b = ((1, 2), (0, 2), (0, 1))[axis]
            for x, y in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)):
                point = [0.0, 0.0, 0.0]
                point[axis], point[a], point[b] = sign, x, y
                mirrored = -x if (sign > 0) == (axis == 1) else x
                points.append(point)
                uv.append([mirrored + 0.5, y + 0.5])
            start = len(points) - 4
            faces += [[start, start + 1, start + 2], [start, start + 2, start + 3]]
    return np.array(points), np.array(faces), np.array(uv)


def _bumps(name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A square grid with soft waves. A relief also comes nearer to its lower edge, as the ground in photos does."""
    count = 25
    x, y = np.meshgrid(np.linspace(0, 1, count), np.linspace(0, 1, count))
    waves, phases = rng.normal(0, 5.0 if name == "sheet" else 3.0, (6, 2)), rng.uniform(0, 6.28, 6)
    bumps = np.sin(np.stack([x, y], -1) @ waves.T + phases).mean(-1)
    if name == "sheet":
        middle = np.exp(-8 * ((x - 0.5) ** 2 + (y - 0.5) ** 2))
        z = (bumps - 1.0) * (1 - 0.8 * middle) * 0.5
    else:
        horizon, slope = rng.uniform(0.3, 0.7), rng.uniform(0.3, 1.0)
        z = slope * np.maximum(1 - y / horizon, 0) + 0.5 * rng.uniform(0.2, 1.0) * (bumps + 0.3)
        z = z - z.mean()
    points = np.stack([x - 0.5, y - 0.5, z], axis=-1).reshape(-1, 3)
    row = np.arange(count - 1)[:, None] * count + np.arange(count - 1)
    quads = np.stack([row, row + 1, row + count + 1, row + count], axis=-1).reshape(-1, 4)
    return points, np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]), np.stack([x, y], -1).reshape(-1, 2)


def _turned(name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Surfaces of a closed or open profile turned about the axis."""
    around, angles = 33, np.linspace(0, 2 * math.pi, 33)
    if name in ("ball", "blob"):
        t = np.linspace(0, math.pi, 17)
        radius, height = 0.5 * np.sin(t), -0.5 * np.cos(t)
    elif name == "ring":
        t = np.linspace(0, 2 * math.pi, 17)
        radius, height = 0.35 + 0.15 * np.cos(t), 0.15 * np.sin(t)
    elif name == "can":
        radius, height = np.array([0, 0.5, 0.5, 0.5, 0]), np.array([-0.5, -0.5, 0, 0.5, 0.5])
    elif name == "cone":
        radius, height = np.array([0, 0.5, 0.25, 0.001]), np.array([-0.5, -0.5, 0, 0.5])
    else:  # lathe
        knots = rng.uniform(0.12, 0.5, 6)
        outer = np.interp(np.linspace(0, 5, 21), range(6), knots)
        outer = np.convolve(np.pad(outer, 2, mode="edge"), np.ones(5) / 5, mode="valid")
        outer *= 0.5 / outer.max()
        deep = rng.uniform(-0.45, 0.3)
        radius = np.concatenate([[0], outer, outer[-1:] * 0.85, [outer[-1] * 0.6, 0]])
        height = np.concatenate([[-0.5], np.linspace(-0.5, 0.5, 21), [0.5], [deep, deep]])
    length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(radius), np.diff(height)))])
    v = length / length[-1]
    points = np.stack(
        [
            radius[:, None] * np.cos(angles),
            radius[:, None] * np.sin(angles),
            np.broadcast_to(height[:, None], (len(height), around)),
        ],
        axis=-1,
    ).reshape(-1, 3)
    if name == "blob":
        waves, phases = rng.normal(0, 4.0, (8, 3)), rng.uniform(0, 6.28, 8)
        bumps = np.sin(points @ waves.T + phases).mean(-1)
        points = points * (1 + 0.9 * bumps[:, None]) * rng.uniform(0.6, 1.0, 3)
        points *= 0.5 / np.abs(points).max()
    u = np.broadcast_to(angles / math.pi, (len(v), around))  # the picture goes round twice
    uv = np.stack([u, np.broadcast_to(v[:, None], u.shape)], axis=-1).reshape(-1, 2)
    row = np.arange(len(v) - 1)[:, None] * around + np.arange(around - 1)
    quads = np.stack([row, row + 1, row + around + 1, row + around], axis=-1).reshape(-1, 4)
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    corner = points[faces]
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=-1)
    return points, faces[area > 1e-12], uv
