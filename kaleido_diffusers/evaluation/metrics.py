"""Scores of generated views, as the field reports them: range [0, 1], LPIPS with AlexNet."""

import os

import torch
import torch.nn as nn
import torch.nn.functional as F


__all__ = ["LPIPS", "consistency", "gradient_energy", "psnr", "ssim"]


def psnr(images: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, `[...]`, of images `[..., C, H, W]` in [0, 1]; infinite for equal images.

    Args:
        images (`torch.Tensor`): `[..., C, H, W]` in [0, 1].
        truth (`torch.Tensor`): what they should be, of the same shape.
    """
    _check(images, truth)
    return -10 * torch.log10((images.double() - truth.double()).square().mean((-3, -2, -1)))


def ssim(images: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Structural similarity `[M]` of images `[M, 3, H, W]` in [0, 1], by torchmetrics (11-pixel Gaussian window).

    Args:
        images (`torch.Tensor`): `[M, 3, H, W]` in [0, 1].
        truth (`torch.Tensor`): what they should be, of the same shape.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check(images, truth)
    scores = structural_similarity_index_measure(images.float(), truth.float(), data_range=1.0, reduction="none")
    return scores.reshape(len(images))


def gradient_energy(images: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of neighbouring pixels, `[...]`, of images `[..., C, H, W]`: what blur takes away.

    Args:
        images (`torch.Tensor`): `[..., C, H, W]` in [0, 1].
    """
    across, down = images.diff(dim=-1), images.diff(dim=-2)
    return across.square().mean((-3, -2, -1)) + down.square().mean((-3, -2, -1))


def consistency(first: torch.Tensor, second: torch.Tensor, patch: int = 8, reach: int = 12) -> torch.Tensor:
    """
    How well one view can be put together from patches of its neighbour, in dB: a measure that needs no poses.

    Each patch of `first` looks for the patch of `second` that is most like it, at most `reach` pixels away; the PSNR
    of the view so assembled is returned, `[...]`. True neighbours of the same scene give the value to aim for.

    Args:
        first (`torch.Tensor` of shape `[..., 3, H, W]`): views in [0, 1].
        second (`torch.Tensor` of shape `[..., 3, H, W]`): their neighbours.
        patch (`int`, defaults to `8`): side of a patch in pixels.
        reach (`int`, defaults to `12`): how far a patch may have moved in each direction, in pixels.
    """
    _check(first, second)
    flat, other = first.flatten(0, -4), second.flatten(0, -4)
    padded = F.pad(other, [reach] * 4, value=10.0)  # what lies outside is like nothing
    height, width = first.shape[-2:]
    best = torch.full((len(flat), height // patch, width // patch), torch.inf, device=first.device)
    for down in range(2 * reach + 1):
        for right in range(2 * reach + 1):
            moved = padded[..., down : down + height, right : right + width]
            error = (flat - moved).square().mean(1, keepdim=True)
            best = torch.minimum(best, F.avg_pool2d(error, patch).squeeze(1))
    return -10 * torch.log10(best.mean((-2, -1)).clamp_min(1e-10)).reshape(first.shape[:-3])


class LPIPS(nn.Module):
    """
    Learned perceptual distance, version 0.1 with AlexNet (Zhang et al., arXiv 1801.03924).

    Args:
        weights (`str` or `Path`): state dict with torchvision's names for the backbone (`features.N.weight`) and
            `linN.model.1.weight` for the heads.
    """

    _CONVOLUTIONS = ((0, 3, 64, 11, 4, 2), (3, 64, 192, 5, 1, 2), (6, 192, 384, 3, 1, 1))
    _CONVOLUTIONS += ((8, 384, 256, 3, 1, 1), (10, 256, 256, 3, 1, 1))

    def __init__(self, weights: str | os.PathLike):
        super().__init__()
        state = torch.load(weights, map_location="cpu", weights_only=True)
        self.features, self.heads = nn.ModuleList(), nn.ParameterList()
        for number, (index, inputs, outputs, kernel, stride, padding) in enumerate(self._CONVOLUTIONS):
            convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding)
            convolution.load_state_dict(
                {name: state[f"features.{index}.{name}"].float() for name in ("weight", "bias")}
            )
            self.features.append(convolution)
            self.heads.append(nn.Parameter(state[f"lin{number}.model.1.weight"].float()))
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1))
        self.requires_grad_(False)

    def forward(self, images: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Distances `[M]` of images `[M, 3, H, W]` in [0, 1].

        Args:
            images (`torch.Tensor`): `[M, 3, H, W]` in [0, 1].
            truth (`torch.Tensor`): what they should be, of the same shape.
        """
        _check(images, truth)
        x = torch.cat([images, truth]).float() * 2 - 1
        x, total = (x - self.shift) / self.scale, 0.0
        for number, (convolution, head) in enumerate(zip(self.features, self.heads)):
            if number in (1, 2):
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(convolution(x))
            unit = x / (x.norm(dim=1, keepdim=True) + 1e-10)
            a, b = unit.chunk(2)
            total = total + F.conv2d((a - b).square(), head).mean((1, 2, 3))
        return total


def _check(images: torch.Tensor, truth: torch.Tensor) -> None:
    if images.shape != truth.shape:
        raise ValueError(f"Images to compare must share a shape, got {list(images.shape)} and {list(truth.shape)}.")
