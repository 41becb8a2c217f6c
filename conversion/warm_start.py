"""Starts a Kaleido from an open image model: `python conversion/warm_start.py DONOR --output FOLDER`.

What is taken and how it fits is in `kaleido_diffusers/training/warm_start.py`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from diffusers import AutoencoderKL

from kaleido_diffusers import KaleidoViewSynthesisPipeline, RectifiedFlowViewScheduler
from kaleido_diffusers.evaluation.report import markdown_table
from kaleido_diffusers.files import folder_written_whole
from kaleido_diffusers.training.warm_start import WarmStart, load_donor, warm_start


@dataclass
class Config:
    """Turns a Lumina-Image 2.0 or a Z-Image, in diffusers' format, into a pipeline to train on views."""

    donor: Annotated[str, tyro.conf.Positional]
    """Hub id of a pipeline, or folder of a pipeline or of its transformer."""
    output: Path
    """Folder of the new pipeline. Nothing is written over."""
    vae: str | None = None
    """Folder or Hub id of the donor's autoencoder; the one in the donor's folder when not given."""
    sample_size: int | None = None
    """Height and width of a view in latent cells; the donor's, or 64."""
    patch_size: int | None = None
    """Which of a Z-Image's patch sizes; its first."""
    rope_axes_dim: tuple[int, int, int] | None = None
    """Channels of a head that turn with column, row and time; when not given, as many as turn in the donor."""
    layer_pattern: tuple[str, ...] = ("global",)
    """Layer kinds, repeated over the depth: `global`, `view`."""
    camera_encoding: Literal["prope", "gta"] = "prope"
    """How cameras enter attention."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights that are taken over."""
    seed: int = 0
    """Decides what is new."""


def main(config: Config) -> None:
    if config.output.exists():
        raise ValueError(f"{config.output} exists; nothing is written over.")
    donor = load_donor(config.donor, getattr(torch, config.dtype))
    options = {name: getattr(config, name) for name in ("sample_size", "patch_size", "rope_axes_dim", "layer_pattern")}
    started = warm_start(donor, **options, camera_encoding=config.camera_encoding, seed=config.seed)
    print(table(started))

    vae = load_vae(config, started.transformer.config.in_channels)
    scheduler = RectifiedFlowViewScheduler(prediction_type="velocity")
    pipe = KaleidoViewSynthesisPipeline(started.transformer, scheduler, vae)
    with folder_written_whole(config.output) as part:
        pipe.save_pretrained(part)
    print(f"wrote {config.output}")


def load_vae(config: Config, in_channels: int) -> AutoencoderKL | None:
    """The image autoencoder, if there is one."""
    in_folder = (Path(config.donor) / "vae").is_dir()
    if config.vae is None and not in_folder:
        print(f"no autoencoder: the pipeline works on {in_channels}-channel views (--vae names one)")
        return None
    vae = AutoencoderKL.from_pretrained(config.vae or config.donor, subfolder=None if config.vae else "vae")
    if vae.config.latent_channels != in_channels:
        raise ValueError(f"The autoencoder has {vae.config.latent_channels} channels, the donor sees {in_channels}.")
    return vae


def table(started: WarmStart) -> str:
    """What is reused, what is fitted and what is new."""
    rows = [vars(row) for row in started.origins]
    shares = ", ".join(f"{started.share(how):.1%} {how}" for how in ("reused", "fitted", "new"))
    left = ", ".join(f"{part} ({count:,})" for part, count in started.left_behind.items())
    return (
        markdown_table(rows, {"name": "", "how": "", "origin": "", "parameters": ",", "note": ""})
        + f"\n{started.transformer.num_parameters():,} parameters: {shares}."
        + f"\nThe fitted modulation follows {started.explained:.1%} of the donor's."
        + f"\nLeft behind, by parameters: {left}."
    )


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except (ValueError, OSError) as error:
        sys.exit(f"warm_start: {error}")
