"""What ships inside the package: a checkpoint and a sample capture."""

import json
from pathlib import Path


__all__ = ["bundled_checkpoint", "bundled_scores", "sample_capture"]

_PACKAGE = Path(__file__).parent


def bundled_checkpoint() -> str:
    """Folder of the checkpoint that ships with the package, for `from_pretrained`."""
    return str(_PACKAGE / "weights" / "kaleido-tiny")


def bundled_scores() -> dict:
    """What is known of the checkpoint that ships: `"scored on"`, scores by name, and `"fitted to"` where it knows no
    other scene."""
    return json.loads((Path(bundled_checkpoint()) / "scores.json").read_text(encoding="utf-8"))


def sample_capture() -> str:
    """Folder of the capture that ships with the package, for `load_scene`."""
    return str(_PACKAGE / "data" / "sample")
