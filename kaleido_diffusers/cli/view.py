"""`kaleido view`: fly through a capture in a browser."""

import warnings

from ..viewer.live import MOST_REFERENCES, LiveScene
from ..viewer.page import LOOPBACK, Viewer
from ..web.origins import OriginRule
from .checks import check_at_least, check_folder, check_views, errors_first
from .loading import load_pipeline, where_it_runs
from .settings import ViewSettings


__all__ = ["View"]


class View(ViewSettings):
    def run(self) -> None:
        if not 1 <= self.references <= MOST_REFERENCES:
            raise ValueError(f"--references must lie between 1 and {MOST_REFERENCES}, got {self.references}.")
        check_at_least(self, steps=1, height=8, width=8)
        check_folder(self.output)
        OriginRule(self.allow_origin)
        with errors_first():
            scene = self.capture_options.load(self.capture)
            pipe = load_pipeline(self.checkpoint, self.device, self.dtype, self.lora)
            check_views(pipe, self.height, self.width, self.guidance_scale)
        live = LiveScene(pipe, scene, self.references, self.height, self.width, self.seed)
        viewer = Viewer(
            live, self.output, self.host, self.port, self.steps, self.guidance_scale, allow_origin=self.allow_origin
        )
        if self.host not in LOOPBACK:
            warnings.warn(f"Whoever reaches {viewer.url} sees the photos of {scene.name}.", stacklevel=2)
        print(f"{scene.name}: {len(scene)} photos; references {live.references}")
        print(f"{self.checkpoint}: {where_it_runs(pipe)}")
        try:
            print(f"open {viewer.url} in a browser; Ctrl-C ends it", flush=True)
            viewer.wait()
        except KeyboardInterrupt:  # between the two
            viewer.close()
        print("closed")
