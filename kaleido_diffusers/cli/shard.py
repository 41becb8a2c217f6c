"""`kaleido shard`: renders worlds, or packs captures, into WebDataset shards."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from ..files import write_json
from ..geometry.views import Views
from ..models.latents import load_autoencoder
from ..worlds.shard_writing import encoded_samples, shard_name, write_shards
from ..worlds.sources import SourceOptions, is_rendered, open_source
from .settings import ShardSettings


__all__ = ["Shard"]

RECORD = "shards.json"  # in the folder: with which settings its shards were written

Place = tuple[Sequence[Views], int]  # a source, and which of its scenes


class Shard(ShardSettings):
    def run(self) -> None:
        if self.scenes_per_shard < 1 or self.first < 0:
            raise ValueError("--scenes-per-shard must be at least 1, and --first at least 0.")
        vae = None if self.vae is None else load_autoencoder(self.vae).to(self.device)
        total = self.scenes if self.data[1:] == () and is_rendered(self.data[0]) else None
        self.output.mkdir(parents=True, exist_ok=True)
        with tqdm(total=total, desc="scenes") as bar:
            for numbers, places in self._by_shard():
                path = self.output / shard_name(numbers[0], self.scenes_per_shard)
                if self._is_finished(path, numbers):
                    tqdm.write(f"{path} is finished already")
                    bar.update(len(numbers))
                    continue
                samples = self._drawn(places, bar)
                if vae is not None:
                    samples = encoded_samples(samples, vae)
                write_shards(self.output, samples, self.scenes_per_shard, first=numbers[0])
                tqdm.write(f"wrote {path}")

    def _by_shard(self) -> Iterator[tuple[range, list[Place]]]:
        """Numbers of the scenes of one shard after the other, and where they come from."""
        start, places = self.first, []
        for place in self._places():
            places.append(place)
            end = start + len(places)
            if end % self.scenes_per_shard == 0:
                yield range(start, end), places
                start, places = end, []
        if places:
            yield range(start, start + len(places)), places

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

    def _drawn(self, places: list[Place], bar: tqdm) -> Iterator[Views]:
        for source, index in places:
            yield source[index]
            bar.update()

    def _places(self) -> Iterator[Place]:
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
                yield source, index
