"""Views to latents and back, by any image autoencoder of diffusers with one latent an image. One place for pipeline,
trainer and shards: the autoencoder's scale, shift and statistics of its channels are applied here alone."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import CONFIG_NAME

from .autoencoder_taef2 import AutoencoderTAEF2


__all__ = [
    "autoencoder_without_weights",
    "compression",
    "decode_images",
    "decode_views",
    "encode_images",
    "encode_views",
    "find_autoencoder",
    "latent_channels",
    "load_autoencoder",
    "measure_statistics",
]

_CHUNK, _SIDE = 32, 512  # views that pass at once, up to so many pixels a side; fewer of larger ones


def compression(vae: ModelMixin | None) -> int:
    """Pixels along a side of a latent cell; 1 without an autoencoder.

    Args:
        vae (`ModelMixin`, *optional*): the autoencoder, or `None` for pixels.
    """
    if vae is None:
        return 1
    if ratio := getattr(vae, "spatial_compression_ratio", None):
        return int(ratio)
    channels = vae.config.get("block_out_channels") or vae.config.encoder_block_out_channels
    return 2 ** (len(channels) - 1)


def latent_channels(vae: ModelMixin | None) -> int:
    """Channels of a view as the model sees it: 3 for pixels.

    Args:
        vae (`ModelMixin`, *optional*): the autoencoder, or `None` for pixels.
    """
    return 3 if vae is None else vae.config.latent_channels


def load_autoencoder(path: str | os.PathLike) -> ModelMixin:
    """
    An image autoencoder, in evaluation mode, its weights fixed.

    Args:
        path (`str` or `Path`):
            A folder as diffusers saves it (of an autoencoder, or of a pipeline with a `vae/`), a Hub id, or a folder
            with the original weights of TAEF2. A folder that holds none raises `ValueError`.
    """
    folder = find_autoencoder(path)
    if _is_taef2(folder):
        parts = (torch.load(folder / f"taef2_{part}.pth", weights_only=True) for part in ("encoder", "decoder"))
        vae = AutoencoderTAEF2.from_original(*parts)
    else:
        vae = diffusers.AutoModel.from_pretrained(str(folder))
    # Convolutions on a CPU are 1.5 times as fast with the channels last
    return vae.to(memory_format=torch.channels_last).requires_grad_(False).eval()


def autoencoder_without_weights(path: str | os.PathLike) -> ModelMixin:
    """
    The same, to ask for its channels and its compression: its weights are not read, and lie nowhere.

    Args:
        path (`str` or `Path`): as for [`load_autoencoder`].
    """
    folder = find_autoencoder(path)
    with torch.device("meta"):
        if _is_taef2(folder):
            return AutoencoderTAEF2()
        config = AutoencoderKL.load_config(str(folder))  # whatever its class is
        return getattr(diffusers, config["_class_name"], AutoencoderTAEF2).from_config(config)


def find_autoencoder(path: str | os.PathLike) -> Path:
    """Where the config of an autoencoder lies: the folder itself, the `vae/` in it, or a Hub id as it was given.

    Args:
        path (`str` or `Path`): as for [`load_autoencoder`], as are the errors.
    """
    folder = Path(path)
    if not folder.is_dir() or (folder / CONFIG_NAME).is_file() or _is_taef2(folder):
        return folder
    if not (folder / "vae" / CONFIG_NAME).is_file():
        raise ValueError(f"{path}: holds no autoencoder ({CONFIG_NAME} and weights, or a pipeline's vae/).")
    return folder / "vae"


def _is_taef2(folder: Path) -> bool:
    return (folder / "taef2_encoder.pth").is_file()


@torch.no_grad()
def encode_views(vae: ModelMixin | None, pixels: torch.Tensor) -> torch.Tensor:
    """
    Pixels to what the model sees, each view on its own. A distribution of latents gives its mode.

    Args:
        vae (`ModelMixin`, *optional*): the autoencoder; without one the views come back as they are.
        pixels (`torch.Tensor` of shape `[..., 3, H, W]`): views in [-1, 1]; there may be none.

    Returns:
        `torch.Tensor` of shape `[..., C, h, w]`: float32.
    """
    if vae is None:
        return pixels
    leading, (height, width) = pixels.shape[:-3], pixels.shape[-2:]
    if not pixels.numel():
        ratio = compression(vae)
        return pixels.new_zeros(*leading, latent_channels(vae), height // ratio, width // ratio)
    chunks = pixels.reshape(-1, *pixels.shape[-3:]).split(_CHUNK)
    return torch.cat([encode_images(vae, chunk) for chunk in chunks]).unflatten(0, leading)


def encode_images(vae: ModelMixin, pixels: torch.Tensor) -> torch.Tensor:
    """
    Pixels to what the model sees, all at once: what [`encode_views`] does with a few views at a time.

    Args:
        vae (`ModelMixin`): the autoencoder.
        pixels (`torch.Tensor` of shape `[V, 3, H, W]`): views in [-1, 1].

    Returns:
        `torch.Tensor` of shape `[V, C, h, w]`: float32.
    """
    encoded = vae.encode(pixels.to(vae.dtype, memory_format=torch.channels_last))
    if hasattr(encoded, "latent_dist"):
        latents = encoded.latent_dist.mode()
    else:
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent
    mean, scale = _statistics(vae, pixels.device)
    return (latents.float() - mean) * scale


def decode_views(vae: ModelMixin | None, latents: torch.Tensor) -> torch.Tensor:
    """
    The inverse of [`encode_views`], up to what the autoencoder loses.

    Args:
        vae (`ModelMixin`, *optional*): the autoencoder; without one the views come back as they are.
        latents (`torch.Tensor` of shape `[..., C, h, w]`): what the model made.

    Returns:
        `torch.Tensor` of shape `[..., 3, H, W]`: float32, about in [-1, 1].
    """
    if vae is None:
        return latents
    chunks = latents.flatten(0, -4).split(_CHUNK)
    return torch.cat([decode_images(vae, chunk) for chunk in chunks]).unflatten(0, latents.shape[:-3])


def decode_images(vae: ModelMixin, latents: torch.Tensor) -> torch.Tensor:
    """
    The inverse of [`encode_images`], up to what the autoencoder loses.

    Args:
        vae (`ModelMixin`): the autoencoder.
        latents (`torch.Tensor` of shape `[V, C, h, w]`): what the model made.

    Returns:
        `torch.Tensor` of shape `[V, 3, H, W]`: float32, about in [-1, 1].
    """
    mean, scale = _statistics(vae, latents.device)
    latents = (latents.float() / scale + mean).to(vae.dtype, memory_format=torch.channels_last)
    return vae.decode(latents, return_dict=False)[0].float()


def _chunk(height: int, width: int) -> int:
    """Views of so many pixels that pass at once."""
    return max(1, min(_CHUNK, _CHUNK * _SIDE**2 // (height * width)))


def measure_statistics(vae: ModelMixin, views: Iterable[torch.Tensor]) -> dict[str, Any]:
    """
    Mean and standard deviation of each channel of the latents of `views`, as entries of the autoencoder's config with
    which [`encode_views`] brings them to 0 and 1.

    Args:
        vae (`ModelMixin`): the autoencoder.
        views (`Iterable[torch.Tensor]` of shape `[..., 3, H, W]`): in [-1, 1]; some hundred are enough.

    Returns:
        `dict[str, Any]`: `latents_mean`, `latents_std` and `scaling_factor`, for `vae.register_to_config`.
    """
    count, (total, square) = 0, torch.zeros(2, latent_channels(vae), dtype=torch.float64)
    for some in views:
        latents = encode_views(vae, some).cpu().double().flatten(0, -4).transpose(0, 1).flatten(1)  # [C, ...]
        count += latents.shape[1]
        total += latents.sum(1)
        square += latents.square().sum(1)
    mean, scale = (x.cpu().double().flatten() if torch.is_tensor(x) else x for x in _statistics(vae, vae.device))
    found = total / count
    spread = (square / count - found.square()).sqrt()
    raw = {"latents_mean": found / scale + mean, "latents_std": spread / scale}
    return {**{name: values.tolist() for name, values in raw.items()}, "scaling_factor": 1.0}


def _statistics(vae: ModelMixin, device: torch.device):
    """Mean and scale by which latents are brought to about 0 and 1: numbers, or one for each channel."""
    config = vae.config
    mean, scale = config.get("shift_factor") or 0.0, config.get("scaling_factor") or 1.0
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        channels = (
            torch.tensor(config[key], device=device, dtype=torch.float32) for key in ("latents_mean", "latents_std")
        )
        mean, std = (values.reshape(-1, 1, 1) for values in channels)
        scale = scale / std
    return mean, scale
