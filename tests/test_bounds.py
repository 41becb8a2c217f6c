"""What is too large, too far or not a number is refused where it comes in, and memory stays bounded."""

import subprocess
import sys
import textwrap

import PIL.Image
import pytest
import torch
from conftest import make_pipeline
from test_pipeline import generate, make_inputs

from kaleido_diffusers import Cameras, load_scene
from kaleido_diffusers.captures import images as captured
from kaleido_diffusers.captures.export import write_colmap
from kaleido_diffusers.captures.images import as_image_tensor, fit_image, fit_views
from kaleido_diffusers.geometry.cameras import scene_frame


def test_focal_lengths_and_worlds_out_of_all_measure_are_refused():
    cameras = make_inputs()[1]
    lens = cameras.intrinsics.clone()
    lens[0, 0, 0] = 1e308
    with pytest.raises(ValueError, match="focal lengths of at most 1e\\+06 image widths, got 1e\\+308"):
        Cameras(cameras.world_from_camera, lens, cameras.image_sizes)
    poses = cameras.world_from_camera.clone()
    poses[2, :3, 3] *= 1e300
    with pytest.raises(ValueError, match="number 2 stands more than 1e\\+15 units from the origin") as error:
        Cameras(poses, cameras.intrinsics, cameras.image_sizes)
    assert len(str(error.value)) < 500


def test_views_that_came_out_as_nan_are_an_error():
    pipe = make_pipeline()
    with torch.no_grad():
        pipe.transformer.proj_out.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="came out as NaN"):
        generate(pipe, *make_inputs())


@pytest.mark.parametrize("count", [1025, 3000])
def test_the_unit_of_many_cameras_is_that_of_all_pairs(count):
    generator = torch.Generator().manual_seed(0)
    poses = torch.eye(4, dtype=torch.float64).repeat(2, count, 1, 1)
    poses[..., :3, 3] = torch.randn(2, count, 3, generator=generator, dtype=torch.float64) * torch.tensor([5, 1, 0.1])
    unit = torch.cdist(poses[..., :3, 3], poses[..., :3, 3]).amax((-2, -1))
    torch.testing.assert_close(scene_frame(poses, 0).scale, unit, rtol=1e-9, atol=0)


def peak_megabytes(code: str, *arguments: str) -> float:
    """Memory that a process of its own takes beyond what it takes to import."""
    tail = "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before)"
    head = "import resource, sys, torch, PIL.Image\nfrom kaleido_diffusers.captures.images import *\n"
    head += "from kaleido_diffusers.geometry.cameras import *\n"
    head += "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
    command = [sys.executable, "-c", head + textwrap.dedent(code) + tail, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return float(result.stdout.split()[-1])


def test_many_cameras_take_little_memory():
    code = """
    poses = torch.eye(4, dtype=torch.float64).repeat(8000, 1, 1)
    poses[:, :3, 3] = torch.randn(8000, 3, dtype=torch.float64)
    scene_frame(poses, 0)
    """
    assert peak_megabytes(code) < 300


def test_a_large_photo_is_reduced_while_it_is_whole_numbers(tmp_path):
    PIL.Image.new("RGB", (8000, 8000), (10, 200, 30)).save(tmp_path / "large.png")
    code = """
    view = fit_image(load_image(sys.argv[1]), 64, 64)
    assert view.shape == (3, 64, 64) and abs(view[1].mean().item() - 200 / 255) < 1e-3
    """
    assert peak_megabytes(code, str(tmp_path / "large.png")) < 900  # 64 million pixels: 256 MB, as PIL keeps them


def test_a_reduced_photo_is_the_same_view(monkeypatch):
    x = torch.linspace(0, 12, 400)
    waves = torch.stack([x.sin() * y.cos() * 0.5 + 0.5 for y in torch.linspace(0, 9, 301)]).expand(3, -1, -1)
    photo = captured.tensor_to_image(waves)
    whole = fit_views(as_image_tensor(photo), None, 16, 24)[0]
    assert torch.equal(fit_image(photo, 16, 24), whole)
    monkeypatch.setattr(captured, "REDUCED_PIXELS", 100_000)
    reduced = fit_image(photo, 16, 24)
    assert not torch.equal(reduced, whole)
    torch.testing.assert_close(reduced, whole, atol=0.02, rtol=0)


def test_a_capture_in_a_folder_called_colmap_has_its_own_photos(tmp_path):
    pytest.importorskip("pycolmap")
    cameras = Cameras.from_fov(torch.eye(4).repeat(3, 1, 1), 60.0, [16, 16])
    for folder, colour in ((tmp_path / "colmap", "red"), (tmp_path, "blue")):
        write_colmap(folder, [PIL.Image.new("RGB", (16, 16), colour)] * 3, cameras)
    assert load_scene(tmp_path / "colmap").images[0].getpixel((0, 0)) == (255, 0, 0)
    assert load_scene(tmp_path).images[0].getpixel((0, 0)) == (0, 0, 255)
