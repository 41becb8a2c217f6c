"""What a verb finds where it is to write: the same run goes on, anything else is refused before work begins, and
`--overwrite` replaces it, and nothing but what the verb writes itself."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_pipeline
from test_protocols import make_gso

from kaleido_diffusers import cli, sample_capture
from kaleido_diffusers.captures.posing.reconstruction import remove_run as remove_poses
from kaleido_diffusers.loaders.adapter_files import AdapterInfo, save_adapter
from kaleido_diffusers.loaders.lora_settings import make_lora_config


REFUSED = ": name another output, or pass --overwrite, which replaces it."


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make_pipeline(num_layers=1, sample_size=16).save_pretrained(folder)
    return folder


def state(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(words: list[str], capsys) -> str:
    capsys.readouterr()
    assert cli.main(words) == 1
    said = capsys.readouterr().err.strip()
    assert said.endswith(REFUSED) and said.count("kaleido: ") == 1, said
    return said


@pytest.mark.parametrize(
    "what, first",
    [
        ("--targets 1,2", "sample_sheet.png"),
        ("--targets none --trajectory keyframes --views 2", "sample_keyframes.mp4"),
        ("--targets none --trajectory arc --views 2 --export transforms", "sample_arc.mp4"),
    ],
)
def test_render(what, first, checkpoint, tmp_path, capsys):
    pytest.importorskip("av")
    words = f"render sample --checkpoint {checkpoint} --references 2 --steps 1 --output {tmp_path} {what}".split()
    assert cli.main(words) == 0
    before = state(tmp_path)
    assert f"{tmp_path / first} exists already" in refused([*words, "--checkpoint", str(checkpoint)], capsys)
    assert state(tmp_path) == before
    assert cli.main([*words, "--overwrite"]) == 0
    after = state(tmp_path)
    assert after.keys() == before.keys() and all(after[path] > before[path] for path in before)


def test_a_film_of_another_format_does_not_stay_beside_the_new_one(checkpoint, tmp_path, capsys):
    pytest.importorskip("av")
    words = f"render sample --checkpoint {checkpoint} --references 2 --steps 1 --targets none --trajectory arc"
    words = f"{words} --views 2 --output {tmp_path}".split()
    old = tmp_path / "sample_arc.gif"
    old.touch()
    assert f"{old} exists" in refused(words, capsys)
    assert cli.main([*words, "--overwrite"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["sample_arc.mp4"]


def test_evaluate(checkpoint, tmp_path, capsys):
    words = "evaluate test --checkpoint none --scenes 1 --references 1 --size 16"
    words = f"{words} --output {tmp_path}".split()
    assert cli.main(words) == 0
    before = state(tmp_path)
    assert "scores.json exists already" in refused(words, capsys) and state(tmp_path) == before
    gso = make_gso(tmp_path / "data", ("alarm",))
    protocol = f"evaluate {gso} --protocol gso30-eschernet --checkpoint none --only alarm --references 1"
    protocol = f"{protocol} --allow-partial --output {tmp_path}".split()
    assert "scores.json exists already" in refused(protocol, capsys), "the scores of the one are not of the other"
    assert cli.main([*words, "--overwrite"]) == 0
    assert (tmp_path / "scores.json").stat().st_mtime_ns > before[tmp_path / "scores.json"]


def test_a_protocol_scores_the_adapter_that_is_given(checkpoint, tmp_path, capsys):
    torch.manual_seed(0)  # of the weights that an adapter begins with
    pipe = make_pipeline(num_layers=1, sample_size=16)
    pipe.transformer.add_adapter(make_lora_config(2), adapter_name="default")
    for name, weights in pipe.transformer.named_parameters():
        if "lora_B" in name:
            weights.data.fill_(0.5)
    info = AdapterInfo.of(pipe.transformer, base_name=str(checkpoint))
    save_adapter(tmp_path / "adapter", pipe.transformer, info)
    gso = make_gso(tmp_path / "data", ("alarm",))
    words = f"evaluate {gso} --protocol gso30-eschernet --checkpoint {checkpoint} --only alarm --references 1"
    words = f"{words} --allow-partial --steps 1 --output {tmp_path / 'run'}".split()

    def score() -> float:
        rows = json.loads((tmp_path / "run" / "scores.json").read_text())["summary"]
        return next(row["psnr"] for row in rows if row["method"] == "kaleido")

    assert cli.main(words) == 0
    without, before = score(), state(tmp_path / "run")
    assert cli.main(words) == 0, "a run that is there goes on"
    kept = [path for path in before if path.parent.name == "scores"]
    assert kept and all(path.stat().st_mtime_ns == before[path] for path in kept)
    adapted = [*words, "--lora", str(tmp_path / "adapter")]
    assert "its settings differ" in refused(adapted, capsys)
    assert cli.main([*adapted, "--overwrite", "--part", "1/2"]) == 1, "parts would remove each other"
    assert cli.main([*adapted, "--overwrite"]) == 0
    assert abs(score() - without) > 0.01, "the adapter changes the views"


def test_convert(checkpoint, tmp_path, capsys):
    output = tmp_path / "converted"
    words = ["convert", str(checkpoint), "--output", str(output)]
    assert cli.main(words) == 0
    assert f"{output} exists already" in refused(words, capsys)
    (output / "old").touch()
    assert cli.main([*words, "--overwrite", "--dtype", "float16"]) == 0 and not (output / "old").exists()
    papers = tmp_path / "papers"
    papers.mkdir()
    (papers / "thesis.txt").write_text("years of work")
    assert cli.main(["convert", str(checkpoint), "--output", str(papers), "--overwrite"]) == 1
    assert "is no checkpoint" in capsys.readouterr().err and (papers / "thesis.txt").read_text() == "years of work"
    assert cli.main(["convert", str(output), "--output", str(tmp_path), "--overwrite"]) == 1
    assert "holds what is to be converted" in capsys.readouterr().err and output.is_dir()


def test_train_and_what_it_leaves_alone(tmp_path, capsys):
    output = tmp_path / "run"
    words = (
        "train --data object --size 16 --batch 1 --views 3 --scenes 4 --scene-views 4 --render-samples 1 --workers 0"
    )
    words += " --model.num-layers 1 --tracker none"
    words = (
        f"{words} --model.patch-size 8 --validation-scenes 1 --validation-steps 1 --steps 2 --output {output}".split()
    )
    assert cli.main(words) == 0
    before = state(output)
    capsys.readouterr()
    assert cli.main(words) == 0 and state(output) == before
    assert capsys.readouterr().out.startswith(f"{output} was finished before")
    (output / "notes.txt").write_text("mine")
    assert "was trained with seed=0" in refused([*words, "--seed", "1"], capsys)
    bad = [*words, "--seed", "1", "--overwrite", "--data", str(tmp_path / "nowhere")]
    before = state(output)
    assert cli.main(bad) == 1 and state(output) == before, "errors come before the old run goes"
    assert cli.main([*words, "--seed", "1", "--overwrite", "--steps", "1"]) == 0
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-1"]
    assert (output / "notes.txt").read_text() == "mine"
    steps = [json.loads(line)["step"] for line in (output / "log.jsonl").read_text().splitlines()]
    assert set(steps) == {1}, "the log is that of the new run"


def test_shard(tmp_path, capsys):
    words = f"shard --data object --scenes 2 --views 3 --size 16 --samples 1 --output {tmp_path}".split()
    assert cli.main(words) == 0
    before = state(tmp_path)
    assert cli.main(words) == 0, "what is finished stays"
    tar = tmp_path / "shard-000000.tar"
    assert tar.stat().st_mtime_ns == before[tar]
    other = [*words, "--views", "4"]
    assert f"{tar} was not written with these settings" in refused(other, capsys)
    assert cli.main([*other, "--overwrite"]) == 0 and tar.stat().st_mtime_ns > before[tar]
    assert cli.main(other) == 0, "the new one is finished"


def test_poses_remove_what_they_wrote_and_no_photo(tmp_path):
    capture = tmp_path / "capture"
    shutil.copytree(Path(sample_capture("skull")) / "images", capture / "images")
    mine = sorted((capture / "images").iterdir())
    (capture / "photos.json").write_text("{}")
    (capture / "sparse" / "0").mkdir(parents=True)
    for name in ("database.db", "report.json", "notes.txt"):
        (capture / name).touch()
    remove_poses(capture, mine)
    assert sorted(path.name for path in capture.iterdir()) == ["images", "notes.txt"]
    assert sorted((capture / "images").iterdir()) == mine
    (capture / "sparse").mkdir()  # of another tool: nothing here says that a run wrote it
    remove_poses(capture, [])
    assert (capture / "sparse").is_dir() and sorted((capture / "images").iterdir()) == mine
