"""Weights that lie in memory as those of a model that was never saved.

Files of safetensors are mapped into memory, where tensors begin at any multiple of 8 bytes. Matrix kernels of the CPU
sum in another order where memory isn't aligned to a cache line, so that a model which was loaded rounded otherwise
than the one which was saved: a resumed training run drifted away from the unbroken one.
"""

from collections.abc import Iterable

import torch


__all__ = ["align_weights", "check_finite"]

CACHE_LINE = 64  # bytes, which torch aligns its own memory on the CPU to


def align_weights(module: torch.nn.Module) -> None:
    """
    Copies parameters and buffers on the CPU that aren't aligned to 64 bytes. Afterwards the module doesn't depend on
    the files that it came from, and computes the same to the bit as the one that was saved.

    Args:
        module (`torch.nn.Module`): changed in place; the parameters stay the same objects.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        data = tensor.data
        if type(data) is torch.Tensor and data.device.type == "cpu" and data.data_ptr() % CACHE_LINE:
            tensor.data = data.clone()


def check_finite(named: Iterable[tuple[str, torch.Tensor]], source: object) -> None:
    """
    Raises `ValueError` for weights that hold NaN or infinity, from which every picture would come out black.

    Args:
        named (`Iterable[tuple[str, torch.Tensor]]`): weights with their names.
        source (`object`): what the error calls the place where they come from.
    """
    for name, tensor in named:
        data = tensor.data
        plain = type(data) is torch.Tensor and data.is_floating_point() and data.numel() and not data.is_meta
        if plain and not torch.stack(data.aminmax()).isfinite().all():
            raise ValueError(f"{source}: the weight {name} holds values that are not finite (NaN or infinity).")
