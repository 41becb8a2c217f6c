"""`kaleido demo`: the app in a browser."""

import socket

from ..demo.server import serve
from ..pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline
from .loading import load_pipeline, where_it_runs
from .settings import DemoSettings


__all__ = ["Demo"]


class Demo(DemoSettings):
    def run(self) -> None:
        self._check_port()
        serve(self._load, self.checkpoint, self.host, self.port, self.limits, self.allow_origin)

    def _check_port(self) -> None:
        """At once: loading a checkpoint takes a while."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((self.host, self.port))
            except OSError as error:
                said = f"--port {self.port} cannot be used on {self.host} ({error.strerror})"
                raise ValueError(f"{said}: choose another, such as --port {self.port + 1}.") from error

    def _load(self, checkpoint: str) -> KaleidoViewSynthesisPipeline:
        pipe = load_pipeline(checkpoint, self.device, self.dtype, self.lora)
        print(f"{checkpoint}: {where_it_runs(pipe)}")
        return pipe
