"""The commands that a newcomer runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import torch
from conftest import make_pipeline

from kaleido_diffusers import bundled_checkpoint, cli, load_scene, sample_capture
from kaleido_diffusers.bundled import BUNDLED
from kaleido_diffusers.cli.info import working_attention_backends


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_pipeline(num_layers=1, sample_size=16).save_pretrained(folder)
    return str(folder)


def test_render_writes_what_it_names(checkpoint, tmp_path, capsys):
    arguments = f"render sample --checkpoint {checkpoint} --references 3 --steps 2 --trajectory spiral --views 5"
    assert cli.main([*arguments.split(), "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    written = [line.removeprefix("wrote ") for line in out.splitlines() if line.startswith("wrote ")]
    names = [path.split("/out/")[1] for path in written]
    assert names[0] == "sample_sheet.png" and names[-1] == "sample_spiral.mp4"
    assert names[1:-1] == [f"sample_views/{number:04d}.png" for number in (0, 8, 16, 24, 32)]
    rows = re.findall(r"^ +(\d+|mean) +(-?\d+\.\d\d) +(\d+\.\d\d)$", out, re.MULTILINE)
    assert [row[0] for row in rows] == ["0", "8", "16", "24", "32", "mean"]
    sheet = PIL.Image.open(written[0])
    assert sheet.width > 600 and sheet.height > 600
    assert PIL.Image.open(written[1]).size == (16, 16)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("render /nowhere", "/nowhere: no such capture"),
        ("render sample --targets 40", "numbers from 0 to 39"),
        ("render sample --targets few", "`held-out`, `none`, or numbers"),
        ("render sample --references 0", "between 1 and 35"),
        ("render sample --checkpoint /nowhere", "/nowhere"),
        ("render sample --targets none", "nothing to render"),
        ("render photo.jpg", "nothing to render"),
        ("render photo.jpg --trajectory orbit", "photo.jpg: no such image"),
        ("render sample --export colmap", "pass --trajectory"),
        ("render sample --split 3", "no split '3'; it has none"),
        ("render sample --test-every 0", "--test-every must be at least 2"),
        ("render sample --fov 50", "--fov is for a single photo"),
        ("render sample --downscale 2", "none of the 40 images"),
        ("render sample --device nothing", "--device 'nothing'"),
        ("render sample --attention-backend flash", "--attention-backend 'flash'"),
    ],
)
def test_bad_input_ends_in_one_line(arguments, message, checkpoint, capsys, tmp_path):
    if "--checkpoint" not in arguments:
        arguments += f" --checkpoint {checkpoint}"
    assert cli.main([*arguments.split(), "--output", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


@pytest.mark.parametrize("export", ["transforms", "colmap"])
def test_a_flight_is_a_capture_too(export, checkpoint, tmp_path):
    arguments = f"render sample --checkpoint {checkpoint} --references 3 --steps 1 --trajectory keyframes --views 5"
    arguments += f" --targets none --export {export} --output {tmp_path}"
    assert cli.main(arguments.split()) == 0
    scene = load_scene(tmp_path / f"sample_keyframes_{export}")
    assert len(scene) == 8 and scene.images[7].size == (16, 16)
    if export == "transforms":
        frames = json.loads((tmp_path / "sample_keyframes_transforms" / "transforms.json").read_text())["frames"]
        assert [frame.get("generated", False) for frame in frames] == [False] * 3 + [True] * 5
    original = load_scene(sample_capture()).cameras.centers
    gaps = torch.cdist(scene.cameras.centers[:3], original).amin(-1)
    assert gaps.max() < 1e-6, "the references are photos of the capture"
    assert cli.main(arguments.split()) == 1, "nothing is written over"


def test_a_single_photo_is_flown_around(checkpoint, tmp_path, capsys):
    photo = f"{sample_capture()}/images/0003.jpg"
    arguments = f"render {photo} --checkpoint {checkpoint} --trajectory orbit --steps 1 --views 4 --output {tmp_path}"
    assert cli.main(arguments.split()) == 1
    assert "the field of view is not known" in capsys.readouterr().err
    assert cli.main([*arguments.split(), "--fov", "60"]) == 0
    assert (tmp_path / "0003_orbit.mp4").is_file()


def test_render_the_fox(fox, checkpoint, tmp_path, capsys):
    arguments = (
        f"render {fox} --checkpoint {checkpoint} --references 6 --targets held-out --steps 2 --output {tmp_path}"
    )
    assert cli.main(arguments.split()) == 0
    captured = capsys.readouterr()
    assert "skipped 17 of 67 frames" in captured.err
    assert "fox: 50 photos" in captured.out and (tmp_path / "fox_sheet.png").is_file()


def test_a_capture_that_the_bundled_checkpoint_does_not_know_is_met_with_a_warning(tmp_path, capsys):
    arguments = f"render {sample_capture()} --targets 3 --references 2 --steps 1 --output {tmp_path}"
    assert cli.main(arguments.split()) == 0
    assert "fitted to the sample capture and renders no other scene" in capsys.readouterr().err
    assert cli.main(arguments.replace(sample_capture(), "sample").split()) == 0
    assert "fitted" not in capsys.readouterr().err


def test_info_tells_versions_backends_and_scores(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for word in ("torch", "diffusers", "native", "bundled checkpoint", "parameters", "PSNR"):
        assert word in out, word
    assert "flash," not in out.replace("_native_flash,", ""), "flash-attn cannot run here"


def test_backends_that_work_here_do():
    assert "native" in working_attention_backends("cpu")


def test_the_module_runs():
    result = subprocess.run([sys.executable, "-m", "kaleido_diffusers.cli", "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    assert "render" in result.stdout and "info" in result.stdout


def test_bundled_checkpoints_go_by_name(tmp_path, capsys):
    for name in BUNDLED:
        assert (
            Path(bundled_checkpoint(name), "transformer").is_dir()
            and Path(bundled_checkpoint(name), "README.md").is_file()
        )
        assert "_name_or_path" not in Path(bundled_checkpoint(name), "transformer", "config.json").read_text()
    arguments = (
        "evaluate test --checkpoint kaleido-tiny-objects --level object --max-solids 2 --scenes 4 --references 3"
    )
    assert cli.main([*arguments.split(), "--steps", "1", "--output", str(tmp_path)]) == 0
    rows = {row["method"]: row["psnr"] for row in json.loads((tmp_path / "scores.json").read_text())["summary"]}
    assert rows["kaleido"] > max(rows["nearest"], rows["flat"]) + 1.5, "it has learnt where solids are"
    assert cli.main(["info", "kaleido-tiny-objects"]) == 0
    assert "at most two solids" in capsys.readouterr().out
    with pytest.raises(ValueError, match="one of kaleido-tiny, kaleido-tiny-objects"):
        bundled_checkpoint("kaleido-huge")
