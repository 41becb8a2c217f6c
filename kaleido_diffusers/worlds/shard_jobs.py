"""Shards as pieces of work, which processes and machines do side by side and which can be taken up again."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..captures.images import CaptureError
from ..captures.readers.shard_index import index_path, write_index
from ..files import OR_OVERWRITE, write_json
from ..geometry.views import Views
from ..models.latents import load_autoencoder
from .samples import SceneSource
from .shard_writing import encoded_samples, shard_name, write_shards
from .sources import SourceOptions, open_source


__all__ = ["Place", "ShardJob", "listed_names", "print_summary", "write_missing_indices"]

Place = tuple[str, int]  # the name of a source, and which of its scenes
_SUMMARY = "summary.json"
_EARLIER = "shards.json"  # held the settings of all shards of a folder, when one process wrote them


@dataclass(frozen=True)
class ShardJob:
    """One shard to write. Beside it come its index and `NAME.json`, with its settings and what was left out."""

    output: Path
    """Folder of the shards."""
    numbers: range
    """Of its scenes."""
    places: list[Place]
    """Where they come from."""
    options: SourceOptions
    """How sources are opened."""
    scenes_per_shard: int
    """Scenes of every shard but the last."""
    vae: Path | None
    """Autoencoder, for latents in place of pictures."""
    device: str
    """Where it works."""
    skip_broken: bool
    """Whether scenes that cannot be read are left out."""
    overwrite: bool
    """Whether a shard of other settings gives way."""
    settings: dict[str, Any]
    """What decides the shard, to be told from others of its name."""

    @property
    def path(self) -> Path:
        """Of the shard."""
        return self.output / shard_name(self.numbers[0], self.scenes_per_shard)

    def run(self, progress: Callable[[int], object] | None = None) -> bool:
        """
        Writes the shard, unless it is there already; returns whether it did.

        Args:
            progress (`Callable`, *optional*): called with 1 after each scene, or with their number.

        Raises:
            `FileExistsError`: for a shard of other settings, unless it gives way.
            `CaptureError`: for a scene that cannot be read, unless those are left out, or for none that can.
        """
        progress = progress or (lambda count: None)
        index = Path(index_path(str(self.path)))
        if self.path.exists():
            if self._recorded() == self.settings:
                if not index.is_file():
                    write_index(self.path)  # it comes last, and a kill came before
                progress(len(self.numbers))
                return False
            if not self.overwrite:
                raise FileExistsError(f"{self.path} was not written with these settings: {OR_OVERWRITE}")
        samples = self._samples(progress)
        if self.vae is not None:
            samples = encoded_samples(samples, _autoencoder(self.vae, self.device))
        write_shards(self.output, samples, self.scenes_per_shard, first=self.numbers[0], replaces=self.overwrite)
        return True

    @property
    def _record(self) -> Path:
        return self.path.with_suffix(".json")

    def _recorded(self) -> dict[str, Any] | None:
        earlier = self.output / _EARLIER
        if self._record.is_file():
            return json.loads(self._record.read_text(encoding="utf-8"))["settings"]
        found = json.loads(earlier.read_text(encoding="utf-8")).get(self.path.name) if earlier.is_file() else None
        return found and {**self.settings, **found} if found and found.items() <= self.settings.items() else found

    def _samples(self, progress: Callable[[int], object]) -> Iterator[Views]:
        """The scenes; after the last one, and so before the shard takes its name, it is recorded what they are."""
        left_out: list[dict[str, str]] = []
        for name, index in self.places:
            try:
                sample = _source(name, self.options)[index]
            except CaptureError as error:
                if not self.skip_broken:
                    raise
                left_out.append({"scene": f"{name}, {index}", "why": str(error)})
            else:
                yield sample
            progress(1)
        if len(left_out) == len(self.places):
            raise CaptureError(f"{self.path}: none of its {len(left_out)} scenes can be read: {left_out[0]['why']}")
        scenes = len(self.places) - len(left_out)
        for earlier in (self.path, Path(index_path(str(self.path)))):  # what is recorded is not them any more
            earlier.unlink(missing_ok=True)
        write_json(self._record, {"settings": self.settings, "scenes": scenes, "left_out": left_out})


@cache
def _autoencoder(path: Path, device: str):
    return load_autoencoder(path).to(torch.device(device))


_open: dict[str, SceneSource] = {}  # the source that was opened last: scenes of one come in a row


def _source(name: str, options: SourceOptions) -> SceneSource:
    if name not in _open:
        opened = open_source(name, options)
        _open.clear()
        _open[name] = opened
    return _open[name]


def listed_names(entry: str) -> list[str]:
    """The name that `entry` is, or those in the text file that it names after an `@`, one a line."""
    if not entry.startswith("@"):
        return [entry]
    lines = Path(entry[1:]).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


def write_missing_indices(folder: Path) -> int:
    """Writes the index of each shard in `folder` that has none, or that of another size; returns how many."""
    missing = []
    for tar in sorted(folder.glob("*.tar")):
        index = Path(index_path(str(tar)))
        if not index.is_file() or index.stat().st_mtime < tar.stat().st_mtime:
            missing.append(tar)
    for tar in missing:
        write_index(tar)
    return len(missing)


def print_summary(folder: Path) -> None:
    """Says what the shards in `folder` hold and what was left out, and why; the same as `summary.json` there. Parts
    that other machines still write are not in it."""
    files = [file for file in sorted(folder.glob("shard-*.json")) if file.with_suffix(".tar").exists()]
    done = [record for file in files if "scenes" in (record := json.loads(file.read_text(encoding="utf-8")))]
    left_out = [entry for record in done for entry in record["left_out"]]
    scenes = sum(record["scenes"] for record in done)
    write_json(folder / _SUMMARY, {"shards": len(done), "scenes": scenes, "left_out": left_out})
    print(f"{folder}: {len(done)} shards, {scenes} scenes, {len(left_out)} left out")
    for why, count in Counter(_kind(entry["why"], entry["scene"]) for entry in left_out).most_common(10):
        print(f"  {count} x {why}")


def _kind(why: str, scene: str) -> str:
    """What is wrong, without what it is wrong with."""
    return why.replace(scene.rpartition(", ")[0], "").lstrip(":/ ,")
