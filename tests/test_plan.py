"""What a run takes, counted before it runs: by hand, and by torch's own counter."""

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode

from kaleido_diffusers import KaleidoTransformer3DModel
from kaleido_diffusers.cli import main
from kaleido_diffusers.training.config import LoraOptions, ModelConfig, TrainConfig
from kaleido_diffusers.training.hardware import CARDS
from kaleido_diffusers.training.meter import Meter, step_operations, step_tokens
from kaleido_diffusers.training.objective import ViewPartition
from kaleido_diffusers.training.plan import make_plan


GIB = 2**30


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """The config of an autoencoder of 16 channels and 8 pixels a cell; its weights are never asked for."""
    folder = tmp_path_factory.mktemp("vae")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    AutoencoderKL(latent_channels=16, block_out_channels=(32,) * 4, **blocks).save_config(folder)
    return folder


def xl(folder, **options) -> TrainConfig:
    """The paper's size: 12 views, 4 references, targets in groups of 4."""
    draws = {"views": 12, "references": (4,), "target_group_sizes": (4,), "reference_dropout": 0.0}
    settings = {"size": 512, "batch": 64, "steps": 460_000, "gradient_checkpointing": True, "output": folder / "none"}
    sharded = {"data_parallel_replicate_degree": 8, "data_parallel_shard_degree": 8, "ordered_references": 0.0}
    return TrainConfig(model=ModelConfig(preset="xl"), **{"vae": folder, **settings, **draws, **sharded, **options})


def test_the_paper_s_model_on_64_cards(vae):
    """Figures counted by hand and on meta tensors elsewhere: 3.4e14 operations a scene, 16.1 bytes a parameter."""
    plan = make_plan(xl(vae), CARDS["h100"], 64)
    assert plan.parameters == plan.trained == 3_075_784_256
    assert plan.operations == plan.most_operations == pytest.approx(64 * 3.367e14, rel=0.002)
    assert plan.tokens == 64 * 12 * 32 * 32 == 786_432
    assert (plan.cards, plan.shards, plan.scenes) == (64, 8, 1)
    states = [plan.memory[part] for part in ("weights", "gradients", "optimizer", "average")]
    assert sum(states) / plan.parameters * 8 == pytest.approx(16.06, abs=0.01)
    assert sum(states) / GIB == pytest.approx(5.75, abs=0.01)
    assert plan.memory["inputs of blocks"] == 44 * 12 * 1024 * 2560 * 2
    assert plan.memory["one block's activations"] / GIB == pytest.approx(2.2, rel=0.06)
    assert plan.seconds == pytest.approx(3.367e14 / (0.4 * 989e12), rel=0.002)
    assert 1e22 / plan.operations * plan.seconds / 86_400 == pytest.approx(4.57, rel=0.01), "days for 1e22 operations"
    adamw = make_plan(xl(vae, optimizer="adamw", data_parallel_replicate_degree=1, batch=8), CARDS["h100"], 8)
    assert sum(list(adamw.memory.values())[:4]) / GIB == pytest.approx(20 * plan.parameters / 8 / GIB)
    large_views = make_plan(xl(vae, size=1024), CARDS["h100"], 64)
    assert large_views.operations == pytest.approx(64 * 2.707e15, rel=0.002) and "TOO MUCH" not in large_views.text
    kept = make_plan(xl(vae, gradient_checkpointing=False), CARDS["h100"], 64)
    assert kept.memory["activations"] == 44 * plan.memory["one block's activations"] and "TOO MUCH" in kept.text


def test_latents_of_32_pixels_are_tokens(tmp_path, vae):
    blocks = {"encoder_block_types": ("ResBlock",) * 6, "decoder_block_types": ("ResBlock",) * 6}
    widths = {"encoder_block_out_channels": (8,) * 6, "decoder_block_out_channels": (8,) * 6}
    layers = {"encoder_layers_per_block": (1,) * 6, "decoder_layers_per_block": (1,) * 6}
    scales = {"encoder_qkv_multiscales": ((),) * 6, "decoder_qkv_multiscales": ((),) * 6}
    AutoencoderDC(latent_channels=32, **blocks, **widths, **layers, **scales).save_config(tmp_path)
    plan = make_plan(xl(vae, vae=tmp_path), CARDS["h100"], 64)
    assert plan.tokens == 64 * 12 * 16 * 16, "a quarter of the tokens of 8 pixels a cell and patches of 2"


def test_an_adapter_has_few_states(vae):
    """An adapter of rank 4 on 7 matrices a block: 4 x (rows + columns)."""
    plan = make_plan(xl(vae, lora=LoraOptions(rank=4), optimizer="adamw"), CARDS["h100"], 64)
    dim, narrow, inner = 2560, 512, 6912
    sides = 2 * 2 * dim + 2 * (dim + narrow) + 3 * (dim + inner)
    assert plan.trained == 44 * 4 * sides
    assert plan.memory["optimizer"] == 8 * plan.trained / 8


@pytest.mark.parametrize("drop", [False, True])
def test_a_step_is_counted_as_torch_counts_it(drop):
    """Forward and backward pass on meta tensors, two layers of `xl`."""
    with torch.device("meta"):
        model = KaleidoTransformer3DModel.from_preset("xl", num_layers=2, layer_pattern=("global", "view"))
    partition = ViewPartition(((0, 1), (2,)), ((3, 4), (5, 6)), drop)
    shown = 4 if drop else 7
    options = {"view_groups": [0, 0, 1, 2, 2, 3, 3][-shown:], "num_targets": 4}
    options |= {"poses": torch.zeros(1, shown, 4, 4, device="meta")}
    options |= {"intrinsics": torch.zeros(1, shown, 3, 3, device="meta")}
    views = torch.zeros(1, shown, 16, 32, 64, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(views, torch.zeros(1, shown, device="meta"), **options).sample.sum().backward()
    ours = step_operations(model.config, partition, 1, 32, 64)
    # The backward pass leaves out the gradient of the views themselves: twice the patch embedding's products
    unasked = 2 * shown * (16 * 32) * 2560 * 64
    assert counter.get_total_flops() == pytest.approx(ours - unasked, rel=2e-3)
    assert step_tokens(model.config, partition, 5, 32, 64) == 5 * shown * 512


def test_copies_and_shards_make_up_the_processes(vae):
    assert xl(vae).shard_degree(64) == 8
    for replicas, shards, expected in ((-1, -1, 8), (1, -1, 8), (4, -1, 2), (-1, 1, 1), (-1, 4, 4)):
        degrees = {"data_parallel_replicate_degree": replicas, "data_parallel_shard_degree": shards}
        assert xl(vae, **degrees).shard_degree(8) == expected
    with pytest.raises(ValueError, match="8 copies of 8 shards do not make up the 32 processes"):
        xl(vae).shard_degree(32)
    with pytest.raises(ValueError, match="multiple of the 64 processes times `gradient_accumulation_steps` .2."):
        xl(vae, gradient_accumulation_steps=2).shard_degree(64)
    with pytest.raises(ValueError, match="-1 or above 0, got 0"):
        xl(vae, data_parallel_shard_degree=0)


def test_the_command_prints_a_plan_and_trains_nothing(tmp_path, capsys):
    words = "--plan --size 16 --batch 4 --card h100 --cards 2 --mfu 0.5 --steps 10".split()
    assert main(["train", "--output", str(tmp_path / "run"), *words]) == 0
    said = capsys.readouterr().out
    assert "2 H100 SXM, replicate x shard 2 x 1" in said and "50% MFU of 989 TFLOP/s" in said
    assert not (tmp_path / "run").exists()


def test_the_meter_counts_a_card_s_share(monkeypatch):
    now = iter([0.0, 1.0, 2.0, 3.0, 7.0, 10.0])
    monkeypatch.setattr("kaleido_diffusers.training.meter.time.monotonic", lambda: next(now))
    meter = Meter(cards=2, peak=1e12)
    with meter.aside("waiting"):
        pass
    with meter.aside("pauses"):
        pass
    meter.count(6 * 10**12, 600)
    meter.count(6 * 10**12, 600)
    scores = meter.scores()
    assert scores.pop("memory_gib") > 0
    # 10 seconds but for 4 of pauses; 12e12 operations and 1,200 tokens on two cards
    expected = {"seconds": 3.0, "data_share": 1 / 6, "tokens_per_second": 100.0, "tflops": 1.0, "mfu": 1.0}
    assert scores == pytest.approx(expected)
