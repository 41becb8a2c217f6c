"""`transforms.json` and Blender's files: what is read is right, and what is wrong is named."""

import json
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_diffusers import Cameras, load_scene, sample_capture
from kaleido_diffusers.captures.export import write_capture
from kaleido_diffusers.captures.images import CaptureError, load_image


@pytest.fixture
def capture(tmp_path) -> Path:
    return Path(shutil.copytree(sample_capture(), tmp_path / "capture"))


def rewrite(capture: Path, change) -> Path:
    file = capture / "transforms.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    return capture


def test_the_sample_capture():
    scene = load_scene(sample_capture())
    assert len(scene) == 40 and scene.name == "sample"
    assert scene.images[0].size == (192, 192)
    assert scene.cameras.shape == (40,)
    part = scene.select([3, 1])
    assert part.image_paths == [scene.image_paths[3], scene.image_paths[1]]
    assert torch.equal(part.cameras.world_from_camera, scene.cameras.world_from_camera[[3, 1]])
    assert len(scene.images[2:5]) == 3 and len(scene.images[[0, 7]]) == 2
    size = sum(path.stat().st_size for path in Path(sample_capture()).rglob("*") if path.is_file())
    assert size < 3_000_000


def test_the_sample_capture_shows_what_its_cameras_see():
    """The red and white ball, whose centre is known, is red or white where its centre projects, unless hidden."""
    scene = load_scene(sample_capture())
    center = torch.tensor([[0.6, 0.6, 0.45]], dtype=torch.float64)
    pixels, depths = scene.cameras.project(center.expand(len(scene), 1, 3))
    seen = 0
    for image, pixel, depth in zip(scene.images, pixels[:, 0], depths[:, 0]):
        assert depth > 0
        red, green, blue = image.getpixel((int(pixel[0]), int(pixel[1])))
        seen += red > 90 and red >= green and red >= blue and (red > 2 * blue or min(red, green, blue) > 90)
    assert seen > 25


def test_flavours_of_intrinsics(capture):
    plain = load_scene(capture).cameras

    def angle(data):
        for frame in data["frames"]:
            focal, width = frame.pop("fl_x"), frame.pop("w")
            frame["camera_angle_x"] = 2 * float(np.arctan(width / 2 / focal))
            for key in ("fl_y", "cx", "cy", "h"):
                frame.pop(key)

    torch.testing.assert_close(load_scene(rewrite(capture, angle)).cameras.intrinsics, plain.intrinsics)

    def shared_lens(data):
        data.update(fl_x=200.0, w=192.0, h=192.0, cx=90.0)
        for frame in data["frames"]:
            frame.pop("camera_angle_x")
        data["frames"][5]["fl_x"] = 300.0

    cameras = load_scene(rewrite(capture, shared_lens)).cameras
    assert cameras.intrinsics[0, 0].tolist() == [200.0, 0.0, 90.0]
    assert cameras.intrinsics[5, 0, 0] == 300.0 and cameras.intrinsics[0, 1].tolist() == [0.0, 200.0, 96.0]

    lenses = []
    for model in ("OPENCV", "PINHOLE"):
        rewrite(capture, lambda data, model=model: data.update(camera_model=model, k1=0.05))
        lenses.append(load_scene(capture).cameras.intrinsics)
    assert torch.equal(*lenses) and not torch.equal(lenses[0], cameras.intrinsics), "whatever the model is called"


def test_times_and_names_without_extension(capture):
    def change(data):
        for number, frame in enumerate(data["frames"]):
            frame["time"] = number / 10
            frame["file_path"] = "./" + frame["file_path"].replace(".jpg", "").replace("/", "\\")

    scene = load_scene(rewrite(capture, change))
    assert scene.times[:3].tolist() == [0.0, 0.1, 0.2]
    assert scene.image_paths[0].name == "0000.jpg"


@pytest.mark.parametrize("orientation, turns", [(3, 2), (6, 3), (8, 1)])
def test_exif_rotation_rolls_the_camera(capture, orientation, turns):
    scene = load_scene(capture)
    path, original = scene.image_paths[0], scene.cameras[0]
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    scene.images[0].save(path, exif=exif, quality=95)
    turned = load_scene(capture)
    points = original.unproject(torch.tensor([[50.5, 60.5]]).double(), torch.ones(1).double())
    pixel = turned.cameras[0].project(points)[0][0].int().tolist()
    assert turned.images[0].getpixel(tuple(pixel)) == load_image(path, exif=False).getpixel((50, 60))
    torch.testing.assert_close(turned.cameras[0].world_from_camera, original.rolled(turns).world_from_camera)


def test_an_exif_rotation_that_the_json_knows_moves_the_image_alone(tmp_path):
    """width and height of the JSON are those of the upright photo: its intrinsics are too."""
    image = PIL.Image.new("RGB", (60, 40), "blue")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    cameras = Cameras.from_fov(torch.eye(4)[None], 50.0, [60, 40])
    write_capture(tmp_path / "c", [image.rotate(90, expand=True)], cameras, suffix=".png")
    image.save(tmp_path / "c" / "images" / "0000.png", exif=exif)
    scene = load_scene(tmp_path / "c")
    assert scene.images[0].size == (40, 60)
    torch.testing.assert_close(scene.cameras.world_from_camera, cameras.world_from_camera)
    exif[0x0112] = 5
    image.save(tmp_path / "c" / "images" / "0000.png", exif=exif)
    with pytest.raises(CaptureError, match="mirrors the photo"):
        load_scene(tmp_path / "c")


def set_first(key, value):
    return lambda data: data["frames"][0].__setitem__(key, value)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda data: data.pop("frames"), "`frames` must be a list"),
        (lambda data: data.update(frames=[]), "`frames` must be a list"),
        (lambda data: data.update(frames=[3]), "frame 0 must be an object"),
        (set_first("file_path", 7), "frame 0 must be an object with a `file_path`"),
        (set_first("file_path", "../../etc/passwd"), "leaves the folder"),
        (set_first("file_path", "/etc/passwd"), "leaves the folder"),
        (set_first("file_path", "a\0b"), "missing|not a path"),
        (set_first("file_path", "images/none.jpg"), "1 of 40 images are missing .images/none.jpg."),
        (set_first("transform_matrix", None), r"1 of 40 frames have no pose \(images/0000.jpg\)"),
        (set_first("transform_matrix", [[1, 2], [3, 4]]), "`transform_matrix` must be 4 x 4 numbers"),
        (set_first("transform_matrix", [[1, 2, 3, 4], [1]]), "`transform_matrix` must be 4 x 4"),
        (set_first("transform_matrix", [["a"] * 4] * 4), "`transform_matrix` must be 4 x 4"),
        (set_first("transform_matrix", [[10**400] * 4] * 4), "`transform_matrix` must be 4 x 4"),
        (set_first("mask_path", 3), "`mask_path` must be a name"),
        (set_first("mask_path", "../mask.png"), "leaves the folder"),
        (lambda data: data.update(train_filenames="all"), "`train_filenames` must be a list of names"),
        (set_first("transform_matrix", (2 * np.eye(4)).tolist()), "0000.jpg.*last row"),
        (set_first("transform_matrix", np.diag([1.0, 1, -1, 1]).tolist()), "0000.jpg.*reflection"),
        (set_first("transform_matrix", (np.eye(4) * float("nan")).tolist()), "0000.jpg.*NaN"),
        (set_first("fl_x", 0), "`fl_x` must be positive"),
        (set_first("fl_x", "long"), "`fl_x` must be a finite number, got 'long'"),
        (set_first("fl_x", True), "`fl_x` must be a finite number"),
        (set_first("fl_x", 10**400), "`fl_x` must be a finite number"),
        (set_first("cx", float("inf")), "`cx` must be a finite number"),
        (set_first("w", 100), "the image is 192 x 192 pixels, its camera is for 100 x 192"),
        (set_first("w", 191.5), "whole numbers"),
        (lambda data: data["frames"][0].pop("fl_x"), "neither `fl_x` nor `camera_angle_x`"),
        (lambda data: (data["frames"][0].pop("fl_x"), data.update(camera_angle_x=4.0)), "below pi"),
        (set_first("camera_model", "EQUIRECTANGULAR"), "'EQUIRECTANGULAR' is not supported"),
        (lambda data: data["frames"][0].update(is_fisheye=True, p1=0.1), "`p1` cannot be undone"),
        (set_first("k4", 0.1), "`k4`"),
        (set_first("distortion_params", [0.0, 0.1]), "`distortion_params`"),
        (lambda data: data["frames"][0].update(camera_model="OPENCV", k1=500.0), "folds the image"),
    ],
)
def test_captures_that_cannot_be(capture, change, message):
    with pytest.raises(CaptureError, match=message):
        load_scene(rewrite(capture, change))


def test_links_that_leave_the_folder(capture, tmp_path):
    image = capture / "images" / "0000.jpg"
    image.rename(tmp_path / "outside.jpg")
    image.symlink_to(tmp_path / "outside.jpg")
    with pytest.raises(CaptureError, match="leaves the folder"):
        load_scene(capture)


def test_missing_photos_are_listed_or_skipped(capture):
    for number in (0, 3):
        (capture / "images" / f"{number:04d}.jpg").unlink()
    with pytest.raises(CaptureError, match="2 of 40 images are missing .images/0000.jpg, images/0003.jpg."):
        load_scene(capture)
    with pytest.warns(UserWarning, match="skipped 2 of 40 frames"):
        scene = load_scene(capture, missing="skip")
    assert len(scene) == 38 and scene.image_paths[0].name == "0001.jpg"
    shutil.rmtree(capture / "images")
    with pytest.raises(CaptureError, match="none of the 40 images"):
        load_scene(capture, missing="skip")


def test_folders_that_are_no_capture(tmp_path):
    with pytest.raises(CaptureError, match="no such capture"):
        load_scene(tmp_path / "nowhere")
    with pytest.raises(CaptureError, match="Looked for: transforms.json"):
        load_scene(tmp_path)
    with pytest.raises(ValueError, match="`missing`"):
        load_scene(sample_capture(), missing="ignore")
    file = tmp_path / "transforms.json"
    for content, message in (
        (b"{", "not valid JSON"),
        (b"[]", "got a list"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ):
        file.write_bytes(content)
        with pytest.raises(CaptureError, match=message):
            load_scene(tmp_path)
    with open(file, "wb") as stream:
        stream.truncate(65_000_000)
    started = time.monotonic()
    with pytest.raises(CaptureError, match="65000000 bytes are more than"):
        load_scene(tmp_path)
    assert time.monotonic() - started < 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FRAME_KEYS = st.sampled_from(
    "file_path transform_matrix fl_x fl_y cx cy w h k1 k2 k4 p1 camera_model camera_angle_x is_fisheye time".split()
)


@settings(max_examples=150, deadline=None)
@given(changes=st.dictionaries(FRAME_KEYS, JSON, min_size=1, max_size=4), top=st.booleans())
def test_only_our_errors_come_out(tmp_path_factory, changes, top):
    folder = tmp_path_factory.mktemp("fuzzed")
    data = json.loads((Path(sample_capture()) / "transforms.json").read_text())
    data["frames"] = data["frames"][:1]
    (folder / "images").mkdir()
    shutil.copy(Path(sample_capture()) / "images" / "0000.jpg", folder / "images")
    (data if top else data["frames"][0]).update(changes)
    (folder / "transforms.json").write_text(json.dumps(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            scene = load_scene(folder)
            assert scene.images[0].mode == "RGB"
        except CaptureError as error:
            assert str(folder) in str(error)


def test_fox_as_the_world_ships_it(fox):
    with pytest.raises(CaptureError, match="17 of 67 images are missing"):
        load_scene(fox)
    with pytest.warns(UserWarning, match="skipped 17 of 67"):
        scene = load_scene(fox, missing="skip")
    assert len(scene) == 50
    assert scene.images[0].size == (1080, 1920)
    assert scene.cameras.image_sizes[0].tolist() == [1920, 1080]
    raw = json.loads((fox / "transforms.json").read_text())
    zoom = scene.cameras.intrinsics[0, 0, 0] / raw["fl_x"]
    assert 1.0 <= zoom < 1.03, "undistortion crops a little"
    assert scene.cameras.intrinsics[0, 0, 2] == raw["cx"], "the principal point stays off centre"
    assert scene.image_paths == sorted(scene.image_paths)


def test_fox_cameras_agree_with_its_colmap_points(fox):
    """The COLMAP model's points, brought into the frame of the JSON, land on the same fox: cameras that are alike in
    both models have alike relative poses."""
    folder = shared("captures/fox_colmap/sparse_txt/0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scene = load_scene(fox, missing="skip")
    poses = {}
    lines = [line for line in (folder / "images.txt").read_text().splitlines() if not line.startswith("#")]
    for line in lines[::2]:
        _, w, x, y, z, tx, ty, tz, _, name = line.split()
        w, x, y, z = (float(v) for v in (w, x, y, z))
        rotation = torch.tensor(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ],
            dtype=torch.float64,
        )
        translation = torch.tensor([float(tx), float(ty), float(tz)], dtype=torch.float64)
        poses[name] = (rotation, -rotation.T @ translation)
    names = [path.name for path in scene.image_paths]
    centers = torch.stack([poses[name][1] for name in names])
    ours = scene.cameras.centers
    spread = (centers - centers.mean(0)).norm() / (ours - ours.mean(0)).norm()
    u, _, v = torch.linalg.svd((ours - ours.mean(0)).T @ (centers - centers.mean(0)))
    rotation = (u @ torch.diag(torch.tensor([1.0, 1.0, torch.linalg.det(u @ v)]).double()) @ v).T
    aligned = spread * (ours - ours.mean(0)) @ rotation.T + centers.mean(0)
    extent = (centers.amax(0) - centers.amin(0)).norm()
    assert (aligned - centers).norm(dim=-1).median() / extent < 0.005
    relative = torch.stack([poses[name][0] for name in names]) @ rotation @ scene.cameras.world_from_camera[:, :3, :3]
    angles = torch.rad2deg(torch.acos(((relative.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(-1, 1)))
    assert angles.median() < 1.0
