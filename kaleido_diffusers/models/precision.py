"""Which precision matrix products are fast in, measured on the machine at hand."""

import time
from functools import cache

import torch


__all__ = ["fast_dtype", "product_speed"]

_SIDE = 1024


def product_speed(dtype: torch.dtype, seconds: float = 0.2, device: str = "cpu") -> float:
    """
    Operations a second of products of two square matrices with 1,024 rows, by the threads that torch may use.

    Args:
        dtype (`torch.dtype`): of both.
        seconds (`float`, defaults to `0.2`): how long to measure.
        device (`str`, defaults to `"cpu"`): where.
    """
    left, right = (torch.ones(_SIDE, _SIDE, dtype=dtype, device=device) for _ in range(2))
    torch.mm(left, right)  # the first call prepares kernels
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        torch.mm(left, right)
        if device != "cpu":
            torch.accelerator.synchronize()
        count += 1
    return 2 * _SIDE**3 * count / elapsed


@cache
def fast_dtype(device: str = "cpu") -> torch.dtype:
    """
    `torch.bfloat16` where products are faster in it, else `torch.float32`.

    Processors differ: with matrix tiles bfloat16 is ten times as fast, on older ones slower than float32. So on a CPU
    both are measured, once a process, in turns (others may be busy there too); it must be a quarter faster, or chance
    would choose where they are near each other. Accelerators are asked whether they know it.

    Args:
        device (`str`, defaults to `"cpu"`): kind of the device.
    """
    if device == "cuda":
        known = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if known else torch.float32
    if device != "cpu":
        return torch.float32
    turns = [(product_speed(torch.float32, 0.05), product_speed(torch.bfloat16, 0.05)) for _ in range(4)]
    wide, narrow = map(max, zip(*turns))
    return torch.bfloat16 if narrow > 1.25 * wide else torch.float32
