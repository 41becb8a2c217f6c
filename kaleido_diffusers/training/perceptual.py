"""A perceptual loss on what the model makes of noisy targets."""

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from ..evaluation.metrics import LPIPS
from ..models.latents import compression, decode_views
from .config import PerceptualOptions
from .objective import Denoised


__all__ = ["PerceptualLoss"]


class PerceptualLoss(nn.Module):
    """
    LPIPS with VGG-16 between views as generated and as they are, on random parts of some of them. Latents are decoded,
    the true ones too: what the autoencoder loses is not asked of the model.

    Args:
        options (`PerceptualOptions`): which weights, of how many views, how large a part of them.
        vae (`ModelMixin`, *optional*): decodes latents; none for pixels.

    Raises `ValueError` where no weights are named, or where they are of another net.
    """

    def __init__(self, options: PerceptualOptions, vae: ModelMixin | None):
        super().__init__()
        self.options, self.vae, self.ratio = options, vae, compression(vae)
        if options.weights is None:
            raise ValueError("A perceptual loss needs the `weights` of its net.")
        self.lpips = LPIPS(options.weights, "vgg")

    def forward(self, denoised: Denoised, generator: torch.Generator) -> torch.Tensor:
        """Mean distance, `[]`.

        Args:
            denoised ([`Denoised`]): views of shape `[B, M, C, H, W]`, made and true.
            generator (`torch.Generator`): decides which views, and which parts of them (on the CPU).
        """
        made, truth = denoised.views.flatten(0, 1), denoised.truth.flatten(0, 1)
        crop = -(-self.options.crop // self.ratio)  # in cells, rounded up
        height, width = (min(side, crop) for side in made.shape[-2:])
        count = max(1, round(self.options.share * len(made)))
        corners = torch.rand(2, count, generator=generator, dtype=torch.float32)
        tops = (corners[0] * (made.shape[-2] - height + 1)).int().tolist()
        lefts = (corners[1] * (made.shape[-1] - width + 1)).int().tolist()
        chosen = torch.randperm(len(made), generator=generator)[:count].tolist()

        def images(views: torch.Tensor) -> torch.Tensor:
            parts = [views[i, :, y : y + height, x : x + width] for i, y, x in zip(chosen, tops, lefts)]
            return decode_views(self.vae, torch.stack(parts)) / 2 + 0.5

        with torch.no_grad():
            target = images(truth)
        return self.lpips(images(made), target).mean()
