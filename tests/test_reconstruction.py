"""Photos and videos without poses: cameras are found, and what cannot work is said."""

import json
import re
import shutil
import sqlite3
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest
import torch
from conftest import ended, shared, started

from kaleido_diffusers import Cameras, cli, load_scene
from kaleido_diffusers.captures.images import CaptureError
from kaleido_diffusers.captures.posing.photo_checks import blurred, grey, same_pictures, sharpness, thumbnail
from kaleido_diffusers.captures.posing.reconstruction import estimate_poses, find_photos, remove_run
from kaleido_diffusers.captures.posing.video import sharp_frames


pytest.importorskip("pycolmap")
av = pytest.importorskip("av")


def disagreement(found: Cameras, truth: Cameras) -> tuple[torch.Tensor, torch.Tensor]:
    """Degrees between the rotations, and distances between the centres over the spread of the true ones, after the
    similarity that fits the centres best (Umeyama), both `[V]`."""
    source, target = found.centers, truth.centers
    source_mean, target_mean = source.mean(0), target.mean(0)
    source, target = source - source_mean, target - target_mean
    u, s, vh = torch.linalg.svd(target.mT @ source)
    sign = torch.ones(3, dtype=s.dtype)
    sign[2] = torch.linalg.det(u @ vh).sign()
    rotation = u @ sign.diag() @ vh
    scale = (s * sign).sum() / source.square().sum()
    turned = rotation @ found.world_from_camera[:, :3, :3]
    between = turned.mT @ truth.world_from_camera[:, :3, :3]
    cosine = (between.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    distances = (scale * source @ rotation.mT - target).norm(dim=-1) / target.norm(dim=-1).max()
    return torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))), distances


@pytest.fixture(scope="module")
def kermit(tmp_path_factory) -> Path:
    """A capture made of the photos alone."""
    output = tmp_path_factory.mktemp("kermit") / "capture"
    estimate_poses(find_photos(shared("captures/kermit/images")), output, threads=1)
    return output


def test_photos_become_a_capture(kermit):
    photos = shared("captures/kermit")
    scene, truth = load_scene(kermit), load_scene(photos)
    assert [path.name for path in scene.image_paths] == [path.name for path in truth.image_paths]
    degrees, distances = disagreement(scene.cameras, truth.cameras)
    assert degrees.max() < 0.5 and distances.max() < 0.01
    assert ((scene.cameras.intrinsics / truth.cameras.intrinsics)[:, 0, 0] - 1).abs().max() < 0.02
    assert len(torch.unique(scene.cameras.intrinsics[:, 0, 0])) == 1, "one camera took them all"
    for path in (photos / "images").iterdir():
        assert (kermit / "images" / path.name).read_bytes() == path.read_bytes()
    report = json.loads((kermit / "report.json").read_text())
    assert report["photos"] == report["registered"] == 11 and report["not_registered"] == []
    assert 0.2 < report["mean_reprojection_error"] < 0.6
    assert report["points"] == len(scene.points) > 500 and report["mean_track_length"] > 3
    assert report["parallax"] > 15
    assert PIL.Image.open(kermit / "cameras.png").width > 500
    assert sorted(path.name for path in kermit.iterdir()) == [
        "cameras.png", "database.db", "images", "photos.json", "report.json", "sparse"
    ]  # fmt: skip


def test_a_finished_run_does_nothing_and_other_photos_are_refused(kermit, tmp_path, capsys):
    photos = shared("captures/kermit/images")
    before = {path: path.stat().st_mtime_ns for path in kermit.rglob("*")}
    assert cli.main(["poses", str(photos), "--output", str(kermit)]) == 0
    out = capsys.readouterr().out
    assert "finished before" in out and "11 of 11" in out
    assert {path: path.stat().st_mtime_ns for path in kermit.rglob("*")} == before
    with pytest.raises(CaptureError, match="other photos"):
        estimate_poses(find_photos(photos)[:5], kermit)
    with pytest.raises(CaptureError, match=r"other settings.*'seed': 1"):
        estimate_poses(find_photos(photos), kermit, seed=1)
    (tmp_path / "sparse").mkdir()
    with pytest.raises(CaptureError, match=r"holds something else already \(sparse\)"):
        estimate_poses(find_photos(photos), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in kermit.rglob("*")} == before


@pytest.mark.parametrize("stage", ["finding features", "matching pairs", "placing photos"])
def test_a_killed_run_goes_on(stage, kermit, tmp_path):
    """Killed in each stage, it keeps what is in the database, and ends with the cameras of a run that was not."""
    output = tmp_path / "capture"
    words = ["poses", str(shared("captures/kermit/images")), "--output", str(output), "--threads", "1"]
    with started(*words) as process:
        seen = b""
        while not re.search(rb"%s: +[1-9]\d*%%" % stage.encode(), seen):
            block = process.output.read(4096)
            assert block, seen.decode()
            seen += block
    assert not (output / "report.json").exists()
    (again,) = ended(started(*words, all_said=True))
    assert "11 of 11" in again
    begun = dict(re.findall(r"(\w+ \w+): +(\d+)%", again)[::-1])  # the first figure of each bar
    assert int(begun["finding features"]) >= 72, "eight of eleven were there"
    assert stage == "finding features" or int(begun["matching pairs"]) >= 90
    torch.testing.assert_close(
        load_scene(output).cameras.world_from_camera, load_scene(kermit).cameras.world_from_camera, rtol=0, atol=1e-4
    )


def test_what_a_kill_leaves_beside_the_database_goes_back_into_it(kermit, tmp_path):
    """Killed after the cameras were found, with a change in SQLite's log; and what --overwrite removes."""
    output = shutil.copytree(kermit, tmp_path / "capture")
    with closing(sqlite3.connect(output / "database.db")) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE late (number)")
        database.commit()
        for name in ("database.db", "database.db-wal", "database.db-shm"):
            shutil.copy(output / name, tmp_path / name)
    for name in ("database.db", "database.db-wal", "database.db-shm"):
        shutil.copy(tmp_path / name, output / name)
    (output / "report.json").unlink()
    photos = find_photos(shared("captures/kermit/images"))
    assert estimate_poses(photos, output, threads=1).registered == 11
    assert not list(output.glob("database.db-*"))
    with closing(sqlite3.connect(output / "database.db")) as database:
        assert database.execute("SELECT count(*) FROM late").fetchone() == (0,)
    shutil.copy(tmp_path / "database.db-wal", output)
    remove_run(output, photos)
    assert list(output.glob("*")) == []


def test_sequential_matching_finds_the_same_cameras(tmp_path):
    folder = shared("captures/kermit/images")
    report = estimate_poses(find_photos(folder), tmp_path, matching="sequential", max_features=2000, threads=1)
    assert report.registered == 11
    degrees, _ = disagreement(load_scene(tmp_path).cameras, load_scene(folder.parent).cameras)
    assert degrees.max() < 0.5


def test_photos_are_copied_upright_and_under_names_that_colmap_can_read(tmp_path):
    """Some are stored turned, as phones do, some in other formats; one is a copy, one is blurred."""
    folder = tmp_path / "photos"
    folder.mkdir()
    exif = PIL.Image.Exif()
    exif[0x0112] = 8  # to be shown after a quarter turn counter-clockwise
    for number, path in enumerate(find_photos(shared("captures/kermit/images"))):
        image = PIL.Image.open(path)
        if number < 2:
            image.transpose(PIL.Image.Transpose.ROTATE_270).save(
                folder / f"my photo {number}.jpg", exif=exif, quality=95
            )
        elif number < 4:
            image.save(folder / f"my photo {number}.webp", quality=95)
        elif number == 4:
            image.filter(PIL.ImageFilter.GaussianBlur(4)).save(folder / f"my photo {number}.png")
        else:
            shutil.copyfile(path, folder / f"my photo {number}.jpg")
    shutil.copyfile(folder / "my photo 7.jpg", folder / "my photo 12.jpg")
    (folder / "notes.txt").write_text("where I stood")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = estimate_poses(find_photos(folder), tmp_path / "capture", threads=1)
    messages = " | ".join(str(warning.message) for warning in caught)
    assert "not a photo: notes.txt" in messages
    assert "copies of the same file: my photo 12.jpg" in messages and report.identical == ["my photo 12.jpg"]
    assert "Far less sharp" in messages and report.blurred == ["my_photo_4.png"]
    assert report.photos == 11 and report.registered >= 10
    copies = find_photos(tmp_path / "capture" / "images")
    assert [path.name for path in copies][:5] == [f"my_photo_{n}.{s}" for n, s in enumerate(["jpg"] * 2 + ["png"] * 3)]
    for copy in copies:
        image = PIL.Image.open(copy)
        assert image.size == (640, 480) and image.getexif().get(0x0112, 1) == 1
    scene = load_scene(tmp_path / "capture")
    names = {path.name: number for number, path in enumerate(scene.image_paths)}
    truth = load_scene(shared("captures/kermit")).cameras
    both = [(names[copy.name], number) for number, copy in enumerate(copies) if copy.name in names]
    degrees, _ = disagreement(scene.cameras[[a for a, _ in both]], truth[[b for _, b in both]])
    assert degrees.median() < 0.5


def save_all(folder: Path, images: list[PIL.Image.Image]) -> list[Path]:
    folder.mkdir()
    for number, image in enumerate(images):
        image.save(folder / f"{number}.jpg", quality=85 + number % 8)
    return find_photos(folder)


def textured(seed: int = 0, width: int = 640, height: int = 480) -> PIL.Image.Image:
    """Blotches of many sizes: as much for SIFT to find as in a photo."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for size in (8, 20, 50, 120, 300):
        noise = PIL.Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
        total += np.asarray(noise.resize((width, height), PIL.Image.Resampling.BICUBIC))
    return PIL.Image.fromarray((total / 5).astype(np.uint8))


def test_sets_that_cannot_be_posed_are_refused_with_advice(tmp_path):
    blank = [PIL.Image.new("RGB", (320, 240), (40 * n, 100, 50)) for n in range(4)]
    with pytest.raises(CaptureError, match=r"0 details or fewer.*take sharp ones"):
        estimate_poses(save_all(tmp_path / "blank", blank), tmp_path / "a")
    with pytest.raises(CaptureError, match=r"too few photos show the same.*overlapping"):
        estimate_poses(save_all(tmp_path / "strange", [textured(n) for n in range(4)]), tmp_path / "b")
    with pytest.warns(UserWarning, match="almost the same"), pytest.raises(CaptureError, match="Move the camera"):
        estimate_poses(save_all(tmp_path / "copies", [textured()] * 4), tmp_path / "c")


def test_a_camera_that_only_zooms_is_met_with_a_warning(tmp_path):
    photo = PIL.Image.open(shared("captures/fox/images/0001.jpg"))
    zoomed = [photo.crop((22 * n, 38 * n, 1080 - 22 * n, 1920 - 38 * n)).resize((540, 960)) for n in range(8)]
    with pytest.warns(UserWarning, match="wrong if the camera was only turned or zoomed"):
        report = estimate_poses(save_all(tmp_path / "zoom", zoomed), tmp_path / "a", threads=1)
    assert report.parallax < 6


def test_bad_photos_are_named(tmp_path, capsys):
    photos = save_all(tmp_path / "photos", [textured(n) for n in range(3)])
    data = photos[1].read_bytes()
    photos[1].write_bytes(data[: len(data) // 2])
    with pytest.raises(CaptureError, match=r"1 of 3 photos cannot be used: .*1\.jpg: the image is damaged"):
        estimate_poses(photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(CaptureError, match=r"Got 2 photos; .*at least 3"):
        estimate_poses(photos[:2], tmp_path / "out")
    with pytest.raises(CaptureError, match=r"Got 1 photo \(the others are copies\)"):
        estimate_poses([photos[0]] * 4, tmp_path / "out")
    shutil.copytree(photos[0].parent, tmp_path / "more")
    (tmp_path / "more" / "0.jpg").write_bytes(photos[2].read_bytes() + b" ")
    with pytest.raises(CaptureError, match=r"both be called 0\.jpg"):
        estimate_poses([*photos, tmp_path / "more" / "0.jpg"], tmp_path / "out")
    assert cli.main(["poses", str(photos[0]), "--output", str(tmp_path / "out")]) == 1
    assert "kaleido render" in capsys.readouterr().err
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    with pytest.raises(CaptureError, match=r"no photos .*folders \(inner\)"):
        find_photos(tmp_path / "empty")
    (tmp_path / "empty" / "IMG_1.cr2").write_bytes(b"")
    with pytest.raises(CaptureError, match=r"no photos .*IMG_1\.cr2: convert"):
        find_photos(tmp_path / "empty")


def test_photos_come_in_the_order_of_their_numbers(tmp_path):
    for name in ("10.jpg", "2.JPG", "1.png", ".hidden.jpg"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_photos(tmp_path)] == ["1.png", "2.JPG", "10.jpg"]


def test_blur_and_copies_are_told_from_other_photos():
    photos = [textured(n) for n in range(5)]
    photos.append(photos[2].filter(PIL.ImageFilter.GaussianBlur(3)))
    assert blurred([sharpness(grey(photo)) for photo in photos]) == [5]
    brighter = PIL.Image.fromarray(np.minimum(np.asarray(photos[3]), 254) + 1)
    assert same_pictures([thumbnail(photo) for photo in [*photos[:5], brighter]]) == {5: 3}


# Videos


def write_clip(path: Path, frames: list[PIL.Image.Image], rotation: int = 0) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "14", "g": "5"})
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return path


def pan(seed: int, count: int, sharp: set[int]) -> list[PIL.Image.Image]:
    """A window that moves over a texture, of another brightness for each seed; frames that are not in `sharp` are
    blurred."""
    wide = textured(seed, 640, 240).point([value * (4 - seed) // 4 for value in range(256)] * 3)
    frames = [wide.crop((6 * n, 0, 6 * n + 320, 240)) for n in range(count)]
    return [frame if n in sharp else frame.filter(PIL.ImageFilter.GaussianBlur(2.5)) for n, frame in enumerate(frames)]


def test_the_sharpest_frames_of_the_longest_shot_are_taken(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", pan(0, 12, set()) + pan(1, 40, {3, 14, 22, 35}) + pan(2, 15, {5}))
    with pytest.warns(UserWarning, match=r"3 shots \(0\.0-1\.1, 1\.2-5\.1, 5\.2-6\.6 s\).*longest, 1\.2-5\.1 s"):
        frames = sharp_frames(clip, tmp_path / "frames", count=4)
    assert [path.name for path in frames] == [f"{12 + n:06d}.jpg" for n in (3, 14, 22, 35)]
    truth = np.asarray(pan(1, 40, {14})[14].convert("L")).astype(float)
    assert np.abs(np.asarray(PIL.Image.open(frames[1]).convert("L")) - truth).mean() < 4
    before = frames[0].stat().st_mtime_ns
    assert sharp_frames(clip, tmp_path / "frames", count=4) == frames and frames[0].stat().st_mtime_ns == before
    with pytest.raises(CaptureError, match="something else"):
        sharp_frames(clip, tmp_path / "frames", count=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames = sharp_frames(clip, tmp_path / "last", count=1, start=5.2)
    assert [path.name for path in frames] == ["000057.jpg"]
    with pytest.raises(CaptureError, match="no frames from 60"):
        sharp_frames(clip, tmp_path / "late", start=60)


def test_a_flash_and_a_still_camera_are_no_cuts(tmp_path):
    frames = pan(0, 20, set(range(20)))
    frames[8] = PIL.Image.new("RGB", (320, 240), (255, 255, 255))
    frames[15:] = [frames[15]] * 5
    with pytest.warns(UserWarning, match=r"4 of 20 frames show the same") as caught:
        chosen = sharp_frames(write_clip(tmp_path / "clip.mp4", frames), tmp_path / "frames", count=20)
    assert len(chosen) == 16 and not any("shots" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("rotation, turn", [(90, 1), (-90, -1), (180, 2)])
def test_the_rotation_of_a_video_is_honoured(rotation, turn, tmp_path):
    frames = pan(0, 4, set(range(4)))
    chosen = sharp_frames(write_clip(tmp_path / "clip.mp4", frames, rotation), tmp_path / "frames", count=1)
    expected = np.rot90(np.asarray(frames[int(chosen[0].stem)]), turn).astype(float)
    assert np.abs(np.asarray(PIL.Image.open(chosen[0])) - expected).mean() < 8  # chroma is stored at half size


def test_real_cuts_are_found(tmp_path):
    with pytest.warns(UserWarning, match="bikes.mp4 has 6 shots"):
        frames = sharp_frames(shared("videos/bikes.mp4"), tmp_path / "bikes", count=10)
    assert len(frames) == 10 and all(76 <= int(path.stem) < 137 for path in frames)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*shots")
        assert len(sharp_frames(shared("videos/cockatoo.mp4"), tmp_path / "cockatoo", count=5)) == 5


def test_damaged_videos(tmp_path):
    clip = write_clip(tmp_path / "clip.mkv", pan(0, 60, set(range(60))))
    data = clip.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    assert 1 < len(sharp_frames(tmp_path / "cut.mkv", tmp_path / "cut", count=10)) <= 10
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{clip}\n#EXT-X-ENDLIST\n")
    (tmp_path / "concat.mp4").write_text(f"ffconcat version 1.0\nfile '{clip.name}'\n")
    for name in ("noise", "empty", "list", "concat"):
        with pytest.raises(CaptureError, match=f"{name}.mp4: not a video"):
            sharp_frames(tmp_path / f"{name}.mp4", tmp_path / name)
        assert not (tmp_path / name).exists()
    holes = bytearray(data)
    holes[len(data) // 3 : len(data) // 3 + 4000] = bytes(4000)
    (tmp_path / "holes.mkv").write_bytes(holes)
    assert sharp_frames(tmp_path / "holes.mkv", tmp_path / "holes", count=5)
    with pytest.raises(CaptureError, match="no such video"):
        sharp_frames(tmp_path / "nowhere.mp4", tmp_path / "out")


def test_a_video_becomes_a_capture(tmp_path, capsys):
    """Photos of a real thing as a slow video."""
    photos = [PIL.Image.open(path).resize((540, 960)) for path in find_photos(shared("captures/fox/images"))[:8]]
    clip = write_clip(tmp_path / "clip.mp4", [photo for photo in photos for _ in range(2)])
    arguments = f"poses {clip} --output {tmp_path / 'capture'} --frames 8 --max-features 2000 --threads 1"
    assert cli.main(arguments.split()) == 0
    assert re.search(r"registered +[678] of [78]", capsys.readouterr().out)
    assert cli.main(arguments.split()) == 0
    assert "finished before" in capsys.readouterr().out
