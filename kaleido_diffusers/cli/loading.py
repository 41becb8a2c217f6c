"""What several verbs share."""

import torch

from ..bundled import bundled_checkpoint
from ..pipeline_kaleido import KaleidoViewSynthesisPipeline


__all__ = ["load_pipeline"]


def load_pipeline(checkpoint: str, device: str = "auto", dtype: str = "float32") -> KaleidoViewSynthesisPipeline:
    """A pipeline on its device.

    Args:
        checkpoint (`str`): folder, Hub id, or `bundled`.
        device (`str`, defaults to `"auto"`): `cpu`, `cuda`, `mps`, or the best there is. One that is not
            there raises `ValueError`.
        dtype (`str`, defaults to `"float32"`): precision of the weights.
    """
    folder = bundled_checkpoint() if checkpoint == "bundled" else checkpoint
    pipe = KaleidoViewSynthesisPipeline.from_pretrained(folder, dtype=getattr(torch, dtype))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return pipe.to(device)
    except (RuntimeError, AssertionError) as error:  # torch raises either
        raise ValueError(f"--device {device!r} cannot be used here ({str(error).splitlines()[0]}).") from error
