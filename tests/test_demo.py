"""The app without a browser: what it takes, what it refuses, and many visitors at once."""

import gc
import http.client
import io
import json
import math
import re
import stat
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from demo_server import PATIENCE, demo_server

from kaleido_diffusers import (
    Cameras,
    KaleidoReferenceCache,
    KaleidoViewSynthesisPipeline,
    load_scene,
    sample_capture,
    trajectories,
)
from kaleido_diffusers.bundled import resolve_checkpoint
from kaleido_diffusers.captures.export import write_colmap
from kaleido_diffusers.captures.pictures import frustum_corners, upright_axes
from kaleido_diffusers.demo import examples
from kaleido_diffusers.demo.app import DemoApp
from kaleido_diffusers.demo.captures import SAMPLES, Capture, load_sample
from kaleido_diffusers.demo.downloads import write_files
from kaleido_diffusers.demo.examples import example_result, example_wish, write_example
from kaleido_diffusers.demo.limits import Limits, Stopped, in_background
from kaleido_diffusers.demo.plot import space_figure
from kaleido_diffusers.demo.posing import pose_photos
from kaleido_diffusers.demo.sessions import Sessions
from kaleido_diffusers.demo.texts import advice
from kaleido_diffusers.demo.turns import Turns
from kaleido_diffusers.demo.uploads import load_uploads, unpack
from kaleido_diffusers.demo.views import (
    FREE,
    HELD_OUT,
    PATHS,
    Wish,
    best_path,
    generate,
    paths_for,
    plan_views,
)
from kaleido_diffusers.geometry.views import ViewGeometry, Views


ROOT = Path(__file__).parents[1]
LIMITS = Limits()


@pytest.fixture(scope="module")
def sample() -> Capture:
    return load_sample("sample", 128)


@pytest.fixture(scope="module")
def pipe() -> KaleidoViewSynthesisPipeline:
    return load_bundled("kaleido-tiny")


def load_bundled(name: str) -> KaleidoViewSynthesisPipeline:
    pipe = KaleidoViewSynthesisPipeline.from_pretrained(resolve_checkpoint(name))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def uploaded(files, tmp_path: Path, limits: Limits = LIMITS) -> Capture:
    work = tmp_path / "work"
    work.mkdir()
    return list(load_uploads(files, work, 64, limits, threading.Event()))[-1].news


def photo(path: Path, size=(80, 60), seed: int = 0, **options) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(path, **options)
    return path


def zipped(path: Path, folder: Path, inside: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*"):
            if file.is_file():
                archive.write(file, Path(inside) / file.relative_to(folder))
    return path


# What visitors upload


@pytest.mark.parametrize("inside", ["", "my capture"])
def test_a_zipped_capture_is_read(inside, tmp_path):
    capture = uploaded([zipped(tmp_path / "table.zip", Path(sample_capture()), inside)], tmp_path)
    scene = load_scene(sample_capture())
    assert capture.name == (inside or "table")
    pixels, cameras = scene.fitted(range(len(scene)), 64, 64)
    assert torch.equal(capture.pixels, (pixels * 255).round().to(torch.uint8))
    assert torch.equal(capture.cameras.world_from_camera, cameras.world_from_camera)
    assert capture.held_out == [0, 8, 16, 24, 32]


def test_a_zipped_colmap_model_is_read(tmp_path):
    pytest.importorskip("pycolmap")
    scene = load_scene(sample_capture())
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    write_colmap(tmp_path / "model", list(scene.images), scene.cameras, points)
    capture = uploaded([zipped(tmp_path / "model.zip", tmp_path / "model")], tmp_path)
    assert len(capture) == 40 and 0 < len(capture.points) <= 50
    torch.testing.assert_close(capture.cameras.centers, scene.cameras.centers, atol=1e-9, rtol=0)


def test_one_photo_needs_no_pose(tmp_path):
    capture = uploaded([photo(tmp_path / "a.jpg")], tmp_path)
    assert len(capture) == 1 and capture.held_out == [] and "60 degrees is assumed" in capture.notes[0]
    assert best_path(capture) == "arc" and not {"keyframes", HELD_OUT} & set(paths_for(capture))
    assert len(plan_views(capture, Wish("orbit", views=5), LIMITS).targets) == 5
    for path in ("keyframes", HELD_OUT):
        with pytest.raises(ValueError, match="choose another path"):
            plan_views(capture, Wish(path), LIMITS)


def refused(tmp_path, match: str, *files: Path, limits: Limits = LIMITS) -> None:
    with pytest.raises(ValueError, match=match) as error:
        uploaded(files, tmp_path, limits)
    assert str(tmp_path) not in str(error.value), "no folder of ours is named"


def test_a_bad_photo_does_not_reject_the_others(tmp_path):
    broken = photo(tmp_path / "broken.jpg")
    broken.write_bytes(broken.read_bytes()[:900])
    capture = uploaded([broken, photo(tmp_path / "good.jpg")], tmp_path)
    assert len(capture) == 1 and capture.name == "Your photo"
    assert capture.notes[0].startswith("Left out: broken.jpg: the image is damaged")
    (tmp_path / "work2").mkdir()
    with pytest.raises(ValueError, match=r"^Left out: broken.jpg: the image is damaged") as error:
        list(load_uploads([broken], tmp_path / "work2", 64, LIMITS, threading.Event()))
    assert str(tmp_path) not in str(error.value), "no folder of ours is named"


def test_large_photos_are_reduced_and_keep_their_lens(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # lies on its side
    exif.get_ifd(0x8769)[0xA405] = 26  # focal length in 35 mm equivalents
    large = tmp_path / "large.jpg"
    PIL.Image.linear_gradient("L").resize((8064, 6048)).convert("RGB").save(large, exif=exif, quality=50)
    capture = uploaded([large], tmp_path)
    (copy,) = (tmp_path / "work" / "photos").iterdir()
    with PIL.Image.open(copy) as image:
        assert image.size == (1200, 1600) and image.getexif().get(0x0112, 1) == 1
        assert image.getexif().get_ifd(0x8769)[0xA405] == 26
    assert capture.notes == (), "the lens is known"
    rows = capture.pixels[0].float().mean((0, 2)), capture.pixels[0].float().mean((0, 1))
    assert rows[0].std() < 2 and rows[1][0] > 200 > 50 > rows[1][-1], "dark on top, and turned to the right"
    focal = 26 / math.hypot(36, 24) * math.hypot(1200, 1600) * 64 / 1200
    assert float(capture.cameras.intrinsics[0, 0, 0]) == pytest.approx(focal, rel=1e-3)


def test_photos_that_are_small_enough_are_not_compressed_again(tmp_path):
    ramp = PIL.Image.linear_gradient("L").resize((400, 300)).convert("RGB")
    for name, quality, suffix in (("a", 30, "jpg"), ("b", 30, "png")):
        ramp.save(tmp_path / f"{name}.{suffix}", quality=quality)
    for name in ("a.jpg", "b.png"):
        work = tmp_path / name.replace(".", "-")
        list(load_uploads([tmp_path / name], work, 64, LIMITS, threading.Event()))
        (copy,) = (work / "photos").iterdir()
        assert copy.suffix == ".jpg"
        assert (copy.read_bytes() == (tmp_path / name).read_bytes()) == (name == "a.jpg")


def test_where_photos_are_far_apart_the_page_says_that_shapes_melt():
    """Cameras 4 from what they look at, focal length 1: a view shows 4 there, and 0.2 of that is 0.8."""
    places = torch.tensor([[0.0, 0, -4], [0.6, 0, -4], [1.2, 0, -4], [2.2, 0, -4]], dtype=torch.float64)
    poses = torch.eye(4, dtype=torch.float64).repeat(4, 1, 1)
    poses[:, :3, 3] = places
    forward = -places / places.norm(dim=-1, keepdim=True)
    right = torch.cross(torch.tensor([0.0, 1, 0], dtype=torch.float64).expand(4, 3), forward, dim=-1)
    right = right / right.norm(dim=-1, keepdim=True)
    poses[:, :3, :3] = torch.stack([right, torch.cross(forward, right, dim=-1), forward], dim=-1)
    lens = torch.tensor([[64.0, 0, 32], [0, 64, 32], [0, 0, 1]], dtype=torch.float64)
    cameras = Cameras(poses, lens.expand(4, 3, 3), torch.tensor([64, 64]))
    pixels = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    capture = Capture("four", Views.seen(pixels, ViewGeometry.of(cameras)), held_out=[1, 3])
    plan = plan_views(capture, Wish(path=HELD_OUT, views=2, references=2), LIMITS)
    assert plan.references == [0, 2] and plan.truths == [1, 3]
    assert plan.gaps == pytest.approx([0.6 / 4.04, 1.0 / 4.56], rel=0.05)
    assert plan.melts == [1]
    assert "The nearest photo is far away for 1 of 2 views: shapes melt there" in advice(plan, False)
    near = plan_views(capture, Wish(path=HELD_OUT, views=1, references=2), LIMITS)
    assert near.melts == [] and "expect outlines and colours" in advice(near, False)


def test_photos_of_phones_in_heic_are_taken(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    ramp = PIL.Image.linear_gradient("L").resize((400, 300)).convert("RGB")
    ramp.save(tmp_path / "IMG_1.HEIC", quality=90)
    capture = uploaded([tmp_path / "IMG_1.HEIC"], tmp_path)
    rows = capture.pixels[0].float().mean((0, 2))
    assert rows[0] < 20 and rows[-1] > 235 and (rows.diff() > 0).all()


def test_frames_of_a_video_are_posed(tmp_path):
    pytest.importorskip("pycolmap")
    av = pytest.importorskip("av")
    scene = load_scene(sample_capture())
    video = tmp_path / "walk.mp4"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=5, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 128, 128, "yuv420p"
        for image in scene.images[:6]:
            container.mux(stream.encode(av.VideoFrame.from_image(image.convert("RGB"))))
        container.mux(stream.encode())
    capture = uploaded([video], tmp_path)
    assert len(capture) == 6 and capture.name == "Your video"
    with pytest.raises(ValueError, match=r"^Left out: walk.mp4 is no photo: give a video or a zip alone"):
        (tmp_path / "more").mkdir()
        list(load_uploads([video, video], tmp_path / "more", 64, LIMITS, threading.Event()))


@pytest.mark.parametrize(
    "match, names, limits",
    [
        (r"^Two photos are too few", ["a.png", "b.png"], LIMITS),
        (r"^Left out: notes.txt is not a photo", ["notes.txt"], LIMITS),
        (r"^Left out: a.png has 80 x 60 pixels: at most 0.001 megapixels", ["a.png"], Limits(megapixels=0.001)),
        (r"^These are 4 photos: at most 3", ["a.png", "b.png", "c.png", "d.png"], Limits(photos=3)),
    ],
)
def test_what_is_too_little_or_too_much_is_refused(match, names, limits, tmp_path):
    files = [photo(tmp_path / name, seed=n, format="PNG") for n, name in enumerate(names)]
    refused(tmp_path, match, *files, limits=limits)


def test_photos_of_one_name_from_two_folders_are_both_taken(tmp_path):
    pytest.importorskip("pycolmap")
    files = []
    for number in range(3):  # blank ones: COLMAP says so, which proves that it got three
        (tmp_path / str(number)).mkdir()
        files.append(tmp_path / str(number) / "photo.png")
        PIL.Image.new("RGB", (64 + number, 64), "gray").save(files[-1])
    refused(tmp_path, r"^No cameras were found: half of the photos show \d+ details or fewer.*texture", *files)


def hostile(path: Path, *entries: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def link() -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo("images/passwd.png")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "match, entries",
    [
        ("leads out", [("../../evil.png", b"x")]),
        ("leads out", [("/etc/evil.png", b"x")]),
        ("leads out", [("images\\..\\..\\evil.png", b"x")]),
        ("leads out", [("c:evil.png", b"x")]),
        ("a link", [(link(), b"/etc/passwd")]),
        ("unpacks to more than 1 MB", [("bomb.png", bytes(3_000_000))]),
        ("holds 61 files", [(f"{number}.png", b"") for number in range(61)]),
        ("holds a file twice", [("a.png", b"x"), ("a.png", b"y")]),
    ],
)
def test_hostile_zips_are_refused(match, entries, tmp_path):
    file = hostile(tmp_path / "evil.zip", *entries)
    with pytest.raises(ValueError, match=match):
        unpack(file, tmp_path / "inside" / "deep", Limits(upload_mb=1, photos=3))
    assert not list(tmp_path.rglob("evil.png"))


def test_a_zip_that_lies_about_its_size_is_refused(tmp_path):
    file = hostile(tmp_path / "liar.zip", ("bomb.png", bytes(3_000_000)))
    honest, lie = (3_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little")
    file.write_bytes(file.read_bytes().replace(honest, lie))
    with pytest.raises(ValueError, match="zip"):
        unpack(file, tmp_path / "inside", Limits(upload_mb=1))
    assert sum(path.stat().st_size for path in (tmp_path / "inside").rglob("*")) <= 1000


def test_a_damaged_stream_is_refused(tmp_path):
    file = hostile(tmp_path / "damaged.zip", ("a.png", bytes(range(256)) * 40))
    data = bytearray(file.read_bytes())
    data[60:80] = bytes(20)
    file.write_bytes(data)
    refused(tmp_path, "^The zip cannot be read", file)


def test_what_is_said_while_a_capture_is_read_reaches_the_visitor(tmp_path):
    """Two models of COLMAP: the larger one is read, and the page says so, without folders of ours."""
    folder = tmp_path / "scan"
    for number in range(4):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        photo(folder / "images" / f"{number}.jpg", seed=number)
    for name, count in (("0", 2), ("1", 4)):
        model = folder / "sparse" / name
        model.mkdir(parents=True)
        (model / "cameras.txt").write_text("1 PINHOLE 80 60 90 90 40 30\n")
        (model / "images.txt").write_text("".join(f"{n} 1 0 0 0 {n} 0 0 1 {n}.jpg\n\n" for n in range(count)))
    capture = uploaded([zipped(tmp_path / "scan.zip", folder)], tmp_path)
    assert len(capture) == 4
    (note,) = capture.notes
    assert note.startswith("sparse holds 2 models that do not share a frame: 1, the largest, with 4 photos is read")
    assert str(tmp_path) not in note


def test_photos_turned_by_exif_are_upright(tmp_path):
    """Stored lying, red on the left, to be turned clockwise: red is on top."""
    exif, pixels = PIL.Image.Exif(), np.zeros((40, 80, 3), dtype=np.uint8)
    exif[0x0112], pixels[:, :40, 0], pixels[:, 40:, 2] = 6, 255, 255
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    top, bottom = uploaded([tmp_path / "a.png"], tmp_path).pixels[0].float().chunk(2, dim=1)
    assert top[0, :24].mean() > 250 > 5 > top[2, :24].mean() and bottom[2, 8:].mean() > 250


@pytest.mark.parametrize("packed", [False, True])
def test_raw_photos_are_refused_with_what_to_do(packed, tmp_path):
    names = ["IMG_0001.DNG", "IMG_0002.DNG", "IMG_0003.DNG"]
    if packed:
        files = [hostile(tmp_path / "phone.zip", *((name, b"ftypheic") for name in names))]
    else:
        files = [tmp_path / name for name in names]
        for file in files:
            file.write_bytes(b"ftypheic")
    refused(tmp_path, r"IMG_0001.DNG: DNG photos are not read: convert them to JPEG or PNG", *files)


def windows_zip(path: Path, folder: Path, encoding: str) -> Path:
    """A zip whose names are bytes of a code page, without the flag that says UTF-8."""

    class Entry(zipfile.ZipInfo):
        def _encodeFilenameFlags(self):
            return self.filename.encode(encoding), self.flag_bits & ~0x800

    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.writestr(Entry(file.name), file.read_bytes())
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_names_of_zips_that_do_not_say_their_encoding(encoding, tmp_path):
    folder = tmp_path / "scan"
    folder.mkdir()
    name = "照片.jpg"
    photo(folder / name)
    pose = torch.eye(4).tolist()
    frames = [{"file_path": name, "transform_matrix": pose}]
    listed = {"fl_x": 90, "w": 80, "h": 60, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(listed, ensure_ascii=False), encoding="utf-8")
    assert len(uploaded([windows_zip(tmp_path / "windows.zip", folder, encoding)], tmp_path)) == 1


def test_only_what_makes_a_capture_is_unpacked(tmp_path):
    names = ["transforms.json", "run.py", ".hidden/a.png", "__MACOSX/b.png", "weights.pt", "images/c.JPG"]
    unpack(hostile(tmp_path / "mixed.zip", *((name, b"x") for name in names)), tmp_path / "inside", LIMITS)
    files = [path for path in (tmp_path / "inside").rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["c.JPG", "transforms.json"]
    with pytest.raises(ValueError, match="damaged"):
        unpack(photo(tmp_path / "picture.zip", format="PNG"), tmp_path / "other", LIMITS)


def test_posing_ends_when_it_is_stopped_or_late(tmp_path):
    pytest.importorskip("pycolmap")
    images, cancelled = Path(sample_capture()) / "images", threading.Event()
    with pytest.raises(Stopped):
        for progress in pose_photos(images, tmp_path / "stopped", 300, cancelled):
            if progress.total:
                cancelled.set()
    assert not (tmp_path / "stopped" / "report.json").exists()
    with pytest.raises(ValueError, match="took more than"):
        list(pose_photos(images, tmp_path / "late", 0.5, threading.Event()))


# Wishes and views


@pytest.mark.parametrize(
    "wish",
    [
        {"path": "../orbit"},
        {"views": LIMITS.views + 1},
        {"views": 0},
        {"views": 2.5},
        {"steps": LIMITS.steps + 1},
        {"references": LIMITS.references + 1},
        {"elevation": math.nan},
        {"zoom": math.inf},
        {"seed": -1},
        {"steps": "5"},
        {"distance": None},
    ],
)
def test_wishes_beyond_the_limits_are_refused(wish, sample):
    with pytest.raises(ValueError, match="must|no path"):
        plan_views(sample, Wish(**wish), LIMITS)


def test_what_no_photo_sees_is_marked(sample):
    around = plan_views(sample, Wish("orbit"), LIMITS)
    assert 10 <= len(around.invented) <= 14, "the photos stand on half of the circle"
    middle = around.invented[len(around.invented) // 2]
    assert around.seen[middle] < 0.1
    pytest.importorskip("plotly")
    grey = [
        trace
        for trace in space_figure(sample, around).data
        if trace.type == "scatter3d" and trace.marker.color == "#78716c"
    ]
    assert [list(trace.text) for trace in grey] == [[f"view {view + 1}, invented" for view in around.invented]]
    for path in ("keyframes", "arc"):
        assert plan_views(sample, Wish(path), LIMITS).invented == []


@pytest.mark.parametrize("path", PATHS)
def test_plans_have_what_was_wished(path, sample):
    plan = plan_views(sample, Wish(path, views=4, references=5), LIMITS)
    assert len(plan.targets) == (1 if path == FREE else 4)
    assert len(plan.references) == len(set(plan.references)) == 5
    assert plan.truths == ([0, 8, 16, 24] if path == HELD_OUT else [])
    assert path != HELD_OUT or not set(plan.references) & set(sample.held_out)
    assert set(plan.nearest(sample)) <= set(plan.references)


def test_a_single_reference_is_enough(sample):
    for path in ("orbit", "keyframes", HELD_OUT):
        assert len(plan_views(sample, Wish(path, references=1), LIMITS).references) == 1


def test_the_free_camera_stands_where_it_is_told(sample):
    wish = Wish(FREE, azimuth=40, elevation=-20, distance=1.5, zoom=2)
    camera = plan_views(sample, wish, LIMITS).targets[0]
    focus, up = trajectories.focus_point(sample.cameras), trajectories.up_direction(sample.cameras)
    offset, first = camera.centers - focus, sample.cameras.centers[0] - focus
    median = (sample.cameras.centers - focus).norm(dim=-1).median()
    assert offset.norm() / median == pytest.approx(1.5)
    assert math.degrees(math.asin(offset @ up / offset.norm())) == pytest.approx(-20)
    flat, flat_first = (x - (x @ up) * up for x in (offset, first))
    assert math.degrees(torch.acos(torch.cosine_similarity(flat, flat_first, dim=0))) == pytest.approx(40)
    assert torch.cosine_similarity(camera.forward, -offset, dim=0) == pytest.approx(1)
    assert camera.intrinsics[0, 0] == pytest.approx(2 * float(sample.cameras.intrinsics[0, 0, 0]))


def test_views_come_group_by_group_and_are_the_pipelines_own(sample, pipe):
    wish = Wish("keyframes", views=6, steps=2, references=3, seed=5)
    plan = plan_views(sample, wish, LIMITS)
    seen = list(generate(pipe, sample, plan, wish, threading.Event()))
    assert [progress.done for progress in seen[1:-1]] == [1, 2, 3, 4]
    assert seen[3].text.startswith("Generating views 5 to 6 of 6") and seen[3].total == 4
    assert [len(progress.news.views) for progress in seen if progress.news] == [4, 6, 6]
    photos = [PIL.Image.fromarray(sample.pixels[view].permute(1, 2, 0).numpy()) for view in plan.references]
    options = {"num_inference_steps": 2, "guidance_scale": 1.5, "generator": torch.Generator().manual_seed(5)}
    expected = pipe(photos, sample.cameras[plan.references], plan.targets, **options).images
    for view, own in zip(seen[-1].news.views, expected, strict=True):
        assert np.abs(np.int16(view) - np.int16(own)).max() <= 1


def test_stopping_keeps_the_views_and_frees_the_memory(sample, pipe):
    wish, cancelled = Wish("orbit", views=48, steps=10, references=3), threading.Event()
    for progress in generate(pipe, sample, plan_views(sample, wish, LIMITS), wish, cancelled):
        if progress.text.startswith("Generating views 5 to 8 of 48") and progress.done == 13:
            assert encoded_memories(), "the references are held in the memory"
            cancelled.set()
            start = time.monotonic()
    print(f"stopped after {time.monotonic() - start:.2f} s")
    assert progress.text == "Stopped after 4 of 48 views" and len(progress.news.views) == 4
    assert not encoded_memories()


def encoded_memories() -> list[KaleidoReferenceCache]:
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) is KaleidoReferenceCache and len(thing)]


def test_files_hold_the_views(sample, pipe, tmp_path):
    av = pytest.importorskip("av")
    wish = Wish(HELD_OUT, views=3, steps=1, references=2)
    plan = plan_views(sample, wish, LIMITS)
    result = list(generate(pipe, sample, plan, wish, threading.Event()))[-1].news
    one, mp4, gif, packed = write_files(result, tmp_path / "out" / "files", factor=2, view=3)
    with av.open(str(mp4)) as container:
        assert [(frame.width, frame.height) for frame in container.decode(video=0)] == [(256, 256)] * 3
    assert PIL.Image.open(gif).n_frames == 3 and PIL.Image.open(gif).size == (256, 256)
    assert np.array_equal(PIL.Image.open(one), result.views[2].resize((256, 256), PIL.Image.Resampling.BICUBIC))
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "unpacked")
    scene = load_scene(tmp_path / "unpacked" / "kaleido")
    assert len(scene) == 5
    torch.testing.assert_close(scene.cameras[2:].world_from_camera, plan.targets.world_from_camera)
    assert np.array_equal(np.asarray(scene.images[2]), np.asarray(result.views[0]))
    frames = json.loads((tmp_path / "unpacked" / "kaleido" / "transforms.json").read_text())["frames"]
    references = [f"references/photo_{photo + 1:04d}.png" for photo in plan.references]
    views = ["views/view_0001.png", "views/view_0002.png", "views/view_0003.png"]
    assert [frame["file_path"] for frame in frames] == references + views
    assert [frame.get("generated", False) for frame in frames] == [False, False, True, True, True]


# Visitors


def test_sessions_stay_apart_and_end():
    now = [0.0]
    sessions = Sessions(most=2, seconds=60, clock=lambda: now[0])
    first, second = sessions["a"], sessions["b"]
    assert first is not second and sessions["a"] is first
    sessions["c"]  # "b" was unheard of for longest
    assert len(sessions) == 2 and second.cancelled.is_set() and not first.cancelled.is_set()
    now[0] = 61.0
    assert sessions["a"] is not first and first.cancelled.is_set()
    running = sessions["a"].cancelled
    sessions["a"].begin()
    assert running.is_set() and not sessions["a"].cancelled.is_set()
    sessions.drop("a")
    assert len(sessions) == 0


def test_who_waits_is_told_place_and_time():
    now = [0.0]
    turns = Turns(most=2, clock=lambda: now[0])
    first, second, third = (turns.join(seconds) for seconds in (10.0, 20.0, 5.0))
    assert turns.ahead(first, 0) is None
    now[0] = 4.0
    assert turns.ahead(second, 0) == (1, 6.0) and turns.ahead(third, 0) == (2, 26.0)
    with pytest.raises(ValueError, match="2 others are waiting already: please come back in 6 seconds."):
        turns.join(1.0)
    turns.leave(second)  # gave up
    assert turns.ahead(third, 0) == (1, 6.0)
    assert turns.leave(first) == 4.0 and turns.ahead(third, 0) is None
    now[0] = 100.0
    assert turns.leave(third) == 96.0


def test_a_page_that_is_loaded_again_finds_its_visitor():
    sessions = Sessions(most=2, seconds=60)
    session = sessions.enter("page 1", "token")
    session.begin("page 1")
    running = session.cancelled
    assert sessions["page 1"] is session and sessions.enter("page 2", "token") is session
    sessions.leave("page 1")
    assert running.is_set() and sessions["page 2"] is session
    session.begin("page 2")
    sessions.leave("page 1")  # heard of again, late
    assert not session.cancelled.is_set()
    assert sessions["page 3"] is not session
    sessions.leave("page 3")
    assert len(sessions) == 1, "who has no token is forgotten"


def test_nothing_old_is_left_after_a_failed_upload(tmp_path):
    app = DemoApp(load_bundled, tmp_path)
    app.load_sample("a", "sample")
    assert app.sessions["a"].capture is not None
    (tmp_path / "broken.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match="Left out"):
        list(app.load_files("a", [str(tmp_path / "broken.jpg")]))
    with pytest.raises(ValueError, match="There are no photos yet"):
        next(app.generate("a", Wish()))


def test_photos_are_chosen_and_the_camera_is_dragged(sample, tmp_path):
    app = DemoApp(load_bundled, tmp_path)
    app.load_sample("a", "sample")
    for photo_number in (7, 3, 20, 3, 100):
        picked = app.pick("a", photo_number)
    assert picked == (7, 20)
    wish = app.wish("a", "keyframes", 5)
    plan = app.preview("a", wish)[1]
    assert plan.references == [7, 20]
    torch.testing.assert_close(plan.targets.centers[[0, -1]], sample.cameras.centers[[7, 20]])
    axes = upright_axes(sample.cameras)
    focus = trajectories.focus_point(sample.cameras)
    offset = plan_views(sample, Wish(FREE, azimuth=40, elevation=-20), LIMITS).targets.centers[0] - focus
    assert app.dragged("a", (axes @ offset).tolist()) == {"azimuth": 40, "elevation": -20}
    view = app.live("a", app.wish("a", FREE))
    assert view.size == (512, 512) and app.live("nobody", wish) is None


def test_a_live_view_that_comes_late_stops_nothing_but_an_earlier_one(tmp_path):
    app = DemoApp(load_bundled, tmp_path)
    app.load_sample("a", "sample")
    session, lives = app.sessions["a"], []
    app.begin("a")
    work = app.generate("a", Wish(views=2, references=2, steps=2))
    next(work)
    before, free = session.glanced, Wish(FREE, references=2, steps=1)
    late = threading.Thread(target=lambda: lives.append(app.live("a", free)))
    late.start()
    while session.glanced is before:  # until it has begun
        time.sleep(0.01)
    assert before.is_set() and not session.cancelled.is_set()
    *_, last = work
    late.join()
    assert len(session.result.views) == 2 and last.news is session.result
    assert lives[0].size == (512, 512), "it waited for its turn"
    running, glanced = session.cancelled, session.glanced
    app.begin("a")
    assert running.is_set() and glanced.is_set(), "what counts stops both"
    glanced = session.glance("a")
    app.stop("a")
    assert session.cancelled.is_set() and glanced.is_set()


def test_who_works_or_waits_for_longer_than_visitors_are_kept_is_not_forgotten(tmp_path):
    now = [0.0]
    app = DemoApp(load_bundled, tmp_path)
    app.sessions = Sessions(most=9, seconds=60, clock=lambda: now[0])
    for name in ("works", "waits", "is away"):
        app.load_sample(name, "sample")
    first, second = (app.generate(name, Wish(views=2, references=2, steps=1)) for name in ("works", "waits"))
    next(first)
    now[0] = 50.0
    assert next(second).text.startswith("Waiting: One other is before you") and next(first)
    now[0] = 100.0
    app.sessions.sweep()
    assert len(app.sessions) == 2 and next(second).text.startswith("Waiting")
    first.close()
    *_, last = second
    assert len(last.news.views) == 2 and app.sessions["waits"].result is last.news
    app.sessions.drop("works")
    app.sessions.hear("works")
    assert len(app.sessions) == 1, "who left is not let in again"


@pytest.mark.parametrize("name", SAMPLES)
def test_examples_are_the_models_own(name, pipe, monkeypatch, tmp_path):
    """The first views, once more: `python examples/make_demo_results.py` makes them anew for another checkpoint."""
    capture = load_sample(name, 128)
    kept = example_result(name, capture, LIMITS)
    assert kept is not None and len(kept.views) == 24 and not kept.plan.invented
    assert kept.wish == example_wish(capture, LIMITS)
    cancelled = threading.Event()
    for progress in generate(pipe, capture, kept.plan, kept.wish, cancelled):
        if progress.news is not None:
            cancelled.set()
    made = progress.news.views
    monkeypatch.setattr(examples, "_FOLDER", tmp_path)
    with PIL.Image.open(write_example(name, made)) as strip:  # JPEG alone costs 3 grey levels
        again = np.int16(strip)
    own = np.concatenate([np.int16(view) for view in kept.views[: len(made)]], axis=1)
    assert np.abs(again - own).mean() < 0.5, "run examples/make_demo_results.py"


def test_work_in_the_background_is_heard_and_ended():
    def fails(report):
        report(1)
        raise ValueError("no")

    heard = in_background(fails, threading.Event())
    assert next(heard) == 1
    with pytest.raises(ValueError, match="no"):
        next(heard)
    cancelled, ended = threading.Event(), threading.Event()

    def waits(report):
        report(1)
        cancelled.wait(10)
        ended.set()

    heard = in_background(waits, cancelled)
    next(heard)
    heard.close()
    assert ended.is_set()


def test_the_app_answers_each_visitor_with_their_own(tmp_path):
    app = DemoApp(load_bundled, tmp_path)
    with pytest.raises(ValueError, match="There are no photos yet"):
        next(app.generate("a", Wish()))
    app.load_sample("a", "sample")
    list(app.load_files("b", [str(photo(tmp_path / "b.jpg"))]))
    assert len(app.preview("a", Wish())[0]) == 40 and len(app.preview("b", Wish("arc"))[0]) == 1
    for key, views in (("a", 2), ("b", 3)):
        list(app.generate(key, Wish(HELD_OUT if key == "a" else "orbit", views=views, steps=1, references=2)))
    assert [len(app.sessions[key].result.views) for key in "ab"] == [2, 3]
    assert "photo 9" in app.compare("a", 2, True).text and "nearest reference" in app.compare("a", 2, False).text
    beside = app.compare("b", 3, True)
    assert "nearest reference, photo 1" in beside.text and not beside.is_truth, "one photo has no true ones"
    assert not app.is_old("b", Wish("orbit", views=3, steps=1, references=2))
    assert app.is_old("b", Wish("orbit", views=4, steps=1, references=2))
    assert app.compare("nobody", 1, False) is None and app.files("nobody", tmp_path) == []
    app.stop("a")  # while waiting for the turn
    last = list(app.generate("a", Wish(views=4, steps=3)))[-1]
    assert last.text == "Stopped after 0 of 4 views" and last.news.views == []
    assert len(list(app.generate("a", Wish(views=4, steps=3)))[-1].news.views) == 4, "the next wish is met"
    assert not list(tmp_path.glob("work-*"))


# The picture


def test_the_picture_shows_photos_and_path_at_their_places(sample):
    pytest.importorskip("plotly")
    plan = plan_views(sample, Wish("spiral", views=5, references=2), LIMITS)
    figure = space_figure(sample, plan)
    axes = upright_axes(sample.cameras)
    path = next(trace for trace in figure.data if trace.type == "scatter3d" and trace.line.width == 4)
    places = np.stack([path.x, path.y, path.z], axis=1)
    np.testing.assert_allclose(places, (plan.targets.centers @ axes.mT).numpy(), atol=1e-5)
    mesh = next(trace for trace in figure.data if trace.type == "mesh3d")
    corners = np.stack([mesh.x, mesh.y, mesh.z], axis=1).reshape(2, 41, 41, 3)
    depth = (
        torch.tensor(corners[0, 0, 0], dtype=torch.float64) @ axes - sample.cameras.centers[plan.references[0]]
    ) @ (sample.cameras.forward[plan.references[0]])
    expected = frustum_corners(sample.cameras[plan.references], float(depth))[:, :4] @ axes.mT
    found = corners[:, [0, 0, -1, -1], [0, -1, -1, 0]]  # from the top left, clockwise
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert len(mesh.facecolor) == len(mesh.i) == 2 * 40 * 40 * 2
    small = torch.nn.functional.interpolate(sample.pixels[plan.references].float(), (40, 40), mode="area")
    face = 2 * (40 * 40 + 7 * 40 + 30)
    colors = [list(bytes.fromhex(mesh.facecolor[number][1:])) for number in (face, face + 1)]
    assert colors[0] == colors[1] == pytest.approx(small[1, :, 7, 30].tolist(), abs=0.51)


def test_one_photo_can_be_drawn(tmp_path):
    pytest.importorskip("plotly")
    capture = uploaded([photo(tmp_path / "a.jpg")], tmp_path)
    spans = [space_figure(capture, plan_views(capture, Wish(path), LIMITS)).layout.scene for path in ("pan", FREE)]
    for scene in spans:
        assert all(high > low for low, high in (scene.xaxis.range, scene.yaxis.range, scene.zaxis.range))


# The server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("gradio")
    with demo_server(tmp_path_factory.mktemp("server"), "--upload-mb", "2", "--dtype", "float32") as server:
        yield server


def status_of(request) -> int:
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize(
    "path",
    [
        "file=/etc/passwd",
        "file=../../../../../../etc/passwd",
        "file=..%2f..%2f..%2f..%2fetc%2fpasswd",
        "file=%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        f"file={ROOT / 'setup.cfg'}",
        "file=setup.cfg",
        f"file={sys.executable}",
        "file=http://127.0.0.1:1/",
        "file=HTTP%3A//127.0.0.1:1/",
        "proxy=http://127.0.0.1:1/",
    ],
)
def test_files_of_others_are_refused(path, server):
    assert status_of(f"{server.url}/gradio_api/{path}") in (403, 404)
    assert status_of(f"{server.url}/{path}") in (403, 404)


def test_the_folder_beside_the_uploads_is_not_served(server):
    (root,) = server.temporary.glob("kaleido-demo-*")
    secret = root / "secret.png"
    secret.write_bytes(b"x")
    assert status_of(f"{server.url}/gradio_api/file={secret}") == 403
    assert status_of(f"{server.url}/gradio_api/file={root}/gradio/../secret.png") == 403
    secret.unlink()


def form(name: str, content: bytes) -> tuple[bytes, dict[str, str]]:
    head = f'--edge\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    return head + content + b"\r\n--edge--\r\n", {"Content-Type": "multipart/form-data; boundary=edge"}


def upload(server, name: str, content: bytes) -> str:
    body, headers = form(name, content)
    with urllib.request.urlopen(urllib.request.Request(f"{server.url}/gradio_api/upload", body, headers)) as answer:
        return json.load(answer)[0]


def test_uploads_are_bounded_and_stay_inside(server):
    path = upload(server, "../../evil.png", b"x")
    assert Path(path).is_relative_to(server.temporary) and Path(path).parent.parent.name == "gradio"
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Content-Length", "2500000")
    connection.endheaders()  # nothing of it is sent: the answer does not wait for it
    assert connection.getresponse().status == 413
    connection.close()


def test_a_path_that_was_not_uploaded_is_refused(server):
    for path in ("/etc/passwd", str(ROOT / "docs" / "sample_sheet.png")):
        files = [{"path": path, "meta": {"_type": "gradio.FileData"}}]
        body = json.dumps({"data": [files], "session_hash": "somebody"}).encode()
        call = f"{server.url}/gradio_api/call/upload"
        request = urllib.request.Request(call, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            event = json.load(answer)["event_id"]
        with urllib.request.urlopen(f"{call}/{event}", timeout=PATIENCE) as answer:
            said = answer.read().decode()
        assert said.startswith("event: error") and "root:" not in said and "Traceback" not in said


def test_errors_are_sentences_for_those_who_call_the_server_too(server):
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(server.url, verbose=False, httpx_kwargs={"timeout": PATIENCE})
    with pytest.raises(AppError, match="There are no photos yet"):
        client.predict("orbit", 4, 0, 30, 1, 1, 6, 4, 1, 0, api_name="/generate")
    client.predict("sample", api_name="/sample")
    for views, steps in ((4000, 4), (4, 4000)):
        with pytest.raises(AppError, match="must|greater|maximum") as error:
            client.predict("orbit", views, 0, 30, 1, 1, 6, steps, 1, 0, api_name="/generate")
        assert "Traceback" not in str(error.value)
    client.close()


def test_browsers_are_told_to_load_nothing_from_elsewhere(server):
    with urllib.request.urlopen(server.url, timeout=PATIENCE) as answer:
        policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy


def visit(server, number: int) -> tuple[int, dict, np.ndarray]:
    """One visitor who wants a view that nobody else wants: how often told to wait, the camera and the view."""
    from gradio_client import Client

    options = {"download_files": server.log.parent / "downloads", "httpx_kwargs": {"timeout": PATIENCE}}
    client = Client(server.url, verbose=False, **options)
    client.predict("sample", api_name="/sample")
    job = client.submit(*wish_of(number), api_name="/generate")
    job.result()
    said = [str(update[0]) for update in job.outputs()]
    *_, packed = client.predict(1, 1, api_name="/save")
    waited = sum("before you, about" in text for text in said)
    client.close()
    with zipfile.ZipFile(packed["value"] if isinstance(packed, dict) else packed) as archive:
        frame = json.loads(archive.read("kaleido/transforms.json"))["frames"][-1]
        view = PIL.Image.open(io.BytesIO(archive.read(f"kaleido/{frame['file_path']}")))
        return waited, frame, np.asarray(view)


def wish_of(number: int) -> list:
    return [FREE, 4, -90 + 9 * number, 20 + number, 1, 1, 3, 1, 1, number]


@pytest.fixture(scope="module")
def wished(sample, pipe) -> list[tuple[np.ndarray, np.ndarray]]:
    """Where the camera of each of twenty visitors stands, and what it sees."""
    made = []
    for number in range(20):
        wish = Wish(*wish_of(number))
        plan = plan_views(sample, wish, LIMITS)
        view = list(generate(pipe, sample, plan, wish, threading.Event()))[-1].news.views[0]
        made.append((plan.targets.centers[0].numpy(), np.asarray(view)))
    return made


def twenty_visit(server, wished) -> int:
    """All get what they asked for. Returns how many were told to wait."""
    pytest.importorskip("gradio_client")
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda number: visit(server, number), range(20)))
    for (_, frame, view), (center, own) in zip(answers, wished, strict=True):
        np.testing.assert_allclose(np.array(frame["transform_matrix"])[:3, 3], center, atol=1e-9)
        assert np.abs(np.int16(view) - np.int16(own)).max() <= 2
    return sum(times > 0 for times, _, _ in answers)


def test_twenty_visitors_at_once(server, wished):
    """All are served, in line, each with what they asked for."""
    assert twenty_visit(server, wished) > 0, "some are told to wait"


@pytest.mark.slow
def test_what_visitors_leave_in_the_memory_is_bounded(server, wished):
    resident = []
    for _ in range(4):
        start = time.monotonic()
        waited = twenty_visit(server, wished)
        seconds = time.monotonic() - start
        time.sleep(3)
        resident.append(server.resident_mb())
        print(f"20 visitors in {seconds:.1f} s, {waited} of them in line; {resident[-1]:.1f} MB resident")
    assert min(resident[2:]) <= 1.02 * resident[1], "what is kept does not grow with every round"


def test_uploads_are_deleted_in_time(tmp_path):
    pytest.importorskip("gradio")
    with demo_server(tmp_path, "--keep-minutes", "0.05") as server:
        path = Path(upload(server, "mine.png", b"x"))
        assert path.exists()
        deadline = time.monotonic() + PATIENCE
        while path.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not path.exists()


# The Space


def test_the_space_says_what_it_needs():
    text = (ROOT / "examples" / "spaces" / "README.md").read_text()
    front = dict(re.findall(r"^(\w+): (.+)$", text.split("---")[1], re.MULTILINE))
    constraints = (ROOT / "constraints.txt").read_text()
    assert front["sdk"] == "gradio" and f"gradio=={front['sdk_version']}\n" in constraints
    assert (ROOT / "examples" / "spaces" / front["app_file"]).is_file()
    assert len(front["short_description"]) <= 60
    setup = (ROOT / "setup.cfg").read_text()
    needs = {"matplotlib>=3.8"}
    for start in ("install_requires =\n", "\ncaptures =\n", "\nvideo =\n", "\ndemo =\n"):
        block = setup.split(start)[1]
        needs |= set(re.findall(r"    (\S+)\n", re.match(r"(    \S+\n)+", block).group()))
    needs -= {need for need in needs if need.startswith(("kaleido-diffusers[", "viser"))}
    lines = (ROOT / "examples" / "spaces" / "requirements.txt").read_text().splitlines()
    assert set(lines[1:]) == needs


def test_the_space_runs_from_a_folder_of_its_own(tmp_path):
    pytest.importorskip("gradio")
    space = tmp_path / "space"
    space.mkdir()
    for file in (ROOT / "examples" / "spaces").iterdir():
        if file.is_file():
            (space / file.name).write_bytes(file.read_bytes())
    (space / "kaleido_diffusers").symlink_to(ROOT / "kaleido_diffusers")
    with demo_server(tmp_path / "run", command=(sys.executable, "app.py"), cwd=space) as server:
        with urllib.request.urlopen(server.url, timeout=PATIENCE) as answer:
            assert "Kaleido" in answer.read().decode()
