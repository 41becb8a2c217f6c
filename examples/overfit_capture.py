"""Fits a small Kaleido to one capture: the shortest way to see the model learn, and to test a change of it.

    python examples/overfit_capture.py --capture PATH --photos 8 --steps 900 --output runs/fox

At every step the photos are split anew into references and targets, so the model cannot learn a photo by heart without
learning which camera took it. The result is a pipeline folder.
"""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from kaleido_diffusers import (
    Cameras,
    KaleidoTransformer3DModel,
    KaleidoViewSynthesisPipeline,
    RectifiedFlowViewScheduler,
    load_scene,
)
from kaleido_diffusers.evaluation.metrics import psnr
from kaleido_diffusers.geometry.views import Views
from kaleido_diffusers.training.objective import denoise_targets, draw_partition
from kaleido_diffusers.training.optimizer import make_optimizers


@dataclass
class Config:
    capture: Path
    """Folder of the capture."""
    output: Path = Path("runs/overfit")
    """Folder of the trained pipeline."""
    photos: int = 8
    """Photos to fit, evenly spaced by name; 0 for all."""
    views: int = 8
    """Photos a sample, references and targets together."""
    batch: int = 4
    """Samples a step."""
    size: int = 64
    """Height and width in pixels."""
    steps: int = 600
    """Optimizer steps."""
    layers: int = 6
    """Transformer blocks."""
    heads: int = 4
    """Attention heads of 64 channels."""
    patch: int = 8
    """Pixels along a token."""
    learning_rate: float = 0.02
    """Of Muon; the other parameters take a tenth of it."""
    seed: int = 0


def make_pipeline(config: Config) -> KaleidoViewSynthesisPipeline:
    """A model of the size asked for, which has learnt nothing."""
    transformer = KaleidoTransformer3DModel(
        patch_size=config.patch,
        num_layers=config.layers,
        num_attention_heads=config.heads,
        ffn_dim=160 * config.heads,
        sample_size=config.size,
    )
    pipe = KaleidoViewSynthesisPipeline(transformer, RectifiedFlowViewScheduler(prediction_type="sample"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def score(
    pipe: KaleidoViewSynthesisPipeline, photos: torch.Tensor, cameras: Cameras, swap: bool = False
) -> list[float]:
    """PSNR of two photos from six others (or as many as there are), in dB; `swap` gives each the other's camera."""
    count = len(photos)
    targets = [count // 3, 2 * count // 3]
    rest = [i for i in range(count) if i not in targets]
    number = min(6, len(rest))
    references = [rest[i * len(rest) // number] for i in range(number)]
    images = pipe(
        photos[references],
        cameras[references],
        cameras[targets[::-1] if swap else targets],
        num_inference_steps=10,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    return [round(value, 2) for value in psnr(images, photos[targets]).tolist()]


def train(config: Config, pipe: KaleidoViewSynthesisPipeline, photos: torch.Tensor, cameras: Cameras) -> list[dict]:
    """Fits the model; returns ten points of its curve."""
    transformer, scheduler = pipe.transformer, pipe.scheduler
    optimizers = make_optimizers(transformer, config.learning_rate, config.learning_rate / 10)
    base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    poses, intrinsics = cameras.world_from_camera, cameras.normalized_intrinsics.float()
    generator = torch.Generator().manual_seed(config.seed)
    curve, started = [], time.monotonic()
    for step in range(config.steps):
        rate = min(1.0, (step + 1) / 50, 2 * (1 - step / config.steps))
        for optimizer, rates in zip(optimizers, base_rates):
            for group, base in zip(optimizer.param_groups, rates):
                group["lr"] = base * rate
        draws = [torch.randperm(len(photos), generator=generator)[: config.views] for _ in range(config.batch)]
        views = torch.stack(draws)
        batch = Views(pixels=2 * photos[views] - 1, poses=poses[views], intrinsics=intrinsics[views])
        partition = draw_partition(views.shape[1], generator)
        loss = denoise_targets(transformer, scheduler, batch, partition, generator).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % math.ceil(config.steps / 10) == 0:
            minutes = round((time.monotonic() - started) / 60, 2)
            psnrs = score(pipe, photos, cameras)
            curve.append({"step": step, "minutes": minutes, "loss": round(loss.item(), 4), "psnr": psnrs})
            print(curve[-1], flush=True)
    return curve


def main(config: Config) -> None:
    scene = load_scene(config.capture, missing="skip")
    count = config.photos or len(scene)
    chosen = [round(i * (len(scene) - 1) / max(count - 1, 1)) for i in range(count)]
    photos, cameras = scene.fitted(chosen, config.size, config.size)
    torch.manual_seed(config.seed)
    pipe = make_pipeline(config)
    print(f"{pipe.transformer.num_parameters() / 1e6:.1f}M parameters, {count} photos of {config.size} px")
    curve = train(config, pipe, photos, cameras)

    pipe.save_pretrained(config.output)
    pipe = KaleidoViewSynthesisPipeline.from_pretrained(config.output)
    pipe.set_progress_bar_config(disable=True)
    result = {
        "steps": config.steps,
        "psnr": score(pipe, photos, cameras),
        "psnr with the target poses swapped": score(pipe, photos, cameras, swap=True),
        "curve": curve,
    }
    (config.output / "curve.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    swapped = result["psnr with the target poses swapped"]
    print(f"{config.steps} steps; PSNR {result['psnr']} dB, with the target poses swapped {swapped} dB")
    print(f"wrote {config.output}")


if __name__ == "__main__":
    main(tyro.cli(Config))
