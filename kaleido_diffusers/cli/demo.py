"""`kaleido demo`: the app in a browser."""

from ..demo.server import serve
from ..pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline
from .loading import load_pipeline, where_it_runs
from .settings import DemoSettings


__all__ = ["Demo"]


class Demo(DemoSettings):
    def run(self) -> None:
        serve(self._load, self.checkpoint, self.host, self.port, self.limits, self.allow_origin)

    def _load(self, checkpoint: str) -> KaleidoViewSynthesisPipeline:
        pipe = load_pipeline(checkpoint, self.device, self.dtype)
        print(f"{checkpoint}: {where_it_runs(pipe)}")
        return pipe
