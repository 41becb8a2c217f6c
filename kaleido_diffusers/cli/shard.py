"""`kaleido shard`: renders worlds, or packs captures, into WebDataset shards."""

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..captures.readers.shard_files import is_remote
from ..captures.readers.shards import find_shard
from ..worlds.shard_jobs import Place, ShardJob, listed_names, print_summary, write_missing_indices
from ..worlds.shard_writing import shard_name
from ..worlds.sources import SourceOptions, is_rendered, open_source
from .checks import check_at_least, check_folder
from .loading import check_name, say_next
from .settings import ShardSettings


__all__ = ["Shard"]


class Shard(ShardSettings):
    def run(self) -> None:
        number, count = self.part
        if self.scenes_per_shard < 1 or self.first < 0 or self.processes < 1 or not 0 <= number < count:
            raise ValueError(
                "--scenes-per-shard and --processes must be at least 1, --first at least 0, and --part a number below"
                " another, from 0."
            )
        if self.index:
            print(f"wrote {write_missing_indices(self.output)} indices in {self.output}")
            return
        self._check()
        total = self.scenes if self.data[1:] == () and is_rendered(self.data[0]) and count == 1 else None
        with tqdm(total=total, desc="scenes") as bar:
            for job, written in self._results(self._jobs(number, count), bar):
                path = self.output / shard_name(job.numbers[0], self.scenes_per_shard)
                tqdm.write(f"wrote {path}" if written else f"{path} is finished already")
        print_summary(self.output)
        say_next("train", data=self.output, vae=self.vae, output=Path("runs") / self.output.name)

    def _check(self) -> None:
        """Raises for what would end the work later, or in its middle."""
        check_at_least(self, size=8, scenes=1, views=1, samples=1, max_solids=1)
        check_folder(self.output)
        if self.vae is not None:
            check_name("--vae", str(self.vae))
        for entry in (entry for name in self.data for entry in listed_names(name)):
            if not (is_rendered(entry) or is_remote(entry) or Path(entry).exists()):
                open_source(entry, self._options())  # which says what it may be

    def _jobs(self, number: int, count: int) -> Iterator[ShardJob]:
        """The shards of a part, one after the other."""
        kept = {name: getattr(self, name) for name in ("output", "overwrite", "scenes_per_shard", "vae")}
        kept |= {"device": self.device, "skip_broken": self.skip_broken}
        options = self._options()
        for shard, (numbers, places) in enumerate(self._by_shard()):
            if shard % count == number:
                yield ShardJob(
                    numbers=numbers, places=places, options=options, settings=self._settings(numbers), **kept
                )

    def _results(self, jobs: Iterator[ShardJob], bar: tqdm) -> Iterator[tuple[ShardJob, bool]]:
        """Each shard, and whether it was written now. A few jobs are known ahead, not all: there may be many."""
        if self.processes == 1:
            for job in jobs:
                yield job, job.run(bar.update)
            return
        context = multiprocessing.get_context("spawn")  # OpenGL and threads do not live through a fork
        with ProcessPoolExecutor(self.processes, context) as pool:
            waiting: deque[tuple[ShardJob, Future]] = deque()
            for job in jobs:
                waiting.append((job, pool.submit(job.run)))
                if len(waiting) > 2 * self.processes:
                    yield self._finished(*waiting.popleft(), bar)
            while waiting:
                yield self._finished(*waiting.popleft(), bar)

    @staticmethod
    def _finished(job: ShardJob, future: Future, bar: tqdm) -> tuple[ShardJob, bool]:
        written = future.result()
        bar.update(len(job.numbers))
        return job, written

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

    def _settings(self, numbers: range) -> dict[str, Any]:
        """What decides a shard, for its record."""
        free = ("output", "overwrite", "first", "scenes", "device", "data", "processes", "part", "index")
        settings = {key: str(value) for key, value in vars(self).items() if key not in free}
        return settings | {"numbers": [numbers.start, numbers.stop], "data": list(map(str, self.data))}

    def _options(self) -> SourceOptions:
        return SourceOptions(
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

    def _places(self) -> Iterator[Place]:
        """All scenes: of which source, and which of its scenes. A capture is one, and is not opened for that."""
        for name in self.data:
            for entry in listed_names(name):
                is_capture = not is_rendered(entry) and not is_remote(entry) and find_shard(Path(entry)) is None
                count = 1 if is_capture and Path(entry).exists() else len(open_source(entry, self._options()))
                yield from ((entry, index) for index in range(self.first if is_rendered(entry) else 0, count))
