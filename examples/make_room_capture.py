"""Makes the third sample capture: a room that no weights have seen, drawn by the package.

    python examples/make_room_capture.py --assets path/to/worlds path/to/meshes --output path/to/room

It is one of the worlds of the validation split, whose things and pictures are kept from training.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from kaleido_diffusers.captures.export import write_capture
from kaleido_diffusers.captures.images import tensor_to_image
from kaleido_diffusers.worlds.drawn import WorldSource


@dataclass
class Config:
    assets: tuple[Path, ...]
    """Folders of photos and meshes."""
    output: Path
    """Folder of the capture."""
    views: int = 12
    """Photos."""
    size: int = 256
    """Height and width in pixels."""
    world: int = 12
    """Which of the validation split."""
    arc: float = 0.3
    """How far apart the cameras stand, in radians around what they look at."""


def main(config: Config) -> None:
    source = WorldSource(
        "rooms",
        "validation",
        num_scenes=config.world + 1,
        num_views=config.views,
        size=config.size,
        spread=(config.arc, config.arc),
        assets=config.assets,
        zoom=0.0,
    )
    views = source[config.world]
    images = [tensor_to_image(view / 255) for view in views.pixels]
    write_capture(config.output, images, views.cameras, suffix=".jpg")
    print(f"wrote {config.output}: {config.views} photos")


if __name__ == "__main__":
    main(tyro.cli(Config))
