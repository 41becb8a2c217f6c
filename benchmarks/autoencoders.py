"""Measures autoencoders on photos: what a view takes as latents beside what its JPEG takes, seconds of processor time
to encode and decode it, and the PSNR of the round trip. Of architectures without weights here the costs alone.

    python benchmarks/autoencoders.py --photos DIR --size 512
"""

import io
import math
import time
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
import tyro
from measuring import show

from kaleido_diffusers import bundled_checkpoint
from kaleido_diffusers.evaluation.metrics import psnr
from kaleido_diffusers.models.latents import compression, decode_views, encode_views, latent_channels, load_autoencoder


COLUMNS = {
    "autoencoder": "",
    "px a cell": "d",
    "channels": "d",
    "tokens a view": "d",
    "kB a view": ".0f",
    "of its JPEG": ".2f",
    "encode s": ".2f",
    "decode s": ".2f",
    "PSNR": ".2f",
}
EIGHT = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
EIGHT |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
MIXED = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
ARCHITECTURES = {  # as in the configs of Stable Diffusion 1 and FLUX.1, their tiny twin, and DC-AE f32c32
    "AutoencoderKL, 4 channels": ("AutoencoderKL", EIGHT),
    "AutoencoderKL, 16 channels": ("AutoencoderKL", EIGHT | {"latent_channels": 16}),
    "AutoencoderTiny": ("AutoencoderTiny", {}),
    "AutoencoderDC": ("AutoencoderDC", {"encoder_block_types": MIXED, "decoder_block_types": MIXED}),
}


@dataclass
class Config:
    photos: tuple[Path, ...]
    """Folders of photos; the middle square of each is taken."""
    vae: tuple[Path, ...] = (Path(bundled_checkpoint()),)
    """Autoencoders with weights: folders as diffusers has them."""
    size: int = 512
    """Height and width in pixels."""
    most: int = 16
    """Photos at most, evenly spread."""
    costs: int = 2
    """Photos for the architectures without weights."""
    output: Path | None = None
    """JSON of the rows."""


def main(config: Config) -> None:
    files = [path for folder in config.photos for path in folder.iterdir()]
    paths = sorted(path for path in files if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    photos = [_square(path, config.size) for path in paths[:: max(1, len(paths) // config.most)][: config.most]]
    rows = []
    for folder in config.vae:
        vae = load_autoencoder(folder)
        rows.append(_row(type(vae).__name__, vae, photos))
    for name, (kind, options) in ARCHITECTURES.items():
        vae = getattr(diffusers, kind)(**options).eval().requires_grad_(False)
        rows.append(_row(name, vae, photos[: config.costs]) | {"PSNR": math.nan})
    show(rows, COLUMNS, config.output)


def _square(path: Path, size: int) -> PIL.Image.Image:
    with PIL.Image.open(path) as photo:
        upright = PIL.ImageOps.exif_transpose(photo).convert("RGB")
    return PIL.ImageOps.fit(upright, (size, size), PIL.Image.Resampling.LANCZOS)


def _row(name: str, vae: torch.nn.Module, photos: list[PIL.Image.Image]) -> dict:
    cell = compression(vae)
    views = torch.from_numpy(np.stack([np.asarray(photo) for photo in photos])).movedim(-1, 1)[None] / 255
    started = time.process_time()
    latents = encode_views(vae, views * 2 - 1)
    encoded = time.process_time()
    back = (decode_views(vae, latents) / 2 + 0.5).clamp(0, 1)
    decoded = time.process_time()
    taken = 2 * latents[0, 0].numel()  # float16
    patch = 1 if cell >= 32 else 2
    return {
        "autoencoder": name,
        "px a cell": cell,
        "channels": latent_channels(vae),
        "tokens a view": (views.shape[-1] // (cell * patch)) ** 2,
        "kB a view": taken / 1e3,
        "of its JPEG": taken * len(photos) / sum(map(_jpeg_bytes, photos)),
        "encode s": (encoded - started) / len(photos),
        "decode s": (decoded - encoded) / len(photos),
        "PSNR": psnr(back, views).mean().item(),
    }


def _jpeg_bytes(photo: PIL.Image.Image) -> int:
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=90)
    return file.tell()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
