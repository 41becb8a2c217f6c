"""Where training views come from, a scene at an index, opened by name: worlds, shards, captures."""

import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from ..captures.images import CaptureError, as_image_tensor, fit_cameras, fit_views, load_image, to_uint8
from ..captures.opening import CaptureOptions
from ..captures.readers.shard_files import ShardCache, is_remote
from ..captures.readers.shards import ShardReader, find_shard
from ..captures.scene import Scene
from ..geometry.cameras import Cameras
from ..geometry.views import ViewGeometry, Views
from .drawn import DRAWN_KINDS, WorldSource
from .samples import SceneSource, scene_sample
from .synthetic import SPLITS, check_worlds, make_worlds, render, sample_views


__all__ = [
    "SYNTHETIC_KINDS",
    "CaptureSource",
    "ShardSource",
    "SourceOptions",
    "SyntheticSource",
    "capture_views",
    "is_rendered",
    "open_source",
]

Level = Literal["object", "scene", "mixed"]
Kind = Literal["views", "video", "moving"]

# What users call the synthetic worlds: level and kind of [`SyntheticSource`].
SYNTHETIC_KINDS: dict[str, tuple[Level, Kind]] = {
    "object": ("object", "views"),
    "scene": ("scene", "views"),
    "mixed": ("mixed", "views"),
    "video": ("mixed", "video"),
    "moving": ("mixed", "moving"),
}


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
        level: Level = "mixed",
        kind: Kind = "views",
        split: str = "train",
        num_scenes: int = 1000,
        num_views: int = 12,
        size: int = 64,
        spread: float = 1.0,
        max_solids: int = 6,
        samples: int = 3,
        device: str = "cpu",
    ):
        self.level: Level = level
        self.kind, self.num_scenes, self.num_views = kind, num_scenes, num_views
        self.size, self.spread, self.max_solids, self.samples, self.device = size, spread, max_solids, samples, device
        if split not in SPLITS:
            raise ValueError(f"`split` must be one of {', '.join(SPLITS)}, got {split!r}.")
        self.first_seed, available = SPLITS[split]
        if not 0 < num_scenes <= available:
            raise ValueError(f"`num_scenes` must lie between 1 and {available}, got {num_scenes}.")
        check_worlds(level, max_solids)

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> Views:
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
        views = to_uint8(images).cpu()
        if self.kind == "video":
            return Views(pixels=views, times=times[0])
        times = times[0] if self.kind == "moving" else None
        return Views(pixels=views, poses=poses[0].double(), intrinsics=intrinsics[0], times=times)


def capture_views(
    scene: Scene, split: str, validation_photos: int = 0, options: CaptureOptions | None = None
) -> list[int]:
    """Views of a split, see [`split_views`]; with `validation_photos`, the validation views are so many of the
    training views, evenly over their order, unless the capture names some that are not its test views.

    Args:
        scene ([`Scene`]): the capture.
        split (`str`): `train`, `validation` or `test`.
        validation_photos (`int`, defaults to `0`): how many training views are kept for validation.
        options ([`CaptureOptions`], *optional*): which views are kept back.
    """
    options = options or CaptureOptions()
    views, test = options.views_of(scene, split), options.views_of(scene, "test")
    if not validation_photos or split == "test" or options.views_of(scene, "validation") != test:
        return views
    train = options.views_of(scene, "train")
    if validation_photos > len(train) - 2:
        raise ValueError(f"{scene.name}: {validation_photos} of {len(train)} training photos cannot be kept back.")
    places = {round((number + 0.5) * len(train) / validation_photos - 0.5) for number in range(validation_photos)}
    return [view for place, view in enumerate(train) if (place in places) == (split == "validation")]


class CaptureSource:
    """
    One capture as a source of a single scene, its photos decoded once.

    Args:
        path (`str` or `Path`): folder of the capture.
        size (`int`): height and width to crop and resize to.
        split (`str`): which views, see [`capture_views`]; `"train"` keeps the test views out.
        validation_photos (`int`): how many training views are kept for validation.
        options ([`CaptureOptions`], *optional*): how the capture is read.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        size: int,
        split: str = "train",
        validation_photos: int = 0,
        options: CaptureOptions | None = None,
    ):
        options = options or CaptureOptions()
        scene = options.load(os.fspath(path))
        views = capture_views(scene, split, validation_photos, options)
        if not views:
            raise CaptureError(f"{path}: none of its {len(scene)} photos is in the {split} split.")
        self.sample = scene_sample(scene, size, views)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Views:
        if index != 0:
            raise IndexError(index)
        return self.sample


class ShardSource(ShardReader):
    """
    Scenes in WebDataset shards, see [`ShardReader`].

    Args:
        path (`str` or `Path`): a folder of `*.tar`, one of them, or an address.
        size (`int`, *optional*): height and width to crop and resize to; as stored when not given.
        cache ([`ShardCache`], *optional*): keeps what came over the network.
    """

    def __init__(self, path: str | os.PathLike, size: int | None = None, cache: ShardCache | None = None):
        super().__init__(path, cache)
        self.size = size

    def __getitem__(self, index: int) -> Views:
        if (latents := self.latents(index)) is not None:
            return Views(pixels=latents[0], **latents[1])
        encoded, arrays = self.parts(index)
        where = "{}, scene {!r}".format(*self.locate(index))
        images = [as_image_tensor(load_image(io.BytesIO(content), exif=False, name=where)) for content in encoded]
        return self._sample(images, arrays)

    def _sample(self, images: list[torch.Tensor], arrays: dict[str, torch.Tensor]) -> Views:
        geometry = ViewGeometry(**arrays)
        if self.size is not None:
            if geometry.poses is not None:
                sizes = torch.tensor([image.shape[-2:] for image in images])
                cameras = Cameras.from_normalized(geometry.poses, geometry.intrinsics, sizes)
                geometry = ViewGeometry.of(fit_cameras(cameras, self.size, self.size), geometry.times)
            images = [fit_views(image, None, self.size, self.size)[0] for image in images]
        return Views.seen(to_uint8(torch.stack(images)), geometry)


@dataclass(frozen=True)
class SourceOptions:
    """How a source is opened; each kind of source reads what concerns it."""

    size: int = 64
    """Height and width in pixels."""
    split: str = "train"
    """`train`, `validation` or `test`."""
    scenes: int = 1000
    """Rendered worlds."""
    views: int = 12
    """Views of each rendered world."""
    spread: float = 1.0
    """How far the cameras of a rendered world are apart, from 0 to 1."""
    max_solids: int = 6
    """Most solids in a synthetic world."""
    samples: int = 3
    """Rays along each side of a pixel of a rendered world."""
    device: str = "cpu"
    """Where synthetic worlds are rendered."""
    assets: tuple[Path, ...] = ()
    """Folders that drawn worlds are made of, see [`WorldSource`]."""
    arc: tuple[float, float] = (0.03, 1.2)
    """Least and greatest arc of the cameras of a drawn world, in radians."""
    zoom: float = 0.3
    """Part of the drawn worlds whose views differ in their field of view."""
    validation_photos: int = 0
    """Photos of a capture's training split that are kept for validation."""
    cache: Path | None = None
    """Folder for pieces of remote shards; none are kept when not given."""
    cache_gigabytes: float = 100.0
    """Most room that they take."""
    capture: CaptureOptions = field(default_factory=CaptureOptions)
    """How captures are read and split."""


def is_rendered(name: str) -> bool:
    """Whether a source of this `name` renders worlds, as many as it is asked for."""
    return name in SYNTHETIC_KINDS or name in DRAWN_KINDS


def open_source(name: str, options: SourceOptions) -> SceneSource:
    """
    A source by its name: a kind of world, shards, or a capture.

    Args:
        name (`str`): one of `SYNTHETIC_KINDS` or `DRAWN_KINDS`, a path, or an address of shards.
        options ([`SourceOptions`]): how to open it.

    Raises:
        `CaptureError`: if it is neither.
    """
    worlds = (options.split, options.scenes, options.views, options.size)
    if name in SYNTHETIC_KINDS:
        level, kind = SYNTHETIC_KINDS[name]
        return SyntheticSource(
            level, kind, *worlds, options.spread, options.max_solids, options.samples, options.device
        )
    if name in DRAWN_KINDS:
        return WorldSource(name, *worlds, options.arc, options.assets, options.zoom)
    if is_remote(name):
        cache = None if options.cache is None else ShardCache(options.cache, int(options.cache_gigabytes * 1e9))
        return ShardSource(name, options.size, cache)
    path = Path(name)
    if find_shard(path):
        return ShardSource(path, options.size)
    if path.exists():
        return CaptureSource(path, options.size, options.split, options.validation_photos, options.capture)
    kinds = ", ".join([*SYNTHETIC_KINDS, *DRAWN_KINDS])
    raise CaptureError(f"{name!r} is neither a kind of world ({kinds}) nor a path.")
