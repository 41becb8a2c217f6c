"""Scores of generated views, as the field reports them: range [0, 1], SSIM in its variants, LPIPS with either net."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file


__all__ = [
    "LPIPS",
    "SSIM_VARIANTS",
    "consistency",
    "gradient_energy",
    "psnr",
    "quantized",
    "ssim",
    "ssim_variant",
]


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


@dataclass(frozen=True)
class _SSIM:
    """What sets the variants apart: the window (11 Gaussian of sigma 1.5, or 7 uniform), whether covariances are those
    of a sample, whether the border is kept with zeros around the image, whether variances are clipped, and the range
    that the constants are taken for."""

    size: int = 11
    is_sample: bool = False
    is_padded: bool = False
    is_clipped: bool = False
    data_range: float = 1.0

    def window(self) -> torch.Tensor:
        """Weights `[size]` along one axis, which add up to 1."""
        if self.size == 7:
            return torch.full((7,), 1 / 7, dtype=torch.float64)
        weights = torch.exp(-0.5 * ((torch.arange(11, dtype=torch.float64) - 5) / 1.5) ** 2)
        return weights / weights.sum()

    def blurred(self, planes: torch.Tensor) -> torch.Tensor:
        """Planes `[..., H, W]` under the window. Shifted and added: torch's convolution of float64 planes takes four
        times as long on a CPU."""
        if self.is_padded:
            planes = F.pad(planes, [self.size // 2] * 4)
        for axis in (-2, -1):
            length = planes.shape[axis] - self.size + 1
            shifted = [planes.narrow(axis, place, length) for place in range(self.size)]
            planes = torch.zeros_like(shifted[0])
            for weight, part in zip(self.window().tolist(), shifted):
                planes.add_(part, alpha=weight)
        return planes


SSIM_VARIANTS = {
    "a": _SSIM(),
    "b": _SSIM(is_sample=True),
    "c": _SSIM(size=7, is_sample=True),
    "d": _SSIM(is_padded=True),
    "e": _SSIM(is_clipped=True),
    "f": _SSIM(size=7, is_sample=True, data_range=2.0),
}


def ssim_variant(images: torch.Tensor, truth: torch.Tensor, key: str) -> torch.Tensor:
    """
    Structural similarity `[M]` as one of the published protocols takes it, in float64.

    `a`: torchmetrics until it kept the border (Gaussian 11, sigma 1.5, 5 pixels dropped; SEVA, SyncDreamer). `b`:
    scikit-image with a Gaussian of 11 and sample covariances (pixelSplat, MVSplat, DepthSplat, LVSM). `c`:
    scikit-image's default, uniform 7 (EscherNet on 8 bits, Long-LRM on floats). `d`: as `a` with zeros around the
    image, nothing dropped (3DGS, LagerNVS). `e`: as `a` with variances clipped at zero (MultiNeRF). `f`: `c` with the
    constants of a range of 2, which old scikit-image took for floats (RegNeRF): it comes out higher.

    Args:
        images (`torch.Tensor` of shape `[M, 3, H, W]`): in [0, 1].
        truth (`torch.Tensor` of shape `[M, 3, H, W]`): in [0, 1].
        key (`str`): `"a"` to `"f"`.
    """
    _check(images, truth)
    if key not in SSIM_VARIANTS:
        raise ValueError(f"`key` must be one of {', '.join(SSIM_VARIANTS)}, got {key!r}.")
    variant = SSIM_VARIANTS[key]
    if min(images.shape[-2:]) < variant.size:
        raise ValueError(
            f"SSIM {key!r} needs images of at least {variant.size} pixels, got {list(images.shape[-2:])}."
        )
    pairs = zip(images.split(1), truth.split(1))  # one by one: the moments of an image stay in the cache
    return torch.cat([_ssim_of(variant, x.double(), y.double()) for x, y in pairs])


def _ssim_of(variant: _SSIM, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    mean_x, mean_y, xx, yy, xy = variant.blurred(torch.stack([x, y, x * x, y * y, x * y]))
    pixels = variant.size**2
    norm = pixels / (pixels - 1) if variant.is_sample else 1.0
    xx, yy, xy = norm * (xx - mean_x**2), norm * (yy - mean_y**2), norm * (xy - mean_x * mean_y)
    if variant.is_clipped:
        xx, yy = xx.clamp_min(0), yy.clamp_min(0)
        xy = xy.sign() * torch.minimum((xx * yy).sqrt(), xy.abs())
    c1, c2 = (0.01 * variant.data_range) ** 2, (0.03 * variant.data_range) ** 2
    values = (2 * mean_x * mean_y + c1) * (2 * xy + c2) / ((mean_x**2 + mean_y**2 + c1) * (xx + yy + c2))
    return values.mean((1, 2, 3))


def quantized(images: torch.Tensor, truncate: bool = False) -> torch.Tensor:
    """
    Images as they come back from an 8-bit file.

    Args:
        images (`torch.Tensor` of any shape): in [0, 1].
        truncate (`bool`, defaults to `False`): whether levels are cut off instead of rounded.
    """
    levels = images.clamp(0, 1) * 255
    return (levels.floor() if truncate else levels.round()) / 255


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
    best = torch.full(
        (len(flat), height // patch, width // patch), torch.inf, device=first.device, dtype=torch.float32
    )
    for down in range(2 * reach + 1):
        for right in range(2 * reach + 1):
            moved = padded[..., down : down + height, right : right + width]
            error = (flat - moved).square().mean(1, keepdim=True)
            best = torch.minimum(best, F.avg_pool2d(error, patch).squeeze(1))
    return -10 * torch.log10(best.mean((-2, -1)).clamp_min(1e-10)).reshape(first.shape[:-3])


class LPIPS(nn.Module):
    """
    Learned perceptual distance, version 0.1 (Zhang et al., arXiv 1801.03924), with AlexNet or VGG-16. The two nets
    give different numbers, so neither ever stands in for the other.

    Args:
        weights (`str` or `Path`): state dict (safetensors, or torch's own format) with torchvision's names for the
            backbone (`features.N.weight`) and `linN.model.1.weight` for the heads. Where the file holds the backbone
            alone, as torchvision's own does, the heads are those that torchmetrics ships.
        net (`str`, *optional*): `"alex"` or `"vgg"`: the net that the file must hold; whichever it holds when not
            given. Another one raises `ValueError`.

    Attributes:
        net (`str`): the net of the file.
    """

    # index in torchvision's `features`, channels in and out, kernel, stride, padding
    _ALEX = ((0, 3, 64, 11, 4, 2), (3, 64, 192, 5, 1, 2), (6, 192, 384, 3, 1, 1), (8, 384, 256, 3, 1, 1))
    _ALEX += ((10, 256, 256, 3, 1, 1),)
    _VGG_CHANNELS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    _VGG_INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    _VGG = tuple((i, a, b, 3, 1, 1) for i, a, b in zip(_VGG_INDICES, _VGG_CHANNELS, _VGG_CHANNELS[1:]))
    # net -> convolutions, those before which it pools, window of the pooling, those after which features are taken
    _NETS = {"alex": (_ALEX, (1, 2), 3, (0, 1, 2, 3, 4)), "vgg": (_VGG, (2, 4, 7, 10), 2, (1, 3, 6, 9, 12))}

    def __init__(self, weights: str | os.PathLike, net: Literal["alex", "vgg"] | None = None):
        super().__init__()
        is_safe = Path(weights).suffix == ".safetensors"
        state = load_file(weights) if is_safe else torch.load(weights, map_location="cpu", weights_only=True)
        self.net = _net_of(state, weights)
        if net not in (None, self.net):
            raise ValueError(f"{weights}: holds LPIPS with {self.net!r}, {net!r} is needed; their scores differ.")
        if "lin0.model.1.weight" not in state:
            state = {**state, **_shipped_heads(self.net)}
        convolutions, self._pooled, self._window, self._taken = self._NETS[self.net]
        self.features, self.heads = nn.ModuleList(), nn.ParameterList()
        for index, inputs, outputs, kernel, stride, padding in convolutions:
            convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding)
            convolution.load_state_dict(
                {name: state[f"features.{index}.{name}"].float() for name in ("weight", "bias")}
            )
            self.features.append(convolution)
        for number in range(len(self._taken)):
            self.heads.append(nn.Parameter(state[f"lin{number}.model.1.weight"].float()))
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450], dtype=torch.float32).view(3, 1, 1))
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
        for number, convolution in enumerate(self.features):
            if number in self._pooled:
                x = F.max_pool2d(x, self._window, 2)
            x = F.relu(convolution(x))
            if number in self._taken:
                unit = x / (x.norm(dim=1, keepdim=True) + 1e-10)
                a, b = unit.chunk(2)
                head = self.heads[self._taken.index(number)]
                total = total + F.conv2d((a - b).square(), head).mean((1, 2, 3))
        return total


def _net_of(state: dict, weights: str | os.PathLike) -> str:
    """Which net a state dict holds, told by the convolutions that only one of them has."""
    for net, name in (("vgg", "features.28.weight"), ("alex", "features.3.weight")):
        if name in state:
            return net
    raise ValueError(f"{weights}: neither AlexNet's nor VGG-16's convolutions by torchvision's names (`features.N`).")


def _shipped_heads(net: str) -> dict[str, torch.Tensor]:
    """The heads of version 0.1, a few kilobytes, that torchmetrics brings along."""
    import torchmetrics.functional.image as package

    path = Path(package.__file__).parent / "lpips_models" / f"{net}.pth"
    return torch.load(path, map_location="cpu", weights_only=True)


def _check(images: torch.Tensor, truth: torch.Tensor) -> None:
    if images.shape != truth.shape:
        raise ValueError(f"Images to compare must share a shape, got {list(images.shape)} and {list(truth.shape)}.")
