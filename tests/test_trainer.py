"""A run is killed, resumed, shared between processes and moved from video to 3D, and nothing of it shows."""

import json
import os
import random
import subprocess
import time
from dataclasses import is_dataclass, replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import ended, make_pipeline, places, started, torchrun
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from safetensors.torch import load_file

from kaleido_diffusers import (
    KaleidoTransformer3DModel,
    KaleidoViewSynthesisPipeline,
    RectifiedFlowViewScheduler,
    sample_capture,
)
from kaleido_diffusers.training.batches import source_options, validation_samples
from kaleido_diffusers.training.checkpoints import latest_checkpoint
from kaleido_diffusers.training.config import LoraOptions, ModelConfig, TrainConfig
from kaleido_diffusers.training.loop import Trainer
from kaleido_diffusers.worlds.shard_writing import write_shards
from kaleido_diffusers.worlds.sources import SyntheticSource, open_source


MODEL = {"num_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "ffn_dim": 48, "patch_size": 4}


def make_config(output: Path, **options) -> TrainConfig:
    defaults = {
        "size": 8, "batch": 4, "views": 5, "scenes": 8, "scene_views": 6, "render_samples": 1, "steps": 12,
        "warmup_steps": 3, "save_every": 5, "validate_every": 100, "validation_scenes": 1, "log_every": 1,
        "tracker": "none", "workers": 0, "data": ("object", "video"), "dtype": "float32",
    }  # fmt: skip
    return TrainConfig(output=output, model=ModelConfig(**MODEL), **{**defaults, **options})


def arguments(output: Path, **options) -> list[str]:
    """The same configuration as words of the command line."""
    config = make_config(output, **options)
    words = [f"--model.{key.replace('_', '-')}={value}" for key, value in MODEL.items()]
    for key, value in vars(config).items():
        if is_dataclass(value) or value is None:
            continue
        flag = "--" + key.replace("_", "-")
        if isinstance(value, bool):
            words += [flag if value else f"--no-{key.replace('_', '-')}"]
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return ["train", *words]


def weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    checkpoint = latest_checkpoint(folder)
    return {
        name: load_file(checkpoint / name / "diffusion_pytorch_model.safetensors")
        for name in ("transformer", "transformer_ema")
    }


def assert_same(a: Path, b: Path) -> None:
    for name, tensors in weights(a).items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, weights(b)[name][key]), f"{name}: {key}"


def test_a_resumed_run_keeps_the_precision_that_was_measured(tmp_path, monkeypatch):
    for fast, steps in ((torch.bfloat16, 2), (torch.float32, 4)):
        monkeypatch.setattr("kaleido_diffusers.training.loop.fast_dtype", lambda _device, fast=fast: fast)
        trainer = Trainer(make_config(tmp_path, steps=steps, dtype="auto"))
        assert trainer.dtype == torch.bfloat16
        trainer.train()
    assert Trainer(make_config(tmp_path, steps=4, dtype="float32")).dtype == torch.float32


def test_a_run_stopped_between_steps_resumes_to_the_same_weights(tmp_path):
    Trainer(make_config(tmp_path / "whole")).train()
    parts = make_config(tmp_path / "parts", max_minutes=0.0)  # one step at a time
    for _ in range(12):
        Trainer(parts).train()
    assert latest_checkpoint(tmp_path / "parts").name == "checkpoint-12"
    assert_same(tmp_path / "whole", tmp_path / "parts")
    raw, averaged = weights(tmp_path / "whole").values()
    assert any(not torch.equal(raw[key], averaged[key]) for key in raw)
    pipe = KaleidoViewSynthesisPipeline.from_pretrained(tmp_path / "whole" / "pipeline")
    for key, tensor in pipe.transformer.state_dict().items():
        assert torch.equal(tensor, averaged[key])
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    assert all(line["activation_1"] > 0 for line in lines if "loss" in line)
    assert (tmp_path / "whole" / "validation-0000012.png").is_file()


@pytest.mark.parametrize("lora", [False, True])
def test_with_default_settings_it_resumes_to_the_same_weights(tmp_path, lora):
    """Views and widths as users have them. What a run resumes with lies in memory as in the unbroken run: by that
    kernels round, which ones depends on the machine."""
    model = {"num_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "ffn_dim": 832}
    options = {"size": 64, "views": 6, "batch": 2, "steps": 8}
    options |= {"scenes": 4, "scene_views": 8, "save_every": 100, "render_samples": 1, "validate_every": 100}
    options |= {"data": ("object",), "tracker": "none", "workers": 0, "validation_scenes": 1, "validation_steps": 1}
    if lora:
        base = KaleidoViewSynthesisPipeline(KaleidoTransformer3DModel(**model), RectifiedFlowViewScheduler())
        base.save_pretrained(tmp_path / "base")
        options |= {"init_from": tmp_path / "base", "lora": LoraOptions(rank=4)}
    else:
        options |= {"model": ModelConfig(**model, patch_size=8)}
    whole = TrainConfig(output=tmp_path / "whole", **options)
    Trainer(whole).train()
    parts = replace(whole, output=tmp_path / "parts", max_minutes=0.0)
    for _ in range(3):
        Trainer(parts).train()
    resumed = Trainer(replace(parts, max_minutes=None))
    states = [
        value for optimizer in resumed.optimizers for state in optimizer.state.values() for value in state.values()
    ]
    tensors = [*resumed.transformer.parameters(), *resumed.ema.shadow_params, *filter(torch.is_tensor, states)]
    assert len(states) > 10 and all(tensor.data_ptr() % 64 == 0 for tensor in tensors)
    resumed.train()
    files = [
        path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("checkpoint-8/*/*.safetensors")
    ]
    assert len(files) == 2
    for file in files:
        a, b = load_file(tmp_path / "whole" / file), load_file(tmp_path / "parts" / file)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), file


def test_killed_five_times_it_ends_in_the_same_weights(tmp_path):
    """SIGKILL at random moments, also inside the writing of a checkpoint."""
    options = {"steps": 60, "save_every": 1, "keep": 3}
    Trainer(make_config(tmp_path / "whole", **options)).train()
    dice, killed, inside = random.Random(0), 0, 0
    while killed < 5:
        before = latest_checkpoint(tmp_path / "killed")
        with started(*arguments(tmp_path / "killed", **options)) as process:
            deadline = time.monotonic() + 120
            while latest_checkpoint(tmp_path / "killed") == before and time.monotonic() < deadline:
                assert process.returncode is None, process.rest()[-3000:]
                time.sleep(0.002)
            if killed % 2:  # in the middle of a checkpoint
                while not list((tmp_path / "killed").glob(".checkpoint-*.part")) and process.returncode is None:
                    time.sleep(0.0005)
            else:
                time.sleep(dice.random())
            process.kill()
        inside += bool(list((tmp_path / "killed").glob(".checkpoint-*.part")))
        killed += 1
    ended(started(*arguments(tmp_path / "killed", **options)))
    assert inside >= 1, "at least one kill came inside the writing of a checkpoint"
    assert_same(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("rates", [{"optimizer": "adamw"}, {"matrix_lr": 2e-3, "other_lr": 2e-4}])
def test_two_processes_have_the_losses_of_one(tmp_path, rates):
    """Data parallel over gloo on the CPU. Muon orthogonalises in bfloat16, which makes much of the last bit of a
    gradient (1.7e-5 after 5 steps at a rate of 0.02), hence its gentle rate here."""
    options = {"steps": 6, "save_every": 100, "data": ("object", "video"), **rates}
    losses = {}
    for name, size in (("two", 2), ("one", 1)):
        ended(*(started(*arguments(tmp_path / name, **options), env=place) for place in places(size)))
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        losses[name] = torch.tensor([line["loss"] for line in lines if "loss" in line])
    assert len(losses["one"]) == 6
    torch.testing.assert_close(losses["two"], losses["one"], rtol=0, atol=1e-5)


def test_two_processes_stop_at_the_same_step_when_time_is_over(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = {"steps": 100_000, "save_every": 100_000, "validate_every": 5, "max_minutes": 0.05}
    command = [*torchrun(), "-m", "kaleido_diffusers.cli", *arguments(tmp_path, **options)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    assert latest_checkpoint(tmp_path) is not None


def test_from_video_to_3d_nothing_of_the_model_changes(tmp_path):
    """Parameter names and shapes stay, and so does the path through the code."""
    traces, shapes = {}, {}
    source = None
    for stage, data in (("video", "video"), ("3d", "object"), ("both", "moving")):
        config = make_config(tmp_path / stage, data=(data,), steps=2, init_from=source)
        trainer = Trainer(config)
        shapes[stage] = {name: tuple(p.shape) for name, p in trainer.transformer.named_parameters()}
        traces[stage] = trace(trainer)
        source = trainer.train()
    assert shapes["video"] == shapes["3d"] == shapes["both"]
    assert traces["video"] == traces["3d"] == traces["both"]


def trace(trainer: Trainer) -> list[str]:
    """Modules that run in a training step, in their order."""
    item = next(trainer._batches())
    names = []
    hooks = [
        module.register_forward_pre_hook(lambda m, _, name=name: names.append(name))
        for name, module in trainer.transformer.named_modules()
    ]
    trainer._train_step(item)
    for hook in hooks:
        hook.remove()
    return names


def test_old_checkpoints_go_and_unfinished_ones_are_ignored(tmp_path):
    (tmp_path / ".checkpoint-99.part").mkdir(parents=True)
    (tmp_path / "checkpoint-old").mkdir()
    Trainer(make_config(tmp_path, steps=6, save_every=1, keep=2)).train()
    found = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert found == ["checkpoint-5", "checkpoint-6", "checkpoint-old"]
    assert latest_checkpoint(tmp_path).name == "checkpoint-6"


def test_gradient_checkpointing_and_precision_are_settings(tmp_path):
    plain = Trainer(make_config(tmp_path / "a", steps=3))
    plain.train()
    checkpointed = Trainer(make_config(tmp_path / "b", steps=3, gradient_checkpointing=True))
    assert checkpointed.transformer.gradient_checkpointing and not plain.transformer.gradient_checkpointing
    checkpointed.train()
    assert_same(tmp_path / "a", tmp_path / "b")
    AcceleratorState._reset_state(reset_partial_state=True)  # one precision a process
    half = Trainer(make_config(tmp_path / "c", steps=2, optimizer="adamw", dtype="bfloat16"))
    dtypes = set()
    half.transformer.transformer_blocks[0].attn.to_q.register_forward_hook(lambda *call: dtypes.add(call[2].dtype))
    half.train()
    assert torch.bfloat16 in dtypes and half.transformer.dtype == torch.float32
    AcceleratorState._reset_state(reset_partial_state=True)
    assert latest_checkpoint(tmp_path / "c").name == "checkpoint-2"


def test_divergence_ends_the_run_with_a_word(tmp_path):
    with pytest.raises(FloatingPointError, match="diverged before step"):
        Trainer(make_config(tmp_path, other_lr=1e30, warmup_steps=0, steps=9, save_every=1, log_every=100)).train()
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path)["transformer"].values())


def test_a_resumed_run_keeps_what_it_predicts_and_refuses_other_settings(tmp_path):
    pipe = make_pipeline("velocity")
    pipe.scheduler = RectifiedFlowViewScheduler(prediction_type="velocity", shift=3.0)
    pipe.save_pretrained(tmp_path / "base")
    config = make_config(tmp_path / "run", init_from=tmp_path / "base", max_minutes=0.0)
    for _ in range(2):
        Trainer(config).train()
    trainer = Trainer(config)
    assert trainer.step == 2
    assert trainer.scheduler.config.prediction_type == "velocity" and trainer.scheduler.config.shift == 3.0
    Trainer(replace(config, steps=20)).train()
    with pytest.raises(ValueError, match="was trained with batch=4"):
        Trainer(replace(config, batch=2))


def test_every_preset_is_trained_on_pixels(tmp_path):
    config = make_config(tmp_path, size=16)
    config.model = replace(config.model, preset="small", patch_size=None)
    trainer = Trainer(config)
    assert (trainer.transformer.config.in_channels, trainer.transformer.config.patch_size) == (3, 8)
    make_pipeline("velocity", in_channels=4).save_pretrained(tmp_path / "latents")
    with pytest.raises(ValueError, match="views of 4 channels, but training sees pixels"):
        Trainer(make_config(tmp_path / "other", init_from=tmp_path / "latents"))


def test_validation_sees_what_training_does_not(tmp_path):
    config = make_config(tmp_path, data=(sample_capture(),))
    ((sample, count),) = validation_samples(config)
    trained = open_source(sample_capture(), source_options(config))[0]
    assert (len(sample), count, len(trained)) == (5, 3, 35)
    gaps = (sample.poses[:, None] - trained.poses).abs().amax((-2, -1)).amin(-1)
    assert (gaps < 1e-9).tolist() == [True, True, True, False, False]
    write_shards(tmp_path / "shards", [SyntheticSource(num_scenes=1, num_views=4, size=8)[0]])
    assert validation_samples(replace(config, data=(str(tmp_path / "shards"),))) == []
    ((sample, count),) = validation_samples(replace(config, validation=str(tmp_path / "shards")))
    assert (len(sample), count) == (4, 3)
    Trainer(make_config(tmp_path / "few", views=4, scene_views=4, steps=2)).train()
    assert (tmp_path / "few" / "validation-0000002.png").is_file()


def test_how_a_trainer_attends_is_its_own_affair(tmp_path):
    """Products in place of the fused kernel on CPUs: not for the other models of the process."""
    before = _AttentionBackendRegistry.get_active_backend()[0]
    trainer = Trainer(make_config(tmp_path))
    processor = trainer.transformer.transformer_blocks[0].attn.processor
    assert processor._attention_backend == "_native_math"
    assert _AttentionBackendRegistry.get_active_backend()[0] == before != "_native_math"
