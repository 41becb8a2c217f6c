"""Scores of generated views."""

import torch


__all__ = ["psnr"]


def psnr(images: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, `[...]`, of images `[..., C, H, W]` in [0, 1]; infinite for equal images."""
    if images.shape != truth.shape:
        raise ValueError(f"`images` and `truth` must share a shape, got {list(images.shape)}, {list(truth.shape)}.")
    return -10 * torch.log10((images.double() - truth.double()).square().mean((-3, -2, -1)))
