"""The page: what stands where, and which question to the app each control asks."""

import html
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import PIL.Image

from .app import DemoApp
from .captures import UPLOADED
from .limits import Progress
from .plot import describe, space_figure
from .texts import HEADER, footer, sentence, status
from .views import FREE, FREE_BOUNDS, HELD_OUT, PATHS, Wish


__all__ = ["build_page"]

_NEAREST, _TRUTH = "the nearest reference", "the true photo"
_SWEEP_SECONDS = 300
_WORK = {"concurrency_id": "work", "concurrency_limit": 1}  # one visitor's work at a time
_QUIET = {"show_progress": "hidden"}
_UNLISTED = {"api_visibility": "private"}


def build_page(app: DemoApp) -> gr.Blocks:
    """The page that asks `app`; `GRADIO_TEMP_DIR` must name a folder of the app's own."""
    keep = round(60 * app.limits.keep_minutes)
    with gr.Blocks(
        title="Kaleido: new views from photos",
        analytics_enabled=False,
        delete_cache=(min(_SWEEP_SECONDS, keep), keep),
    ) as page:
        page.unload(_Page(app).leave)
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


class _Page:
    """The controls, and what they do."""

    def __init__(self, app: DemoApp):
        self.app = app
        gr.HTML(HEADER)
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                self._photos()
                self._wish()
                self._buttons()
            with gr.Column(scale=7, min_width=300):
                self._results()
        gr.HTML(footer(app.limits, app.side(is_sample=True), app.expectation()))
        self._connect()

    def _photos(self) -> None:
        gr.Markdown("## 1. Photos")
        self.sample = gr.Button("Use the sample capture", variant="secondary", elem_id="sample")
        self.files = gr.File(
            label="Or your own photos, or a zip of a capture",
            file_count="multiple",
            file_types=list(UPLOADED),
            height=170,
            elem_id="files",
        )

    def _wish(self) -> None:
        limits, like = self.app.limits, Wish()
        gr.Markdown("## 2. Where to look from")
        self.path = gr.Radio(list(PATHS), value=like.path, label="Camera path", elem_id="path")
        most = limits.views
        self.views = gr.Slider(
            1, most, min(like.views, most), step=1, label="Views on the path", elem_id="views-count"
        )
        with gr.Group(visible=False) as self.free:
            self.azimuth = gr.Slider(*FREE_BOUNDS["azimuth"], like.azimuth, step=1, label="Around (degrees)")
            self.elevation = gr.Slider(*FREE_BOUNDS["elevation"], like.elevation, step=1, label="Up (degrees)")
            self.distance = gr.Slider(*FREE_BOUNDS["distance"], like.distance, step=0.05, label="Distance (photos: 1)")
            self.zoom = gr.Slider(*FREE_BOUNDS["zoom"], like.zoom, step=0.05, label="Zoom (first photo: 1)")
        with gr.Accordion("More settings", open=False):
            most = limits.references
            self.references = gr.Slider(1, most, min(like.references, most), step=1, label="Reference photos")
            most = limits.steps
            self.steps = gr.Slider(1, most, min(like.steps, most), step=1, label="Denoising steps", elem_id="steps")
            self.guidance = gr.Slider(0, 5, like.guidance, step=0.1, label="Guidance (1: none)")
            self.seed = gr.Number(like.seed, precision=0, minimum=0, label="Seed of the noise")

    def _buttons(self) -> None:
        gr.Markdown("## 3. Generate")
        with gr.Row():
            self.go = gr.Button("Generate", variant="primary", interactive=False, elem_id="go", min_width=120)
            self.stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop", min_width=120)
        self.status = gr.HTML(sentence("Choose photos to begin with."), elem_id="status")

    def _results(self) -> None:
        self.space = gr.Plot(label="Cameras in space", elem_id="space")
        self.caption = gr.Markdown(
            "The cameras of your photos will stand here, and the path among them.", elem_id="caption"
        )
        self.gallery = gr.Gallery(
            label="Generated views",
            columns=6,
            height="auto",
            object_fit="contain",
            format="png",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="views",
        )
        with gr.Column(visible=False) as self.after:
            with gr.Row():
                with gr.Column(min_width=280):
                    self.pair = gr.ImageSlider(
                        label="Generated | photo", type="pil", format="png", buttons=[], elem_id="compare"
                    )
                with gr.Column(min_width=280):
                    self.view = gr.Slider(1, 2, 1, step=1, label="Compare view", elem_id="view")
                    self.against = gr.Radio([_NEAREST, _TRUTH], value=_NEAREST, label="with", elem_id="against")
                    self.sides = gr.Markdown(elem_id="sides")
                    names = {"mp4": "MP4", "gif": "GIF", "zip": "capture folder (zip)"}
                    self.downloads = [
                        gr.DownloadButton(f"Download {name}", elem_id=suffix) for suffix, name in names.items()
                    ]

    def _connect(self) -> None:
        self.wish = [self.path, self.views, self.azimuth, self.elevation, self.distance, self.zoom]
        self.wish += [self.references, self.steps, self.guidance, self.seed]
        preview = {"inputs": self.wish, "outputs": [self.space, self.caption, self.free, self.views], **_QUIET}
        drawn = [*self.wish[:7]]
        loaded = [self.status, self.go, self.stop, self.gallery, self.after, self.against]
        shown = [*loaded, self.view, self.pair, self.sides, *self.downloads]
        on_status = {"show_progress": "full", "show_progress_on": self.status}

        self.sample.click(self.load_sample, None, loaded, **_QUIET, api_name="sample").success(
            self.preview, **preview, **_UNLISTED
        )
        self.files.upload(self.begin, None, [self.status, self.go, self.stop], queue=False, **_UNLISTED).success(
            self.load_files, self.files, loaded, **on_status, **_WORK, api_name="upload"
        ).success(self.preview, **preview, **_UNLISTED)
        gr.on(
            [control.change for control in drawn],
            self.preview,
            **preview,
            trigger_mode="always_last",
            api_name="preview",
        )
        self.go.click(self.begin, None, [self.status, self.go, self.stop], queue=False, **_UNLISTED).success(
            self.generate, self.wish, shown, **on_status, **_WORK, api_name="generate"
        )
        self.stop.click(self.halt, None, None, queue=False, api_name="stop")
        compare = {"inputs": [self.view, self.against], "outputs": [self.pair, self.sides], **_QUIET}
        gr.on(
            [self.view.change, self.against.change], self.compare, **compare, trigger_mode="always_last", **_UNLISTED
        )
        self.gallery.select(self.choose, None, self.view, **_QUIET, **_UNLISTED)

    # What the controls do

    def begin(self, request: gr.Request):
        self.app.begin(_key(request))
        return (
            sentence("Waiting for the turn of this page."),
            gr.Button(interactive=False),
            gr.Button(interactive=True),
        )

    def halt(self, request: gr.Request) -> None:
        self.app.stop(_key(request))

    def leave(self, request: gr.Request) -> None:
        self.app.sessions.drop(request.session_hash)

    def load_sample(self, request: gr.Request) -> dict:
        return self._loaded(self.app.load_sample(_key(request)))

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

    def _loaded(self, capture) -> dict:
        count = f"{len(capture)} photo{'s' * (len(capture) != 1)}"
        said = " ".join([f"{capture.name}: {count}.", *capture.notes])
        return {
            self.status: sentence(said),
            self.go: gr.Button(interactive=True),
            self.stop: gr.Button(interactive=False),
            self.gallery: [],
            self.after: gr.Column(visible=False),
            self.against: _NEAREST,
        }

    def _idle(self, request: gr.Request) -> dict:
        has_capture = self.app.sessions[_key(request)].capture is not None
        return {self.go: gr.Button(interactive=has_capture), self.stop: gr.Button(interactive=False)}

    def preview(self, request: gr.Request, *values):
        is_free, is_kept = values[0] == FREE, values[0] == HELD_OUT
        shown = gr.Group(visible=is_free), gr.Slider(visible=not is_free)
        try:
            found = self.app.preview(_key(request), Wish(*values))
        except ValueError as error:
            return gr.skip(), f"**{html.escape(str(error))}**", *shown
        if found is None:
            return gr.skip(), gr.skip(), *shown
        text = describe(*found)
        if is_kept:
            text += " These photos are kept from the model, to compare with."
        return space_figure(*found), text, *shown

    def generate(self, request: gr.Request, *values) -> Iterator[dict]:
        key, result, pictures = _key(request), None, []
        yield {self.status: status(Progress("Starting")), self.gallery: [], self.after: gr.Column(visible=False)}
        try:
            for progress in self.app.generate(key, Wish(*values)):
                update = {self.status: status(progress)}
                if progress.news is not None:
                    result = progress.news
                    pictures += [_saved(view) for view in result.views[len(pictures) :]]
                    names = [f"view {number + 1}" for number in range(len(pictures))]
                    update[self.gallery] = list(zip(pictures, names))
                yield update
            yield {**self._idle(request), **self._done(key, result)}
        except (ValueError, OSError) as error:
            error = _for_visitors(error)
            yield {self.status: sentence(str(error), is_problem=True), **self._idle(request)}
            raise _problem(error) from error

    def _done(self, key: str, result) -> dict:
        files = self.app.files(key, _cache())
        if not files:
            return {}
        against = _TRUTH if result.plan.truths else _NEAREST
        choices = [_NEAREST, _TRUTH] if result.plan.truths else [_NEAREST]
        count = len(result.views)
        left, right, text = self.app.compare(key, 1, bool(result.plan.truths))
        return {
            self.after: gr.Column(visible=True),
            self.view: gr.Slider(value=1, maximum=max(2, count), visible=count > 1),
            self.against: gr.Radio(choices, value=against),
            self.pair: (_saved(left), _saved(right)),
            self.sides: text,
            **{button: gr.DownloadButton(value=str(file)) for button, file in zip(self.downloads, files)},
        }

    def compare(self, view: int, against: str, request: gr.Request):
        found = self.app.compare(_key(request), view, against == _TRUTH)
        return (gr.skip(), gr.skip()) if found is None else (tuple(map(_saved, found[:2])), found[2])

    def choose(self, event: gr.SelectData) -> int:
        return event.index + 1
