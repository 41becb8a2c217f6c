"""`kaleido shard`: renders worlds, or packs captures, into WebDataset shards."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from ..files import write_json
from ..models.latents import load_autoencoder
from ..worlds.meshes import MeshSource, is_mesh_folder
from ..worlds.samples import SceneSample, SceneSource
from ..worlds.shards import encoded_samples, shard_name, write_shards
from ..worlds.sources import SYNTHETIC_KINDS, CaptureSource, SyntheticSource


__all__ = ["Shard"]

RECORD = "shards.json"  # in the folder: with which settings its shards were written


@dataclass
class Shard:
    """Writes training data ahead: synthetic worlds (`object`, `scene`, `mixed`, `video`, `moving`), worlds of textured
    meshes, or captures."""

    output: Path
    """Folder for the shards. A run that was stopped goes on there."""
    data: tuple[str, ...] = ("mixed",)
    """A kind of synthetic world, a folder of meshes, or folders of captures."""
    textures: Path | None = None
    """Photos (and `pano_*` surroundings) for worlds of meshes."""
    split: str = "train"
    """`train`, `validation` or `test`: worlds of different seeds, or views of a capture."""
    first: int = 0
    """Number of the first world of the split, after which shards are named too: 500 goes on after a run of 500."""
    scenes: int = 1000
    """Synthetic worlds."""
    views: int = 12
    """Views of each synthetic world."""
    size: int = 64
    """Height and width in pixels."""
    spread: float = 1.0
    """How far the cameras of a world are apart, from 0 to 1."""
    max_solids: int = 6
    """Most solids in a world."""
    samples: int = 3
    """Rays along each side of a pixel."""
    scenes_per_shard: int = 500
    """Scenes in a tar file."""
    vae: Path | None = None
    """Image autoencoder (see `kaleido train --vae`): the shards then hold latents for training instead of pictures."""
    device: str = "cpu"
    """Where to render."""

    def run(self) -> None:
        if self.scenes_per_shard < 1 or self.first < 0:
            raise ValueError("--scenes-per-shard must be at least 1, and --first at least 0.")
        source, vae = self._worlds(), None if self.vae is None else load_autoencoder(self.vae).to(self.device)
        last = self.first + (len(self.data) if source is None else self.scenes)
        self.output.mkdir(parents=True, exist_ok=True)
        with tqdm(total=last - self.first, desc="worlds" if source is not None else "captures") as bar:
            for numbers in self._by_shard(last):
                path = self.output / shard_name(numbers[0], self.scenes_per_shard)
                if self._is_finished(path, numbers):
                    tqdm.write(f"{path} is finished already")
                    bar.update(len(numbers))
                    continue
                samples = self._drawn(source, numbers, bar)
                if vae is not None:
                    samples = encoded_samples(samples, vae)
                write_shards(self.output, samples, self.scenes_per_shard, first=numbers[0])
                tqdm.write(f"wrote {path}")

    def _by_shard(self, last: int) -> Iterator[range]:
        """Numbers of the scenes of one shard after the other."""
        start = self.first
        while start < last:
            end = min(last, (start // self.scenes_per_shard + 1) * self.scenes_per_shard)
            yield range(start, end)
            start = end

    def _is_finished(self, path: Path, numbers: range) -> bool:
        """Whether a run with these settings has written the shard; notes down that this one will. `FileExistsError`
        for a shard of other settings."""
        file = self.output / RECORD
        record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        free = ("output", "first", "scenes", "device", "data")
        settings = {key: str(value) for key, value in vars(self).items() if key not in free}
        settings |= {"numbers": [numbers.start, numbers.stop], "data": list(map(str, self.data))}
        if path.exists():
            if record.get(path.name) != settings:
                raise FileExistsError(f"{path} exists already, and was not written with these settings.")
            return True
        write_json(file, {**record, path.name: settings})
        return False

    def _drawn(self, source: SceneSource | None, numbers: range, bar: tqdm) -> Iterator[SceneSample]:
        for number in numbers:
            path = None if source is not None else self.data[number - self.first]
            yield source[number] if path is None else CaptureSource(path, self.size, self.split)[0]
            bar.update()

    def _worlds(self) -> SceneSource | None:
        """What to render; nothing when `data` names captures."""
        if len(self.data) > 1:
            return None
        name, last = self.data[0], self.first + self.scenes
        if is_mesh_folder(name):
            return MeshSource(name, self.textures, self.split, last, self.views, self.size, self.spread, self.samples)
        if name not in SYNTHETIC_KINDS:
            return None
        return SyntheticSource(
            *SYNTHETIC_KINDS[name],
            self.split,
            last,
            self.views,
            self.size,
            self.spread,
            self.max_solids,
            self.samples,
            self.device,
        )
