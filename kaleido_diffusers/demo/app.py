"""What the page asks for, answered for one visitor at a time: everything of the app but its looks and its server."""

import secrets
import shutil
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import PIL.Image
import torch

from ..bundled import bundled_checkpoint, resolve_checkpoint
from ..captures.images import tensor_to_image
from ..captures.pictures import upright_axes
from ..pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline
from .captures import SAMPLES, Capture, load_sample
from .downloads import enlarged, write_files, write_film
from .examples import example_result
from .limits import Limits, Progress, Stopped
from .sessions import Sessions
from .turns import Turns
from .uploads import load_uploads
from .views import FREE_BOUNDS, Plan, Result, Wish, azimuth_and_elevation, generate, plan_views


__all__ = ["WORK", "Comparison", "DemoApp"]

WORK = "work-"  # how folders begin that are removed when their work is done
_LIVE_STEPS = 4  # of a view that follows a camera which is dragged
_PACE, _POSE_PACE = 0.05, 3.0  # seconds for a step of a view, and for the camera of a photo, until some were measured


class Comparison(NamedTuple):
    """A generated view, the photo to hold it against, whether that was taken from the same place, and a sentence."""

    view: PIL.Image.Image
    photo: PIL.Image.Image
    is_truth: bool
    text: str


class DemoApp:
    """
    Captures, plans and views of all visitors, each under the key of their page.

    Args:
        load (`Callable`): makes the pipeline of a checkpoint's name, folder or Hub id.
        folder (`Path`): a folder of the app's own, for work and for results.
        checkpoint (`str`, defaults to `"bundled"`): the one to run.
        limits (`Limits`, *optional*): what is allowed.
    """

    def __init__(
        self,
        load: Callable[[str], KaleidoViewSynthesisPipeline],
        folder: Path,
        checkpoint: str = "bundled",
        limits: Limits | None = None,
    ):
        self.limits = limits or Limits()
        self.sessions = Sessions(self.limits.sessions, 60 * self.limits.keep_minutes)
        self._checkpoint = checkpoint
        self._folder = folder
        self._turns = Turns(self.limits.waiting)
        self._pace, self._pose_pace = _PACE, _POSE_PACE
        self._samples: dict[str, tuple[Capture, Result | None]] = {}
        self._films: dict[int, tuple[Result, Path]] = {}  # of the results of samples, by their id
        self.pipeline = load(checkpoint)
        self.pipeline.set_progress_bar_config(disable=True)

    @property
    def side(self) -> int:
        """Pixels a side of the views."""
        return self.pipeline.default_sample_size

    @property
    def is_bundled(self) -> bool:
        """Whether the checkpoint is the one that ships."""
        return resolve_checkpoint(self._checkpoint) == bundled_checkpoint()

    def expectation(self) -> str:
        """What visitors may expect of the checkpoint."""
        side = self.side
        if not self.is_bundled:
            return f"This page runs {Path(self._checkpoint).name}: views of {side} x {side} pixels."
        return (
            f"This page runs a tiny model: views of {side} x {side} pixels. Between photos that lie near each other it"
            " finds outlines and colours; fine detail is lost, and what no photo shows is invented."
        )

    def begin(self, key: str) -> None:
        """Makes room for new work of a visitor: ends what runs or waits.

        Args:
            key (`str`): names the visitor.
        """
        self.sessions[key].begin(key)

    def stop(self, key: str) -> None:
        """Ends what runs or waits for a visitor.

        Args:
            key (`str`): names the visitor.
        """
        self.sessions[key].end()

    def sample(self, name: str) -> tuple[Capture, Result | None]:
        """A capture that ships, with views that were generated before where there are some.

        Args:
            name (`str`): one of `SAMPLES`; raises `ValueError` for others.
        """
        if name not in SAMPLES:
            raise ValueError(f"There is no example called {name!r}: choose one of {', '.join(SAMPLES)}.")
        if name not in self._samples:
            capture = load_sample(name, self.side)
            result = example_result(name, capture, self.limits) if self.is_bundled else None
            self._samples[name] = capture, result
        return self._samples[name]

    def load_sample(self, key: str, name: str = "skull") -> Capture:
        """A capture that ships, for a visitor, with views that were generated before where there are some.

        Args:
            key (`str`): names the visitor.
            name (`str`, defaults to `"skull"`): one of `SAMPLES`.
        """
        session = self.sessions[key]
        session.capture, session.result = self.sample(name)
        session.picked = ()
        return session.capture

    def load_files(self, key: str, files: Sequence[str]) -> Iterator[Progress]:
        """What a visitor uploaded, as [`load_uploads`] does it. What was loaded before is gone.

        Args:
            key (`str`): names the visitor.
            files (`Sequence[str]`): paths of what was uploaded.
        """
        session = self.sessions[key]
        session.capture, session.result, session.picked = None, None, ()
        cancelled = session.cancelled
        work = self._folder / f"{WORK}{secrets.token_hex(8)}"

        def load() -> Generator[Progress, None, None]:
            try:
                work.mkdir()
                for progress in load_uploads(files, work, self.side, self.limits, cancelled):
                    if progress.news is not None:
                        session.capture = progress.news
                    yield progress
            except Stopped:
                yield Progress("Stopped: the photos were not read")
            finally:
                shutil.rmtree(work, ignore_errors=True)

        seconds = yield from self._in_turn(key, cancelled, self._pose_pace * len(files), load)
        if session.capture is not None and len(files) > 2:
            self._pose_pace = seconds / len(files)

    def wish(self, key: str, *values) -> Wish:
        """What a visitor asks for, with the photos that they chose.

        Args:
            key (`str`): names the visitor.
            values: of the controls, in the order of [`Wish`].
        """
        return Wish(*values, picked=self.sessions[key].picked)

    def pick(self, key: str, photo: int) -> tuple[int, ...]:
        """Takes a photo as a reference, or takes it back; returns those that are chosen.

        Args:
            key (`str`): names the visitor.
            photo (`int`): its number, from 0.
        """
        session = self.sessions[key]
        if session.capture is None or not 0 <= photo < len(session.capture):
            return session.picked
        session.picked = tuple(sorted(set(session.picked) ^ {photo}))
        return session.picked

    def preview(self, key: str, wish: Wish) -> tuple[Capture, Plan] | None:
        """The capture of a visitor, and what would be generated; nothing where no capture was loaded.

        Args:
            key (`str`): names the visitor.
            wish (`Wish`): what the visitor asks for.
        """
        capture = self.sessions[key].capture
        return None if capture is None else (capture, plan_views(capture, wish, self.limits))

    def dragged(self, key: str, eye: Sequence[float]) -> dict[str, float]:
        """Azimuth and elevation of the free camera, as in [`Wish`], for who looks at the picture of the cameras.

        Args:
            key (`str`): names the visitor.
            eye (`Sequence[float]`): from the middle of the picture to who looks at it, in its axes.
        """
        capture = self.sessions[key].capture
        if capture is None:
            return {}
        direction = upright_axes(capture.cameras).mT @ torch.tensor(eye, dtype=torch.float64)
        angles = azimuth_and_elevation(capture, direction)
        return {
            name: round(min(max(angle, FREE_BOUNDS[name][0]), FREE_BOUNDS[name][1]))
            for name, angle in zip(("azimuth", "elevation"), angles)
        }

    def live(self, key: str, wish: Wish) -> PIL.Image.Image | None:
        """The view of a free camera, in few steps; nothing where no capture was loaded, or a newer one is wanted.

        Args:
            key (`str`): names the visitor.
            wish (`Wish`): what the visitor asks for.
        """
        session = self.sessions[key]
        if session.capture is None:
            return None
        plan = plan_views(session.capture, wish, self.limits)
        quick = Wish(**{**vars(wish), "steps": min(_LIVE_STEPS, int(wish.steps))})
        stopped, news = session.glance(key), None
        work = self._in_turn(key, stopped, 1.0, lambda: generate(self.pipeline, session.capture, plan, quick, stopped))
        for progress in work:
            news = progress.news or news
        return enlarged(news.views[0]) if news and news.views else None

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
                "There are no photos yet: choose an example or upload some. (What is uploaded is forgotten"
                f" after {self.limits.keep_minutes:g} minutes.)"
            )
        plan, cancelled = plan_views(capture, wish, self.limits), session.cancelled
        session.result = None

        def work() -> Generator[Progress, None, None]:
            for progress in generate(self.pipeline, capture, plan, wish, cancelled):
                if progress.news is not None:
                    session.result = progress.news
                yield progress

        amount = len(plan.targets) * int(wish.steps)
        seconds = yield from self._in_turn(key, cancelled, self._pace * amount, work)
        if session.result is not None and len(session.result.views) == len(plan.targets):
            self._pace = seconds / amount

    def is_old(self, key: str, wish: Wish) -> bool:
        """Whether the views that are shown were generated for another wish.

        Args:
            key (`str`): names the visitor.
            wish (`Wish`): what the visitor asks for now.
        """
        result = self.sessions[key].result
        return result is not None and bool(result.views) and result.wish != wish

    def film(self, key: str, folder: Path) -> Path | None:
        """The views of a visitor as a film, under a name that cannot be guessed; nothing without views.

        Args:
            key (`str`): names the visitor.
            folder (`Path`): where it goes.
        """
        result = self.sessions[key].result
        if not result or not result.views:
            return None
        _, file = self._films.get(id(result), (None, None))
        if file is None or not file.exists():  # files go after some time
            file = write_film(result.views, folder / f"{secrets.token_hex(16)}.mp4")
        if any(result is kept for _, kept in self._samples.values()):
            self._films[id(result)] = result, file
        return file

    def files(self, key: str, folder: Path, factor: int = 1, view: int = 1) -> list[Path]:
        """The views of a visitor as files in `folder`, under a name that cannot be guessed; none without views.

        Args:
            key (`str`): names the visitor.
            folder (`Path`): where they go.
            factor (`int`, defaults to `1`): how many times as large as they were generated.
            view (`int`, defaults to `1`): the one to write as PNG, from 1.
        """
        result: Result | None = self.sessions[key].result
        if not result or not result.views:
            return []
        return write_files(result, folder / secrets.token_hex(16), factor, min(max(int(view), 1), len(result.views)))

    def compare(self, key: str, view: int, with_truth: bool) -> Comparison | None:
        """A view (counted from 1) beside a photo; nothing where there is no view.

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
        text = f"Left: generated view {place + 1}. Right: {what}, photo {photo + 1}."
        if place in result.plan.invented:
            text += " Hardly a photo looks there: most of this view is invented."
        return Comparison(*map(enlarged, pair), has_truth, text)

    def _in_turn(
        self, key: str, cancelled: threading.Event, seconds: float, work: Callable[[], Generator[Progress, None, None]]
    ):
        """One piece of work at a time, of all visitors; who waits is told place and time. Returns how long it took."""
        session, ticket = self.sessions[key], self._turns.join(seconds)
        try:
            while not cancelled.is_set() and (line := self._turns.ahead(ticket)) is not None:
                place, left = line
                others = "One other is" if place == 1 else f"{place} others are"
                self.sessions.hear(key)
                yield Progress(f"Waiting: {others} before you, about {left:.0f} s")
            with closing(work()) as reports:
                for progress in reports:
                    self.sessions.hear(key)
                    yield progress
        finally:
            took = self._turns.leave(ticket)
            if session.cancelled is cancelled:
                session.cancelled = threading.Event()
        return took
