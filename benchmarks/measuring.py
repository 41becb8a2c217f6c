"""What the benchmarks share: clocks, peaks, memory."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from kaleido_diffusers.evaluation.report import markdown_table


def best_seconds(call: Callable[[], object], repeats: int, device: torch.device, warm_up: bool = True) -> float:
    """The shortest of several runs, after one that warms up."""
    if warm_up:
        call()
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product: what this machine can do at this moment."""
    side = 8192 if device.type == "cuda" else 2048
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side**3 / best_seconds(lambda: matrix @ matrix, 5, device)


def share_of_products(call: Callable[[], object], device: torch.device) -> float:
    """Share of the time of `call` that torch spends in matrix products and attention."""
    with torch.profiler.profile() as profiler:
        call()
    events = [event for event in profiler.key_averages() if event.device_type == torch.autograd.DeviceType.CPU]
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    times = {event.key: getattr(event, own) for event in events}
    products = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product", "aten::_flash")
    return sum(value for name, value in times.items() if name.startswith(products)) / sum(times.values())


def reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM begins anew


def peak_memory(device: torch.device) -> float:
    """Bytes: of tensors on a GPU, of the whole process on a CPU (Linux)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def show(rows: Sequence[dict], columns: dict[str, str], output: Path | None) -> None:
    """Prints a table; writes its rows, unrounded, as JSON."""
    print(markdown_table(rows, columns))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {output}")
