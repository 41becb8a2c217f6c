"""`kaleido info`: what is installed, what runs here, what ships; or what a capture or a checkpoint holds."""

import importlib.metadata
import logging
import platform
import warnings
from pathlib import Path

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

from ..bundled import bundled_checkpoint, bundled_scores
from ..models.transformer_kaleido import KaleidoTransformer3DModel
from .capture_info import describe_capture
from .checkpoint_info import describe_checkpoint, is_checkpoint, print_scores
from .settings import InfoSettings


__all__ = ["Info", "working_attention_backends"]

PACKAGES = (
    "kaleido-diffusers",
    "torch",
    "diffusers",
    "transformers",
    "huggingface-hub",
    "accelerate",
    "safetensors",
    "peft",
    "xformers",
)


class Info(InfoSettings):
    def run(self) -> None:
        if self.path is None:
            self._describe_package()
        elif is_checkpoint(self.path):
            describe_checkpoint(self.path)
        else:
            describe_capture(self.path, self.capture_options, self.output)

    def _describe_package(self) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
        print(f"python {platform.python_version()} on {platform.system()}, {device} ({name})")
        for package in PACKAGES:
            try:
                version = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                version = "not installed"
            print(f"  {package:<18} {version}")
        print(f"attention backends that work here: {', '.join(working_attention_backends(device))}")
        folder = Path(bundled_checkpoint())
        model = KaleidoTransformer3DModel.from_pretrained(folder, subfolder="transformer")
        config = model.config
        print(f"bundled checkpoint: {folder}")
        print(
            f"  {model.num_parameters() / 1e6:.1f}M parameters, {config.num_layers} layers, width"
            f" {config.num_attention_heads * config.attention_head_dim}, {config.sample_size} px in patches of"
            f" {config.patch_size}, cameras by {config.camera_encoding}"
        )
        print_scores(bundled_scores())


def working_attention_backends(device: str) -> list[str]:
    """Backends of diffusers that attend to something on `device`, tried out. Those that would first download a kernel
    from the Hub are not tried."""
    dtypes = (torch.float32,) if device == "cpu" else (torch.bfloat16,)
    working = []
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for backend in AttentionBackendName:
                if backend.value.endswith("_hub"):
                    continue
                for dtype in dtypes:
                    x = torch.randn(1, 16, 2, 64, device=device, dtype=dtype)
                    try:
                        dispatch_attention_fn(x, x, x, backend=backend)
                    except Exception:  # whatever a backend raises where it cannot run
                        continue
                    working.append(backend.value)
    finally:
        logging.disable(logging.NOTSET)
    return working
