"""`kaleido shard`: renders worlds, or packs captures, into WebDataset shards."""

from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from ..models.latents import load_autoencoder
from ..worlds.meshes import MeshSource, is_mesh_folder
from ..worlds.samples import SceneSource
from ..worlds.shards import encoded_samples, write_shards
from ..worlds.sources import SYNTHETIC_KINDS, CaptureSource, SyntheticSource


__all__ = ["Shard"]


@dataclass
class Shard:
    """Writes training data ahead: synthetic worlds (`object`, `scene`, `mixed`, `video`, `moving`), worlds of textured
    meshes, or captures."""

    output: Path
    """Folder for the shards."""
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
        source = self._worlds()
        if source is not None:
            samples = (source[index] for index in tqdm(range(self.first, self.first + self.scenes), desc="worlds"))
        else:
            samples = (CaptureSource(path, self.size, self.split)[0] for path in tqdm(self.data, desc="captures"))
        if self.vae is not None:
            samples = encoded_samples(samples, load_autoencoder(self.vae).to(self.device))
        for path in write_shards(self.output, samples, self.scenes_per_shard, first=self.first):
            print(f"wrote {path}")

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
