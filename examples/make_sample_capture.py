"""Makes the sample capture that ships with the package: one synthetic world, ray cast with exact cameras.

python examples/make_sample_capture.py --output kaleido_diffusers/captures/sample
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from kaleido_diffusers import Cameras
from kaleido_diffusers.captures.export import write_capture
from kaleido_diffusers.captures.images import tensor_to_image
from kaleido_diffusers.geometry.cameras import look_at
from kaleido_diffusers.worlds.synthetic import SHAPES, TEXTURES, Worlds, make_worlds, render


@dataclass
class Config:
    output: Path
    """Folder of the capture."""
    views: int = 40
    """Photos."""
    size: int = 192
    """Height and width in pixels."""
    seed: int = 0
    """Another seed photographs the same table from other places along the sweep."""


def sample_world() -> Worlds:
    """A ball, a ring, a cone and a box on a plain table under a blue sky."""
    world = make_worlds([0], level="scene", max_solids=1)
    solids = [  # shape, half extents, place, turn, texture, two colours, frequency
        ("box", (0.42, 0.42, 0.42), (-0.55, 0.45, 0.42), 0.5, "dots", (0.05, 0.16, 0.55), (0.9, 0.85, 0.3), 2.38),
        ("ellipsoid", (0.45, 0.45, 0.45), (0.6, 0.6, 0.45), 0.0, "checks", (0.75, 0.06, 0.05), (0.9, 0.9, 0.85), 3.0),
        ("cone", (0.5, 0.5, 0.5), (-0.45, -0.6, 0.5), 0.0, "stripes", (0.85, 0.35, 0.03), (0.98, 0.8, 0.4), 3.4),
        ("torus", (0.42, 0.42, 0.42), (0.62, -0.5, 0.17), 0.0, "checks", (0.02, 0.35, 0.3), (0.4, 0.85, 0.6), 3.2),
    ]
    world.shape.zero_()
    for index, (shape, size, place, turn, texture, first, second, frequency) in enumerate(solids):
        angle = torch.tensor(turn)
        world.shape[0, index] = SHAPES.index(shape)
        world.size[0, index] = torch.tensor(size)
        world.center[0, index] = torch.tensor(place)
        world.rotation[0, index] = torch.eye(3)
        world.rotation[0, index, :2, :2] = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
        world.texture[0, index] = TEXTURES.index(texture)
        world.colors[0, index] = torch.tensor([first, second])
        world.frequency[0, index] = frequency
        world.offset[0, index] = 0.0 if texture == "dots" else 0.25
    world.gloss[0] = 0.15
    world.texture[0, -1], world.frequency[0, -1], world.gloss[0, -1] = TEXTURES.index("checks"), 1.0, 0.0
    world.colors[0, -1] = torch.tensor([[0.42, 0.36, 0.3], [0.55, 0.5, 0.44]])
    world.offset[0, -1] = 0.0
    world.sky[0] = torch.tensor([[0.75, 0.85, 0.95], [0.25, 0.45, 0.8]])
    world.light[0] = torch.nn.functional.normalize(torch.tensor([0.5, -0.35, 0.9]), dim=0)
    world.ambient[0] = 0.35
    return world


def sample_cameras(config: Config) -> Cameras:
    """A sweep from one side of the table to the other, between 20 and 40 degrees up, that looks at its middle (give or
    take). Seed 0 walks as a hand would; the others jump about."""
    generator = torch.Generator().manual_seed(config.seed)
    wobble = torch.rand(4, config.views, generator=generator)
    turns = (torch.arange(config.views) + wobble[0]) / config.views
    azimuth = torch.deg2rad(-65 + 130 * turns)
    lift = wobble[1] if config.seed else 0.5 + 0.4 * torch.sin(9 * turns) + 0.1 * (wobble[1] - 0.5)
    elevation = torch.deg2rad(20 + 20 * lift)
    distance = 3.2 + 0.5 * (wobble[2] if config.seed else 0.5 + 0.4 * torch.cos(7 * turns))
    direction = torch.stack(
        [elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], dim=-1
    )
    aim = torch.tensor([0.0, 0.0, 0.3]) + 0.05 * torch.randn(config.views, 3, generator=generator)
    poses = look_at(aim + distance[:, None] * direction, aim, torch.tensor([0.0, 0.0, 1.0]))
    return Cameras.from_fov(poses, 46.0, torch.tensor([config.size, config.size]))


def main(config: Config) -> None:
    cameras = sample_cameras(config)
    world = sample_world()
    images = []
    for camera in cameras:
        poses, intrinsics = camera.world_from_camera[None, None], camera.normalized_intrinsics[None, None]
        image = render(world, poses, intrinsics, size=(config.size, config.size), samples=4)[0, 0]
        images.append(tensor_to_image(image))
    print(f"wrote {write_capture(config.output, images, cameras, suffix='.jpg')}")


if __name__ == "__main__":
    main(tyro.cli(Config))
