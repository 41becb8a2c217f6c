"""WebDataset shards: scenes by their number, and one of them as a capture."""

import io
import json
import os
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from ...geometry.cameras import Cameras
from ..images import CaptureError, load_image, open_image
from ..scene import Scene, SceneImages
from .assembly import ReadOptions, printable, scene_name


__all__ = ["ARRAYS", "LATENTS", "ShardReader", "find_shard", "read_shard"]


ARRAYS = ("poses", "intrinsics", "times")  # what `scene.json` holds of the views
LATENTS = "latents.npy"  # in place of pictures


class ShardReader:
    """
    Scenes in WebDataset shards: tar files of `<scene>/NNN.jpg` (or `.png`) and `<scene>/scene.json`. Instead of
    pictures there may be `<scene>/latents.npy`, what an autoencoder has made of them, `[V, C, h, w]`.

    Shards are indexed once, by their tar headers, and read at the places where the scenes lie.

    Args:
        path (`str` or `Path`): a folder of `*.tar`, or one of them.
    """

    def __init__(self, path: str | os.PathLike):
        path = Path(path)
        files = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        if not files:
            raise CaptureError(f"{path}: holds no *.tar shards.")
        self._scenes = [scene for file in files for scene in _index_shard(file)]

    def __len__(self) -> int:
        return len(self._scenes)

    @property
    def fewest_views(self) -> int:
        """Images of the scene that has the fewest."""
        return min(_count_views(file, members) for file, _, members in self._scenes)

    @property
    def names(self) -> list[str]:
        """What the scenes are called in their shards."""
        return [name for _, name, _ in self._scenes]

    def parts(self, index: int) -> tuple[list[bytes], dict[str, torch.Tensor]]:
        """The encoded images of a scene, and what `scene.json` says of them: `poses` `[V, 4, 4]` and `intrinsics`
        `[V, 3, 3]`, normalised, and `times` `[V]`, each where given.

        Args:
            index (`int`): number of the scene.
        """
        where, contents = self._contents(index)
        if LATENTS in contents:
            raise CaptureError(f"{where}: holds latents for training, and no pictures.")
        text = contents.pop("scene.json")
        arrays = self._arrays(where, text, len(contents))
        names = sorted(contents, key=lambda name: (len(name), name))  # 1000.jpg comes after 999.jpg
        return [contents[name] for name in names], arrays

    def latents(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]] | None:
        """The latents `[V, C, h, w]` of a scene and its arrays, as [`~ShardReader.parts`] has them; `None` for a scene
        of pictures.

        Args:
            index (`int`): number of the scene.
        """
        if LATENTS not in self._scenes[index][2]:
            return None
        where, contents = self._contents(index)
        try:
            latents = torch.from_numpy(np.load(io.BytesIO(contents[LATENTS]), allow_pickle=False))
        except (ValueError, TypeError, EOFError) as error:
            raise CaptureError(f"{where}: {LATENTS} cannot be read ({error}).") from error
        if latents.ndim != 4 or not latents.is_floating_point():
            raise CaptureError(f"{where}: {LATENTS} must hold floating-point latents [V, C, h, w].")
        return latents, self._arrays(where, contents["scene.json"], len(latents))

    def _contents(self, index: int) -> tuple[str, dict[str, bytes]]:
        """What a scene is called in messages, and its members."""
        file, name, members = self._scenes[index]
        with open(file, "rb") as stream:
            contents = {name: _read(stream, *place) for name, place in members.items()}
        return f"{file}, scene {name!r}", contents

    @staticmethod
    def _arrays(where: str, text: bytes, count: int) -> dict[str, torch.Tensor]:
        """Poses, intrinsics and times of `count` views."""
        try:
            meta = json.loads(text)
            arrays = {key: torch.tensor(meta[key], dtype=torch.float64) for key in ARRAYS if key in meta}
        except (KeyError, ValueError, TypeError, RuntimeError, RecursionError, OverflowError) as error:
            raise CaptureError(f"{where}: cannot be read ({error}).") from error
        shapes = {"poses": (4, 4), "intrinsics": (3, 3), "times": ()}
        if any(array.shape != (count, *shapes[key]) for key, array in arrays.items()):
            raise CaptureError(f"{where}: scene.json does not describe its {count} views.")
        if ("poses" in arrays) != ("intrinsics" in arrays):
            raise CaptureError(f"{where}: scene.json must hold `poses` and `intrinsics`, or neither.")
        return arrays


def find_shard(path: Path) -> Path | None:
    """A tar file, or a folder of them.

    Args:
        path (`Path`): file or folder to look at.
    """
    if path.is_dir():
        return path if next(path.glob("*.tar"), None) else None
    return path if path.suffix == ".tar" else None


def read_shard(path: Path, options: ReadOptions) -> Scene:
    """Reads the scene that `options.scene` names, or the only one.

    Args:
        path (`Path`): file or folder to look at.
        options (`ReadOptions`): how captures are read.
    """
    source = ShardReader(path)
    names = source.names
    chosen = [index for index, name in enumerate(names) if options.scene in (None, name)]
    if len(chosen) != 1:
        listed = ", ".join(map(printable, names[:10])) + (", ..." if len(names) > 10 else "")
        raise CaptureError(f"{path}: holds {len(names)} scenes; choose one by `scene`: {listed}.")
    if options.images is not None or options.downscale is not None:
        raise CaptureError(f"{path}: the photos of a shard lie in it, in one size: no `images`, no `downscale`.")
    encoded, arrays = source.parts(chosen[0])
    where = f"{path}, scene {printable(names[chosen[0]])!r}"
    if "poses" not in arrays:
        raise CaptureError(f"{where}: is a video without cameras.")
    described = [(io.BytesIO(content), f"{where}, image {number}") for number, content in enumerate(encoded)]
    sizes = torch.tensor([open_image(*image).size[::-1] for image in described])
    loaders = [partial(_decode, content, name) for content, (_, name) in zip(encoded, described)]
    try:
        cameras = Cameras.from_normalized(arrays["poses"], arrays["intrinsics"], sizes)
    except ValueError as error:
        raise CaptureError(f"{where}: {error}") from error
    return Scene(SceneImages(loaders), cameras, scene_name(Path(names[chosen[0]])), arrays.get("times"))


def _decode(content: bytes, name: str) -> PIL.Image.Image:
    return load_image(io.BytesIO(content), exif=False, name=name)


def _index_shard(file: Path) -> list[tuple[Path, str, dict[str, tuple[int, int]]]]:
    """Scenes of a shard: where in the file their members lie, (offset, size)."""
    scenes: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                scene, _, name = member.name.rpartition("/")
                if member.isfile() and (name == "scene.json" or name == LATENTS or name.endswith((".jpg", ".png"))):
                    scenes.setdefault(scene, {})[name] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise CaptureError(f"{file}: not a shard that can be read ({error}).") from error
    complete = [(file, *scene) for scene in scenes.items() if "scene.json" in scene[1] and len(scene[1]) > 1]
    if not complete:
        raise CaptureError(f"{file}: holds no scene (`<scene>/scene.json` and images beside it).")
    return complete


def _count_views(file: Path, members: dict[str, tuple[int, int]]) -> int:
    """Views of a scene."""
    if LATENTS not in members:
        return len(members) - 1
    with open(file, "rb") as stream:
        stream.seek(members[LATENTS][0])
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(stream)[0][0]


def _read(stream, offset: int, size: int) -> bytes:
    stream.seek(offset)
    return stream.read(size)
