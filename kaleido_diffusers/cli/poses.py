"""`kaleido poses`: cameras of plain photos."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from ..captures.images import CaptureError
from ..captures.posing.reconstruction import estimate_poses, find_photos
from ..captures.posing.video import sharp_frames
from ..captures.readers.assembly import IMAGE_SUFFIXES
from ..files import same_command
from .checks import check_at_least, check_folder, errors_first
from .errors import INTERRUPTED
from .loading import finished, say_next
from .settings import PosesSettings


__all__ = ["Poses"]


@contextmanager
def _ending_at_once(told: str) -> Iterator[None]:
    """Ctrl-C ends the process also while COLMAP computes, which hears no exception: its files are whole at any time.
    `told` says how to go on."""
    if threading.current_thread() is not threading.main_thread():  # where signals do not arrive
        yield
        return
    listening, noting = os.pipe()
    os.set_blocking(noting, False)

    def listen() -> None:
        while (number := os.read(listening, 1)) not in (b"", b"\0"):
            if number[0] == signal.SIGINT:
                print(f"\nkaleido: stopped. {told}", file=sys.stderr, flush=True)
                os._exit(INTERRUPTED)

    threading.Thread(target=listen, daemon=True).start()
    before = signal.set_wakeup_fd(noting, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(noting, b"\0")


class Poses(PosesSettings):
    def run(self) -> None:
        check_at_least(self, max_image_size=1, max_features=1, frames=1)
        output = self.output or Path(f"{self.photos.stem or self.photos.absolute().name}-capture")
        was_finished = (output / "report.json").is_file() and not self.overwrite
        check_folder(output)
        told = f"{same_command(self.overwrite).capitalize()} goes on with what {output} holds."
        with _ending_at_once(told), ExitStack() as checks:
            checks.enter_context(errors_first())
            photos, matching = self._photos(output)
            report = estimate_poses(
                photos,
                output,
                matching,
                self.max_image_size,
                self.max_features,
                self.threads,
                self.seed,
                self.overwrite,
                checks.close,
            )
        print(report)
        if was_finished:
            print(finished(output))
        else:
            for name in ("images", "sparse/0", "database.db", "cameras.png", "report.json"):
                print(f"wrote {output / name}")
        say_next("lora", output)

    def _photos(self, output: Path) -> tuple[list[Path], Literal["auto", "exhaustive", "sequential"]]:
        """The photos in their order, and how to match them."""
        if self.photos.is_dir():
            return find_photos(self.photos), self.matching
        if self.photos.suffix.lower() in IMAGE_SUFFIXES:
            raise CaptureError(
                f"{self.photos} is one photo, which needs no pose:"
                f" kaleido render {self.photos}. Poses are found for a folder of photos."
            )
        frames = sharp_frames(self.photos, output / "images", self.frames, self.start, self.end, self.overwrite)
        return frames, "sequential" if self.matching == "auto" else self.matching
