"""Where training views come from, one scene at an index: synthetic worlds and captures. Shards are in `shards.py`."""

import os
from typing import Literal

import torch

from ..captures.readers import load_scene
from ..captures.scene import Scene
from ..geometry.choosing import split_views
from .samples import SceneSample, scene_sample
from .synthetic import SPLITS, make_worlds, render, sample_views


__all__ = ["SYNTHETIC_KINDS", "CaptureSource", "SyntheticSource", "capture_views"]

# What users call the synthetic worlds: level and kind of [`SyntheticSource`].
SYNTHETIC_KINDS = {
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


def capture_views(scene: Scene, split: str, validation_photos: int = 0) -> list[int]:
    """Views of a split, see [`split_views`]; with `validation_photos`, the validation views are so many of the
    training views, evenly over their order, unless the capture names its own.

    Args:
        scene ([`Scene`]): the capture.
        split (`str`): `train`, `validation` or `test`.
        validation_photos (`int`, defaults to `0`): how many training views are kept for validation.
    """
    views = split_views(len(scene), scene.splits, split, order=scene.text_order)
    if not validation_photos or split == "test" or (scene.splits or {}).get("val"):
        return views
    train = split_views(len(scene), scene.splits, "train", order=scene.text_order)
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
    """

    def __init__(self, path: str | os.PathLike, size: int, split: str = "train", validation_photos: int = 0):
        scene = load_scene(path, missing="skip")
        self.sample = scene_sample(scene, size, capture_views(scene, split, validation_photos))

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> SceneSample:
        if index != 0:
            raise IndexError(index)
        return self.sample
