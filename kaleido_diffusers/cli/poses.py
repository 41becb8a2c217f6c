"""`kaleido poses`: cameras of plain photos."""

from pathlib import Path

from ..captures.images import CaptureError
from ..captures.posing.reconstruction import estimate_poses, find_photos
from ..captures.posing.video import sharp_frames
from ..captures.readers.assembly import IMAGE_SUFFIXES
from .settings import PosesSettings


__all__ = ["Poses"]


class Poses(PosesSettings):
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
