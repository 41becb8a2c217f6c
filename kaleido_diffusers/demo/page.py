"""The page: which question to the app each control asks, and where the answer goes."""

import html
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import PIL.Image

from ..captures.images import tensor_to_image
from .app import DemoApp
from .captures import Capture
from .layout import COMPARE, FILM, NEAREST, SPACE, TRUTH, VIEWS, Layout, path_choices
from .plot import describe, space_figure
from .sessions import Session
from .texts import SPEED, TO_WORK, TOKEN, advice, film, sentence, status
from .views import FREE, HELD_OUT, Wish, best_path, paths_for


__all__ = ["build_page"]

_SWEEP_SECONDS = 300
_WORK = {"concurrency_limit": None, "show_progress": "hidden"}  # the app has a line of its own
_QUIET = {"show_progress": "hidden"}
_UNLISTED = {"api_visibility": "private"}
_TOKEN = re.compile(r"[0-9a-f]{32}")
_MAKING = "Making the film"  # which takes seconds: the views are there, and nothing is left to be stopped
_THUMBNAIL, _FRAME, _BLUE = 96, 7, (37, 99, 235)  # of photos to click on


def build_page(app: DemoApp) -> gr.Blocks:
    """The page that asks `app`; `GRADIO_TEMP_DIR` must name a folder of the app's own."""
    keep = round(60 * app.limits.keep_minutes)
    with gr.Blocks(
        title="Kaleido: new views from photos",
        analytics_enabled=False,
        delete_cache=(min(_SWEEP_SECONDS, keep), keep),
    ) as page:
        shown = _Page(app)
        page.load(shown.enter, shown.token, shown.everything, js=TOKEN, **_QUIET, **_UNLISTED).success(
            shown.preview, **shown.to_preview, **_UNLISTED
        )
        page.unload(shown.leave)
    return page.queue(default_concurrency_limit=4, max_size=app.limits.waiting)


def _key(request: gr.Request) -> str:
    """The name of a visitor's page; without one, visitors could not be told apart."""
    if not request or not request.session_hash:
        raise gr.Error("This request does not say whose it is.", print_exception=False)
    return request.session_hash


def _problem(error: Exception) -> gr.Error:
    return gr.Error(html.escape(str(error)), duration=15, title="That did not work", print_exception=False)


def _for_visitors(error: Exception) -> ValueError:
    """What may be told of an error: of the disk of the server, that it is full, and no names of its folders."""
    if isinstance(error, ValueError):
        return error
    return ValueError("This server has no room on its disk at the moment: try again later.")


def _cache() -> Path:
    return Path(os.environ["GRADIO_TEMP_DIR"])


def _saved(image: PIL.Image.Image) -> str:
    """A file of its own for a picture. Gradio would name it after what it shows, and write it anew while another
    visitor fetches the same."""
    path = _cache() / f"{secrets.token_hex(16)}.png"
    image.save(path)
    return str(path)


def _thumbnails(session: Session, references: list[int]) -> list[tuple[str, str]]:
    """Photos to click on, the references in a blue frame."""
    shown = []
    for photo, pixels in enumerate(session.capture.pixels):
        is_reference = photo in references
        key = (id(session.capture), photo, is_reference)
        if not Path(session.thumbnails.get(key, "none")).exists():  # files go after some time
            image = tensor_to_image(pixels / 255).resize((_THUMBNAIL, _THUMBNAIL))
            if is_reference:
                inside = image.resize((_THUMBNAIL - 2 * _FRAME,) * 2)
                image = PIL.Image.new("RGB", image.size, _BLUE)
                image.paste(inside, (_FRAME, _FRAME))
            session.thumbnails[key] = _saved(image)
        shown.append((session.thumbnails[key], f"photo {photo + 1}" + ", reference" * is_reference))
    return shown


class _Page(Layout):
    """The controls, and what they do."""

    def __init__(self, app: DemoApp):
        super().__init__(app)
        self.wish = [self.path, self.views, self.azimuth, self.elevation, self.distance, self.zoom]
        self.wish += [self.references, self.steps, self.guidance, self.seed]
        planned = [
            self.space,
            self.caption,
            self.free,
            self.views,
            self.photos,
            self.references,
            self.live,
            self.advice,
            self.pick_text,
        ]
        self.to_preview = {"inputs": self.wish, "outputs": planned, **_QUIET}
        self.loaded = [self.status, self.go, self.stop, self.tabs, *self.wish]
        self.shown = [self.tabs, self.film, self.speed, self.gallery, self.view, self.against]
        self.shown += [self.left, self.right, self.beside, self.pair, self.sides, *self.downloads]
        self.everything = [*self.loaded, *self.shown[1:], self.advice]
        self._connect()

    def _connect(self) -> None:
        begun = [self.status, self.go, self.stop]
        preview = {**self.to_preview, **_UNLISTED}
        for name, button in self.samples.items():
            button.click(self._loader(name), None, self.everything, **_QUIET, **_UNLISTED).success(
                self.preview, **preview
            )
        gr.api(self.sample, api_name="sample")
        self.files.upload(self.begin_upload, None, self.everything, queue=False, **_UNLISTED).success(
            self.load_files, self.files, self.everything, **_WORK, api_name="upload"
        ).success(self.preview, **preview)
        drawn = self.wish[:7]
        gr.on(
            [control.change for control in drawn],
            self.preview,
            **self.to_preview,
            trigger_mode="always_last",
            api_name="preview",
        ).success(self.follow, self.wish, self.live, trigger_mode="always_last", **_WORK, **_UNLISTED)
        self.path.input(lambda: gr.Tabs(selected=SPACE), None, self.tabs, **_QUIET, **_UNLISTED)
        self.photos.select(self.pick, None, None, **_QUIET, **_UNLISTED).success(self.preview, **preview)
        self.eye.change(self.drag, self.eye, [self.azimuth, self.elevation], **_QUIET, **_UNLISTED)
        outputs = [*begun, *self.shown, self.advice]
        self.go.click(self.begin, None, begun, queue=False, **_UNLISTED).success(
            self.generate, self.wish, outputs, **_WORK, api_name="generate"
        )
        self.go.click(None, None, None, js=TO_WORK)
        self.stop.click(self.halt, None, None, queue=False, api_name="stop")
        self.speed.change(None, self.speed, None, js=SPEED)
        compare = [self.left, self.right, self.beside, self.pair, self.sides]
        gr.on(
            [self.view.change, self.against.change],
            self.compare,
            [self.view, self.against],
            compare,
            trigger_mode="always_last",
            **_QUIET,
            **_UNLISTED,
        )
        self.gallery.select(self.choose, None, self.view, **_QUIET, **_UNLISTED)
        save = {"inputs": [self.size, self.view], "outputs": self.downloads, **_QUIET}
        gr.on(
            [self.save_tab.select, self.size.change], self.unsaved, None, self.downloads, queue=False, **_UNLISTED
        ).success(self.save, **save, api_name="save")

    # Visitors, and their photos

    def enter(self, token: str, request: gr.Request) -> dict:
        """A page is loaded: it shows what its visitor had before, or else an example."""
        key = _key(request)
        if _TOKEN.fullmatch(token or ""):
            session = self.app.sessions.enter(key, token)
        else:
            session = self.app.sessions[key]
        if session.capture is None:
            return self.load_sample(next(iter(self.samples)), request)
        return {**self._loaded(session.capture), **self._wished(session), **self._done(key)}

    def _wished(self, session: Session) -> dict:
        """The controls as they were for the result that is there."""
        if session.result is None:
            return {}
        wish, (path, *others) = session.result.wish, self.wish
        values = [wish.views, wish.azimuth, wish.elevation, wish.distance, wish.zoom]
        values += [wish.references, wish.steps, wish.guidance, wish.seed]
        choices = path_choices(paths_for(session.result.capture))
        return {path: gr.Radio(choices, value=wish.path), **dict(zip(others, values))}

    def leave(self, request: gr.Request) -> None:
        self.app.sessions.leave(request.session_hash)

    def begin(self, request: gr.Request) -> tuple:
        self.app.begin(_key(request))
        return sentence("Starting"), gr.Button(interactive=False), gr.Button(interactive=True)

    def begin_upload(self, request: gr.Request) -> dict:
        begun = dict(zip([self.status, self.go, self.stop], self.begin(request)))
        return {**self._nothing(), **begun}

    def halt(self, request: gr.Request) -> None:
        self.app.stop(_key(request))

    def sample(self, name: str, request: gr.Request) -> str:
        capture = self.app.load_sample(_key(request), name)
        return f"{capture.name}: {len(capture)} photos."

    def _loader(self, name: str):
        def load(request: gr.Request) -> dict:
            return self.load_sample(name, request)

        return load

    def load_sample(self, name: str, request: gr.Request) -> dict:
        key = _key(request)
        return {**self._loaded(self.app.load_sample(key, name)), **self._done(key)}

    def load_files(self, files: list[str] | None, request: gr.Request) -> Iterator[dict]:
        try:
            if not files:
                raise ValueError("There are no files.")
            for progress in self.app.load_files(_key(request), files):
                yield {self.status: status(progress)} if progress.news is None else self._loaded(progress.news)
            if progress.news is None:
                yield self._idle(request)
        except (ValueError, OSError) as error:
            error = _for_visitors(error)
            yield {self.status: sentence(str(error), is_problem=True), **self._idle(request)}
            raise _problem(error) from error

    def _loaded(self, capture: Capture) -> dict:
        count = f"{len(capture)} photo{'s' * (len(capture) != 1)}"
        said = " ".join([f"{capture.name}: {count}.", *capture.notes])
        limits = self.app.limits
        most = min(limits.references, len(capture))
        return {
            **self._nothing(),
            self.status: sentence(said),
            self.go: gr.Button(interactive=True),
            self.stop: gr.Button(interactive=False),
            self.tabs: gr.Tabs(selected=SPACE),
            self.path: gr.Radio(path_choices(paths_for(capture)), value=best_path(capture)),
            self.references: gr.Slider(maximum=max(2, most), value=most),
            self.views: min(Wish().views, limits.views),
        }

    def _nothing(self) -> dict:
        """No result is shown."""
        return {
            self.film: "",
            self.speed: gr.Radio(value=1.0, visible=False),
            self.gallery: gr.Gallery(value=[]),
            self.left: None,
            self.right: None,
            self.pair: gr.ImageSlider(value=None, visible=False),
            self.against: gr.Radio([NEAREST], value=NEAREST, visible=False),
            self.sides: "",
            **self.unsaved(),
        }

    def _idle(self, request: gr.Request) -> dict:
        has_capture = self.app.sessions[_key(request)].capture is not None
        return {self.go: gr.Button(interactive=has_capture), self.stop: gr.Button(interactive=False)}

    # Where to look from

    def pick(self, event: gr.SelectData, request: gr.Request) -> None:
        self.app.pick(_key(request), event.index)

    def drag(self, eye: str, request: gr.Request) -> tuple:
        """Who turns the picture of the cameras turns the free camera."""
        try:
            x, y, z = map(float, json.loads(eye))
        except (ValueError, TypeError):
            return gr.skip(), gr.skip()
        found = self.app.dragged(_key(request), (x, y, z))
        return (found["azimuth"], found["elevation"]) if found else (gr.skip(), gr.skip())

    def preview(self, request: gr.Request, *values) -> dict:
        key, is_free, session = _key(request), values[0] == FREE, self.app.sessions[_key(request)]
        shown = {
            self.free: gr.Group(visible=is_free),
            self.views: gr.Slider(visible=not is_free),
            self.references: gr.Slider(visible=not session.picked),
            self.live: gr.Image(visible=is_free),
        }
        wish = self.app.wish(key, *values)
        try:
            found = self.app.preview(key, wish)
        except ValueError as error:
            return {**shown, self.caption: f"**{html.escape(str(error))}**"}
        if found is None:
            hidden = {self.photos: gr.Gallery(visible=False), self.pick_text: gr.Markdown(visible=False)}
            return {**shown, **hidden, self.advice: ""}
        capture, plan = found
        text = describe(*found)
        if values[0] == HELD_OUT:
            text += " These photos are kept from the model, to compare with."
        pictures = _thumbnails(session, plan.references)
        return {
            **shown,
            self.caption: text,
            self.space: space_figure(*found),
            self.photos: gr.Gallery(value=pictures, visible=len(capture) > 1, selected_index=None),
            self.pick_text: gr.Markdown(visible=len(capture) > 1),
            self.advice: advice(plan, self.app.is_old(key, wish)),
        }

    def follow(self, request: gr.Request, *values):
        """The view of the free camera, as it is dragged."""
        key = _key(request)
        if values[0] != FREE:
            return gr.skip()
        try:
            view = self.app.live(key, self.app.wish(key, *values))
        except ValueError:
            return gr.skip()  # the caption says what is wrong
        return gr.skip() if view is None else _saved(view)

    # Views

    def generate(self, request: gr.Request, *values) -> Iterator[dict]:
        key, pictures = _key(request), []
        yield {**self._nothing(), self.tabs: gr.Tabs(selected=VIEWS)}
        try:
            for progress in self.app.generate(key, self.app.wish(key, *values)):
                update = {self.status: status(progress)}
                if progress.news is not None:
                    pictures += [_saved(view) for view in progress.news.views[len(pictures) :]]
                    update[self.gallery] = gr.Gallery(self._named(pictures, progress.news), selected_index=0)
                if progress.is_last:
                    update |= {self.status: sentence(_MAKING), self.stop: gr.Button(interactive=False)}
                yield update
            yield {self.status: status(progress), **self._idle(request), **self._done(key)}
        except (ValueError, OSError) as error:
            error = _for_visitors(error)
            yield {self.status: sentence(str(error), is_problem=True), **self._idle(request)}
            raise _problem(error) from error

    def _named(self, pictures: list[str], result) -> list[tuple[str, str]]:
        invented = result.plan.invented
        return [
            (picture, f"view {number + 1}" + ", invented" * (number in invented))
            for number, picture in enumerate(pictures)
        ]

    def _done(self, key: str) -> dict:
        """What there is to see of a visitor's result."""
        result, file = self.app.sessions[key].result, self.app.film(key, _cache())
        if result is None or file is None:
            return {}
        count, has_truths = len(result.views), bool(result.plan.truths)
        pictures = [_saved(view) for view in result.views]
        tab = COMPARE if has_truths else FILM if count > 1 else VIEWS
        return {
            self.tabs: gr.Tabs(selected=tab),
            self.film: film(f"gradio_api/file={file}", f"{result.capture.name}: {count} generated views"),
            self.speed: gr.Radio(value=1.0, visible=count > 1),
            self.gallery: gr.Gallery(self._named(pictures, result), selected_index=0),
            self.view: gr.Slider(value=1, maximum=max(2, count), visible=count > 1),
            self.against: gr.Radio(
                [NEAREST, TRUTH] if has_truths else [NEAREST],
                value=TRUTH if has_truths else NEAREST,
                visible=has_truths,
            ),
            **self._compared(key, 1, has_truths),
            self.advice: advice(result.plan, is_old=False),
        }

    def compare(self, view: int, against: str, request: gr.Request) -> dict:
        return self._compared(_key(request), view, against == TRUTH)

    def _compared(self, key: str, view: int, with_truth: bool) -> dict:
        """The wipe needs pictures from one place: beside the nearest photo, the view stands on its own."""
        found = self.app.compare(key, view, with_truth)
        if found is None:
            return {self.sides: ""}
        pair = _saved(found.view), _saved(found.photo)
        return {
            self.beside: gr.Row(visible=not found.is_truth),
            self.left: pair[0],
            self.right: pair[1],
            self.pair: gr.ImageSlider(pair, visible=found.is_truth),
            self.sides: found.text,
        }

    def choose(self, event: gr.SelectData) -> int:
        return event.index + 1

    def unsaved(self) -> dict:
        """Files that are being written cannot be fetched yet."""
        return {button: gr.DownloadButton(interactive=False) for button in self.downloads}

    def save(self, factor: int, view: int, request: gr.Request) -> dict:
        files = self.app.files(_key(request), _cache(), int(factor), view)
        buttons = zip(self.downloads, files)
        return {button: gr.DownloadButton(value=str(file), interactive=True) for button, file in buttons}
