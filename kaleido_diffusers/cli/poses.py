"""`kaleido poses`: cameras of plain photos."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..captures.images import CaptureError
from ..captures.posing.reconstruction import estimate_poses, find_photos
from ..captures.posing.video import sharp_frames
from ..captures.readers.assembly import IMAGE_SUFFIXES


__all__ = ["Poses"]


@dataclass
class Poses:
    """Finds the cameras of a folder of photos, or of a video, by COLMAP: makes a capture that `render` reads."""

    photos: Annotated[Path, tyro.conf.Positional]
    """Folder of photos of something that stands still, or a video of it."""
    output: Path
    """Folder for the capture. A run that was stopped goes on there."""
    matching: Literal["auto", "exhaustive", "sequential"] = "auto"
    """Pairs to match: all of them, or those near in the order and alike. `auto`: all up to 80 photos; sequential for
    more, and for videos."""
    max_image_size: int = 1600
    """Longer side in pixels at which features are found."""
    max_features: int = 8192
    """Most features in a photo."""
    frames: int = 80
    """Of a video: the frames to take, the sharpest in equal parts of the longest shot."""
    start: float = 0.0
    """Of a video: seconds from which to take frames."""
    end: float | None = None
    """Of a video: seconds up to which to take frames; the end when not given."""
    threads: int = -1
    """CPU threads; -1 for all. With 1, a run gives the same cameras each time."""
    seed: int = 0
    """Seed of COLMAP's random draws."""

    def run(self) -> None:
        was_finished = (self.output / "report.json").is_file()
        photos, matching = self._photos()
        report = estimate_poses(
            photos, self.output, matching, self.max_image_size, self.max_features, self.threads, self.seed
        )
        print(report)
        if was_finished:
            print(f"{self.output} was finished before: nothing is changed")
            return
        for name in ("images", "sparse/0", "database.db", "cameras.png", "report.json"):
            print(f"wrote {self.output / name}")

    def _photos(self) -> tuple[list[Path], str]:
        """The photos in their order, and how to match them."""
        if self.photos.is_dir():
            return find_photos(self.photos), self.matching
        if self.photos.suffix.lower() in IMAGE_SUFFIXES:
            raise CaptureError(
                f"{self.photos} is one photo, which needs no pose:"
                f" kaleido render {self.photos} --trajectory orbit --fov 60. Poses are found for a folder of photos."
            )
        frames = sharp_frames(self.photos, self.output / "images", self.frames, self.start, self.end)
        return frames, "sequential" if self.matching == "auto" else self.matching
