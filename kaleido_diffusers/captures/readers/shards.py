"""WebDataset shards: scenes by their number, and one of them as a capture."""

import io
import json
import os
import zlib
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from ...geometry.cameras import Cameras
from ..images import CaptureError, load_image, open_image
from ..scene import Scene, SceneImages
from .assembly import ReadOptions, printable, scene_name
from .shard_files import ShardCache, ShardFiles
from .shard_index import HEADER, LATENTS, RECORD, check_header, index_path, read_tar, scan_tar


__all__ = ["ARRAYS", "ShardReader", "find_shard", "read_shard"]


ARRAYS = ("poses", "intrinsics", "times")  # what `scene.json` holds of the views
_INDICES = 64  # of shards, that a process keeps at hand


class ShardReader:
    """
    Scenes in WebDataset shards: tar files of `<scene>/NNN.jpg` (or `.png`) and `<scene>/scene.json`. Instead of
    pictures there may be `<scene>/latents.npy`, what an autoencoder has made of them, `[V, C, h, w]`.

    A scene is read at its place, in one piece. Where it lies says the index beside its shard; a shard of a folder that
    has none is looked through when it is opened, by its tar headers.

    Args:
        path (`str` or `Path`): a folder of `*.tar`, or one of them; or an address (`s3://`, `hf://`, `http://`) of
            either, see [`ShardFiles`].
        cache ([`ShardCache`], *optional*): keeps what came over the network.
    """

    def __init__(self, path: str | os.PathLike, cache: ShardCache | None = None):
        self.files = ShardFiles(path, cache)
        self._scanned: dict[int, np.ndarray] = {}  # of shards without an index
        self._indices: OrderedDict[int, np.ndarray] = OrderedDict()
        self._last: tuple[int, str, dict[str, bytes]] | None = None  # the scene that was read last
        counts = np.array([self._scenes_of(shard) for shard in range(len(self.files.names))])
        self._ends = counts.cumsum()

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def fewest_views(self) -> int | None:
        """Images of the scene that has the fewest; `None` for a remote place, where nobody has looked yet."""
        if self.files.is_remote:
            return None
        fewest = []
        for shard, name in enumerate(self.files.names):
            if shard in self._scanned:
                fewest.append(int(self._scanned[shard]["views"].min()))
            else:
                fewest.append(int(self._header(name)["fewest_views"]))
        return min(fewest)

    @property
    def names(self) -> list[str]:
        """What the scenes are called in their shards."""
        return [self.locate(index)[1] for index in range(len(self))]

    def locate(self, index: int) -> tuple[str, str]:
        """The shard of a scene, and what the scene is called there.

        Args:
            index (`int`): number of the scene.
        """
        shard, record = self._record(index)
        return self.files.names[shard], record["name"].decode(errors="replace")

    def _scenes_of(self, shard: int) -> int:
        """How many scenes a shard has, without reading its index if that can be avoided."""
        name, count = self.files.names[shard], self.files.counts[shard]
        if count is None and not self.files.is_remote:
            self._scanned[shard] = scan_tar(Path(name))
            return len(self._scanned[shard])
        return len(self._index(shard)) if count is None else count

    def _header(self, name: str) -> np.void:
        """The first record of the index of a local shard, which is checked against the shard."""
        where = index_path(name)
        return check_header(self.files.read(where, 0, HEADER.itemsize), where, self.files.sizes.get(name, 0))

    def _index(self, shard: int) -> np.ndarray:
        """The scenes of a shard."""
        if shard in self._scanned:
            return self._scanned[shard]
        if shard in self._indices:
            self._indices.move_to_end(shard)
            return self._indices[shard]
        name = self.files.names[shard]
        where = index_path(name)
        try:
            content = self.files.read(where)
        except CaptureError as error:
            raise CaptureError(
                f"{error} A remote shard needs its index beside it: `kaleido shard --index` writes them."
            ) from error
        size = self.files.sizes.get(name, -1)
        header = check_header(content, where, None if size < 0 else size)
        records = np.frombuffer(content[HEADER.itemsize :], RECORD)
        if len(records) != header["scenes"]:
            raise CaptureError(f"{where}: is cut short: it has {len(records)} of {int(header['scenes'])} scenes.")
        self._indices[shard] = records
        if len(self._indices) > _INDICES:
            self._indices.popitem(last=False)
        return records

    def _record(self, index: int) -> tuple[int, np.void]:
        """The shard of a scene, and what its index says of the scene."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[shard - 1]) if shard else 0
        return shard, self._index(shard)[index - before]

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
        where, contents = self._contents(index)
        if LATENTS not in contents:
            return None
        try:
            latents = torch.from_numpy(np.load(io.BytesIO(contents[LATENTS]), allow_pickle=False))
        except (ValueError, TypeError, EOFError) as error:
            raise CaptureError(f"{where}: {LATENTS} cannot be read ({error}).") from error
        if latents.ndim != 4 or not latents.is_floating_point():
            raise CaptureError(f"{where}: {LATENTS} must hold floating-point latents [V, C, h, w].")
        return latents, self._arrays(where, contents["scene.json"], len(latents))

    def _contents(self, index: int) -> tuple[str, dict[str, bytes]]:
        """What a scene is called in messages, and its members."""
        if self._last is not None and self._last[0] == index:
            return self._last[1], dict(self._last[2])
        shard, record = self._record(index)
        start, end = int(record["start"]), int(record["end"])
        where = f"{self.files.names[shard]}, scene {record['name'].decode(errors='replace')!r}"
        content = self.files.read(self.files.names[shard], start, end)
        if len(content) != end - start:
            raise CaptureError(f"{where}: the shard is cut short: {len(content)} of {end - start} bytes are there.")
        if record["checksum"] and zlib.crc32(content) != record["checksum"]:
            raise CaptureError(f"{where}: is damaged: its bytes are not those that were written.")
        members = [(scene, name, content) for scene, name, content in read_tar(content, where)]
        first = members[0][0] if members else ""
        contents = {name: content for scene, name, content in members if scene == first}
        if "scene.json" not in contents or len(contents) < 2:
            raise CaptureError(f"{where}: is not where the index says.")
        self._last = index, where, contents
        return where, dict(contents)

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
