"""What stands where on the page."""

import gradio as gr

from .app import DemoApp
from .captures import SAMPLES
from .downloads import SIZES
from .icons import LABELS
from .texts import HEADER, footer, sentence
from .uploads import UPLOADED
from .views import FREE_BOUNDS, PATHS, Wish


__all__ = ["FILM", "NEAREST", "SPACE", "TRUTH", "Layout", "path_choices"]

NEAREST, TRUTH = "the nearest reference", "the true photo"
FILM, VIEWS, COMPARE, SAVE, SPACE = "film", "views", "compare", "save", "space"


def path_choices(paths: list[str]) -> list[tuple[str, str]]:
    """What to call paths, and the paths.

    Args:
        paths (`list[str]`): of [`PATHS`].
    """
    return [(LABELS[path], path) for path in paths]


def _free_slider(name: str, label: str, step: float) -> gr.Slider:
    low, high = FREE_BOUNDS[name]
    return gr.Slider(low, high, getattr(Wish(), name), step=step, label=label, elem_id=name)


class Layout:
    """
    The controls: photos and path in one column; the button, what is being done, and the result in another.

    Args:
        app (`DemoApp`): what they ask.
    """

    def __init__(self, app: DemoApp):
        self.app = app
        gr.HTML(HEADER.format(expectation=app.expectation()), elem_id="header")
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=4, min_width=300):
                self._photos()
                self._wish()
            with gr.Column(scale=7, min_width=300, elem_id="work"):
                self._buttons()
                self._results()
        gr.HTML(footer(app.limits, app.side))
        self._bridges()

    def _photos(self) -> None:
        gr.Markdown("## 1. Photos")
        gr.Markdown("An example, or your own: photos of one scene, a video, or a zip of a capture.", elem_id="give")
        with gr.Row(elem_id="examples"):
            self.samples = {
                name: gr.Button(label, size="sm", min_width=80, elem_id=f"example-{name}")
                for name, label in SAMPLES.items()
            }
        self.files = gr.File(
            show_label=False,
            file_count="multiple",
            file_types=list(UPLOADED),
            height=96,
            elem_id="files",
        )
        self.pick_text = gr.Markdown("Click photos to choose the references (blue).", elem_id="pick", visible=False)
        self.photos = gr.Gallery(
            show_label=False,
            columns=8,
            height=142,  # two rows on a phone, whole
            object_fit="cover",
            allow_preview=False,
            interactive=False,
            buttons=[],
            visible=False,
            elem_id="photos",
        )

    def _wish(self) -> None:
        limits, like = self.app.limits, Wish()
        gr.Markdown("## 2. Where to look from")
        self.path = gr.Radio(path_choices(list(PATHS)), value=like.path, show_label=False, elem_id="path")
        most = limits.views
        self.views = gr.Slider(
            1, most, min(like.views, most), step=1, label="Views on the path", elem_id="views-count"
        )
        with gr.Group(visible=False) as self.free:
            gr.Markdown("Drag the picture of the cameras, or set the camera here.", elem_id="drag")
            self.azimuth = _free_slider("azimuth", "Around (degrees)", 1)
            self.elevation = _free_slider("elevation", "Up (degrees)", 1)
            self.distance = _free_slider("distance", "Distance (photos: 1)", 0.05)
            self.zoom = _free_slider("zoom", "Zoom (first photo: 1)", 0.05)
        with gr.Accordion("More settings", open=False):
            most = limits.references
            self.references = gr.Slider(
                1, most, min(like.references, most), step=1, label="Reference photos", elem_id="references"
            )
            most = limits.steps
            self.steps = gr.Slider(1, most, min(like.steps, most), step=1, label="Denoising steps", elem_id="steps")
            self.guidance = gr.Slider(0, 5, like.guidance, step=0.1, label="Guidance (1: none)")
            self.seed = gr.Number(like.seed, precision=0, minimum=0, label="Seed of the noise")

    def _buttons(self) -> None:
        with gr.Row(elem_id="make"):
            self.go = gr.Button("Generate", variant="primary", interactive=False, elem_id="go", min_width=120)
            self.stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="stop", min_width=80, scale=0)
        self.status = gr.HTML(sentence("Choose an example, or photos of your own."), elem_id="status")

    def _results(self) -> None:
        with gr.Tabs(selected=FILM, elem_id="result") as self.tabs:
            with gr.Tab("Film", id=FILM):
                self.film = gr.HTML(elem_id="film")
                speeds = [("half speed", 0.5), ("normal", 1.0), ("twice", 2.0)]
                self.speed = gr.Radio(
                    speeds, value=1.0, label="Speed", show_label=False, container=False, visible=False, elem_id="speed"
                )
            with gr.Tab("Views", id=VIEWS):
                self.gallery = gr.Gallery(
                    show_label=False,
                    columns=8,
                    height=430,
                    object_fit="contain",
                    format="png",
                    preview=True,
                    interactive=False,
                    buttons=["fullscreen"],
                    elem_id="views",
                )
            with gr.Tab("Compare", id=COMPARE):
                self._comparison()
            with gr.Tab("Save", id=SAVE) as self.save_tab:
                self._saving()
            with gr.Tab("Cameras", id=SPACE):
                self.caption = gr.Markdown("The cameras of the photos will stand here.", elem_id="caption")
                with gr.Row():
                    self.space = gr.Plot(show_label=False, elem_id="space", scale=3, min_width=300)
                    self.live = gr.Image(
                        label="The view from there",
                        visible=False,
                        interactive=False,
                        buttons=[],
                        scale=2,
                        min_width=240,
                        height=380,
                        elem_id="live",
                    )
        self.advice = gr.HTML(elem_id="advice")

    def _comparison(self) -> None:
        with gr.Row(equal_height=True):
            self.view = gr.Slider(1, 2, 1, step=1, label="View", elem_id="view", min_width=160)
            self.against = gr.Radio(
                [NEAREST, TRUTH], value=NEAREST, label="Beside", elem_id="against", min_width=160, visible=False
            )
        with gr.Row(elem_id="sides-row") as self.beside:
            shown = {"interactive": False, "buttons": [], "min_width": 140, "height": 300}
            self.left = gr.Image(label="Generated", elem_id="left", **shown)
            self.right = gr.Image(label="Photo", elem_id="right", **shown)
        self.pair = gr.ImageSlider(
            label="Generated | true photo", type="pil", format="png", buttons=[], visible=False, elem_id="compare"
        )
        self.sides = gr.Markdown(elem_id="sides")

    def _saving(self) -> None:
        side = self.app.side
        sizes = [(f"{side} (as generated)", 1), *((f"{side * factor} (enlarged)", factor) for factor in SIZES[1:])]
        self.size = gr.Radio(
            sizes, value=4, label="Pixels a side. Enlarging is smooth, and adds no detail.", elem_id="size"
        )
        names = {"png": "This view (PNG)", "mp4": "Film (MP4)", "gif": "Film (GIF)", "zip": "Views and cameras (zip)"}
        with gr.Row():
            self.downloads = [
                gr.DownloadButton(name, interactive=False, elem_id=suffix, min_width=150)
                for suffix, name in names.items()
            ]
        gr.Markdown("The zip is a capture: `references/`, `views/`, and their cameras in `transforms.json`.")

    def _bridges(self) -> None:
        """What scripts of the page write into, for the app to read."""
        self.token = gr.Textbox(visible="hidden", elem_id="token")
        self.eye = gr.Textbox(visible="hidden", elem_id="eye")
