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
    both are measured, once a process; accelerators are asked whether they know it.

    Args:
        device (`str`, defaults to `"cpu"`): kind of the device.
    """
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device != "cpu":
        return torch.float32
    speeds = {dtype: product_speed(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return max(speeds, key=speeds.get)
