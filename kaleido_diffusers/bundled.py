"""What ships inside the package: a checkpoint and a sample capture."""

import json
from pathlib import Path


__all__ = ["BUNDLED", "bundled_checkpoint", "bundled_scores", "checkpoint_for", "resolve_checkpoint", "sample_capture"]

BUNDLED = ("kaleido-tiny", "kaleido-tiny-objects")

_PACKAGE = Path(__file__).parent


def bundled_checkpoint(name: str = "kaleido-tiny") -> str:
    """Folder of a checkpoint that ships with the package, for `from_pretrained`: `"kaleido-tiny"`, or
    `"kaleido-tiny-objects"` to fine-tune from. Raises `ValueError` for other names.

    Args:
        name (`str`, defaults to `"kaleido-tiny"`): of the checkpoint.
    """
    if name not in BUNDLED:
        raise ValueError(f"`name` must be one of {', '.join(BUNDLED)}, got {name!r}.")
    return str(_PACKAGE / "weights" / name)


def checkpoint_for(is_sample: bool) -> str:
    """Name of the bundled checkpoint for a capture: the one that knows the sample for it, the other for all else.

    Args:
        is_sample (`bool`): whether the capture is the one that ships with the package.
    """
    return BUNDLED[0 if is_sample else 1]


def resolve_checkpoint(name: str) -> str:
    """The folder of `bundled`, or of a bundled checkpoint's name; anything else as it is.

    Args:
        name (`str`): `bundled`, a bundled checkpoint's name, a folder or a Hub id.
    """
    if name == "bundled":
        return bundled_checkpoint()
    return bundled_checkpoint(name) if name in BUNDLED else name


def bundled_scores() -> dict:
    """What is known of the checkpoint that ships: `"scored on"`, scores by name, and `"fitted to"` where it knows no
    other scene."""
    return json.loads((Path(bundled_checkpoint()) / "scores.json").read_text(encoding="utf-8"))


def sample_capture() -> str:
    """Folder of the capture that ships with the package, for `load_scene`."""
    return str(_PACKAGE / "captures" / "sample")
