"""Where training views come from: synthetic worlds, captures and shards, one scene at an index."""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import PIL.Image
import torch

from ..cameras import Cameras
from .images import CaptureError, as_image_tensor, fit_cameras, fit_views, tensor_to_image
from .readers import load_scene
from .scene import Scene
from .synthetic import SPLITS, make_worlds, render, sample_views
from .view_sampling import split_views


__all__ = [
    "SYNTHETIC_KINDS",
    "CaptureSource",
    "InMemory",
    "SceneSample",
    "SceneSource",
    "ShardSource",
    "SyntheticSource",
    "scene_sample",
    "write_shards",
]

# What users call the synthetic worlds: level and kind of [`SyntheticSource`].
SYNTHETIC_KINDS = {
    "object": ("object", "views"),
    "scene": ("scene", "views"),
    "mixed": ("mixed", "views"),
    "video": ("mixed", "video"),
    "moving": ("mixed", "moving"),
}

_ARRAYS = ("poses", "intrinsics", "times")


@dataclass
class SceneSample:
    """
    All views of one scene.

    Attributes:
        views (`torch.Tensor` of shape `[V, 3, H, W]`): uint8.
        poses (`torch.Tensor` of shape `[V, 4, 4]`, *optional*): `world_from_camera`, float64; not in video.
        intrinsics (`torch.Tensor` of shape `[V, 3, 3]`, *optional*): normalised by width and height.
        times (`torch.Tensor` of shape `[V]`, *optional*): seconds.
    """

    views: torch.Tensor
    poses: torch.Tensor | None = None
    intrinsics: torch.Tensor | None = None
    times: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.views)

    @property
    def cameras(self) -> Cameras | None:
        """Cameras of the views, if they have any."""
        if self.poses is None:
            return None
        height, width = self.views.shape[-2:]
        scale = torch.tensor([width, height, 1.0], dtype=torch.float64)[:, None]
        return Cameras(self.poses, self.intrinsics.double() * scale, [height, width])

    def select(self, views: Sequence[int]) -> "SceneSample":
        """Some of the views, in the order given."""
        views = list(views)
        return SceneSample(*(None if x is None else x[views] for x in vars(self).values()))


def scene_sample(scene: Scene, size: int, views: Sequence[int]) -> SceneSample:
    """Some of the views of a capture, cropped and resized to `size` x `size` pixels."""
    images, cameras = scene.fitted(views, size, size)
    return SceneSample(
        (images * 255).round().to(torch.uint8),
        cameras.world_from_camera,
        cameras.normalized_intrinsics.float(),
        None if scene.times is None else scene.times[list(views)],
    )


class SceneSource(Protocol):
    """A sequence of scenes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> SceneSample: ...


class SyntheticSource:
    """
    Worlds of [`make_worlds`], ray cast when they are asked for.

    Args:
        level (`str`): `"object"`, `"scene"` or `"mixed"`.
        kind (`str`): `"views"`: still worlds with cameras. `"video"`: clips with times and no cameras. `"moving"`:
            clips with both.
        split (`str`): `"train"`, `"validation"` or `"test"`.
        num_scenes (`int`): how many seeds of the split.
        num_views (`int`): views of each scene.
        size (`int`): height and width in pixels.
        spread (`float`): how far the cameras of a scene are apart, from 0 to 1.
        max_solids (`int`): most solids in a world.
        samples (`int`): rays along each side of a pixel.
        device (`str`): where to render.
    """

    def __init__(
        self,
        level: Literal["object", "scene", "mixed"] = "mixed",
        kind: Literal["views", "video", "moving"] = "views",
        split: str = "train",
        num_scenes: int = 1000,
        num_views: int = 12,
        size: int = 64,
        spread: float = 1.0,
        max_solids: int = 6,
        samples: int = 3,
        device: str = "cpu",
    ):
        self.level, self.kind, self.num_scenes, self.num_views = level, kind, num_scenes, num_views
        self.size, self.spread, self.max_solids, self.samples, self.device = size, spread, max_solids, samples, device
        if split not in SPLITS:
            raise ValueError(f"`split` must be one of {', '.join(SPLITS)}, got {split!r}.")
        self.first_seed, available = SPLITS[split]
        if not 0 < num_scenes <= available:
            raise ValueError(f"`num_scenes` must lie between 1 and {available}, got {num_scenes}.")

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> SceneSample:
        if not 0 <= index < self.num_scenes:
            raise IndexError(index)
        seed = self.first_seed + index
        worlds = make_worlds(
            [seed], self.level, motion=0.0 if self.kind == "views" else 0.7, max_solids=self.max_solids
        )
        kind = "views" if self.kind == "views" else "video"
        poses, intrinsics, times = sample_views(worlds, self.num_views, seed, kind, self.spread)
        arguments = (x.to(self.device) for x in (poses, intrinsics, times))
        images = render(worlds.to(self.device), *arguments, size=(self.size, self.size), samples=self.samples)[0]
        views = (images * 255).round().to(torch.uint8).cpu()
        if self.kind == "video":
            return SceneSample(views, times=times[0])
        return SceneSample(views, poses[0].double(), intrinsics[0], times[0] if self.kind == "moving" else None)


class CaptureSource:
    """
    One capture as a source of a single scene, its photos decoded once.

    Args:
        path (`str` or `Path`): folder of the capture.
        size (`int`): height and width to crop and resize to.
        split (`str`): which views, see [`split_views`]; `"train"` keeps the test views out.
    """

    def __init__(self, path: str | os.PathLike, size: int, split: str = "train"):
        scene = load_scene(path, missing="skip")
        self.sample = scene_sample(scene, size, split_views(len(scene), scene.splits, split))

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> SceneSample:
        if index != 0:
            raise IndexError(index)
        return self.sample


class ShardSource:
    """
    Scenes in WebDataset shards: tar files of `<scene>/NNN.jpg` (or `.png`) and `<scene>/scene.json`.

    Shards are indexed once, by their tar headers, and read at the places where the scenes lie.

    Args:
        path (`str` or `Path`): a folder of `*.tar`, or one of them.
        size (`int`, *optional*): height and width to crop and resize to; as stored when not given.
    """

    def __init__(self, path: str | os.PathLike, size: int | None = None):
        path = Path(path)
        files = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        if not files:
            raise CaptureError(f"{path}: holds no *.tar shards.")
        self.size = size
        self._scenes = [scene for file in files for scene in _index_shard(file)]

    def __len__(self) -> int:
        return len(self._scenes)

    @property
    def fewest_views(self) -> int:
        """Images of the scene that has the fewest."""
        return min(len(members) - 1 for _, members in self._scenes)

    def __getitem__(self, index: int) -> SceneSample:
        file, members = self._scenes[index]
        with open(file, "rb") as stream:
            contents = {name: _read(stream, *place) for name, place in members.items()}
        where = f"{file}, scene {index}"
        try:
            meta = json.loads(contents.pop("scene.json"))
            names = sorted(contents, key=lambda name: (len(name), name))  # 1000.jpg comes after 999.jpg
            images = [as_image_tensor(PIL.Image.open(io.BytesIO(contents[name]))) for name in names]
            arrays = {key: torch.tensor(meta[key], dtype=torch.float64) for key in _ARRAYS if key in meta}
        except (KeyError, ValueError, TypeError, OSError) as error:
            raise CaptureError(f"{where}: cannot be read ({error}).") from error
        if any(len(array) != len(images) for array in arrays.values()):
            raise CaptureError(f"{where}: scene.json does not describe its {len(images)} images.")
        if ("poses" in arrays) != ("intrinsics" in arrays):
            raise CaptureError(f"{where}: scene.json must hold `poses` and `intrinsics`, or neither.")
        return self._sample(images, arrays)

    def _sample(self, images: list[torch.Tensor], arrays: dict[str, torch.Tensor]) -> SceneSample:
        intrinsics = arrays.get("intrinsics")
        if self.size is not None:
            if intrinsics is not None:
                sizes = torch.tensor([image.shape[-2:] for image in images])
                scale = torch.nn.functional.pad(sizes.flip(-1), (0, 1), value=1).unsqueeze(-1)
                cameras = fit_cameras(Cameras(arrays["poses"], intrinsics * scale, sizes), self.size, self.size)
                intrinsics = cameras.normalized_intrinsics
            images = [fit_views(image, None, self.size, self.size)[0] for image in images]
        views = (torch.stack(images) * 255).round().to(torch.uint8)
        intrinsics = None if intrinsics is None else intrinsics.float()
        return SceneSample(views, arrays.get("poses"), intrinsics, arrays.get("times"))


class InMemory:
    """
    Another source, decoded or rendered once, kept as uint8.

    Args:
        source (`SceneSource`): what to read.
        progress (`Callable`, *optional*): wraps the indices, to show progress.
    """

    def __init__(self, source: SceneSource, progress=None):
        indices: Iterable[int] = range(len(source))
        self._samples = [source[index] for index in (progress(indices) if progress else indices)]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> SceneSample:
        return self._samples[index]


def write_shards(
    folder: str | os.PathLike,
    samples: Iterable[SceneSample],
    scenes_per_shard: int = 500,
    quality: int = 95,
    first: int = 0,
) -> list[Path]:
    """
    Writes scenes as WebDataset shards `shard-NNNNNN.tar`, each complete or not there at all.

    Args:
        folder (`str` or `Path`):
            Where to; made if missing. Raises `FileExistsError` when a shard of that name lies there already.
        samples (`Iterable[SceneSample]`):
            The scenes.
        scenes_per_shard (`int`, defaults to `500`):
            Scenes in a tar file.
        quality (`int`, defaults to `95`):
            JPEG quality (4:4:4).
        first (`int`, defaults to `0`):
            Number of the first scene, after which scenes and shards are named.

    Returns:
        `list[Path]`: the shards.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    part, tar = None, None
    for number, sample in enumerate(samples, start=first):
        if part is None or number % scenes_per_shard == 0:
            _finish(part, tar, written)
            path = folder / f"shard-{number // scenes_per_shard:06d}.tar"
            if path.exists():
                raise FileExistsError(f"{path} exists already.")
            part = path.with_suffix(".tar.part")
            tar = tarfile.open(part, "w")
        _add_scene(tar, f"{number:08d}", sample, quality)
    _finish(part, tar, written)
    return written


def _finish(part: Path | None, tar: tarfile.TarFile | None, written: list[Path]) -> None:
    if tar is not None:
        tar.close()
        written.append(part.rename(part.with_suffix("")))


def _add_scene(tar: tarfile.TarFile, name: str, sample: SceneSample, quality: int) -> None:
    meta = {key: getattr(sample, key).tolist() for key in _ARRAYS if getattr(sample, key) is not None}
    _add(tar, f"{name}/scene.json", json.dumps(meta).encode())
    for number, view in enumerate(sample.views):
        buffer = io.BytesIO()
        tensor_to_image(view / 255).save(buffer, "JPEG", quality=quality, subsampling=0)
        _add(tar, f"{name}/{number:03d}.jpg", buffer.getvalue())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _index_shard(file: Path) -> list[tuple[Path, dict[str, tuple[int, int]]]]:
    """Scenes of a shard: where in the file their members lie, (offset, size)."""
    scenes: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                scene, _, name = member.name.rpartition("/")
                if member.isfile() and (name == "scene.json" or name.endswith((".jpg", ".png"))):
                    scenes.setdefault(scene, {})[name] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise CaptureError(f"{file}: not a shard that can be read ({error}).") from error
    complete = [(file, members) for members in scenes.values() if "scene.json" in members and len(members) > 1]
    if not complete:
        raise CaptureError(f"{file}: holds no scene (`<scene>/scene.json` and images beside it).")
    return complete


def _read(stream, offset: int, size: int) -> bytes:
    stream.seek(offset)
    return stream.read(size)
