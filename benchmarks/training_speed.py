"""What a training step costs and which share of this machine's matrix-product peak it reaches, by part.

    taskset -c 0 python benchmarks/training_speed.py --threads 1

Each row changes one thing: precision, attention as products instead of the fused kernel, compiled blocks.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from measuring import show

from kaleido_diffusers import KaleidoTransformer3DModel, RectifiedFlowViewScheduler
from kaleido_diffusers.geometry.views import Views
from kaleido_diffusers.models.operations import forward_operations
from kaleido_diffusers.models.precision import product_speed
from kaleido_diffusers.training.objective import ViewPartition, denoise_targets
from kaleido_diffusers.training.optimizer import make_optimizers


COLUMNS = {
    "products": "", "attention": "", "compiled": "", "forward": ".2f", "backward": ".2f", "optimizer": ".2f",
    "targets a second": ".0f", "TFLOP/s": ".3f", "share of peak": ".0%",
}  # fmt: skip


@dataclass
class Config:
    layers: int = 8
    """Transformer blocks."""
    heads: int = 4
    """Query heads of 64 channels; half as many key heads."""
    ffn_dim: int = 704
    """Inner width of the SwiGLU."""
    batch: int = 8
    """Scenes a step."""
    views: int = 12
    """Views of each."""
    references: int = 3
    """References among them; the others are targets in groups of their own."""
    steps: int = 5
    """Steps that are timed, after two that warm up; medians are shown."""
    threads: int | None = None
    """Threads of torch."""
    output: Path | None = None
    """Rows, as JSON."""

    def main(self) -> None:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        peak = product_speed(torch.bfloat16, 1.0)
        print(f"bfloat16 products: {peak / 1e12:.2f} TFLOP/s, float32: {product_speed(torch.float32, 1.0) / 1e12:.2f}")
        cases = [("float32", "native", False), ("bfloat16", "native", False), ("bfloat16", "_native_math", False)]
        cases += [("bfloat16", "native", True), ("bfloat16", "_native_math", True)]
        rows = [self._row(*case, peak) for case in cases]
        show(rows, COLUMNS, self.output)

    def _row(self, dtype: str, attention: str, compiled: bool, peak: float) -> dict:
        torch.manual_seed(0)
        torch._dynamo.reset()
        sizes = {"num_layers": self.layers, "num_attention_heads": self.heads, "ffn_dim": self.ffn_dim}
        sizes |= {"num_key_value_heads": max(1, self.heads // 2), "patch_size": 2, "in_channels": 32}
        model = KaleidoTransformer3DModel(sample_size=16, **sizes).train()
        model.set_attention_backend(attention)
        if compiled:
            model.compile_repeated_blocks(dynamic=False)
        scheduler, optimizers = RectifiedFlowViewScheduler(prediction_type="sample"), make_optimizers(model)
        poses = torch.eye(4, dtype=torch.float64).repeat(self.batch, self.views, 1, 1)
        poses[..., :3, 3] = torch.randn(self.batch, self.views, 3)
        lens = torch.tensor([[1.2, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]])
        pixels = torch.randn(self.batch, self.views, 32, 16, 16)
        batch = Views(pixels=pixels, poses=poses, intrinsics=lens.expand(self.batch, self.views, 3, 3))
        targets = tuple((view,) for view in range(self.references, self.views))
        partition = ViewPartition((tuple(range(self.references)),), targets)
        times = []
        for number in range(self.steps + 2):
            marks = [time.perf_counter()]
            with torch.autocast("cpu", getattr(torch, dtype), enabled=dtype != "float32"):
                loss = denoise_targets(model, scheduler, batch, partition, torch.Generator().manual_seed(number)).loss
            marks.append(time.perf_counter())
            loss.backward()
            marks.append(time.perf_counter())
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            marks.append(time.perf_counter())
            times.append([b - a for a, b in zip(marks, marks[1:])])
        forward, backward, update = torch.tensor(times[2:]).median(0).values.tolist()
        total = forward + backward + update
        counted = 3 * self.batch * forward_operations(model.config, (self.references,), (1,) * len(targets))
        return {
            "products": dtype, "attention": "products" if attention == "_native_math" else "fused",
            "compiled": "yes" if compiled else "no", "forward": forward, "backward": backward, "optimizer": update,
            "targets a second": self.batch * len(targets) / total, "TFLOP/s": counted / total / 1e12,
            "share of peak": counted / total / peak,
        }  # fmt: skip


if __name__ == "__main__":
    tyro.cli(Config).main()
