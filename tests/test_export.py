"""What is written reads back, in our reader and in the tools that it is written for."""

import json
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import random_lenses, random_poses, shared
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_diffusers import Cameras, load_scene, sample_capture, trajectories
from kaleido_diffusers.captures.export import strewn_points, write_capture, write_colmap, write_video


def random_cameras(num_views: int, seed: int = 0, spread: float = 1.0, size: tuple[int, int] = (9, 12)) -> Cameras:
    generator = torch.Generator().manual_seed(seed)
    lenses = random_lenses(num_views, generator=generator)
    lenses[:, 0] *= size[1]
    lenses[:, 1] *= size[0]
    return Cameras(random_poses(num_views, generator=generator, spread=spread), lenses, size)


def pictures(cameras: Cameras) -> list[PIL.Image.Image]:
    sizes = cameras.image_sizes.flip(-1).tolist()
    return [PIL.Image.effect_noise(size, 40).convert("RGB") for size in sizes]


def with_skew(cameras: Cameras) -> Cameras:
    intrinsics = cameras.intrinsics.clone()
    intrinsics[:, 0, 1] = 2.0
    return Cameras(cameras.world_from_camera, intrinsics, cameras.image_sizes)


def write(kind: str, folder: Path, images, cameras: Cameras, **options) -> Path:
    if kind == "colmap":
        pytest.importorskip("pycolmap")
    return {"json": write_capture, "colmap": write_colmap}[kind](folder, images, cameras, **options)


@pytest.mark.parametrize("kind", ["json", "colmap"])
def test_a_written_capture_reads_back(kind, tmp_path):
    scene = load_scene(sample_capture()).select(range(3))
    write(kind, tmp_path / "copy", scene.images, scene.cameras)
    again = load_scene(tmp_path / "copy")
    torch.testing.assert_close(again.cameras.world_from_camera, scene.cameras.world_from_camera, rtol=0, atol=1e-9)
    assert torch.equal(again.cameras.intrinsics, scene.cameras.intrinsics)
    assert np.array_equal(np.asarray(again.images[2]), np.asarray(scene.images[2]))


@pytest.mark.parametrize("kind", ["json", "colmap"])
def test_writers_refuse_before_they_write(kind, tmp_path):
    scene = load_scene(sample_capture()).select(range(3))
    images, cameras = list(scene.images), scene.cameras
    for bad, message in (
        ((images[:1], cameras), "equally many"),
        (([], cameras[:0]), "equally many"),
        ((images, cameras.resized(10, 10)), "its camera is for"),
        ((images, with_skew(cameras)), "skew"),
    ):
        with pytest.raises(ValueError, match=message):
            write(kind, tmp_path / "bad", *bad)
    with pytest.raises(ValueError, match="`suffix`"):
        write(kind, tmp_path / "bad", images, cameras, suffix=".tif")
    assert not (tmp_path / "bad").exists()

    (tmp_path / "photos" / "images").mkdir(parents=True)
    mine = tmp_path / "photos" / "images" / "0001.png"
    mine.write_bytes(b"a photo")
    with pytest.raises(FileExistsError, match="0001.png"):
        write(kind, tmp_path / "photos", images, cameras)
    assert mine.read_bytes() == b"a photo" and list((tmp_path / "photos").rglob("*.*")) == [mine]
    write(kind, tmp_path / "copy", images, cameras)
    with pytest.raises(FileExistsError):
        write(kind, tmp_path / "copy", images, cameras)


# transforms.json


def test_a_lens_stands_in_one_place_as_nerfstudio_wants_it(tmp_path):
    cameras = random_cameras(3)
    alike = Cameras(cameras.world_from_camera, cameras.intrinsics[0], cameras.image_sizes)
    keys = {"fl_x", "fl_y", "cx", "cy", "w", "h"}
    for name, some in (("many", cameras), ("one", alike)):
        data = json.loads(write_capture(tmp_path / name, pictures(some), some).read_text())
        in_frames = [keys & set(frame) for frame in data["frames"]]
        assert (keys & set(data), in_frames) in ((keys, [set()] * 3), (set(), [keys] * 3))
        assert ("fl_x" in data) == (name == "one")
        again = load_scene(tmp_path / name).cameras
        assert torch.equal(again.intrinsics, some.intrinsics) and torch.equal(again.image_sizes, some.image_sizes)
        for frame in data["frames"]:
            path = Path(frame["file_path"])
            assert not path.is_absolute() and path.suffix == ".png" and (tmp_path / name / path).is_file()


def test_generated_views_and_times_are_marked(tmp_path):
    cameras = random_cameras(3)
    times = torch.tensor([0.5, 0.1, 0.25], dtype=torch.float64)
    file = write_capture(
        tmp_path, pictures(cameras), cameras, suffix=".jpg", generated=[False, True, True], times=times
    )
    frames = json.loads(file.read_text())["frames"]
    assert ["generated" in frame for frame in frames] == [False, True, True]
    assert frames[1]["generated"] is True
    scene = load_scene(tmp_path)
    assert torch.equal(scene.times, times) and scene.image_paths[0].name == "0000.jpg"
    for argument in ({"generated": [True]}, {"times": times[:2]}):
        with pytest.raises(ValueError, match="one value for each of the 3 views"):
            write_capture(tmp_path / "other", pictures(cameras), cameras, **argument)


@settings(max_examples=30, deadline=None)
@given(size=st.floats(-5, 5), shift=st.floats(-1e3, 1e3), num_views=st.integers(1, 9))
def test_instant_ngp_finds_the_scene_in_its_box(tmp_path_factory, size, shift, num_views):
    """Its rule: place = scale * center + offset, inside a cube `aabb_scale` wide around (0.5, 0.5, 0.5)."""
    cameras = trajectories.orbit(load_scene(sample_capture()).cameras, num_views=num_views)
    poses = cameras.world_from_camera.clone()
    poses[:, :3, 3] = 10**size * poses[:, :3, 3] + shift
    cameras = Cameras(poses, cameras.intrinsics, cameras.image_sizes)
    folder = tmp_path_factory.mktemp("ngp")
    data = json.loads(write_capture(folder, pictures(cameras), cameras).read_text())
    centers = torch.tensor(
        [[row[3] for row in frame["transform_matrix"][:3]] for frame in data["frames"]], dtype=torch.float64
    )
    placed = data["scale"] * centers + torch.tensor(data["offset"], dtype=torch.float64)
    assert (placed - 0.5).norm(dim=-1).max() < 1.4 and data["aabb_scale"] == 32
    assert num_views < 3 or (placed - 0.5).norm(dim=-1).min() > 1.2


@pytest.mark.parametrize("name", ["fox", "chair", "skull"])
def test_real_captures_survive_the_writer(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scene = load_scene(shared(f"captures/{name}"), missing="skip").select([0, 3, 8])
    write_capture(tmp_path, scene.images, scene.cameras)
    again = load_scene(tmp_path)
    assert torch.equal(again.cameras.world_from_camera, scene.cameras.world_from_camera)
    assert torch.equal(again.cameras.intrinsics, scene.cameras.intrinsics)
    assert again.images[1].tobytes() == scene.images[1].tobytes()


# COLMAP


def as_pycolmap_sees_it(model: Path) -> tuple[torch.Tensor, torch.Tensor, list]:
    """camera_from_world `[V, 3, 4]`, intrinsics `[V, 3, 3]` and pycolmap's images, in the order of their names."""
    pycolmap = pytest.importorskip("pycolmap")
    images = sorted(pycolmap.Reconstruction(model).images.values(), key=lambda image: image.name)
    poses = torch.stack([torch.from_numpy(image.cam_from_world().matrix()) for image in images])
    return poses, torch.stack([torch.from_numpy(image.camera.calibration_matrix()) for image in images]), images


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), num_views=st.integers(1, 7), size=st.floats(-3, 3), binary=st.booleans())
def test_colmap_cameras_are_exact(tmp_path_factory, seed, num_views, size, binary):
    pycolmap = pytest.importorskip("pycolmap")
    cameras = random_cameras(num_views, seed, spread=10**size)
    points = 10**size * torch.randn(20, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    folder = tmp_path_factory.mktemp("colmap")
    model = write_colmap(folder, pictures(cameras), cameras, points, binary)
    poses, intrinsics, images = as_pycolmap_sees_it(model)
    unit = max(1.0, float(cameras.centers.abs().max()))
    torch.testing.assert_close(poses[..., :3], cameras.camera_from_world[:, :3, :3], rtol=0, atol=1e-9)
    torch.testing.assert_close(poses[..., 3], cameras.camera_from_world[:, :3, 3], rtol=0, atol=1e-12 * unit)
    assert torch.equal(intrinsics, cameras.intrinsics)
    reconstruction = pycolmap.Reconstruction(model)
    written = torch.tensor(np.stack([point.xyz for _, point in sorted(reconstruction.points3D.items())]))
    assert torch.equal(written, points)
    pixels, depths = cameras.project(points)
    for image, expected, depth in zip(images, pixels, depths):
        seen = depth > 0.01 * unit
        places = torch.tensor(image.cam_from_world() * points[seen].numpy())
        theirs = torch.from_numpy(image.camera.img_from_cam(places.numpy()).reshape(-1, 2))
        torch.testing.assert_close(theirs, expected[seen], rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("binary", [True, False])
def test_a_lens_is_one_colmap_camera(tmp_path, binary):
    pycolmap = pytest.importorskip("pycolmap")
    cameras = random_cameras(4)
    intrinsics = cameras.intrinsics[[0, 0, 1, 0]]
    cameras = Cameras(cameras.world_from_camera, intrinsics, cameras.image_sizes)
    model = write_colmap(tmp_path, pictures(cameras), cameras, torch.zeros(0, 3), binary=binary)
    reconstruction = pycolmap.Reconstruction(model)
    assert reconstruction.is_valid() and reconstruction.num_reg_images() == 4
    assert len(reconstruction.cameras) == 2 and not reconstruction.points3D
    assert {camera.model_name for camera in reconstruction.cameras.values()} == {"PINHOLE"}
    names = {image.name for image in reconstruction.images.values()}
    assert names == {path.name for path in (tmp_path / "images").iterdir()}
    kinds = {path.suffix for path in model.iterdir()}
    assert kinds == {".bin" if binary else ".txt"}
    assert {"cameras", "images", "points3D"} <= {path.stem for path in model.iterdir()}


def test_a_model_without_points_gets_some(tmp_path):
    """Trainers of 3D Gaussian Splatting do not run without any."""
    pycolmap = pytest.importorskip("pycolmap")
    poses = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    poses[:, 2, 3] = torch.tensor([-4.0, -4.0, 4.0])  # two look along z, side by side; the third comes towards them
    poses[1, 0, 3] = 0.5
    poses[2, :3, :3] = torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
    cameras = Cameras.from_fov(poses, 60.0, [24, 32])
    with pytest.warns(UserWarning, match="no sparse points: 10000 are strewn"):
        model = write_colmap(tmp_path, pictures(cameras), cameras)
    points = torch.tensor(np.stack([point.xyz for point in pycolmap.Reconstruction(model).points3D.values()]))
    assert points.shape == (10_000, 3) and len(points.unique(dim=0)) == 10_000
    pixels, depths = cameras.project(points.expand(3, -1, -1))
    inside = (pixels >= -1e-6) & (pixels <= torch.tensor([32, 24]) + 1e-6)
    seen = inside.all(-1) & (depths > 0)
    assert (seen.sum(0) >= 2).all() and seen.any(1).all()
    assert torch.equal(strewn_points(cameras), strewn_points(cameras))
    lone = strewn_points(cameras[:1], 50)
    assert lone.shape == (50, 3) and (cameras[0].project(lone)[1] > 0).all()


@pytest.mark.parametrize("name", ["kermit", "snowmiku", "sevenscenes"])
def test_real_captures_survive_the_colmap_writer(name, tmp_path):
    pytest.importorskip("pycolmap")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scene = load_scene(shared(f"captures/{name}")).select([0, 4, 7])
    write_colmap(tmp_path, scene.images, scene.cameras, scene.points, binary=False)
    again = load_scene(tmp_path)
    assert torch.equal(again.cameras.intrinsics, scene.cameras.intrinsics)
    assert again.images[1].tobytes() == scene.images[1].tobytes()
    torch.testing.assert_close(again.cameras.centers, scene.cameras.centers, rtol=0, atol=1e-9)
    torch.testing.assert_close(again.cameras.world_from_camera, scene.cameras.world_from_camera, rtol=0, atol=1e-9)
    if scene.points is not None:
        assert torch.equal(again.points.sort(dim=0).values, scene.points.sort(dim=0).values)


# Videos


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_videos_play_what_was_written(tmp_path, suffix):
    av = pytest.importorskip("av")
    colors = ["red", "lime", "blue", "white"]
    path = write_video(tmp_path / f"clip{suffix}", [PIL.Image.new("RGB", (33, 20), color) for color in colors], fps=4)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 4
    for frame, color in zip(frames, colors):
        expected = PIL.ImageColor.getrgb(color)
        assert np.abs(frame.reshape(-1, 3).mean(0) - expected).max() < 12


def test_videos_that_cannot_be(tmp_path):
    frames = [PIL.Image.new("RGB", (8, 8))]
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(tmp_path / "a.gif", [])
    with pytest.raises(ValueError, match="one size"):
        write_video(tmp_path / "a.gif", [*frames, PIL.Image.new("RGB", (8, 9))])
    with pytest.raises(ValueError, match="must end in"):
        write_video(tmp_path / "a.avi", frames)
