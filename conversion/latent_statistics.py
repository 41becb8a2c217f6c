"""Measures the latents of an autoencoder on training data, and writes a copy of it that knows their statistics.

python conversion/latent_statistics.py --vae AUTOENCODER --data SHARDS --output vae
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from kaleido_diffusers.files import folder_written_whole
from kaleido_diffusers.models.latents import load_autoencoder, measure_statistics
from kaleido_diffusers.worlds.sources import SourceOptions, open_source


@dataclass
class Config:
    vae: Path
    """Autoencoder: a folder or Hub id, see `kaleido train --vae`."""
    output: Path
    """Folder for the copy."""
    data: str = "mixed"
    """A source of `kaleido train`, of pictures."""
    size: int = 512
    """Height and width of the views in pixels."""
    scenes: int = 100
    """Scenes that are looked at, evenly over the source."""
    device: str = "cpu"
    """Where to encode."""


def main(config: Config) -> None:
    vae = load_autoencoder(config.vae).to(config.device)
    source = open_source(config.data, SourceOptions(size=config.size, scenes=config.scenes))
    step = max(1, len(source) // config.scenes)
    scenes = (source[index].pixels.to(config.device).float() / 127.5 - 1 for index in range(0, len(source), step))
    found = measure_statistics(vae, scenes)
    vae.register_to_config(**found)
    with folder_written_whole(config.output) as part:
        vae.save_pretrained(part)
    for channel, (mean, std) in enumerate(zip(found["latents_mean"], found["latents_std"])):
        print(f"channel {channel:3}  mean {mean:8.3f}  std {std:7.3f}")
    print(f"wrote {config.output}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
