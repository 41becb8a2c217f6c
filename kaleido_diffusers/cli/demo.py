"""`kaleido demo`: the app in a browser."""

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal

import tyro

from ..demo.limits import Limits
from .loading import load_pipeline


__all__ = ["Demo"]


@dataclass
class Demo:
    """Serves a page to drop photos on, choose where to look from, and see the views come."""

    checkpoint: str = "auto"
    """Folder or Hub id of a pipeline, or the name of a bundled one; `auto` takes `kaleido-tiny` for the sample
    capture, which it knows, and `kaleido-tiny-objects` for all else."""
    host: str = "127.0.0.1"
    """Address to listen on: this machine alone, unless it is another one (`0.0.0.0`: all)."""
    port: int = 7860
    """Port to listen on."""
    allow_origin: tuple[str, ...] = ()
    """Origins under which browsers know the page, such as `https://views.example.org` of a proxy in front of it."""
    limits: Annotated[Limits, tyro.conf.OmitArgPrefixes] = field(default_factory=Limits)
    """What visitors may ask."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the weights."""

    def run(self) -> None:
        from ..demo.server import serve

        load = partial(load_pipeline, device=self.device, dtype=self.dtype)
        serve(load, self.checkpoint, self.host, self.port, self.limits, self.allow_origin)
