"""Captures and images: what is read is right, and what is wrong is named."""

import json
import shutil
import struct
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_diffusers import Cameras, load_scene, sample_capture
from kaleido_diffusers.data import images as image_module
from kaleido_diffusers.data.export import write_capture, write_video
from kaleido_diffusers.data.images import (
    CaptureError,
    as_image_tensor,
    crop_and_resize,
    fit_cameras,
    fit_views,
    load_image,
    to_rgb,
    undistort,
)
from kaleido_diffusers.data.view_sampling import choose_references, held_out_views


def blobs(cameras: Cameras, points: torch.Tensor, radius: float = 3.0) -> torch.Tensor:
    """Images `[V, 3, H, W]` of soft white dots at world points `[P, 3]`, drawn where the cameras project them."""
    height, width = cameras.image_sizes[0].tolist()
    pixels, _ = cameras.project(points.expand(len(cameras), -1, 3))
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    grid = torch.stack([x, y], dim=-1)
    square = (grid[None, :, :, None] - pixels[:, None, None]).square().sum(-1)
    return torch.exp(-square / (2 * radius**2)).amax(-1)[:, None].expand(-1, 3, -1, -1).float()


def found(image: torch.Tensor, near: torch.Tensor, reach: float) -> torch.Tensor:
    """Centre of light around a pixel."""
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    weight = image[0] * ((x - near[0]).square() + (y - near[1]).square() < reach**2)
    return torch.stack([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


def one_camera(height: int = 90, width: int = 120) -> Cameras:
    intrinsics = torch.tensor([[130.0, 0.0, 58.0], [0.0, 128.0, 47.0], [0.0, 0.0, 1.0]])
    return Cameras(torch.eye(4)[None], intrinsics, [height, width])


POINTS = torch.tensor([[0.0, 0.0, 2.0], [0.5, 0.3, 2.0], [-0.5, -0.35, 2.1], [0.4, -0.4, 2.4]])


@pytest.mark.parametrize(
    "box, size",
    [
        ((10, 20, 60, 80), (60, 80)),
        ((0, 0, 90, 120), (45, 60)),
        ((5, 30, 80, 80), (40, 64)),
        ((-10, -6, 110, 130), (55, 65)),
    ],
)
def test_crops_and_resizes_keep_points_under_their_pixels(box, size):
    cameras = one_camera()
    images, moved = crop_and_resize(blobs(cameras, POINTS), cameras, box, size)
    assert images.shape == (1, 3, *size) and moved.image_sizes.tolist() == [list(size)]
    pixels, _ = moved.project(POINTS[None].double())
    for pixel in pixels[0].float():
        reach = 12 * size[0] / box[2]
        if min(pixel[0], pixel[1], size[1] - pixel[0], size[0] - pixel[1]) > reach:
            assert (found(images[0], pixel, reach) - pixel).norm() < 0.1


def test_fitting_is_a_centred_crop():
    cameras = one_camera()
    images, moved = fit_views(blobs(cameras, POINTS), cameras, 64, 64)
    assert images.shape == (1, 3, 64, 64)
    again = fit_cameras(cameras, 64, 64)
    torch.testing.assert_close(again.intrinsics, moved.intrinsics)
    direct = cameras.cropped(0, 15, 90, 90).resized(64, 64)
    torch.testing.assert_close(direct.intrinsics, moved.intrinsics)
    pixels, _ = moved.project(POINTS[None].double())
    assert (found(images[0], pixels[0, 1].float(), 8) - pixels[0, 1]).norm() < 0.1


DISTORTIONS = [
    {"k1": 0.06, "k2": -0.08, "p1": -0.001, "p2": 0.002},
    {"k1": -0.25, "k2": 0.05, "k3": 0.01, "p1": 0.003, "p2": -0.002},
]


@pytest.mark.parametrize("distortion", DISTORTIONS)
def test_undistorted_photos_show_points_where_the_camera_projects_them(distortion):
    """The photo is drawn with OpenCV's formula, written out here once more."""
    cameras = one_camera()
    x, y = POINTS[:, 0] / POINTS[:, 2], POINTS[:, 1] / POINTS[:, 2]
    k1, k2, k3, p1, p2 = (distortion.get(name, 0.0) for name in ("k1", "k2", "k3", "p1", "p2"))
    r2 = x * x + y * y
    bend = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    xd = x * bend + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    yd = y * bend + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    photo = blobs(cameras, torch.stack([2 * xd, 2 * yd, torch.full_like(xd, 2.0)], dim=-1))[0]
    straight, camera = undistort(photo, cameras[0], distortion)
    assert straight.shape == photo.shape
    pixels, _ = camera.project(POINTS.double())
    moved = 0.0
    for pixel, raw in zip(pixels.float(), cameras[0].project(POINTS.double())[0]):
        moved = max(moved, (found(photo, pixel, 10) - raw).norm().item())
        assert (found(straight, pixel, 10) - pixel).norm() < 0.15
    assert moved > 0.2, "the distortion is visible"
    bright, _ = undistort(torch.ones_like(photo), cameras[0], distortion)
    assert bright.min() > 0.999, "no pixel of the result lies outside the photo"


@pytest.mark.parametrize("k1", [-3.0, 5000.0])
def test_distortion_that_folds_the_image_is_refused(k1):
    with pytest.raises(CaptureError, match="folds the image"):
        undistort(torch.ones(3, 90, 120), one_camera()[0], {"k1": k1})


# Images


@pytest.mark.parametrize(
    "mode, value, expected",
    [
        ("L", 128, (128,) * 3),
        ("LA", (10, 0), (255, 0, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 0, 204)),
        ("P", 0, None),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 257 * 77, (77, 77, 77)),
    ],
)
def test_every_mode_becomes_rgb(mode, value, expected):
    if mode == "I;16":
        image = PIL.Image.fromarray(np.full((4, 4), value, dtype=np.uint16))
    else:
        image = PIL.Image.new(mode, (4, 4), value)
    result = to_rgb(image, background=(255, 0, 255))
    assert result.mode == "RGB"
    if expected:
        assert result.getpixel((1, 1)) == expected


def test_sixteen_bit_files_keep_their_range(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    PIL.Image.fromarray(ramp).save(tmp_path / "deep.png")
    values = as_image_tensor(tmp_path / "deep.png")[0]
    torch.testing.assert_close(values, torch.linspace(0, 1, 256).reshape(16, 16), atol=0.003, rtol=0)


def test_exif_rotation_is_applied(tmp_path):
    image = PIL.Image.new("RGB", (6, 4))
    image.putpixel((0, 0), (255, 0, 0))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    assert load_image(tmp_path / "turned.png").size == (4, 6)
    assert as_image_tensor(tmp_path / "turned.png")[:, 0, 3].tolist() == [1, 0, 0]
    assert as_image_tensor(PIL.Image.open(tmp_path / "turned.png")).shape == (3, 6, 4)


def huge_png(width: int, height: int) -> bytes:
    """A well-formed PNG that promises far more pixels than it holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_hostile_images_end_in_one_error(tmp_path):
    bomb, cut, text = tmp_path / "bomb.png", tmp_path / "cut.jpg", tmp_path / "text.jpg"
    bomb.write_bytes(huge_png(100_000, 100_000))
    PIL.Image.effect_noise((64, 64), 50).save(cut)
    cut.write_bytes(cut.read_bytes()[:-400])
    text.write_text("not an image")
    messages = {bomb: "larger than", cut: "damaged or cut short", text: "not an image", tmp_path: "not an image"}
    for path, message in messages.items():
        started = time.monotonic()
        with pytest.raises(CaptureError, match=message) as error:
            load_image(path)
        assert str(path) in str(error.value)
        assert time.monotonic() - started < 1


def test_our_own_limit_of_pixels(tmp_path, monkeypatch):
    PIL.Image.new("L", (40, 40)).save(tmp_path / "large.png")
    monkeypatch.setattr(image_module, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(CaptureError, match="40 x 40 pixels are more than the 1000"):
        load_image(tmp_path / "large.png")


# transforms.json


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


def test_a_written_capture_reads_back(tmp_path):
    scene = load_scene(sample_capture()).select(range(3))
    write_capture(tmp_path / "copy", list(scene.images), scene.cameras)
    again = load_scene(tmp_path / "copy")
    torch.testing.assert_close(again.cameras.world_from_camera, scene.cameras.world_from_camera, rtol=0, atol=1e-12)
    torch.testing.assert_close(again.cameras.intrinsics, scene.cameras.intrinsics, rtol=0, atol=1e-9)
    assert np.array_equal(np.asarray(again.images[2]), np.asarray(scene.images[2]))
    with pytest.raises(FileExistsError):
        write_capture(tmp_path / "copy", list(scene.images), scene.cameras)
    with pytest.raises(ValueError, match="equally many"):
        write_capture(tmp_path / "other", list(scene.images)[:1], scene.cameras)
    with pytest.raises(ValueError, match="its camera is for"):
        write_capture(tmp_path / "third", list(scene.images), scene.cameras.resized(10, 10))
    intrinsics = scene.cameras.intrinsics.clone()
    intrinsics[:, 0, 1] = 2.0
    skewed = Cameras(scene.cameras.world_from_camera, intrinsics, scene.cameras.image_sizes)
    with pytest.raises(ValueError, match="skew"):
        write_capture(tmp_path / "third", list(scene.images), skewed)
    assert not (tmp_path / "third").exists()
    (tmp_path / "photos" / "images").mkdir(parents=True)
    mine = tmp_path / "photos" / "images" / "0001.png"
    mine.write_bytes(b"a photo")
    with pytest.raises(FileExistsError, match="0001.png"):
        write_capture(tmp_path / "photos", list(scene.images), scene.cameras)
    assert mine.read_bytes() == b"a photo" and len(list(mine.parent.iterdir())) == 1


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
        (set_first("transform_matrix", None), "`transform_matrix` must be 4 x 4"),
        (set_first("transform_matrix", [[1, 2], [3, 4]]), "`transform_matrix` must be 4 x 4, got shape"),
        (set_first("transform_matrix", [[1, 2, 3, 4], [1]]), "`transform_matrix` must be 4 x 4"),
        (set_first("transform_matrix", [["a"] * 4] * 4), "`transform_matrix` must be 4 x 4"),
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
        (set_first("camera_model", "OPENCV_FISHEYE"), "'OPENCV_FISHEYE' is not supported"),
        (set_first("is_fisheye", True), "'fisheye' is not supported"),
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


# Choosing views, writing videos


def test_choosing_views():
    scene = load_scene(sample_capture())
    held = held_out_views(len(scene))
    assert held == [0, 8, 16, 24, 32]
    candidates = [view for view in range(len(scene)) if view not in held]
    chosen = choose_references(scene.cameras, 6, candidates)
    assert len(set(chosen)) == 6 and set(chosen) <= set(candidates) and chosen == sorted(chosen)
    gaps = torch.cdist(scene.cameras.centers[chosen], scene.cameras.centers[chosen]) + 9 * torch.eye(6)
    assert gaps.min() > 0.5, "they spread along the sweep"
    with pytest.raises(ValueError, match="between 1 and 35"):
        choose_references(scene.cameras, 36, candidates)
    with pytest.raises(ValueError, match="`every`"):
        held_out_views(5, every=0)


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
