"""Trains variants of one small model for equally many steps, several seeds each, and prints a table with spreads.

    kaleido shard --data object --spread 0.3 --scenes 1000 --output runs/worlds
    kaleido shard --data object --spread 0.3 --scenes 64 --split validation --output runs/worlds-validation
    python benchmarks/ablations.py --data runs/worlds --validation runs/worlds-validation

Variants of a seed share their initial weights where the shapes agree, and their data, noise and order of steps, so
differences are paired. A run whose result is on file is not run again; results of other settings are refused.

    kaleido shard --data clips --assets my-assets --size 128 --vae TAEF2 --output runs/clips
    python benchmarks/ablations.py --variants scratch video-first --clips runs/clips ... --train.vae TAEF2

Training on video first takes `--video-share` of the steps on clips without cameras, and the rest on worlds.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import tyro

from kaleido_diffusers import KaleidoViewSynthesisPipeline
from kaleido_diffusers.evaluation.protocol import evaluate, sample_case
from kaleido_diffusers.evaluation.report import markdown_table
from kaleido_diffusers.models.latents import encode_views
from kaleido_diffusers.training.batches import StepBatches
from kaleido_diffusers.training.config import ModelConfig, TrainConfig
from kaleido_diffusers.training.loop import Trainer
from kaleido_diffusers.training.objective import denoise_targets
from kaleido_diffusers.worlds.samples import InMemory
from kaleido_diffusers.worlds.sources import ShardSource


VIDEO_FIRST = "video-first"
VARIANTS = {
    "prope": {"camera_encoding": "prope"},
    "gta": {"camera_encoding": "gta"},
    "scratch": {},
    VIDEO_FIRST: {},
}


@dataclass
class Config:
    data: Path
    """Folder of training shards."""
    validation: Path
    """Folder of shards that no run sees."""
    output: Path = Path("runs/ablations")
    """Folder of the runs and of results.json."""
    variants: tuple[str, ...] = ("prope", "gta")
    """Names in VARIANTS; the first is what the others are held against."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of weights, data order and noise."""
    clips: Path | None = None
    """Folder of shards of clips, for training on video first."""
    video_share: float = 0.3
    """Part of the steps on clips, where video comes first."""
    scenes: int = 32
    """Validation scenes that are generated, from 3 references each."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            Path("unused"),
            model=ModelConfig(num_layers=4, num_attention_heads=4, num_key_value_heads=2, ffn_dim=480),
            references=(1, 2, 3, 5),
            target_group_sizes=(1,),
            steps=500,
            cooldown=0.4,
            in_memory=True,
            workers=0,
            tracker="none",
            validate_every=1_000_000,
            ema_decay=0.99,
        )
    )
    """Settings of every run."""


def main(config: Config) -> None:
    config.output.mkdir(parents=True, exist_ok=True)
    path = config.output / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    settings = {key: str(value) for key, value in vars(config).items() if key not in ("output", "variants", "seeds")}
    if results.setdefault("settings", settings) != settings:
        raise ValueError(f"{path} holds results of other settings: choose another --output.")
    held_out = InMemory(ShardSource(config.validation, config.train.size))

    # ------------------------------------------------------------------------------------------------ runs
    for seed in config.seeds:
        for variant in config.variants:
            name = f"{variant}-{seed}"
            if name in results:
                continue
            started = time.monotonic()
            train = replace(
                config.train,
                output=config.output / name,
                data=(str(config.data),),
                seed=seed,
                model=replace(config.train.model, **VARIANTS[variant]),
            )
            if variant == VIDEO_FIRST:
                train = after_video(train, config.clips, config.video_share)
            pipe = KaleidoViewSynthesisPipeline.from_pretrained(Trainer(train).train())
            pipe.set_progress_bar_config(disable=True)
            pipe.to("cuda" if torch.cuda.is_available() else "cpu")
            results[name] = {
                "parameters": pipe.transformer.num_parameters(),
                "minutes": (time.monotonic() - started) / 60,
                "loss": held_out_loss(pipe, held_out, config.train),
                "psnr": held_out_psnr(pipe, held_out, config.scenes),
            }
            path.write_text(json.dumps(results, indent=1) + "\n")
            print(name, results[name], flush=True)

    # ------------------------------------------------------------------------------------------------ table
    rows = list(summary(results, config.variants, config.seeds))
    print(markdown_table(rows, dict.fromkeys(rows[0], "")))


def after_video(train: TrainConfig, clips: Path | None, share: float) -> TrainConfig:
    """Trains on clips for a share of the steps; settings of the rest of the run, which goes on from there."""
    if clips is None:
        raise ValueError("Training on video first needs --clips.")
    steps = round(train.steps * share)
    video = replace(train, output=train.output / "video", data=(str(clips),), steps=steps, cooldown=0.0)
    return replace(train, output=train.output / "worlds", steps=train.steps - steps, init_from=Trainer(video).train())


@torch.no_grad()
def held_out_loss(pipe: KaleidoViewSynthesisPipeline, source: InMemory, settings: TrainConfig) -> float:
    """Training loss over batches of unseen scenes that are the same for every run."""
    settings = replace(settings, seed=12345, reference_dropout=0.0, steps=24)
    losses = []
    for item in (StepBatches(settings, [source], [1.0])[step] for step in range(settings.steps)):
        batch, noise = item.batch.to(pipe.device), item.noise(settings.seed)
        if pipe.vae is not None:
            batch = replace(batch, pixels=encode_views(pipe.vae, batch.pixels).float())
        losses.append(denoise_targets(pipe.transformer, pipe.scheduler, batch, item.partition, noise).loss.item())
    return sum(losses) / len(losses)


def held_out_psnr(pipe: KaleidoViewSynthesisPipeline, source: InMemory, scenes: int) -> float:
    """Mean over unseen scenes, 2 targets each from 3 references, in dB."""
    cases = [
        sample_case(str(number), source[number].select(range(5)), 2) for number in range(min(scenes, len(source)))
    ]
    result = evaluate(pipe, cases, (3,), baselines=False, num_inference_steps=10, views_per_group=1)
    return result.summary()[0]["psnr"]


def summary(results: dict, variants: tuple[str, ...], seeds: tuple[int, ...]) -> Iterator[dict[str, str]]:
    """Mean and standard deviation over the seeds, and of the paired differences from the first variant."""
    for variant in variants:
        row = {"variant": variant, "parameters": f"{results[f'{variant}-{seeds[0]}']['parameters'] / 1e6:.2f}M"}
        for metric, digits in (("minutes", 1), ("loss", 4), ("psnr", 2)):
            values, first = (
                torch.tensor([results[f"{name}-{seed}"][metric] for seed in seeds], dtype=torch.float64)
                for name in (variant, variants[0])
            )
            row[metric] = spread(values, digits)
            if metric != "minutes":
                row[f"{metric} - {variants[0]}'s"] = "" if variant == variants[0] else spread(values - first, digits)
        yield row


def spread(values: torch.Tensor, digits: int) -> str:
    return f"{values.mean():.{digits}f} ± {values.std():.{digits}f}"


if __name__ == "__main__":
    main(tyro.cli(Config))
