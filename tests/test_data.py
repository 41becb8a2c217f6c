"""Captures and images: what is read is right, and what is wrong is named."""

import math
import struct
import time
import zlib
from itertools import product

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import blobs, found

from kaleido_diffusers import Cameras, load_scene, sample_capture
from kaleido_diffusers.captures import images as image_module
from kaleido_diffusers.captures.images import (
    CaptureError,
    as_image_tensor,
    crop_and_resize,
    fit_cameras,
    fit_views,
    load_image,
    to_rgb,
)
from kaleido_diffusers.evaluation.baselines import nearest_reference
from kaleido_diffusers.evaluation.metrics import psnr
from kaleido_diffusers.geometry.cameras import look_at
from kaleido_diffusers.geometry.choosing import (
    choose_references,
    coverage,
    held_out_views,
    reference_order,
    split_views,
)
from kaleido_diffusers.geometry.trajectories import looking_distances


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


# Choosing views


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


def test_references_that_see_the_targets():
    scene = load_scene(sample_capture())
    targets = held_out_views(len(scene))
    rest = [view for view in range(len(scene)) if view not in targets]
    for target in targets:
        (one,) = choose_references(scene.cameras, 1, rest, scene.cameras[[target]])
        assert abs(one - target) <= 3, "a neighbour on the sweep"
    order = reference_order(scene.cameras, 6, rest, scene.cameras[targets])
    assert order[:3] == reference_order(scene.cameras, 3, rest, scene.cameras[targets]), "the first are a choice too"
    scores = []
    for chosen in (order, reference_order(scene.cameras, 6, rest)):
        images, cameras = scene.fitted(chosen, 48, 48)
        truth, wanted = scene.fitted(targets, 48, 48)
        scores.append(float(psnr(nearest_reference(images, cameras, wanted), truth).mean()))
    assert scores[0] > scores[1] + 0.5, "they tell more of the targets than references that are spread out"


def test_the_next_reference_adds_what_is_not_yet_covered():
    """Two of three targets lie where the first two candidates look, the third where the last does: the last comes
    second, though the one beside the first sees more."""

    def looking_ahead(places: list[float]) -> Cameras:
        poses = torch.eye(4, dtype=torch.float64).repeat(len(places), 1, 1)
        poses[:, 0, 3] = torch.tensor(places)
        return Cameras.from_fov(poses, 40.0, [16, 16])

    candidates, targets = looking_ahead([0.1, 0.0, 50.0]), looking_ahead([0.0, 0.0, 50.0])
    assert reference_order(candidates, 3, range(3), targets) == [1, 2, 0]
    assert choose_references(candidates, 2, range(3), targets) == [1, 2]
    seen = coverage(candidates, targets).sum(-1)
    assert seen[1] > seen[0] > seen[2]


def test_splits_never_share_views():
    views = list(range(20))
    cases = [None, {"train": views[:12]}, {"train": views[:12], "val": views[12:]}, {"val": [3, 4]}]
    cases += [{"test": [1, 2]}, {"train": views, "test": [1, 2]}, {"train": views}]
    for splits in cases:
        test, train = (split_views(20, splits, split) for split in ("test", "train"))
        assert test and train and not set(test) & set(train), splits
        assert not set(split_views(20, splits, "validation")) & set(train), splits
    assert split_views(20, {"train": views[:12], "val": views[12:]}, "test") == views[12:]
    assert split_views(20, {"train": [0, 1], "test": []}, "test") == [], "what is named and not there stays empty"
    assert split_views(20, {"test": [3]}, "test", every=10) == [0, 10]
    numbered = {"train_3": [1, 2, 3], "test_3": [9], "test": [4]}
    assert (split_views(20, numbered, "test", number="3"), split_views(20, numbered, "train", number="3")) == (
        [9],
        [1, 2, 3],
    )
    with pytest.raises(ValueError, match="no split '6'; it has 3"):
        split_views(20, numbered, "test", number="6")
    with pytest.raises(ValueError, match="give one"):
        split_views(20, numbered, "test", every=8, number="3")


def test_where_nothing_is_seen_references_spread():
    poses = torch.eye(4, dtype=torch.float64).repeat(10, 1, 1)
    poses[:, 0, 3] = torch.arange(10)
    cameras = Cameras.from_fov(poses, 40.0, [8, 8])
    behind = Cameras.from_fov(
        look_at(torch.tensor([[0.0, 0, -99]]), torch.tensor([[0.0, 0, -200]]), torch.tensor([0.0, -1, 0])).double(),
        40.0,
        [8, 8],
    )
    assert {0, 9} <= set(choose_references(cameras, 3, range(10), behind))


def test_coverage_falls_with_angle_distance_and_the_border():
    poses = torch.eye(4, dtype=torch.float64).repeat(5, 1, 1)
    poses[:, 2, 3] = -4
    poses[1, 0, 3] = 1.0  # beside, looking ahead
    poses[2, 2, 3] = -8  # behind
    poses[3, :3, :3] = torch.diag(torch.tensor([-1.0, 1, -1]))  # looking away
    poses[4] = look_at(torch.tensor([3.0, 0, -3]), torch.zeros(3), torch.tensor([0.0, -1, 0]))
    cameras = Cameras.from_fov(poses.double(), 50.0, [32, 32])
    same, beside, behind, away, aslant = coverage(cameras, cameras[:1]).mean(-1).tolist()
    assert same == pytest.approx(1.0, abs=1e-3) and away == 0.0
    assert 0 < beside < same and 0 < behind < same and 0 < aslant < same
    assert not torch.equal(coverage(cameras.resized(64, 64), cameras[:1]), coverage(cameras, cameras[:1]))


def test_coverage_equals_the_slow_twin():
    """Points of a 6 x 6 grid at five depths, seen from four cameras that look the same way; wide pictures."""
    height, width, places = 16, 32, [(0.0, 0.0, 0.0), (1.0, 0.4, 0.2), (0.1, 0.2, 1.6), (0.0, 0.0, -1.0)]
    poses = torch.eye(4, dtype=torch.float64).repeat(4, 1, 1)
    poses[:, :3, 3] = torch.tensor(places, dtype=torch.float64)
    cameras = Cameras.from_fov(poses, 60.0, [height, width])
    focal = 16 / math.tan(math.radians(30))  # in pixels
    middle = float(looking_distances(cameras, cameras[:1]))
    expected = []
    for place in places:
        values = []
        for depth in (0.5 * middle, 0.75 * middle, middle, 1.4 * middle, 2 * middle):
            for row, column in product(range(6), range(6)):
                x = ((column + 0.5) / 6 * width - 16) / focal * depth
                y = ((row + 0.5) / 6 * height - 8) / focal * depth
                own, ray = (x, y, depth), (x - place[0], y - place[1], depth - place[2])
                pixel = [focal * ray[0] / ray[2] + 16, focal * ray[1] / ray[2] + 8]
                if ray[2] <= 0 or not (0 <= pixel[0] <= width and 0 <= pixel[1] <= height):
                    values.append(0.0)
                    continue
                cosine = sum(a * b for a, b in zip(own, ray)) / math.hypot(*own) / math.hypot(*ray)
                angle = math.degrees(math.acos(min(1.0, cosine)))
                values.append(math.exp(-angle / 30) * min(1.0, math.hypot(*own) / math.hypot(*ray)))
        expected.append(sorted(values))
    seen = coverage(cameras, cameras[:1]).sort(-1).values
    torch.testing.assert_close(seen, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)
    assert (seen[1] == 0).any() and (seen[1] > 0).any(), "some points lie outside the picture"


def test_splits_by_what_the_files_name():
    views = list(range(20))
    files = {"train": views[:10], "val": [10, 11]}
    assert split_views(20, files, "test") == views[12:] and split_views(20, files, "validation") == [10, 11]
    assert split_views(20, files, "train") == views[:10]
    assert split_views(20, {"train": views[:12]}, "test") == views[12:], "what training does not name"
    assert split_views(20, {"test": [1, 2], "val": [5]}, "validation") == [5]
    assert split_views(20, {"test": [1, 2], "val": [5]}, "train") == [0, 3, 4, *views[6:]]
    assert split_views(20, {"val": [3, 4]}, "test") == [3, 4]
    assert split_views(20, None, "test") == split_views(20, None, "validation") == [0, 8, 16]
    assert held_out_views(3, every=1) == [0, 1, 2]
