"""`kaleido shard`: renders synthetic worlds, or packs captures, into WebDataset shards."""

from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from ..data.sources import CaptureSource, SceneSource, SyntheticSource, write_shards


__all__ = ["Shard"]


@dataclass
class Shard:
    """Writes training data ahead: synthetic worlds (`object`, `scene`, `mixed`, `video`, `moving`) or captures."""

    output: Path
    """Folder for the shards."""
    data: tuple[str, ...] = ("mixed",)
    """A kind of synthetic world, or folders of captures."""
    split: str = "train"
    """`train`, `validation` or `test`: synthetic worlds of different seeds."""
    first: int = 0
    """Number of the first world of the split."""
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
    device: str = "cpu"
    """Where to render."""

    def run(self) -> None:
        kinds = {"object": "views", "scene": "views", "mixed": "views", "video": "video", "moving": "moving"}
        if len(self.data) == 1 and self.data[0] in kinds:
            kind = kinds[self.data[0]]
            source: SceneSource = SyntheticSource(
                self.data[0] if kind == "views" else "mixed",
                kind,
                self.split,
                self.first + self.scenes,
                self.views,
                self.size,
                self.spread,
                self.max_solids,
                self.samples,
                self.device,
            )
            samples = (source[index] for index in tqdm(range(self.first, self.first + self.scenes), desc="worlds"))
        else:
            samples = (CaptureSource(path, self.size)[0] for path in tqdm(self.data, desc="captures"))
        for path in write_shards(self.output, samples, self.scenes_per_shard):
            print(f"wrote {path}")
