"""Data sets as their protocols find them on disk: a scene, and which of its views has which frame number."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from ..captures.images import CaptureError, load_image, open_image
from ..captures.readers import load_scene
from ..captures.scene import Scene, SceneImages
from ..geometry.cameras import Cameras, convert_axes, invert_rigid
from .protocols import MIPNERF360, Protocol


__all__ = ["LAYOUTS", "PlacedScene", "open_placed", "scene_names"]


@dataclass(frozen=True)
class PlacedScene:
    """
    A scene of a protocol.

    Attributes:
        scene ([`Scene`]): its views.
        places (`dict[str, int]`): view of each frame, by the protocol's numbers; `"train/N"` and `"test/N"` where
            the data set counts its parts apart.
    """

    scene: Scene
    places: dict[str, int]


def open_placed(protocol: Protocol, data: Path, name: str) -> PlacedScene:
    """
    Opens one scene; headers of its images are read, pixels are not.

    Args:
        protocol ([`Protocol`]): whose layout to expect.
        data (`Path`): folder of the data set, or of the scene alone.
        name (`str`): of the scene.
    """
    return LAYOUTS[protocol.layout](protocol, Path(data), name)


def scene_names(protocol: Protocol, data: Path) -> list[str]:
    """Scenes that a protocol without a list of its own finds in the data.

    Args:
        protocol ([`Protocol`]): whose scenes.
        data (`Path`): folder of the data set.
    """
    return (
        sorted(path.name for path in Path(data).iterdir() if path.is_dir())
        if not protocol.scenes
        else list(protocol.scenes)
    )


def _in_order(scene: Scene) -> PlacedScene:
    return PlacedScene(scene, {str(index): index for index in range(len(scene))})


def _folder(data: Path, name: str, *marks: str) -> Path:
    """The scene's folder, or the data itself where it is called so (or ends so) and holds what a scene holds."""
    if (data / name).is_dir():
        return data / name
    if data.name == name or data.name.endswith(f"_{name}"):
        if any(any(data.glob(mark)) for mark in marks):
            return data
    raise CaptureError(f"{data / name}: no such scene.")


def _white_where_empty(path: Path) -> PIL.Image.Image:
    """EscherNet's background: colours stay as they are stored, but where alpha is 0."""
    with open_image(path) as image:
        if "A" not in image.getbands():
            return load_image(path)
        try:
            pixels = np.array(image.convert("RGBA"))
        except OSError as error:
            raise CaptureError(f"{path}: damaged or cut short ({error}).") from error
    pixels[pixels[..., 3] == 0] = 255
    return PIL.Image.fromarray(pixels[..., :3])


def _cut_out(scene: Scene, protocol: Protocol) -> Scene:
    if protocol.background != "cut":
        return scene
    images = SceneImages([partial(_white_where_empty, path) for path in scene.image_paths])
    return Scene(images, scene.cameras, scene.name, image_paths=scene.image_paths, splits=scene.splits)


def _gso(protocol: Protocol, data: Path, name: str) -> PlacedScene:
    folder = _folder(data, name, "000.npy", "render_mvs_25/model/000.npy")
    nested = folder / "render_mvs_25/model"
    scene = _cut_out(load_scene(nested if nested.is_dir() else folder), protocol)
    return PlacedScene(scene, {str(int(path.stem)): view for view, path in enumerate(scene.image_paths)})


def _blender(protocol: Protocol, data: Path, name: str) -> PlacedScene:
    scene = load_scene(_folder(data, name, "transforms_train.json"))
    places = {}
    for part in ("train", "test"):
        for view in scene.splits.get(part, ()):
            places[f"{part}/{int(scene.image_paths[view].stem.rpartition('_')[2])}"] = view
    return PlacedScene(_cut_out(scene, protocol), places)


def _plain(protocol: Protocol, data: Path, name: str) -> PlacedScene:
    marks = ("poses_bounds.npy", "transforms.json", "sparse/0/*")
    downscale = MIPNERF360[name] if protocol.layout == "mipnerf360" else protocol.downscale
    return _in_order(load_scene(_folder(data, name, *marks), downscale=downscale))


def _dl3dv(protocol: Protocol, data: Path, name: str) -> PlacedScene:
    """Frames are counted in the order of `transforms.json`, which is not that of their names."""
    folder = _folder(data, name, "transforms.json", "nerfstudio/transforms.json")
    file = next(f for f in (folder / "transforms.json", folder / "nerfstudio/transforms.json") if f.is_file())
    scene = load_scene(folder, downscale=protocol.downscale)
    views = {path.stem: view for view, path in enumerate(scene.image_paths)}
    frames = json.loads(file.read_text(encoding="utf-8"))["frames"]
    return PlacedScene(scene, {str(n): views[Path(frame["file_path"]).stem] for n, frame in enumerate(frames)})


def _built(name: str, loaders: list[Callable], poses, intrinsics, sizes, paths: list[Path] | None) -> PlacedScene:
    return _in_order(Scene(SceneImages(loaders), Cameras(poses, intrinsics, sizes), name, image_paths=paths))


def _sizes(paths: list[Path]) -> list[list[int]]:
    sizes = []
    for path in paths:
        with open_image(path) as image:
            sizes.append([image.height, image.width])
    return sizes


def _present(paths: list[Path]) -> list[Path]:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise CaptureError(f"{missing[0]}: missing, with {len(missing) - 1} more of {len(paths)} files.")
    return paths


def _dtu(_protocol: Protocol, data: Path, name: str) -> PlacedScene:
    """The rectified photos of 1,600 x 1,200 pixels (or resized ones) and the projections `pos_NNN.txt` for them."""
    root = next((place for place in (data, data / "Rectified") if (place / name).is_dir()), None)
    if root is None:
        raise CaptureError(f"{data / 'Rectified' / name}: no such scan.")
    calibration = next((p / "Calibration/cal18" for p in (data, data.parent) if (p / "Calibration").is_dir()), data)
    photos = _present([root / name / f"rect_{number:03d}_3_r5000.png" for number in range(1, 50)])
    tables = _present([calibration / f"pos_{number:03d}.txt" for number in range(1, 50)])
    cameras = [_from_projection(torch.from_numpy(np.loadtxt(table)), table) for table in tables]
    poses, intrinsics = (torch.stack(part) for part in zip(*cameras))
    sizes = _sizes(photos)
    scale = torch.tensor([[width / 1600, height / 1200, 1.0] for height, width in sizes], dtype=torch.float64)
    return _built(name, [partial(load_image, p) for p in photos], poses, scale[..., None] * intrinsics, sizes, photos)


def _from_projection(projection: torch.Tensor, where: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """`world_from_camera` and intrinsics of a 3 x 4 projection, whose left part is intrinsics times rotation."""
    if projection.shape != (3, 4):
        raise CaptureError(f"{where}: must hold 3 x 4 numbers, got {list(projection.shape)}.")
    rotation, upper = torch.linalg.qr(torch.linalg.inv(projection[:, :3]))  # R^T, K^-1
    signs = upper.diagonal().sign()
    rotation, upper = rotation * signs, signs[:, None] * upper
    if torch.linalg.det(rotation) < 0:  # a projection is known up to its sign
        rotation = -rotation
    intrinsics = torch.linalg.inv(upper)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = rotation
    pose[:3, 3] = -torch.linalg.solve(projection[:, :3], projection[:, 3])
    intrinsics = intrinsics / intrinsics[2, 2]
    intrinsics[0, 1] = 0.0 if abs(intrinsics[0, 1]) < 1e-3 * intrinsics[0, 0] else intrinsics[0, 1]
    return pose, intrinsics.triu()


def _dtu_mvs(_protocol: Protocol, data: Path, name: str) -> PlacedScene:
    """MVSNet's cut of DTU: photos of 640 x 512 pixels; the intrinsics of `Cameras/train` count in quarters of them."""
    photos = _present([data / f"Rectified/{name}_train/rect_{n:03d}_3_r5000.png" for n in range(1, 50)])
    tables = _present([data / f"Cameras/train/{number:08d}_cam.txt" for number in range(49)])
    poses, intrinsics = [], []
    for table in tables:
        lines = table.read_text().splitlines()
        poses.append(invert_rigid(_numbers(lines[1:5])))
        intrinsics.append(_numbers(lines[7:10]) * torch.tensor([[4.0], [4.0], [1.0]], dtype=torch.float64))
    loaders = [partial(load_image, path) for path in photos]
    return _built(name, loaders, torch.stack(poses), torch.stack(intrinsics), _sizes(photos), photos)


def _numbers(lines: list[str]) -> torch.Tensor:
    return torch.tensor([[float(word) for word in line.split()] for line in lines], dtype=torch.float64)


@lru_cache(maxsize=1)
def _chunk(path: Path) -> dict[str, dict]:
    return {example["key"]: example for example in torch.load(path, map_location="cpu", weights_only=True)}


@lru_cache(maxsize=4)
def _chunk_index(path: Path) -> dict[str, str]:
    return json.loads(path.read_text(encoding="utf-8"))


def _re10k(_protocol: Protocol, data: Path, name: str) -> PlacedScene:
    """pixelSplat's chunks, or RealEstate10K's camera files with the frames beside them."""
    root = data / "test" if (data / "test/index.json").is_file() else data
    if not (root / "index.json").is_file():
        return _in_order(load_scene(root / f"{name}.txt"))
    index = _chunk_index(root / "index.json")
    if name not in index:
        raise CaptureError(f"{root / 'index.json'}: {name} is not in it.")
    example = _chunk(root / index[name])[name]
    rows = example["cameras"].double()
    camera_from_world = torch.eye(4, dtype=torch.float64).repeat(len(rows), 1, 1)
    camera_from_world[:, :3] = rows[:, 6:].reshape(-1, 3, 4)
    if len(example["images"]) != len(rows):
        raise CaptureError(f"{root / index[name]}: {name} has {len(rows)} cameras, {len(example['images'])} images.")
    loaders, sizes = [], []
    for number, stored in enumerate(example["images"]):
        content, what = stored.numpy().tobytes(), f"{root / index[name]}, {name}, frame {number}"
        with open_image(BytesIO(content), what) as image:
            sizes.append([image.height, image.width])
        loaders.append(partial(_decoded, content, what))
    sides = torch.tensor(sizes, dtype=torch.float64).flip(-1)
    intrinsics = torch.eye(3, dtype=torch.float64).repeat(len(rows), 1, 1)
    intrinsics[:, (0, 1), (0, 1)], intrinsics[:, :2, 2] = rows[:, :2] * sides, rows[:, 2:4] * sides
    return _built(name, loaders, invert_rigid(_orthonormal(camera_from_world)), intrinsics, sizes, None)


def _decoded(content: bytes, name: str) -> PIL.Image.Image:
    return load_image(BytesIO(content), name=name)


def _orthonormal(poses: torch.Tensor) -> torch.Tensor:
    """float32 on file: the nearest rotations."""
    left, _, right = torch.linalg.svd(poses[:, :3, :3])
    return torch.cat([torch.cat([left @ right, poses[:, :3, 3:]], -1), poses[:, 3:]], 1)


def _rtmv(_protocol: Protocol, data: Path, name: str) -> PlacedScene:
    """NVIDIA's RTMV: linear colours in EXR, `cam2world` transposed, OpenGL axes."""
    folder = _folder(data, name, "00000.json")
    files = sorted(folder.glob("[0-9][0-9][0-9][0-9][0-9].json"))
    if not files:
        raise CaptureError(f"{folder}: no NNNNN.json.")
    poses, intrinsics, sizes = [], [], []
    for file in files:
        camera = json.loads(file.read_text(encoding="utf-8"))["camera_data"]
        poses.append(torch.tensor(camera["cam2world"], dtype=torch.float64).T)
        lens = camera["intrinsics"]
        intrinsics.append([[lens["fx"], 0, lens["cx"]], [0, lens["fy"], lens["cy"]], [0, 0, 1]])
        sizes.append([int(camera["height"]), int(camera["width"])])
    paths = _present([file.with_suffix(".exr") for file in files])
    poses = convert_axes(_orthonormal(torch.stack(poses)), "opengl", "opencv")
    intrinsics = torch.tensor(intrinsics, dtype=torch.float64)
    return _built(name, [partial(_exr, path) for path in paths], poses, intrinsics, sizes, paths)


def _exr(path: Path) -> PIL.Image.Image:
    """255 times the stored values, cut off: no tone mapping."""
    try:
        import OpenEXR
    except ImportError as error:
        raise ImportError("EXR images are read by OpenEXR: pip install openexr") from error
    try:
        with OpenEXR.File(str(path)) as file:
            channels = file.channels()
            pixels = channels["RGBA" if "RGBA" in channels else "RGB"].pixels[..., :3].astype(np.float32)
    except (RuntimeError, KeyError, OSError) as error:
        raise CaptureError(f"{path}: cannot be read ({error}).") from error
    return PIL.Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8))


LAYOUTS = {"gso": _gso, "rtmv": _rtmv, "blender": _blender, "llff": _plain, "dtu": _dtu, "dtu_mvs": _dtu_mvs}
LAYOUTS |= {"mipnerf360": _plain, "re10k": _re10k, "dl3dv": _dl3dv, "tnt": _plain, "folders": _plain}
