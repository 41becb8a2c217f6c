"""Measures how many views a second of processor time the drawn worlds give, by kind, when assets are in memory already
and when they are not. One process; software rasteriser unless EGL finds a graphics card.

    python benchmarks/drawing.py --assets DIR
"""

import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from measuring import show

from kaleido_diffusers.worlds.drawing import renderer
from kaleido_diffusers.worlds.drawn import DRAWN_KINDS, WorldSource


COLUMNS = {"kind": "", "first views/s": ".0f", "views/s": ".0f", "ms a world": ".0f"}


@dataclass
class Config:
    assets: tuple[Path, ...]
    """Folders of photos, meshes, scenes and panoramas."""
    kinds: tuple[str, ...] = tuple(DRAWN_KINDS)
    """Kinds of worlds."""
    views: int = 12
    """Views of each world."""
    size: int = 128
    """Height and width in pixels."""
    worlds: int = 24
    """Worlds of each kind."""
    output: Path | None = None
    """JSON of the rows."""


def main(config: Config) -> None:
    print(renderer().context.info["GL_RENDERER"])
    rows = []
    for kind in config.kinds:
        source = WorldSource(
            kind, num_scenes=config.worlds, num_views=config.views, size=config.size, assets=config.assets
        )
        seconds = [_draw(source) for _ in range(2)]
        views = config.worlds * config.views
        rows.append(
            {
                "kind": kind,
                "first views/s": views / seconds[0],
                "views/s": views / seconds[1],
                "ms a world": 1e3 * seconds[1] / config.worlds,
            }
        )
    show(rows, COLUMNS, config.output)


def _draw(source: WorldSource) -> float:
    start = time.process_time()
    for index in range(len(source)):
        source[index]
    return time.process_time() - start


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
