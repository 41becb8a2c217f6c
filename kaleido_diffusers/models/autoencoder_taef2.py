"""A tiny image autoencoder: TAEF2 (github.com/madebyollin/taesd, MIT), 8 times smaller latents of 32 channels.

Of the family of diffusers' [`AutoencoderTiny`], whose blocks lack the pooled branch that these weights have.
"""

from collections.abc import Mapping

import torch
import torch.nn as nn
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook


__all__ = ["AutoencoderTAEF2"]


class _Block(nn.Module):
    """Three convolutions beside the identity; a pooled block first adds what group statistics of the whole image
    say."""

    def __init__(self, channels: int, pooled: bool = False):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.pool = None
        if pooled:
            self.pool = nn.Sequential(
                nn.Conv2d(channels, 4 * channels, 1, bias=False),
                nn.GroupNorm(4, 4 * channels),
                nn.ReLU(),
                nn.Conv2d(4 * channels, channels, 1, bias=False),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class _SoftClamp(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * torch.tanh(x / 3)


def _encoder(channels: int, latent_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1), _Block(channels)]
    for stage in range(3):
        layers.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False))
        layers += [_Block(channels, pooled=stage == 2) for _ in range(3)]
    return nn.Sequential(*layers, nn.Conv2d(channels, latent_channels, 3, padding=1))


def _decoder(channels: int, latent_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [_SoftClamp(), nn.Conv2d(latent_channels, channels, 3, padding=1), nn.ReLU()]
    for stage in range(3):
        layers += [_Block(channels, pooled=stage == 0) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(channels, channels, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, _Block(channels), nn.Conv2d(channels, 3, 3, padding=1))


class AutoencoderTAEF2(ModelMixin, AutoencoderMixin, ConfigMixin):
    """
    Images in [-1, 1] to latents 8 times smaller and back, each image on its own.

    The pooled blocks normalise over the whole image, so tiles of an image do not give what the whole gives: there is
    no tiling, only slicing (`enable_slicing`).

    Args:
        latent_channels (`int`, defaults to `32`):
            Channels of a latent.
        block_out_channels (`tuple[int, ...]`, defaults to `(64, 64, 64, 64)`):
            Channels at each of the four sizes; TAEF2 has the same at all.
        scaling_factor (`float`, defaults to `1.0`):
            Latents are multiplied by it before a model sees them.
        shift_factor (`float`, defaults to `0.0`):
            Subtracted from latents before that.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 32,
        block_out_channels: tuple[int, ...] = (64, 64, 64, 64),
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ):
        super().__init__()
        if len(block_out_channels) != 4 or len(set(block_out_channels)) != 1:
            raise ValueError(f"`block_out_channels` must be four equal numbers, got {block_out_channels}.")
        self.encoder = _encoder(block_out_channels[0], latent_channels)
        self.decoder = _decoder(block_out_channels[0], latent_channels)
        self.use_slicing = False

    @classmethod
    def from_original(cls, encoder: Mapping[str, torch.Tensor], decoder: Mapping[str, torch.Tensor]):
        """The autoencoder of two state dicts of the original (`taef2_encoder.pth`, `taef2_decoder.pth`), whose keys
        are places in one sequence of layers. Names or shapes that do not fit raise `RuntimeError`.

        Args:
            encoder (`Mapping[str, torch.Tensor]`): weights of the encoder.
            decoder (`Mapping[str, torch.Tensor]`): weights of the decoder.
        """
        model = cls()
        model.encoder.load_state_dict(encoder)
        model.decoder.load_state_dict(decoder)
        return model.eval()

    @apply_forward_hook
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderTinyOutput | tuple[torch.Tensor]:
        """
        Encodes images.

        Args:
            x (`torch.Tensor` of shape `[B, 3, H, W]`):
                In [-1, 1]; height and width are multiples of 8.
            return_dict (`bool`, defaults to `True`):
                Whether to return an [`AutoencoderTinyOutput`] instead of a tuple.

        Returns:
            [`AutoencoderTinyOutput`] or `tuple`: `latents` of shape `[B, latent_channels, H / 8, W / 8]`.
        """
        latents = self._by_slices(self.encoder, (x + 1) / 2)
        return AutoencoderTinyOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def decode(
        self, x: torch.Tensor, generator: torch.Generator | None = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """
        Decodes latents.

        Args:
            x (`torch.Tensor` of shape `[B, latent_channels, h, w]`):
                Latents.
            generator (`torch.Generator`, *optional*):
                Not read: nothing is random. Pipelines pass one to every autoencoder.
            return_dict (`bool`, defaults to `True`):
                Whether to return a [`DecoderOutput`] instead of a tuple.

        Returns:
            [`DecoderOutput`] or `tuple`: `sample` of shape `[B, 3, 8 h, 8 w]`, in [-1, 1].
        """
        sample = self._by_slices(self.decoder, x).clamp(0, 1) * 2 - 1
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """
        Encodes and decodes.

        Args:
            sample (`torch.Tensor` of shape `[B, 3, H, W]`):
                In [-1, 1].
            return_dict (`bool`, defaults to `True`):
                Whether to return a [`DecoderOutput`] instead of a tuple.
        """
        return self.decode(self.encode(sample, return_dict=False)[0], return_dict=return_dict)

    def _by_slices(self, part: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if self.use_slicing and len(x) > 1:
            return torch.cat([part(row) for row in x.split(1)])
        return part(x)
