"""`kaleido view`: fly through a capture in a browser."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..bundled import checkpoint_for
from ..viewer.live import MOST_REFERENCES, LiveScene
from ..viewer.page import LOOPBACK, Viewer
from .loading import CaptureOptions, load_pipeline, warn_of_fitted


__all__ = ["View"]


@dataclass
class View:
    """Serves a page with the cameras of a capture in space: fly, stop, and see the view from there."""

    capture: Annotated[str, tyro.conf.Positional] = "sample"
    """Folder of the capture (see `kaleido info`), or `sample` for the one that ships with the package."""
    checkpoint: str | None = None
    """Folder or Hub id of a pipeline, or the name of a bundled one; when not given, `kaleido-tiny` for the sample, and
    `kaleido-tiny-objects` for other captures."""
    references: int = 12
    """Photos given to the model, spread over the capture."""
    steps: int = 8
    """Denoising steps."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 for none."""
    height: int | None = None
    """Height of the views in pixels; the model's own when not given."""
    width: int | None = None
    """Width of the views in pixels; the model's own when not given."""
    seed: int = 0
    """Seed of the noise."""
    capture_options: Annotated[CaptureOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=CaptureOptions)
    """How the capture is read."""
    host: str = "127.0.0.1"
    """Address to serve on. Others than loopback show the photos to whoever reaches them."""
    port: int = 8080
    """Port to serve on, or the next one that is free; 0 for any."""
    allow_origin: tuple[str, ...] = ()
    """Origins of further pages that may use the viewer, such as `https://views.example.org` of a proxy before it."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the weights."""
    output: Path = Path("renders")
    """Folder for flights."""

    def run(self) -> None:
        if not 1 <= self.references <= MOST_REFERENCES:
            raise ValueError(f"--references must lie between 1 and {MOST_REFERENCES}, got {self.references}.")
        if self.steps < 1:
            raise ValueError(f"--steps must be at least 1, got {self.steps}.")
        scene = self.capture_options.load(self.capture)
        pipe = load_pipeline(self._checkpoint(), self.device, self.dtype)
        live = LiveScene(pipe, scene, self.references, self.height, self.width, self.seed)
        viewer = Viewer(
            live, self.output, self.host, self.port, self.steps, self.guidance_scale, allow_origin=self.allow_origin
        )
        if self.host not in LOOPBACK:
            warnings.warn(f"Whoever reaches {viewer.url} sees the photos of {scene.name}.", stacklevel=2)
        print(f"{scene.name}: {len(scene)} photos; references {live.references}")
        print(f"open {viewer.url} in a browser; Ctrl-C ends it", flush=True)
        viewer.wait()
        print("closed")

    def _checkpoint(self) -> str:
        if self.checkpoint is None:
            return checkpoint_for(self.capture == "sample")
        warn_of_fitted(self.checkpoint, self.capture, "leave --checkpoint out, or pass your own")
        return self.checkpoint
