"""Adapters are trained by the one loop: they resume, stop early, and are scored on photos that nobody saw."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_pipeline
from safetensors.torch import load_file

from kaleido_diffusers import KaleidoViewSynthesisPipeline, bundled_checkpoint, cli, load_scene, sample_capture
from kaleido_diffusers.captures.export import write_capture
from kaleido_diffusers.captures.opening import CaptureOptions
from kaleido_diffusers.cli.lora import _verdict
from kaleido_diffusers.files import DiskFullError
from kaleido_diffusers.training.batches import open_sources, validation_samples
from kaleido_diffusers.training.checkpoints import latest_checkpoint
from kaleido_diffusers.training.config import LoraOptions, TrainConfig
from kaleido_diffusers.training.loop import Trainer
from kaleido_diffusers.training.recipes import CaptureRecipe
from kaleido_diffusers.worlds.shard_writing import write_shards
from kaleido_diffusers.worlds.sources import CaptureSource, capture_views


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_pipeline(num_layers=2).save_pretrained(folder)
    return folder


def make_config(output: Path, base: Path, **options) -> TrainConfig:
    defaults = {
        "size": 8, "batch": 2, "views": 4, "steps": 8, "warmup_steps": 2, "save_every": 3, "validate_every": 4,
        "log_every": 1, "tracker": "none", "workers": 0, "data": (sample_capture(),), "optimizer": "adamw",
        "other_lr": 1e-2, "in_memory": True, "lora": LoraOptions(rank=2), "validation_photos": 3, "patience": 9,
        "validation_steps": 2, "ema_decay": 0.9,
    }  # fmt: skip
    return TrainConfig(output=output, init_from=base, **{**defaults, **options})


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"rslora": True, "targets": ("attention",)}])
def test_an_adapter_stopped_between_steps_resumes_to_the_same_weights(tmp_path, base, options):
    config = make_config(tmp_path / "whole", base, lora=LoraOptions(rank=2, **options))
    Trainer(config).train()
    parts = replace(config, output=tmp_path / "parts", max_minutes=0.0)
    for _ in range(8):
        Trainer(parts).train()
    for name in ("transformer", "transformer_ema"):
        file = f"{name}/adapter.safetensors"
        whole, resumed = (load_file(latest_checkpoint(tmp_path / run) / file) for run in ("whole", "parts"))
        assert whole.keys() == resumed.keys() and all("lora" in key for key in whole)
        assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())
    lines = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    minutes = [line["minutes"] for line in lines]
    assert minutes == sorted(minutes), "the minutes of all calls count"
    file = "adapter/pytorch_lora_weights.safetensors"
    whole, resumed = (load_file(tmp_path / run / file) for run in ("whole", "parts"))
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())


def test_the_base_stays_and_the_adapter_changes_what_is_rendered(tmp_path, base):
    trainer = Trainer(make_config(tmp_path, base))
    trained = {name for name, p in trainer.transformer.named_parameters() if p.requires_grad}
    assert trained and all("lora" in name for name in trained)
    folder = trainer.train()
    before = KaleidoViewSynthesisPipeline.from_pretrained(base).transformer.state_dict()
    after = trainer.transformer.state_dict()
    for key, tensor in before.items():
        found = after.get(key, after.get(key.replace(".weight", ".base_layer.weight")))
        found = after[key.replace(".bias", ".base_layer.bias")] if found is None else found
        assert torch.equal(found, tensor), key

    scene = load_scene(sample_capture())
    pipe = KaleidoViewSynthesisPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)

    def render(pipe) -> torch.Tensor:
        options = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
        return pipe(scene.images[[1, 9]], scene.cameras[[1, 9]], scene.cameras[[5]], **options).images

    plain = render(pipe)
    pipe.load_lora_weights(folder)
    adapted = render(pipe)
    assert not torch.equal(adapted, plain)
    torch.testing.assert_close(adapted, render(trainer.result()), rtol=0, atol=1e-6)
    pipe.unload_lora_weights()
    assert torch.equal(render(pipe), plain)


def test_the_best_weights_are_kept_and_the_run_stops_when_there_are_no_better_ones(tmp_path, base, monkeypatch):
    scores = iter([10.0, 12.0, 11.0, 11.5, 13.0])
    monkeypatch.setattr(Trainer, "validate", lambda self: {"validation_psnr": next(scores)})
    config = make_config(tmp_path, base, patience=2, validate_every=2, steps=40, save_every=100)
    trainer = Trainer(config)
    seen = {}
    judge = Trainer._judge

    def watched(self, found):
        seen[self.step] = {key: value.clone() for key, value in self.pipeline().transformer.state_dict().items()}
        return judge(self, found)

    monkeypatch.setattr(Trainer, "_judge", watched)
    trainer.train()
    assert (trainer.step, trainer.best_step, trainer.best_score) == (8, 4, 12.0)
    for key, tensor in trainer.result().transformer.state_dict().items():
        assert torch.equal(tensor, seen[4][key])
    assert [path.name for path in tmp_path.glob("best-*")] == ["best-4"]
    again = Trainer(config)
    assert (again.step, again.best_step) == (8, 4)
    again.train()
    assert again.step == 8, "a run that has stopped stays so"


def test_a_full_fine_tune_goes_through_the_same_loop(tmp_path, base):
    trainer = Trainer(make_config(tmp_path, base, lora=LoraOptions(), optimizer="muon"))
    folder = trainer.train()
    pipe = KaleidoViewSynthesisPipeline.from_pretrained(folder)
    kept = trainer.result().transformer.state_dict()
    assert all(torch.equal(tensor, kept[key]) for key, tensor in pipe.transformer.state_dict().items())
    before = KaleidoViewSynthesisPipeline.from_pretrained(base).transformer.state_dict()
    assert any(not torch.equal(tensor, before[key]) for key, tensor in kept.items())


def test_validation_photos_are_neither_trained_on_nor_tested_on(tmp_path, base):
    scene = load_scene(sample_capture())
    test, validation, train = (capture_views(scene, split, 3) for split in ("test", "validation", "train"))
    assert len(validation) == 3 and sorted(test + validation + train) == list(range(40))
    assert validation[0] > 3 and validation[-1] < 36, "they are spread over the capture"
    assert len(CaptureSource(sample_capture(), 8, "train", 3)[0]) == len(train) == 32
    ((sample, count),) = validation_samples(make_config(tmp_path, base, validation_references=5))
    assert (len(sample), count) == (8, 5)
    assert capture_views(scene, "train") == sorted(train + validation)
    with pytest.raises(ValueError, match="34 of 35 training photos"):
        capture_views(scene, "train", 34)


def test_an_adapter_needs_a_base(tmp_path):
    with pytest.raises(ValueError, match="pass --init-from"):
        Trainer(TrainConfig(output=tmp_path, lora=LoraOptions(rank=2), tracker="none"))


@pytest.mark.parametrize("full", [False, True])
def test_kaleido_lora(full, tmp_path, base, capsys):
    words = f"lora sample --output {tmp_path} --checkpoint {base} --steps 4 --batch 2 --views 4 --references 1 2"
    words += " --rank 2 --validate-every 2 --scored-references 3 6 --denoising-steps 2 --validation-photos 2"
    assert cli.main([*words.split(), *(["--full"] if full else [])]) == 0
    out = capsys.readouterr().out
    for word in ("| base ", "| fine-tuned ", "| nearest ", "4 steps", "peak memory", "kept-back photos: "):
        assert word in out, out
    folder = tmp_path / ("pipeline" if full else "adapter")
    assert (folder / "test_photos.png").is_file()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert cli.main([*words.split(), *(["--full"] if full else [])]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path} was finished before") and "next: kaleido render sample --checkpoint" in said
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    if not full:
        assert " MB" in out and "PSNR" in (folder / "README.md").read_text()
        assert cli.main(["info", str(folder)]) == 0
        said = capsys.readouterr().out
        for line in (r"an adapter$", r"  rank +2$", r"  capture +sample$", r"  steps +\d$", r"  scores +\{'PSNR, 3"):
            assert re.search(line, said, re.MULTILINE), said


@pytest.mark.parametrize(("gained", "said"), [(18.0, "17.90 dB"), (17.85, "no gain: train longer"), (14.0, "no gain")])
def test_the_table_is_summed_up_in_a_sentence(gained, said):
    rows = [
        {"model": "nearest", "references": 43, "psnr": 17.9},
        {"model": "nearest", "references": 6, "psnr": 19.0},  # of other references: no rival
        *({"model": "base", "references": n, "psnr": psnr} for n, psnr in ((3, 14.5), (6, 15.0))),
        *({"model": "fine-tuned", "references": n, "psnr": psnr} for n, psnr in ((3, gained - 1), (6, gained))),
    ]
    text = _verdict(rows)
    assert text.startswith(f"kept-back photos: {gained:.2f} dB from 6 references, 15.00 dB before; the nearest of all")
    assert said in text and ("no gain" in text) == (gained < 17.9)


@pytest.mark.parametrize("photos", range(1, 13))
def test_few_photos_train_or_are_refused_in_a_sentence(photos, tmp_path):
    scene = load_scene(sample_capture())
    write_capture(tmp_path / "few", [scene.images[i] for i in range(photos)], scene.cameras[range(photos)])
    recipe = CaptureRecipe(steps=1)
    if photos < 3:  # every eighth from the first is kept for the scores
        with pytest.raises(ValueError, match=f"of its {photos} photos, 1 are kept .* needs 2"):
            recipe.settings(tmp_path / "few", tmp_path / "run", bundled_checkpoint())
        return
    config = recipe.settings(tmp_path / "few", tmp_path / "run", bundled_checkpoint())
    (source,), _ = open_sources(config)
    assert len(source[0]) >= config.views > max(config.references) >= 1
    assert config.validation_photos <= len(capture_views(load_scene(tmp_path / "few"), "train")) // 3
    assert (config.patience is None) == (config.validation_photos == 0)


# What training needs is there before the first step, or is missed then


def without_steps(monkeypatch) -> None:
    """No step may be taken."""

    def step(self, item):
        raise AssertionError("a step was taken")

    monkeypatch.setattr(Trainer, "_train_step", step)


def few_photos(folder: Path, count: int) -> Path:
    scene = load_scene(sample_capture())
    write_capture(
        folder, [scene.images[i].resize((16, 16)) for i in range(count)], scene.cameras[range(count)].resized(16, 16)
    )
    return folder


@pytest.mark.parametrize(
    "options, told",
    [
        ({"size": 9}, "`size` must be a multiple of 4 for this model, got 9"),
        ({"views": 34}, "has a scene of 32 views; `views` asks for 34"),
        ({"data": ("object",), "scene_views": 3}, "object: has a scene of 3 views; `views` asks for 4"),
        ({"validation": "nowhere"}, "'nowhere' is neither a kind of world"),
        ({"validation_photos": 34}, "34 of 35 training photos"),
        ({"references": (1, 4)}, r"`references` must lie between 0 and 3.* got \(1, 4\)"),
        ({"target_group_sizes": ()}, "`target_group_sizes` must hold numbers from 1"),
        ({"view_mix": (0.0, 0.0, 0.0)}, "`view_mix` must hold weights"),
        ({"validation_steps": 0}, "`validation_steps` must be above 0"),
        ({"capture": CaptureOptions(split="7")}, "has no split '7'"),
        ({"capture": CaptureOptions(images=Path("nowhere"))}, "nowhere: no such capture"),
    ],
)
def test_settings_that_would_end_a_run_later_end_it_before_the_first_step(tmp_path, base, monkeypatch, options, told):
    without_steps(monkeypatch)
    with pytest.raises(ValueError, match=told):
        Trainer(make_config(tmp_path, base, **options)).train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_patience_without_anything_to_validate_on_is_refused(tmp_path, base, monkeypatch):
    without_steps(monkeypatch)
    write_shards(tmp_path / "shards", iter([CaptureSource(sample_capture(), 8)[0]]), 1)
    with pytest.raises(ValueError, match="`patience` needs scores"):
        Trainer(make_config(tmp_path / "run", base, data=(str(tmp_path / "shards"),), validation_photos=0)).train()


def test_a_disk_without_room_for_the_checkpoints_is_known_before_the_first_step(tmp_path, base, monkeypatch):
    without_steps(monkeypatch)
    trainer = Trainer(make_config(tmp_path, base, lora=LoraOptions(), keep=1))
    weights = sum(p.nbytes for p in trainer.transformer.parameters())
    # AdamW: the weights, their average and two moments, twice; the best weights and the result
    needed = 2 * 4 * weights + 2 * weights
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(DiskFullError, match=f"2 checkpoints .* need {needed / 1e6:.1f} MB"):
        trainer.train()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    with pytest.raises(AssertionError, match="a step was taken"):
        trainer.train()


def test_scores_that_cannot_be_taken_are_known_before_the_first_step(tmp_path, base, monkeypatch, capsys):
    without_steps(monkeypatch)
    words = ["--output", str(tmp_path / "run"), "--checkpoint", str(base), "--denoising-steps", "1"]
    capture = few_photos(tmp_path / "few", 9)
    (capture / "images" / "0008.png").write_bytes(b"")  # a test photo
    assert cli.main(["lora", str(capture), *words]) == 1
    assert "0008.png" in capsys.readouterr().err
    assert cli.main(["lora", str(few_photos(tmp_path / "nine", 9)), *words, "--scored-references", "0"]) == 1
    assert "--scored-references must be numbers from 1" in capsys.readouterr().err
    assert cli.main(["lora", str(tmp_path / "nine"), *words, "--denoising-steps", "0"]) == 1
    assert "--denoising-steps must be at least 1, got 0" in capsys.readouterr().err


def test_kaleido_lora_on_eight_photos_that_lie_elsewhere(tmp_path, base, capsys):
    capture = few_photos(tmp_path / "few", 8)
    (capture / "images").rename(tmp_path / "photos")
    words = f"lora {capture} --output {tmp_path / 'run'} --checkpoint {base} --steps 1 --batch 1 --rank 2 --size 8"
    words += f" --denoising-steps 1 --images {tmp_path / 'photos'} --test-every 4"
    assert cli.main(words.split()) == 0
    out = capsys.readouterr().out
    assert "| fine-tuned | 3 |" in out and "| fine-tuned | 6 |" in out and "| nearest | 6 |" in out, out


def test_photos_that_a_capture_names_for_its_scores_decide_nothing(tmp_path):
    """A capture with a validation split and no test split is scored on the former."""
    capture = few_photos(tmp_path / "few", 12)
    data = json.loads((capture / "transforms.json").read_text())
    names = [frame["file_path"] for frame in data["frames"]]
    data |= {"train_filenames": names[2:], "val_filenames": names[:2]}
    (capture / "transforms.json").write_text(json.dumps(data))
    scene = load_scene(capture)
    assert capture_views(scene, "test") == [0, 1]
    validation, train = (capture_views(scene, split, 2) for split in ("validation", "train"))
    assert len(validation) == 2 and not {0, 1} & {*validation, *train}
