"""How a capture is opened, as users say it: what is read, and which of its photos are kept back. Nothing heavy is
imported here: `kaleido VERB --help` shows the fields."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..bundled import resolve_capture


if TYPE_CHECKING:
    from .scene import Scene


__all__ = ["CaptureOptions"]


@dataclass(frozen=True)
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

    def load(self, path: str) -> "Scene":
        """The capture in the folder `path`; `sample`, `skull` and `room` ship with the package."""
        if self.test_every is not None and self.test_every < 2:
            raise ValueError(f"--test-every must be at least 2, got {self.test_every}.")
        from .readers import load_scene

        folder = resolve_capture(path)
        options = {"images": self.images, "downscale": self.downscale, "scene": self.scene}
        return load_scene(folder, self.missing, **options)

    def views_of(self, scene: "Scene", split: str) -> list[int]:
        """Views of a split, see [`split_views`].

        Args:
            scene ([`Scene`]): the capture.
            split (`str`): `train`, `validation` or `test`.
        """
        from ..geometry.choosing import split_views

        return split_views(len(scene), scene.splits, split, self.test_every, self.split, scene.text_order)

    def split_of(self, scene: "Scene") -> tuple[list[int], list[int]]:
        """Views that are kept back, and those that may be references. Raises `ValueError` where either are none.

        Args:
            scene ([`Scene`]): the capture.
        """
        test, train = (self.views_of(scene, split) for split in ("test", "train"))
        if not test or not train:
            which = "to be kept back" if not test else "left to be references"
            raise ValueError(f"{scene.name}: none of the {len(scene)} photos is {which}.")
        return test, train
