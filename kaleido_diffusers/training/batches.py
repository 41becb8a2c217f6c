"""Batches that follow from the seed and the number of the step alone, so that a run resumes where it stopped and
several processes share what one would draw."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ..data.scene import CaptureError
from ..data.sources import CaptureSource, InMemory, SceneSample, SceneSource, ShardSource, SyntheticSource
from ..data.view_sampling import sample_view_subset
from .config import TrainConfig
from .objective import ViewBatch, ViewPartition, draw_partition


__all__ = ["StepBatches", "TrainingStep", "open_source", "open_sources", "step_generator"]

_SYNTHETIC = {"object": ("object", "views"), "scene": ("scene", "views"), "mixed": ("mixed", "views")}
_SYNTHETIC |= {"video": ("mixed", "video"), "moving": ("mixed", "moving")}


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """Randomness of one step; `stream` sets draws of one step apart (rows of the batch, say)."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 4099 + stream)


def open_source(name: str, config: TrainConfig, split: str = "train") -> SceneSource:
    """A source by its name in `TrainConfig.data` (without weight)."""
    if name in _SYNTHETIC:
        level, kind = _SYNTHETIC[name]
        return SyntheticSource(
            level,
            kind,
            split,
            config.scenes if split == "train" else config.validation_scenes,
            config.scene_views,
            config.size,
            config.spread,
            config.max_solids,
            config.render_samples,
        )
    path = Path(name)
    if path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar"))):
        return ShardSource(path, config.size)
    if path.exists():
        return CaptureSource(path, config.size)
    raise CaptureError(f"{name!r} is neither a kind of synthetic world ({', '.join(_SYNTHETIC)}) nor a path.")


def open_sources(config: TrainConfig, progress=None) -> tuple[list[SceneSource], list[float]]:
    """The sources of a run and their weights, which sum to 1."""
    sources, weights = [], []
    for entry in config.data:
        name, _, weight = entry.partition("=")
        source = open_source(name, config)
        sources.append(InMemory(source, progress) if config.in_memory else source)
        try:
            weights.append(float(weight or 1.0))
        except ValueError:
            weights.append(0.0)
        if weights[-1] <= 0:
            raise ValueError(f"The weight of {entry!r} must be a positive number.")
    return sources, [weight / sum(weights) for weight in weights]


@dataclass
class TrainingStep:
    """What one process needs for one step."""

    step: int
    batch: ViewBatch  # rows of this process
    partition: ViewPartition
    rows: list[int]  # their numbers in the whole batch


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
        self.config, self.sources, self.weights = config, sources, torch.tensor(weights)
        self.rows = list(range(rank, config.batch, world_size))

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> TrainingStep:
        config = self.config
        generator = step_generator(config.seed, step)
        source = self.sources[int(torch.multinomial(self.weights, 1, generator=generator))]
        scenes = torch.randint(len(source), (config.batch,), generator=generator).tolist()
        references = config.references or tuple(range(config.views))
        partition = draw_partition(
            config.views,
            generator,
            references[int(torch.randint(len(references), (), generator=generator))],
            config.reference_dropout,
            config.ordered_references,
            config.target_group_sizes,
        )
        samples = []
        for row in self.rows:
            sample = source[scenes[row]]
            chooser = step_generator(config.seed, step, 2 * row + 2)
            views = sample_view_subset(len(sample), sample.poses, sample.times, config.views, chooser, config.view_mix)
            samples.append(sample.select(views))
        return TrainingStep(step, _stack(samples), partition, self.rows)


def _stack(samples: list[SceneSample]) -> ViewBatch:
    """Scenes as a batch; views in [-1, 1]."""
    arrays = {}
    for key in ("poses", "intrinsics", "times"):
        values = [getattr(sample, key) for sample in samples]
        arrays[key] = None if values[0] is None else torch.stack(values)
    views = torch.stack([sample.views for sample in samples]).float() / 127.5 - 1
    times = arrays.pop("times")
    return ViewBatch(views, **arrays, times=None if times is None else times.float())
