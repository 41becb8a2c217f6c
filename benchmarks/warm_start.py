"""Does a Kaleido that starts from an image model learn views faster than a random one? Prints one table.

    python benchmarks/warm_start.py

A tiny Lumina 2 learns single views of synthetic worlds in pixels, without text. Then Kaleidos of one architecture
learn to make views of worlds from others: one that starts from it, one that starts from the same Lumina 2 before it
has learnt anything, and one with random weights. Data, noise and order of steps are the same.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from diffusers import Lumina2Transformer2DModel

from kaleido_diffusers import KaleidoTransformer3DModel, RectifiedFlowViewScheduler
from kaleido_diffusers.evaluation.report import markdown_table
from kaleido_diffusers.training.batches import StepBatches
from kaleido_diffusers.training.config import TrainConfig
from kaleido_diffusers.training.objective import denoise_targets
from kaleido_diffusers.training.optimizer import make_optimizers
from kaleido_diffusers.training.warm_start import warm_start
from kaleido_diffusers.worlds.samples import InMemory
from kaleido_diffusers.worlds.sources import SyntheticSource


@dataclass
class Config:
    worlds: int = 150
    """Worlds to train on; 32 others are kept for the loss."""
    size: int = 32
    """Height and width of the views; tokens are 4 pixels wide."""
    donor_steps: int = 300
    """Steps of the image model."""
    steps: int = 120
    """Steps of each Kaleido."""
    evaluations: int = 4
    """How often the loss on unseen worlds is taken, after the first."""
    batch: int = 4
    """Worlds a step, 8 views each."""
    optimizer: str = "adamw"
    """`adamw` or `muon`."""
    learning_rate: float = 1e-3
    """Of AdamW, the image model's too."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of weights, data and noise."""


def main(config: Config) -> None:
    started = time.monotonic()
    options = {"level": "object", "num_views": 12, "size": config.size, "spread": 0.3, "samples": 2}
    train = InMemory(SyntheticSource(split="train", num_scenes=config.worlds, **options))
    held_out = InMemory(SyntheticSource(split="validation", num_scenes=32, **options))
    print(f"{(time.monotonic() - started) / 60:.1f} minutes for the worlds", flush=True)

    # ------------------------------------------------------------------------------------------------ the donor
    scheduler = RectifiedFlowViewScheduler(prediction_type="velocity")
    torch.manual_seed(0)
    donor = Lumina2Transformer2DModel(
        sample_size=config.size, patch_size=4, in_channels=3, hidden_size=128, num_layers=3, num_refiner_layers=1,
        num_attention_heads=2, num_kv_heads=1, multiple_of=32, ffn_dim_multiplier=0.75, cap_feat_dim=8,
        axes_dim_rope=(32, 16, 16), axes_lens=(8, 64, 64),
    )  # fmt: skip
    starts: dict[str, Callable[[], KaleidoTransformer3DModel]] = {}
    untrained = warm_start(donor).transformer
    first, last = train_donor(donor, scheduler, train, config)
    print(f"donor: loss {first:.3f} at the start, {last:.3f} at the end", flush=True)
    trained = warm_start(donor)
    starts["random"] = lambda: KaleidoTransformer3DModel.from_config(untrained.config)
    starts["untrained donor"] = lambda: copy_of(untrained)
    starts["trained donor"] = lambda: copy_of(trained.transformer)
    shares = ", ".join(f"{trained.share(how):.0%} {how}" for how in ("reused", "fitted", "new"))
    print(f"{trained.transformer.num_parameters() / 1e6:.2f}M parameters: {shares};", end=" ")
    print(f"{trained.explained:.1%} of the modulation followed", flush=True)

    # ------------------------------------------------------------------------------------------------ the Kaleidos
    curves: dict[str, list[dict[int, float]]] = {name: [] for name in starts}
    for seed in config.seeds:
        for name, make in starts.items():
            torch.manual_seed(seed)
            curves[name].append(learn(make(), scheduler, train, held_out, replace(config, seeds=(seed,))))
            print(name, seed, {step: round(loss, 4) for step, loss in curves[name][-1].items()}, flush=True)

    # ------------------------------------------------------------------------------------------------ table
    rows = []
    for name, runs in curves.items():
        means = {f"step {step}": sum(run[step] for run in runs) / len(runs) for step in runs[0]}
        rows.append({"start": name, **means})
    minutes = (time.monotonic() - started) / 60
    print(f"\nLoss on unseen worlds, mean of {len(config.seeds)} seeds; {minutes:.1f} minutes in all.\n")
    print(markdown_table(rows, {key: "" if key == "start" else ".4f" for key in rows[0]}))


def train_donor(
    donor: Lumina2Transformer2DModel, scheduler: RectifiedFlowViewScheduler, source: InMemory, config: Config
) -> tuple[float, float]:
    """Teaches single views: timesteps run from noise (0) to data (1) and so does the output, as in its pipeline. Mean
    losses of the first and of the last 20 steps."""
    generator = torch.Generator().manual_seed(0)
    views = torch.cat([source[index].pixels for index in range(len(source))]).float() / 127.5 - 1
    text, mask = torch.zeros(8 * config.batch, 1, 8), torch.ones(8 * config.batch, 1, dtype=torch.int64)
    optimizer = torch.optim.AdamW(donor.parameters(), lr=config.learning_rate, weight_decay=0.0)
    losses = []
    for step in range(config.donor_steps):
        set_rate([optimizer], step, config.donor_steps)
        clean = views[torch.randint(len(views), (len(text),), generator=generator)]
        sigma = scheduler.sample_sigmas(len(clean), 1, generator)[:, 0]
        noise = torch.randn(clean.shape, generator=generator)
        noisy = scheduler.scale_noise(clean[:, None], 1000 * sigma[:, None], noise[:, None])[:, 0]
        loss = (donor(noisy, 1 - sigma, text, mask).sample - (clean - noise)).square().mean()
        take_step(donor, loss, [optimizer])
        losses.append(loss.item())
    return sum(losses[:20]) / 20, sum(losses[-20:]) / 20


def learn(
    model: KaleidoTransformer3DModel,
    scheduler: RectifiedFlowViewScheduler,
    train: InMemory,
    held_out: InMemory,
    config: Config,
) -> dict[int, float]:
    """Losses on unseen worlds by step."""
    settings = TrainConfig(
        Path("unused"), size=config.size, batch=config.batch, views=8, references=(1, 2, 3), target_group_sizes=(1,),
        steps=config.steps, seed=config.seeds[0],
    )  # fmt: skip
    batches = StepBatches(settings, [train], [1.0])
    optimizers = make_optimizers(model, other_lr=config.learning_rate, kind=config.optimizer)
    every, losses = config.steps // config.evaluations, {}
    for step in range(config.steps + 1):
        if step % every == 0:
            losses[step] = loss_on(model, scheduler, held_out, settings)
        if step < config.steps:
            set_rate(optimizers, step, config.steps)
            take_step(model, loss_of(model, scheduler, batches, step), optimizers)
    return losses


def loss_of(model, scheduler, batches: StepBatches, step: int) -> torch.Tensor:
    item = batches[step]
    return denoise_targets(model, scheduler, item.batch, item.partition, item.noise(batches.config.seed)).loss


@torch.no_grad()
def loss_on(model, scheduler, source: InMemory, settings: TrainConfig) -> float:
    """Over 12 batches that are the same for every run."""
    batches = StepBatches(replace(settings, seed=12345, reference_dropout=0.0, steps=12), [source], [1.0])
    return sum(loss_of(model, scheduler, batches, step).item() for step in range(12)) / 12


def set_rate(optimizers: list[torch.optim.Optimizer], step: int, steps: int) -> None:
    """Up over 20 steps, down over the last third."""
    factor = min((step + 1) / 20, 1, 3 * (steps - step) / steps)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("peak", group["lr"])
            group["lr"] = factor * group["peak"]


def take_step(model: torch.nn.Module, loss: torch.Tensor, optimizers: list[torch.optim.Optimizer]) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def copy_of(model: KaleidoTransformer3DModel) -> KaleidoTransformer3DModel:
    other = KaleidoTransformer3DModel.from_config(model.config)
    other.load_state_dict(model.state_dict())
    return other


if __name__ == "__main__":
    main(tyro.cli(Config))
