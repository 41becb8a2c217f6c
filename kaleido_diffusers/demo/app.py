"""What the page asks for, answered for one visitor at a time: everything of the app but its looks and its server."""

import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import PIL.Image

from ..bundled import checkpoint_for
from ..captures.images import tensor_to_image
from ..pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline
from .captures import Capture, load_sample, load_uploads
from .limits import Limits, Progress, Stopped
from .sessions import Session, Sessions
from .views import Plan, Result, Wish, generate, plan_views, write_files


__all__ = ["AUTO", "WORK", "DemoApp"]

AUTO = "auto"  # the checkpoint that is fitted to the sample capture for it, the other one for all else
WORK = "work-"  # how folders begin that are removed when their work is done
_SHOWN = 512  # pixels a side at least of what is compared: browsers would show it as small as it is


class DemoApp:
    """
    Captures, plans and views of all visitors, each under the key of their page.

    Args:
        load (`Callable`): makes the pipeline of a checkpoint's name, folder or Hub id.
        folder (`Path`): a folder of the app's own, for work and for results.
        checkpoint (`str`, defaults to `"auto"`): the one to run, or `auto`.
        limits (`Limits`, *optional*): what is allowed.
    """

    def __init__(
        self,
        load: Callable[[str], KaleidoViewSynthesisPipeline],
        folder: Path,
        checkpoint: str = AUTO,
        limits: Limits | None = None,
    ):
        self.limits = limits or Limits()
        self.sessions = Sessions(self.limits.sessions, 60 * self.limits.keep_minutes)
        self._load, self._checkpoint = load, checkpoint
        self._folder = folder
        self._pipelines: dict[str, KaleidoViewSynthesisPipeline] = {}
        self._loading, self._working = threading.Lock(), threading.Lock()
        self._sample: Capture | None = None
        self.pipeline(is_sample=True)  # says early what cannot be loaded

    def pipeline(self, is_sample: bool) -> KaleidoViewSynthesisPipeline:
        """The pipeline for the sample capture, or for other ones; loaded when it is first asked for.

        Args:
            is_sample (`bool`): whether it is for the sample capture.
        """
        name = self._checkpoint
        if name == AUTO:
            name = checkpoint_for(is_sample)
        with self._loading:
            if name not in self._pipelines:
                self._pipelines[name] = self._load(name)
                self._pipelines[name].set_progress_bar_config(disable=True)
            return self._pipelines[name]

    def side(self, is_sample: bool) -> int:
        """Pixels a side of the views.

        Args:
            is_sample (`bool`): whether they are of the sample capture.
        """
        return self.pipeline(is_sample).default_sample_size

    def expectation(self) -> str:
        """What visitors may expect of the checkpoint."""
        side = self.side(is_sample=True)
        if self._checkpoint != AUTO:
            return f"This page runs {Path(self._checkpoint).name}: views of {side} x {side} pixels."
        return (
            f"No large Kaleido is public, so this page runs two tiny ones: views are small ({side} x {side} pixels)"
            f" and soft. The sample capture goes to {checkpoint_for(True)}, which knows that one scene. Your own"
            f" photos go to {checkpoint_for(False)}, which has learnt about plain solids on plain grounds, not about"
            " photos: expect coloured shapes about where things stand."
        )

    def begin(self, key: str) -> None:
        """Makes room for new work of a visitor: ends what runs or waits.

        Args:
            key (`str`): names the visitor.
        """
        self.sessions[key].begin()

    def stop(self, key: str) -> None:
        """Ends what runs or waits for a visitor.

        Args:
            key (`str`): names the visitor.
        """
        self.sessions[key].cancelled.set()

    def load_sample(self, key: str) -> Capture:
        """The sample capture, for a visitor.

        Args:
            key (`str`): names the visitor.
        """
        session = self.sessions[key]
        if self._sample is None:
            self._sample = load_sample(self.side(is_sample=True))
        session.capture, session.result = self._sample, None
        return self._sample

    def load_files(self, key: str, files: Sequence[str]) -> Iterator[Progress]:
        """What a visitor uploaded, as [`load_uploads`] does it.

        Args:
            key (`str`): names the visitor.
            files (`Sequence[str]`): paths of what was uploaded.
        """
        session = self.sessions[key]
        work = self._folder / f"{WORK}{secrets.token_hex(8)}"
        with self._turn(session) as cancelled:
            try:
                work.mkdir()
                for progress in load_uploads(files, work, self.side(is_sample=False), self.limits, cancelled):
                    if progress.news is not None:
                        session.capture, session.result = progress.news, None
                    yield progress
            except Stopped:
                yield Progress("Stopped: the photos were not read")
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def preview(self, key: str, wish: Wish) -> tuple[Capture, Plan] | None:
        """The capture of a visitor, and what would be generated; nothing where no capture was loaded.

        Args:
            key (`str`): names the visitor.
            wish (`Wish`): what the visitor asks for.
        """
        capture = self.sessions[key].capture
        return None if capture is None else (capture, plan_views(capture, wish, self.limits))

    def generate(self, key: str, wish: Wish) -> Iterator[Progress]:
        """Generates what a visitor wishes; `news` is the [`Result`] so far.

        Args:
            key (`str`): names the visitor.
            wish (`Wish`): what the visitor asks for.
        """
        session = self.sessions[key]
        capture = session.capture
        if capture is None:
            raise ValueError(
                "There are no photos yet: choose the sample capture or upload some. (What is uploaded is forgotten"
                f" after {self.limits.keep_minutes:g} minutes.)"
            )
        plan = plan_views(capture, wish, self.limits)
        with self._turn(session) as cancelled:
            session.result = None
            for progress in generate(self.pipeline(capture.is_sample), capture, plan, wish, cancelled):
                if progress.news is not None:
                    session.result = progress.news
                yield progress

    def files(self, key: str, folder: Path) -> list[Path]:
        """The views of a visitor as files in `folder`, under a name that cannot be guessed; none without views.

        Args:
            key (`str`): names the visitor.
            folder (`Path`): where they go.
        """
        result = self.sessions[key].result
        return write_files(result, folder / secrets.token_hex(16)) if result and result.views else []

    def compare(self, key: str, view: int, with_truth: bool) -> tuple[PIL.Image.Image, PIL.Image.Image, str] | None:
        """A view (counted from 1), a photo to hold it against, and what that is; nothing where there is no view.

        Args:
            key (`str`): names the visitor.
            view (`int`): its number, from 1.
            with_truth (`bool`): whether the photo from its place is wanted, where there is one.
        """
        result: Result | None = self.sessions[key].result
        if not result or not result.views:
            return None
        place = min(max(int(view), 1), len(result.views)) - 1
        has_truth = with_truth and bool(result.plan.truths)
        photo = result.plan.truths[place] if has_truth else result.nearest[place]
        what = "the true photo" if has_truth else "the nearest reference"
        pair = (result.views[place], tensor_to_image(result.capture.pixels[photo] / 255))
        shown = [image.resize([_SHOWN] * 2, PIL.Image.Resampling.BICUBIC) for image in pair]
        return *shown, f"Left: generated view {place + 1}. Right: {what}, photo {photo + 1}."

    @contextmanager
    def _turn(self, session: Session) -> Iterator[threading.Event]:
        """One piece of work at a time, of all visitors; gives the event that ends it."""
        cancelled = session.cancelled
        try:
            with self._working:
                yield cancelled
        finally:
            if session.cancelled is cancelled:
                session.cancelled = threading.Event()
