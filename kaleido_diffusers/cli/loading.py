"""What several verbs share."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE

from ..bundled import resolve_capture, resolve_checkpoint
from ..captures.readers import load_scene
from ..captures.scene import Scene
from ..geometry.choosing import split_views
from ..loaders.adapter_files import read_adapter_info
from ..pipelines.hub import explain_hub_error
from ..pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline


__all__ = ["CaptureOptions", "load_pipeline", "loading_of"]


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
        """The capture in the folder `path`; `sample` and `skull` ship with the package."""
        if self.test_every is not None and self.test_every < 2:
            raise ValueError(f"--test-every must be at least 2, got {self.test_every}.")
        folder = resolve_capture(path)
        options = {"images": self.images, "downscale": self.downscale, "scene": self.scene}
        return load_scene(folder, self.missing, **options)

    def split_of(self, scene: Scene) -> tuple[list[int], list[int]]:
        """Views that are kept back, and those that may be references.

        Args:
            scene ([`Scene`]): the capture.
        """
        arguments, options = (len(scene), scene.splits), (self.test_every, self.split, scene.text_order)
        test, train = (split_views(*arguments, split, *options) for split in ("test", "train"))
        if not test or not train:
            which = "to be kept back" if not test else "left to be references"
            raise ValueError(f"{scene.name}: none of the {len(scene)} photos is {which}.")
        return test, train


@contextmanager
def loading_of(checkpoint: str) -> Iterator[None]:
    """Turns what libraries raise at damaged or foreign files into a sentence.

    Args:
        checkpoint (`str`): what is loaded, as the user named it.
    """
    try:
        yield
    except OSError as error:
        raise OSError(explain_hub_error(error, checkpoint) or str(error)) from error
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # JSON of any shape, headers of any length: their readers raise whatever they meet
        lines = str(error).strip().splitlines() or ["no reason is given"]
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{checkpoint} cannot be loaded. {kind}{' '.join(lines)[:500]}") from error


def load_pipeline(checkpoint: str, device: str = "auto", dtype: str = "float32") -> KaleidoViewSynthesisPipeline:
    """A pipeline on its device; of an adapter, its base with the adapter attached.

    Args:
        checkpoint (`str`): folder, Hub id, `bundled`, or the name of a bundled checkpoint; or a folder of an adapter
            (see `kaleido lora`) whose base is one of these. Where the base is not found, raises `ValueError`.
        device (`str`, defaults to `"auto"`): `cpu`, `cuda`, `mps`, or the best there is. One that is not
            there raises `ValueError`.
        dtype (`str`, defaults to `"float32"`): precision of the weights.
    """
    folder, adapter = resolve_checkpoint(checkpoint), None
    if (Path(folder) / LORA_WEIGHT_NAME_SAFE).is_file():
        adapter, folder = folder, _base_of(folder)
    with loading_of(checkpoint):
        pipe = KaleidoViewSynthesisPipeline.from_pretrained(folder, dtype=getattr(torch, dtype))
        if adapter is not None:
            pipe.load_lora_weights(adapter)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return pipe.to(device)
    except (RuntimeError, AssertionError) as error:  # torch raises either
        raise ValueError(f"--device {device!r} cannot be used here ({str(error).splitlines()[0]}).") from error


def _base_of(adapter: str) -> str:
    """The folder or Hub id of the base that an adapter was trained on."""
    info = read_adapter_info(adapter)
    if info is None:
        raise ValueError(f"{adapter}: an adapter that does not say which base it belongs to; load it in Python.")
    base = resolve_checkpoint(info.base_name)
    if base == info.base_name and "/" not in base and not Path(base).is_dir():
        raise ValueError(
            f"{adapter}: its base {base!r} neither ships nor lies here. Run the command where its folder lies."
        )
    return base
