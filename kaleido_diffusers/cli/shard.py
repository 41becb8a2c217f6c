"""`kaleido shard`: renders worlds, or packs captures, into WebDataset shards."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from ..geometry.views import Views
from ..models.latents import load_autoencoder
from ..worlds.shard_writing import encoded_samples, write_shards
from ..worlds.sources import SourceOptions, is_rendered, open_source


__all__ = ["Shard"]


@dataclass
class Shard:
    """Writes training data ahead: synthetic worlds (`object`, `scene`, `mixed`, `video`, `moving`), worlds drawn from
    assets (`worlds`, `objects`, `rooms`, `outdoors`, `scenes`, `photos`, `motion`, `clips`), or captures."""

    output: Path
    """Folder for the shards."""
    data: tuple[str, ...] = ("mixed",)
    """A kind of world, folders of captures, or shards."""
    assets: tuple[Path, ...] = ()
    """Folders of photos, meshes, scenes and panoramas that drawn worlds are made of."""
    arc: tuple[float, float] = (0.03, 1.2)
    """Least and greatest arc of the cameras of a drawn world around what they look at, in radians."""
    zoom: float = 0.3
    """Part of the drawn worlds whose views differ in their field of view."""
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
        total = self.scenes if self.data[1:] == () and is_rendered(self.data[0]) else None
        samples = tqdm(self._samples(), desc="scenes", total=total)
        if self.vae is not None:
            samples = encoded_samples(samples, load_autoencoder(self.vae).to(self.device))
        for path in write_shards(self.output, samples, self.scenes_per_shard, first=self.first):
            print(f"wrote {path}")

    def _samples(self) -> Iterator[Views]:
        """All scenes, the sources opened one after the other."""
        options = SourceOptions(
            size=self.size,
            split=self.split,
            scenes=self.first + self.scenes,
            views=self.views,
            spread=self.spread,
            max_solids=self.max_solids,
            samples=self.samples,
            device=self.device,
            assets=self.assets,
            arc=self.arc,
            zoom=self.zoom,
        )
        for name in self.data:
            source = open_source(name, options)
            for index in range(self.first if is_rendered(name) else 0, len(source)):
                yield source[index]
