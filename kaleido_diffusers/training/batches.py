"""Batches that follow from the seed and the number of the step alone, so that a run resumes where it stopped and
several processes share what one would draw."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..captures.images import CaptureError
from ..captures.readers.shard_files import is_remote
from ..captures.readers.shards import find_shard
from ..geometry.choosing import choose_references, sample_view_subset
from ..geometry.views import Views
from ..worlds.samples import InMemory, SceneSource, scene_sample
from ..worlds.sources import CaptureSource, ShardSource, SourceOptions, capture_views, is_rendered, open_source
from .config import TrainConfig
from .objective import ViewPartition, draw_partition


__all__ = [
    "StepBatches",
    "TrainingStep",
    "drawn_partition",
    "open_sources",
    "source_options",
    "step_generator",
    "validation_samples",
]


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """Randomness of one step; `stream` sets draws of one step apart (rows of the batch, say).

    Args:
        seed (`int`): of the run.
        step (`int`): its number.
        stream (`int`, defaults to `0`): number of the draw within the step.
    """
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 4099 + stream)


def source_options(config: TrainConfig, split: str = "train") -> SourceOptions:
    """How the sources of a run are opened.

    Args:
        config (`TrainConfig`): settings of the run.
        split (`str`, defaults to `"train"`): or `"validation"`.
    """
    return SourceOptions(
        size=config.size,
        split=split,
        scenes=config.scenes if split == "train" else config.validation_scenes,
        views=config.scene_views,
        spread=config.spread,
        max_solids=config.max_solids,
        samples=config.render_samples,
        assets=config.assets,
        arc=config.arc,
        zoom=config.zoom,
        validation_photos=config.validation_photos,
        cache=config.cache,
        cache_gigabytes=config.cache_gigabytes,
        capture=config.capture,
    )


def validation_samples(config: TrainConfig) -> list[tuple[Views, int]]:
    """Scenes that training does not see, each with the number of views, the first, that are references; two others are
    to be generated. Of a capture, the targets alone are unseen. Empty when training sees shards and no `validation` is
    named.

    Args:
        config (`TrainConfig`): the settings.
    """
    name = config.validation or config.data[0].partition("=")[0]
    is_shard = is_remote(name) or find_shard(Path(name)) is not None
    if is_shard and config.validation is None:
        return []
    if not is_rendered(name) and not is_shard and Path(name).exists():
        scene = config.capture.load(name)
        targets, rest = (
            capture_views(scene, split, config.validation_photos, config.capture) for split in ("validation", "train")
        )
        targets = targets[: config.validation_photos or 2]
        count = min(config.validation_references, len(rest))
        references = choose_references(scene.cameras, count, rest, scene.cameras[targets])
        return [(scene_sample(scene, config.size, references + targets), len(references))]
    source = open_source(name, source_options(config, "validation"))
    samples = [source[index] for index in range(min(len(source), config.validation_scenes))]
    return [(sample.select(range(min(5, len(sample)))), min(3, len(sample) - 1)) for sample in samples]


def open_sources(config: TrainConfig, progress=None) -> tuple[list[SceneSource], list[float]]:
    """The sources of a run and their weights, which sum to 1.

    Args:
        config (`TrainConfig`): the settings.
        progress (`Any`, defaults to `None`): wraps what is read at the start, to show how far it is.
    """
    sources, weights = [], []
    for entry in config.data:
        name, _, weight = entry.partition("=")
        source = open_source(name, source_options(config))
        fewest = None
        if is_rendered(name):
            fewest = config.scene_views
        elif isinstance(source, CaptureSource):
            fewest = len(source[0])
        elif isinstance(source, ShardSource) and not config.skip_broken:
            fewest = source.fewest_views
        if fewest is not None and fewest < config.views:
            raise CaptureError(f"{name}: has a scene of {fewest} views; `views` asks for {config.views}.")
        sources.append(InMemory(source, progress) if config.in_memory else source)
        try:
            weights.append(float(weight or 1.0))
        except ValueError:
            weights.append(0.0)
        if weights[-1] <= 0:
            raise ValueError(f"The weight of {entry!r} must be a positive number.")
    return sources, [weight / sum(weights) for weight in weights]


def drawn_partition(config: TrainConfig, generator: torch.Generator) -> ViewPartition:
    """References and targets of a step, drawn as the settings say.

    Args:
        config (`TrainConfig`): the settings.
        generator (`torch.Generator`): source of randomness.
    """
    references = config.references or tuple(range(config.views))
    return draw_partition(
        config.views,
        generator,
        references[int(torch.randint(len(references), (), generator=generator))],
        config.reference_dropout,
        config.ordered_references,
        config.target_group_sizes,
    )


_OTHERS = 20  # scenes that are tried in place of a broken one


@dataclass
class TrainingStep:
    """What one process needs for one step."""

    step: int  # its number
    batch: Views  # rows of this process
    encoded: bool  # whether the views are latents already
    partition: ViewPartition  # of all rows
    rows: list[int]  # their numbers in the whole batch

    def noise(self, seed: int) -> list[torch.Generator]:
        """Where the noise of each row comes from.

        Args:
            seed (`int`): of the run.
        """
        return [step_generator(seed, self.step, 2 * row + 3) for row in self.rows]


class StepBatches(torch.utils.data.Dataset):
    """
    The batch of a step, at the index of the step.

    Args:
        config (`TrainConfig`): batch size, views and what partitions are drawn.
        sources (`list[SceneSource]`): where scenes come from; each step takes one of them.
        weights (`list[float]`): how often each is taken.
        rank (`int`): number of this process.
        world_size (`int`): number of processes; divides the batch.
    """

    def __init__(
        self,
        config: TrainConfig,
        sources: list[SceneSource],
        weights: list[float],
        rank: int = 0,
        world_size: int = 1,
    ):
        if config.batch % world_size:
            raise ValueError(f"`batch` ({config.batch}) must be a multiple of the {world_size} processes.")
        self.config, self.sources, self.weights = config, sources, torch.tensor(weights, dtype=torch.float32)
        self.rows = list(range(rank, config.batch, world_size))

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> TrainingStep:
        config = self.config
        generator = step_generator(config.seed, step)
        source = self.sources[int(torch.multinomial(self.weights, 1, generator=generator))]
        scenes = torch.randint(len(source), (config.batch,), generator=generator).tolist()
        partition = drawn_partition(config, generator)
        samples = []
        for row in self.rows:
            sample = self._read(source, scenes[row])
            chooser = step_generator(config.seed, step, 2 * row + 2)
            views = sample_view_subset(
                len(sample), sample.cameras, sample.times, config.views, chooser, config.view_mix
            )
            samples.append(sample.select(self._repeat(views, partition, chooser)))
        encoded = samples[0].pixels.dtype != torch.uint8
        return TrainingStep(step, _stack(samples), encoded, partition, self.rows)

    def _repeat(self, views: list[int], partition: ViewPartition, generator: torch.Generator) -> list[int]:
        """Some of the targets are references again."""
        share, count = self.config.repeated_references, partition.num_references
        references, targets = partition.order[:count], partition.order[count:]
        for target in targets if share and references else ():
            chance, which = torch.rand(2, generator=generator, dtype=torch.float32).tolist()
            if chance < share:
                views[target] = views[references[int(which * len(references))]]
        return views

    def _read(self, source: SceneSource, scene: int) -> Views:
        """A scene; with `skip_broken`, another one in place of one that cannot be read, the same in every run."""
        last = None
        for _ in range(_OTHERS):
            try:
                return source[scene]
            except CaptureError as error:
                if not self.config.skip_broken:
                    raise
                last = error
                warnings.warn(f"Left out: {error}", stacklevel=2)
            scene = (scene * 6364136223846793005 + 1442695040888963407) % 2**64 % len(source)
        raise CaptureError(f"{_OTHERS} scenes in a row cannot be read. {last}")


def _stack(samples: list[Views]) -> Views:
    """Scenes as a batch; pixels in [-1, 1]."""
    try:
        batch = Views.stack(samples)
    except ValueError as error:
        raise CaptureError(
            f"{error} Scenes of one source go into one batch: make them two entries of `data`."
        ) from error
    pixels = batch.pixels.float() / 127.5 - 1 if batch.pixels.dtype == torch.uint8 else batch.pixels.float()
    return replace(batch, pixels=pixels)
