"""What several verbs share."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ..bundled import bundled_checkpoint, bundled_scores, resolve_checkpoint, sample_capture
from ..captures.readers import load_scene
from ..captures.scene import Scene
from ..geometry.choosing import split_views
from ..pipelines.hub import explain_hub_error
from ..pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline


__all__ = ["CaptureOptions", "load_pipeline", "warn_of_fitted"]


@dataclass
class CaptureOptions:
    """How a capture is read, and which of its photos are kept back."""

    missing: Literal["error", "skip"] = "skip"
    """What to do about photos that the capture lists but does not have."""
    images: Path | None = None
    """Folder of the photos, where they do not lie with the cameras."""
    downscale: int | None = None
    """Take the photos from `images_2`, `images_4` or `images_8`."""
    scene: str | None = None
    """Which scene, of a shard or a category that holds several."""
    split: str | None = None
    """N of the `train_test_split_N.json` whose split to take."""
    test_every: int | None = None
    """Hold out every so many photos by name; when not given, the capture's own test split, or every 8th."""

    def load(self, path: str) -> Scene:
        """The capture in the folder `path`; `sample` is the one that ships with the package."""
        if self.test_every is not None and self.test_every < 2:
            raise ValueError(f"--test-every must be at least 2, got {self.test_every}.")
        folder = sample_capture() if path == "sample" else path
        options = {"images": self.images, "downscale": self.downscale, "scene": self.scene}
        return load_scene(folder, self.missing, **options)

    def split_of(self, scene: Scene) -> tuple[list[int], list[int]]:
        """Views that are kept back, and those that may be references.

        Args:
            scene ([`Scene`]): the capture.
        """
        arguments = (len(scene), scene.splits)
        test, train = (split_views(*arguments, split, self.test_every, self.split) for split in ("test", "train"))
        if not test or not train:
            which = "to be kept back" if not test else "left to be references"
            raise ValueError(f"{scene.name}: none of the {len(scene)} photos is {which}.")
        return test, train


def warn_of_fitted(checkpoint: str, capture: str, advice: str) -> None:
    """Warns when the bundled checkpoint, fitted to one capture, is to render another.

    Args:
        checkpoint (`str`): as the user named it.
        capture (`str`): likewise.
        advice (`str`): what to do about it.
    """
    if capture == "sample" or resolve_checkpoint(checkpoint) != bundled_checkpoint():
        return
    if "fitted to" in (known := bundled_scores()):
        message = f"The bundled checkpoint is fitted to {known['fitted to']} and renders no other scene"
        warnings.warn(f"{message}: {advice}.", stacklevel=3)


def load_pipeline(checkpoint: str, device: str = "auto", dtype: str = "float32") -> KaleidoViewSynthesisPipeline:
    """A pipeline on its device.

    Args:
        checkpoint (`str`): folder, Hub id, `bundled`, or the name of a bundled checkpoint.
        device (`str`, defaults to `"auto"`): `cpu`, `cuda`, `mps`, or the best there is. One that is not
            there raises `ValueError`.
        dtype (`str`, defaults to `"float32"`): precision of the weights.
    """
    folder = resolve_checkpoint(checkpoint)
    try:
        pipe = KaleidoViewSynthesisPipeline.from_pretrained(folder, dtype=getattr(torch, dtype))
    except OSError as error:
        raise OSError(explain_hub_error(error, checkpoint) or str(error)) from error
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return pipe.to(device)
    except (RuntimeError, AssertionError) as error:  # torch raises either
        raise ValueError(f"--device {device!r} cannot be used here ({str(error).splitlines()[0]}).") from error
