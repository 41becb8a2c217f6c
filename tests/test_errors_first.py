"""No verb warns, notes, works or removes anything before its arguments and inputs were looked at."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from conftest import make_pipeline

from kaleido_diffusers import cli, sample_capture
from kaleido_diffusers.captures.export import write_video
from kaleido_diffusers.cli.checks import errors_first


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A checkpoint; a capture without one of its photos and a photo without a lens, which are warned of; a file."""
    folder = tmp_path_factory.mktemp("place")
    make_pipeline(num_layers=1, sample_size=16).save_pretrained(folder / "checkpoint")
    shutil.copytree(sample_capture("skull"), folder / "capture")
    first, second, *_ = sorted((folder / "capture" / "images").iterdir())
    shutil.copy(first, folder / "photo.jpg")
    second.unlink()
    (folder / "file").touch()
    return folder


SIZES = "`height` and `width` must be multiples of 4, got 18 and"
ANSWERED = [
    ("render capture --references 100", "The number of references must lie between 1 and 5, got 100."),
    ("render capture --checkpoint nope", "--checkpoint 'nope': there is no such folder"),
    ("render capture --height 18 --checkpoint checkpoint", f"{SIZES} 16."),
    ("render capture --guidance-scale -1 --checkpoint checkpoint", "`guidance_scale` must be 0 or more"),
    ("render capture --output file", "--output file: file is a file"),
    ("render capture --output file/new", "file is a file, and not a folder"),
    ("render photo.jpg --height 18 --checkpoint checkpoint", f"{SIZES} 16."),
    ("evaluate capture --references 99 --checkpoint checkpoint", "--references: capture has"),
    ("evaluate capture --references 0", "--references must be at least 1, where no --protocol is run, got 0."),
    ("evaluate capture --size 18 --checkpoint checkpoint", f"{SIZES} 18."),
    ("evaluate capture --steps 0", "--steps must be at least 1, got 0."),
    ("evaluate capture --lpips nope.pth", "nope.pth"),
    ("evaluate test --scenes 0", "--scenes must be at least 1, got 0."),
    ("evaluate test --max-solids 0 --checkpoint none", "`max_solids`"),
    ("evaluate test --output file", "--output file: file is a file"),
    ("lora capture --checkpoint nope", "--checkpoint 'nope': there is no such folder"),
    ("lora capture --checkpoint checkpoint --size 18", "`size` must be a multiple of 4 for this model, got 18."),
    ("lora capture --denoising-steps 0", "--denoising-steps must be at least 1, got 0."),
    ("lora capture --output file", "--output file: file is a file"),
    ("train --data nope", "'nope' is neither a kind of world"),
    ("train --output file", "--output file: file is a file"),
    ("convert checkpoint --max-shard-size x", "--max-shard-size is such as 10GB, got 'x'"),
    ("convert checkpoint --output file/new", "file is a file, and not a folder"),
    ("view capture --checkpoint nope", "--checkpoint 'nope': there is no such folder"),
    ("view capture --height 18 --checkpoint checkpoint", f"{SIZES} 16."),
    ("view capture --allow-origin here", "An allowed origin looks like"),
    ("view capture --output file", "--output file: file is a file"),
    ("shard --data mixed nope", "'nope' is neither a kind of world"),
    ("shard --vae nope", "--vae 'nope': there is no such folder"),
    ("shard --size 0", "--size must be at least 8, got 0."),
    ("shard --output file", "--output file: file is a file"),
    ("push capture name/repository", "capture holds neither a pipeline"),
    ("info nope", "nope: no such capture"),
    ("demo --allow-origin here", "An allowed origin looks like"),
]


@pytest.mark.parametrize("words, answer", ANSWERED)
def test_an_error_stands_alone(words, answer, place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(place)
    words = words.split()
    if "--output" not in words and words[0] not in ("push", "info", "demo"):
        words += ["--output", str(tmp_path / "out")]
    assert cli.main(words) == 1
    said = capsys.readouterr()
    assert answer in said.err and len(said.err.splitlines()) == 1, said.err
    assert said.out == "" and "warning" not in said.err
    assert {path.name for path in (tmp_path / "out").glob("*")} <= {".lock"}, "nothing is written"


def test_what_was_held_back_is_said_before_the_work(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(place)
    words = "render capture --targets 2 --references 2 --steps 1 --checkpoint checkpoint --output"
    assert cli.main([*words.split(), str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert 0 <= said.index("skipped 1 of 9 frames") < said.index("generating")
    with pytest.warns(UserWarning, match="^first$"), errors_first():
        warnings.warn("first", stacklevel=1)
    with warnings.catch_warnings(record=True) as heard, pytest.raises(ValueError, match="second"), errors_first():
        warnings.warn("first", stacklevel=1)
        raise ValueError("second")
    assert not heard


def test_notes_on_a_protocol_follow_its_checks(place, tmp_path, capsys, monkeypatch):
    """RealEstate10K wants LPIPS; that it is not taken is said of a run, and not above an error."""
    monkeypatch.chdir(place)
    (tmp_path / "data").mkdir()
    words = f"evaluate {tmp_path / 'data'} --protocol re10k-pixelsplat --checkpoint nope --allow-partial"
    words += f" --output {tmp_path / 'out'}"
    for more in ("", " --part 9/8", " --masks nope"):
        assert cli.main((words + more).split()) == 1
        said = capsys.readouterr()
        assert "LPIPS is not taken" not in said.out and "Partial" not in said.out, said
        assert not (tmp_path / "out").exists()


# What --overwrite removes


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def earlier_poses(output: Path) -> dict[str, bytes]:
    """What a run of `kaleido poses` leaves."""
    (output / "sparse" / "0").mkdir(parents=True)
    (output / "images").mkdir()
    for name in ("sparse/0/cameras.bin", "images/0.jpg", "database.db", "report.json", "photos.json"):
        (output / name).write_text("{}")
    return files(output)


def test_poses_overwrite_nothing_before_the_new_photos_are_checked(tmp_path, capsys):
    pytest.importorskip("pycolmap")
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    (photos / "notes.txt").touch()
    before = earlier_poses(output)
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (60, 80, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(photos / f"{number}.jpg")
        shutil.copy(photos / f"{number}.jpg", photos / f"{number}.jpeg")  # of which is warned
    words = ["poses", str(photos), "--output", str(output), "--overwrite"]
    whole = (photos / "3.jpg").read_bytes()
    (photos / "3.jpg").write_bytes(whole[:500])
    assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert "1 of 5 photos cannot be used" in said and "warning" not in said
    assert files(output) == before
    for photo in photos.glob("[1-3].*"):
        photo.unlink()
    assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert "at least 3 from different places" in said and "warning" not in said
    assert files(output) == before
    (output / "transforms.json").write_text("{}")
    for number in range(1, 4):
        shutil.copy(photos / "0.jpg", photos / f"{number}.jpg")
        with open(photos / f"{number}.jpg", "ab") as file:
            file.write(bytes([number]))  # no copy of another
    assert cli.main(words) == 1
    assert "holds something else already (transforms.json)" in capsys.readouterr().err
    assert files(output) == {**before, "transforms.json": b"{}"}


def test_poses_of_a_video_overwrite_nothing_before_it_is_seen(tmp_path, capsys):
    pytest.importorskip("pycolmap")
    pytest.importorskip("av")
    output = tmp_path / "out"
    before = earlier_poses(output)
    (output / "images.json").write_text("{}")
    before["images.json"] = b"{}"
    video = tmp_path / "walk.mp4"
    video.write_bytes(b"no video")
    words = ["poses", str(video), "--output", str(output), "--overwrite"]
    assert cli.main(words) == 1
    assert "not a video that can be read" in capsys.readouterr().err and files(output) == before
    grey = [PIL.Image.new("RGB", (64, 64), (40 * level,) * 3) for level in range(6)]
    assert cli.main(words[:1] + [str(write_video(video, grey, 6))] + words[2:]) == 1  # of it no camera is found
    assert json.loads((output / "images.json").read_text())["count"] == 80
    assert "report.json" not in files(output) and "images/0.jpg" not in files(output)


def test_shards_stay_until_the_new_ones_are_whole(tmp_path, capsys):
    words = ["shard", "--output", str(tmp_path / "out"), "--size", "16", "--samples", "1", "--views", "3"]
    assert cli.main([*words, "--scenes", "2"]) == 0
    before = files(tmp_path / "out")
    shutil.copytree(sample_capture("skull"), tmp_path / "capture")
    first = sorted((tmp_path / "capture" / "images").iterdir())[0]
    first.write_bytes(first.read_bytes()[:500])
    capsys.readouterr()
    assert cli.main([*words, "--data", str(tmp_path / "capture"), "--overwrite"]) == 1
    assert first.name in capsys.readouterr().err and files(tmp_path / "out") == before
    assert cli.main([*words, "--data", sample_capture("skull"), "--overwrite"]) == 0
    after = files(tmp_path / "out")
    assert before.keys() == after.keys() and all(before[name] != after[name] for name in before)
