"""What ships inside the package: a checkpoint and a sample capture."""

from pathlib import Path


__all__ = ["bundled_checkpoint", "sample_capture"]

_PACKAGE = Path(__file__).parent


def bundled_checkpoint() -> str:
    """Folder of the checkpoint that ships with the package, for `from_pretrained`."""
    return str(_PACKAGE / "weights" / "kaleido-tiny")


def sample_capture() -> str:
    """Folder of the capture that ships with the package, for `load_scene`."""
    return str(_PACKAGE / "data" / "sample")
