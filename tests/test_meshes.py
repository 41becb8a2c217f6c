"""Worlds of meshes: what is seen lies where the cameras say, under the colours that the textures have."""

import math

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import SHARED

from kaleido_diffusers import Cameras
from kaleido_diffusers.captures.images import CaptureError
from kaleido_diffusers.cli import main
from kaleido_diffusers.geometry.cameras import look_at
from kaleido_diffusers.worlds.meshes import MeshSource, _mip_map, _part, _RayScene, _sample, is_mesh_folder
from kaleido_diffusers.worlds.sources import ShardSource


trimesh = pytest.importorskip("trimesh")
pytest.importorskip("embreex")

SKY = [np.full((1, 1, 3), 0.5, dtype=np.float32)]


@pytest.fixture(scope="module")
def meshes(tmp_path_factory):
    """Ten coloured boxes, written by trimesh."""
    folder = tmp_path_factory.mktemp("meshes")
    for number in range(10):
        box = trimesh.creation.box((1.0, 2.0, 0.5 + 0.1 * number))
        image = PIL.Image.new("RGB", (8, 8), (20 * number, 200, 40))
        material = trimesh.visual.material.PBRMaterial(baseColorTexture=image)
        box.visual = trimesh.visual.TextureVisuals(uv=np.zeros((len(box.vertices), 2)), material=material)
        box.export(folder / f"box_{number}.glb")
    return folder


def quad(corners: np.ndarray, image: PIL.Image.Image):
    faces, uv = np.array([[0, 1, 2], [0, 2, 3]]), np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=float)
    normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
    normals = np.tile(normal / np.linalg.norm(normal), (4, 1))
    return _part(corners, faces, normals, uv, _mip_map(image))


def test_a_texture_is_seen_where_the_camera_projects_it():
    image = PIL.Image.new("RGB", (64, 64))
    colors = {(0.25, 0.75): "red", (0.75, 0.75): "lime", (0.25, 0.25): "blue", (0.75, 0.25): "white"}
    for (u, v), color in colors.items():
        image.paste(color, (int((u - 0.25) * 64), int((0.75 - v) * 64), int((u + 0.25) * 64), int((1.25 - v) * 64)))
    corners = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    scene = _RayScene([quad(corners, image)], SKY, np.array([0.0, 0.0, 1.0]), 0.5)
    eye = torch.tensor([1.0, -1.5, 2.5], dtype=torch.float64)
    pose = look_at(eye, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    view, size, focal = scene.render(pose.numpy(), 0.9, 48, 3), 48, 0.9
    lens = torch.tensor([[focal * size, 0, size / 2], [0, focal * size, size / 2], [0, 0, 1]], dtype=torch.float64)
    camera = Cameras(pose, lens, [size, size])
    for (u, v), color in colors.items():
        pixel, depth = camera.project(torch.tensor([[2 * u - 1, 2 * v - 1, 0.0]], dtype=torch.float64))
        x, y = pixel[0].floor().int().tolist()
        seen, expected = view[:, y, x] / 255, np.array(PIL.ImageColor.getrgb(color)) / 255
        assert depth.item() > 0 and np.abs(seen - expected).max() < 0.12, color
    assert np.abs(view[:, 0, 0] / 255 - 0.735).max() < 0.01, "the corner shows the sky"


def test_what_stands_in_the_light_throws_a_shadow():
    ground = quad(np.array([[-5.0, -5, 0], [5, -5, 0], [5, 5, 0], [-5, 5, 0]]), PIL.Image.new("RGB", (4, 4), "white"))
    roof = quad(np.array([[-1.0, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]]), PIL.Image.new("RGB", (4, 4), "white"))
    light = np.array([1.0, 0.0, 1.0]) / math.sqrt(2)  # the shadow falls towards -x
    up = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    pose = look_at(torch.tensor([0.0, 0, 10], dtype=torch.float64), torch.zeros(3, dtype=torch.float64), up).numpy()
    lit = _RayScene([ground], SKY, light, 0.4).render(pose, 1.0, 50, 1).astype(float)
    view = _RayScene([ground, roof], SKY, light, 0.4).render(pose, 1.0, 50, 1).astype(float)
    darker = np.argwhere((lit - view).mean(0) > 40)
    assert len(darker) > 20
    columns = (darker[:, 1] + 0.5) / 50 - 0.5  # x of the ground, over the distance of 10
    assert columns.min() * 10 > -2.3 and columns.max() * 10 < -0.8


def test_look_ups_repeat_and_choose_the_level():
    generator = np.random.default_rng(0)
    image = PIL.Image.fromarray(generator.integers(0, 255, (16, 32, 3), dtype=np.uint8))
    levels = _mip_map(image)
    assert [level.shape[:2] for level in levels] == [(16, 32), (8, 16), (4, 8), (2, 4), (1, 2)]
    row, column = 3, 20
    uv = np.array([[(column + 0.5) / 32 + 2, 1 - (row + 0.5) / 16 - 1]])
    np.testing.assert_allclose(_sample(levels, uv, np.array([1.0]))[0], levels[0][row, column], rtol=1e-5)
    coarse = _sample(levels, np.array([[(2 + 0.5) / 8, 1 - (1 + 0.5) / 4]]), np.array([4.0]))[0]
    np.testing.assert_allclose(coarse, levels[0][4:8, 8:12].mean((0, 1)), rtol=1e-5)


def test_worlds_follow_from_their_seed_and_test_meshes_are_kept_apart(meshes):
    first, again = (MeshSource(meshes, num_scenes=3, num_views=2, size=16) for _ in range(2))
    sample = first[1]
    assert sample.pixels.shape == (2, 3, 16, 16) and sample.pixels.dtype == torch.uint8
    assert torch.equal(sample.pixels, again[1].pixels) and torch.equal(sample.poses, again[1].poses)
    assert not torch.equal(sample.pixels, first[2].pixels)
    names = {split: {path.stem for path in MeshSource(meshes, split=split).files} for split in ("train", "test")}
    assert names["test"] == {"box_4"} and not names["train"] & names["test"]
    with pytest.raises(IndexError):
        first[3]


def test_meshes_of_one_name_are_split_by_their_folders(meshes, tmp_path):
    for number in (7, 2, 9, 0, 4, 1, 8, 3, 6, 5):
        (tmp_path / f"scan{number}").mkdir()
        (tmp_path / f"scan{number}" / "model.glb").write_bytes((meshes / "box_0.glb").read_bytes())
    assert [path.parent.name for path in MeshSource(tmp_path, split="test").files] == ["scan4"]
    (tmp_path / "transforms.json").write_text("{}")
    assert not is_mesh_folder(tmp_path), "a capture that a mesh lies in"


def test_shards_of_meshes(meshes, tmp_path, capsys):
    words = f"shard --data {meshes} --scenes 2 --views 3 --size 16 --output {tmp_path}"
    assert main(words.split()) == 0
    source = ShardSource(tmp_path)
    assert len(source) == 2 and source[0].pixels.shape == (3, 3, 16, 16) and source[0].poses.shape == (3, 4, 4)


def test_folders_without_meshes_and_damaged_files_are_named(tmp_path):
    assert not is_mesh_folder(tmp_path)
    with pytest.raises(CaptureError, match="holds no meshes"):
        MeshSource(tmp_path)
    (tmp_path / "broken.glb").write_bytes(b"glTF nonsense")
    with pytest.raises(CaptureError, match="broken.glb: cannot be read as a mesh"):
        MeshSource(tmp_path)[0]


@pytest.mark.skipif(not (SHARED / "meshes").exists(), reason="the shared meshes are not here")
def test_the_scans_stand_upright_on_the_ground():
    source = MeshSource(SHARED / "meshes", SHARED / "textures", num_scenes=1, num_views=2, size=24)
    assert len(source.files) == 78 and len(MeshSource(SHARED / "meshes", split="test").files) == 10
    cup = next(path for path in source.files if path.stem == "blue_cup")
    (part,) = source._load(cup)
    size = np.ptp(part.vertices, axis=0)
    np.testing.assert_allclose(size, [0.105, 0.0797, 0.0662], atol=1e-3)
    assert part.levels[0].shape[:2] == (512, 512) and source[0].pixels.float().std() > 10
