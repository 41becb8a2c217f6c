"""What ships inside the package: a checkpoint and three sample captures."""

import json
from pathlib import Path


__all__ = [
    "BUNDLED",
    "SAMPLES",
    "bundled_checkpoint",
    "bundled_scores",
    "resolve_capture",
    "resolve_checkpoint",
    "sample_capture",
]

BUNDLED = ("kaleido-tiny",)
SAMPLES = ("sample", "skull", "room")

_PACKAGE = Path(__file__).parent


def bundled_checkpoint(name: str = "kaleido-tiny") -> str:
    """Folder of a checkpoint that ships with the package, for `from_pretrained`. Raises `ValueError` for other names.

    Args:
        name (`str`, defaults to `"kaleido-tiny"`): which; so far there is one.
    """
    if name not in BUNDLED:
        raise ValueError(f"`name` must be one of {', '.join(BUNDLED)}, got {name!r}.")
    return str(_PACKAGE / "weights" / name)


def resolve_checkpoint(name: str) -> str:
    """The folder of `bundled`, or of a bundled checkpoint's name; anything else as it is.

    Args:
        name (`str`): what a user gave.
    """
    if name == "bundled":
        return bundled_checkpoint()
    return bundled_checkpoint(name) if name in BUNDLED else name


def bundled_scores() -> dict:
    """What is known of the checkpoint that ships: `"scored on"`, and scores by name."""
    return json.loads((Path(bundled_checkpoint()) / "scores.json").read_text(encoding="utf-8"))


def sample_capture(name: str = "sample") -> str:
    """Folder of a capture that ships with the package, for `load_scene`. Raises `ValueError` for other names.

    Args:
        name (`str`, defaults to `"sample"`): `"sample"`, 40 views of a synthetic table; `"skull"`, nine photos (by
            alansartlog, CC BY 4.0), three of them kept back as its test split; or `"room"`, twelve drawn views (its
            README names who made what is in it).
    """
    if name not in SAMPLES:
        raise ValueError(f"`name` must be one of {', '.join(SAMPLES)}, got {name!r}.")
    return str(_PACKAGE / "captures" / name)


def resolve_capture(name: str) -> str:
    """The folder of a sample's name, unless there is a file or folder called so; anything else as it is.

    Args:
        name (`str`): what a user gave.
    """
    return sample_capture(name) if name in SAMPLES and not Path(name).exists() else name
