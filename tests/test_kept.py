"""What was there stays: full disks, kills, Ctrl-C, damaged files and second trainers take nothing away."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import av
import pytest
import torch
from conftest import make_pipeline, started
from PIL import Image
from test_trainer import arguments, assert_same, make_config, weights

from kaleido_diffusers import sample_capture
from kaleido_diffusers.captures.export import write_capture, write_video
from kaleido_diffusers.cli import main
from kaleido_diffusers.files import (
    DiskFullError,
    folder_updated_whole,
    folder_written_whole,
    write_text,
    written_whole,
)
from kaleido_diffusers.geometry.cameras import Cameras
from kaleido_diffusers.training.checkpoints import latest_checkpoint
from kaleido_diffusers.training.loop import Trainer


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own of 40 MB, where mounting is allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", folder], capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """Takes what room there is, but for `leave` bytes."""
    rest = shutil.disk_usage(folder).free - leave
    (folder / "ballast").write_bytes(b"x" * max(rest, 0))
    return folder / "ballast"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def wait_for(condition, process, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.returncode is None, process.rest()
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Writing


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyError), written_whole(path) as part:
        part.write_text("half")
        raise KeyError
    assert contents(tmp_path) == {"a.txt": b"old"}
    (tmp_path / "a.txt.part").write_text("left by a kill")
    write_text(path, "new")
    assert contents(tmp_path) == {"a.txt": b"new"}


def test_a_folder_gives_way_to_a_complete_one_only(tmp_path):
    path = tmp_path / "folder"
    with folder_written_whole(path) as part:
        part.mkdir()
        (part / "a").write_text("old")
    with pytest.raises(KeyError), folder_written_whole(path, replaces=True) as part:
        part.mkdir()
        raise KeyError
    with pytest.raises(OSError), folder_written_whole(path) as part:
        part.mkdir()
    assert contents(tmp_path) == {"folder/a": b"old"}
    with folder_written_whole(path, replaces=True) as part:
        part.mkdir()
        (part / "a").write_text("new")
    assert contents(tmp_path) == {"folder/a": b"new"}
    os.rename(path, tmp_path / ".folder.old")  # as a kill between the two renames leaves it
    with pytest.raises(KeyError), folder_written_whole(path, replaces=True) as part:
        raise KeyError
    assert contents(tmp_path) == {"folder/a": b"new"}


def test_a_folder_of_which_parts_stay_changes_whole(tmp_path):
    path = tmp_path / "new" / "folder"
    path.parent.mkdir()
    with folder_updated_whole(path) as part:
        (part / "a").write_text("old")
        (part / "card").write_text("by hand")
    with pytest.raises(KeyError), folder_updated_whole(path) as part:
        (part / "a").write_text("new")
        raise KeyError
    assert contents(path) == {"a": b"old", "card": b"by hand"}
    with folder_updated_whole(path) as part:
        (part / "a").write_text("new")
    assert contents(path.parent) == {"folder/a": b"new", "folder/card": b"by hand"}


def frames(count: int, size: int = 64, seed: int = 0) -> list[Image.Image]:
    noise = torch.randint(0, 256, (count, size, size, 3), generator=torch.Generator().manual_seed(seed))
    return [Image.fromarray(frame.to(torch.uint8).numpy()) for frame in noise]


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_full_disk_keeps_the_video_that_was_there(small_disk, suffix):
    write_video(small_disk / f"a{suffix}", frames(2))
    ballast = fill(small_disk, leave=20_000)
    before = (small_disk / f"a{suffix}").read_bytes()
    with pytest.raises(DiskFullError, match="is full: no more than .* could be written"):
        write_video(small_disk / f"a{suffix}", frames(30, seed=1))
    assert (small_disk / f"a{suffix}").read_bytes() == before
    assert {path.name for path in small_disk.iterdir()} == {f"a{suffix}", ballast.name}


def test_a_full_disk_leaves_no_half_capture_and_room_lets_it_be_written(small_disk):
    ballast, images = fill(small_disk, leave=100_000), frames(30)
    cameras = Cameras.from_fov(torch.eye(4).repeat(30, 1, 1), 60.0, [64, 64])
    with pytest.raises(DiskFullError):
        write_capture(small_disk / "capture", images, cameras)
    assert [path.name for path in small_disk.iterdir()] == [ballast.name]
    ballast.unlink()
    assert write_capture(small_disk / "capture", images, cameras).is_file()


# Training


def test_a_full_disk_is_named_by_the_trainer_and_its_checkpoints_stay(small_disk, capsys):
    options = {"steps": 6, "save_every": 2, "keep": 9}
    Trainer(make_config(small_disk / "run", **{**options, "steps": 2})).train()
    before = contents(small_disk / "run" / "checkpoint-2") | contents(small_disk / "run" / "pipeline")
    ballast = fill(small_disk, leave=60_000)
    assert main(arguments(small_disk / "run", **options)) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "too full for this run" in said and "Make room" in said and "Traceback" not in said
    assert before == contents(small_disk / "run" / "checkpoint-2") | contents(small_disk / "run" / "pipeline")
    assert latest_checkpoint(small_disk / "run").name == "checkpoint-2"
    ballast.unlink()
    assert main(arguments(small_disk / "run", **options)) == 0
    assert latest_checkpoint(small_disk / "run").name == "checkpoint-6"


@pytest.mark.parametrize("damage", ["file", "empty", "state", "weights", "no weights"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(tmp_path, damage, capsys):
    options = {"steps": 6, "save_every": 2, "keep": 3}
    Trainer(make_config(tmp_path / "whole", **options)).train()
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    newest = tmp_path / "run" / "checkpoint-6"
    if damage in ("file", "empty"):
        shutil.rmtree(newest)
        newest.write_text("not a checkpoint") if damage == "file" else newest.mkdir()
    elif damage == "no weights":
        shutil.rmtree(newest / "transformer_ema")
    else:
        file = newest / "state" / "state.pt"
        if damage == "weights":
            file = newest / "transformer_ema" / "diffusion_pytorch_model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
    assert main(arguments(tmp_path / "run", **options)) == 0
    said = capsys.readouterr().err
    assert "checkpoint-6 is damaged" in said and "goes on from checkpoint-4" in said
    assert (tmp_path / "run" / "checkpoint-6.damaged").exists()
    assert_same(tmp_path / "whole", tmp_path / "run")
    assert main(arguments(tmp_path / "run", **options)) == 0, "and the next time nothing is said"
    assert "damaged" not in capsys.readouterr().err


def test_a_second_trainer_in_the_same_folder_is_refused(tmp_path):
    options = {"steps": 100_000, "save_every": 1}
    with started(*arguments(tmp_path / "run", **options)) as first:
        wait_for(lambda: latest_checkpoint(tmp_path / "run"), first)
        with started(*arguments(tmp_path / "run", **options)) as second:
            said = second.rest()
        assert second.returncode == 1 and "Another trainer works in" in said and "Traceback" not in said
        assert first.returncode is None
        first.kill()
    Trainer(make_config(tmp_path / "run", steps=1, save_every=1))  # and a killed one leaves no lock behind
    with Trainer(make_config(tmp_path / "run", **options))._folder_locked():
        pass


def test_ctrl_c_saves_the_step_and_the_same_command_goes_on(tmp_path):
    options = {"steps": 1000, "save_every": 10_000, "log_every": 1, "workers": 1}
    with started(*arguments(tmp_path / "run", **options)) as process:
        wait_for(lambda: (tmp_path / "run" / "log.jsonl").exists(), process)
        process.send_signal(signal.SIGINT)
        said = process.rest(60)
    assert process.returncode == 130 and "Traceback" not in said
    step = int(latest_checkpoint(tmp_path / "run").name.removeprefix("checkpoint-"))
    assert 0 < step < 1000 and f"kaleido: stopped. Step {step} is saved" in said
    rest = make_config(tmp_path / "run", **{**options, "steps": step + 1, "workers": 0})
    Trainer(rest).train()
    assert latest_checkpoint(tmp_path / "run").name == f"checkpoint-{step + 1}"
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run")["transformer"].values())


def test_a_finished_pipeline_is_not_lost_when_it_is_written_again(tmp_path):
    Trainer(make_config(tmp_path / "run", steps=2)).train()
    before = contents(tmp_path / "run" / "pipeline")
    trainer = Trainer(make_config(tmp_path / "run", steps=3))
    trainer.result = lambda: make_pipeline().to(torch.float32) and _Failing()
    with pytest.raises(KeyError):
        trainer.train()
    assert contents(tmp_path / "run" / "pipeline") == before


class _Failing:
    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "model_index.json").write_text("{}")
        raise KeyError


def test_an_adapter_is_written_whole_with_its_scores_and_keeps_its_card(tmp_path, base, monkeypatch):
    words = ["lora", "sample", "--output", str(tmp_path), "--checkpoint", str(base), "--rank", "2", "--steps", "2"]
    words += ["--batch", "1", "--views", "3", "--references", "1", "--validation-photos", "0"]
    words += ["--scored-references", "3", "--denoising-steps", "1"]
    assert main(words) == 0
    folder = tmp_path / "adapter"
    names = {"adapter_config.json", "pytorch_lora_weights.safetensors", "scores.json", "test_photos.png", "README.md"}
    assert set(contents(folder)) == names
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nWritten by hand.\n")
    before = contents(folder)

    def fails(path: Path) -> None:
        (path / "README.md").write_text("half")
        raise KeyError("card")

    with monkeypatch.context() as patch:
        patch.setattr("kaleido_diffusers.cli.lora.write_card", fails)
        assert main([*words, "--steps", "3"]) == 1, "goes on, and writes the adapter again"
    after = contents(folder)
    assert after.keys() == before.keys() and after["scores.json"] == before["scores.json"]
    assert after["README.md"] == before["README.md"]
    assert main([*words, "--steps", "3"]) == 0, "the adapter is older than its last step"
    assert b"Written by hand." in contents(folder)["README.md"] and contents(folder) != before


# Poses


def test_poses_on_a_full_disk_say_so_and_go_on_when_there_is_room(small_disk, capsys):
    pytest.importorskip("pycolmap")
    words = ["poses", str(Path(sample_capture("skull"), "images")), "--max-image-size", "300", "--threads", "1"]
    words += ["--output", str(small_disk / "capture")]
    for left in (4_000, 2_000_000, 12_000_000):  # no photo, some photos, and all of them but no features fit
        ballast = fill(small_disk, leave=left)
        assert main(words) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert "disk" in said and "full" in said and "Make room and run the same command again" in said, said
        assert "Remove the folder" not in said and "Traceback" not in said
        ballast.unlink()
    assert main(words) == 0


# Rendering


def render(output: Path, base: Path, *words: str) -> list[str]:
    return ["render", "sample", "--checkpoint", str(base), "--output", str(output), "--trajectory", "orbit", *words]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("order", ["given", "anchors"])
def test_an_interrupted_flight_keeps_what_it_had_under_a_name_that_says_so(tmp_path, base, order):
    (tmp_path / "capture_orbit.mp4").write_text("an earlier, good one")
    words = render(tmp_path, base, "--targets", "none", "--views", "400", "--steps", "6", "--generation-order", order)
    with started(*words) as process:
        bar = b""
        while not re.search(rb"\b(2[4-9]|[3-9]\d)\.\d/400 views", bar) and process.returncode is None:
            bar += process.output.read(4096)
        process.send_signal(signal.SIGINT)
        said = process.rest()
    assert process.returncode == 130 and "Traceback" not in said, said
    count = int(re.search(r"stopped\. (\d+) of 400 views are in .*_interrupted\.mp4", said).group(1))
    assert count % 4 == 0 and 16 <= count < 400
    (file,) = tmp_path.glob("*_orbit_interrupted.mp4")
    with av.open(str(file)) as video:
        assert sum(1 for _ in video.decode(video=0)) == count
    assert (tmp_path / "capture_orbit.mp4").read_text() == "an earlier, good one"
    assert len(list(tmp_path.iterdir())) == 2


def test_kills_leave_nothing_half_in_a_flight_and_its_export(tmp_path, base):
    """SIGKILL at random moments; the same command then ends what it began."""
    words = render(tmp_path, base, "--views", "24", "--steps", "1", "--export", "transforms", "--overwrite")
    dice, ended = random.Random(0), False
    for _ in range(6):
        with started(*words) as process:
            wait_for(lambda: list(tmp_path.iterdir()) or process.returncode == 0, process, 60)
            time.sleep(dice.random() * 0.4)
            process.kill()
        for file in tmp_path.glob("*.mp4"):
            with av.open(str(file)) as video:
                assert sum(1 for _ in video.decode(video=0)) == 24
        for export in tmp_path.glob("*_transforms"):
            assert len(json.loads((export / "transforms.json").read_text())["frames"]) == 30
            assert len(list((export / "images").iterdir())) == 30
            shutil.rmtree(export)
        for file in tmp_path.rglob("*.png"):
            Image.open(file).load()
        ended |= main(words) == 0
        shutil.rmtree(next(tmp_path.glob("*_transforms")))
    assert ended


# Shards


def test_a_shard_that_was_killed_before_its_index_is_finished(tmp_path, monkeypatch):
    words = ["shard", "--data", "object", "--scenes", "4", "--scenes-per-shard", "2", "--views", "2", "--size", "16"]
    assert main([*words, "--output", str(tmp_path / "whole")]) == 0

    def killed(tar: Path) -> None:
        tar.with_suffix(".index.part").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kaleido_diffusers.worlds.shard_writing.write_index", killed)
        assert main([*words, "--output", str(tmp_path / "killed")]) == 130
    assert main([*words, "--output", str(tmp_path / "killed")]) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert json.loads((tmp_path / "killed" / "summary.json").read_text())["scenes"] == 4


def test_shards_go_on_after_a_kill_and_a_full_disk(small_disk, capsys):
    words = ["shard", str(small_disk), "--scenes", "7", "--scenes-per-shard", "2", "--views", "2", "--size", "16"]
    words[1:2] = ["--output", str(small_disk)]
    assert main(words) == 0
    whole = contents(small_disk)
    assert [name for name in whole if name.endswith(".tar")] == [f"shard-{n:06d}.tar" for n in range(4)]
    for name in ("shard-000002.tar", "shard-000003.tar"):
        (small_disk / name).unlink()
    (small_disk / "shard-000002.tar.part").write_text("left by a kill")
    ballast = fill(small_disk)
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "is full" in said and "Traceback" not in said
    ballast.unlink()
    assert main(words) == 0
    assert contents(small_disk) == whole
    assert main([*words, "--seed", "1"] if "--seed" in words else [*words[:-1], "32"]) == 1
    assert "was not written with these settings" in capsys.readouterr().err
