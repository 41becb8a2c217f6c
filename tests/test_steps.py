"""What a step of training does: its rates, its clipping, its average, and the views that its rows are made of."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_trainer import make_config
from torch.optim.optimizer import register_optimizer_step_pre_hook

from kaleido_diffusers.training.batches import StepBatches, source_options
from kaleido_diffusers.training.config import TrainConfig
from kaleido_diffusers.training.loop import Trainer
from kaleido_diffusers.training.muon import Muon
from kaleido_diffusers.worlds.sources import open_source


class Watched(Trainer):
    """Records, before each step, the rate of every parameter."""

    def __init__(self, config: TrainConfig):
        super().__init__(config)
        self.rates = []

    def loss(self, *arguments):
        names = {id(p): name for name, p in self.transformer.named_parameters()}
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        self.rates.append({names[id(p)]: group["lr"] for group in groups for p in group["params"]})
        return super().loss(*arguments)


def test_rates_rise_stay_and_fall(tmp_path):
    """Two steps up, then level, then down over the last four of ten; 0.02 for matrices, 0.003 for the rest."""
    trainer = Watched(
        make_config(tmp_path, steps=10, warmup_steps=2, cooldown=0.4, matrix_lr=0.02, other_lr=0.003, save_every=100)
    )
    trainer.train()
    factors = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    matrix, norm = "transformer_blocks.0.attn.to_q.weight", "transformer_blocks.1.attn.norm_q.weight"
    assert [rates[matrix] for rates in trainer.rates] == pytest.approx([0.02 * factor for factor in factors])
    assert [rates[norm] for rates in trainer.rates] == pytest.approx([0.003 * factor for factor in factors])
    parameters = dict(trainer.transformer.named_parameters())
    assert trainer.rates[1].keys() == parameters.keys()
    for name, rate in trainer.rates[1].items():
        is_matrix = "transformer_blocks" in name and parameters[name].ndim == 2 and "table" not in name
        assert rate == (0.02 if is_matrix else 0.003), name
    assert all(p.grad is None for p in parameters.values()), "gradients of a step are not those of the next"


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    found = []
    for parts in (1, 2, 4):
        options = {"steps": 2, "optimizer": "adamw", "gradient_accumulation_steps": parts, "save_every": 100}
        Trainer(make_config(tmp_path / str(parts), **options)).train()
        lines = [json.loads(line) for line in (tmp_path / str(parts) / "log.jsonl").read_text().splitlines()]
        found.append([(line["loss"], line["grad_norm"]) for line in lines if "loss" in line])
    whole, *parted = torch.tensor(found)
    assert whole.shape == (2, 2) and (whole > 0.1).all()
    for each in parted:
        torch.testing.assert_close(each, whole, rtol=1e-4, atol=1e-5)


def test_gradients_are_clipped_before_the_step(tmp_path):
    norms = []

    def record(optimizer, *_):
        if isinstance(optimizer, Muon):  # the first to step: every gradient is still there
            gradients = [p.grad.norm() for p in trainer.transformer.parameters()]
            norms.append(torch.stack(gradients).norm().item())

    trainer = Trainer(make_config(tmp_path, steps=3, max_grad_norm=0.01))
    handle = register_optimizer_step_pre_hook(record)
    try:
        trainer.train()
    finally:
        handle.remove()
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(line["grad_norm"] > 0.02 for line in lines if "loss" in line), "there was something to clip"


def test_the_average_starts_fast_and_slows_to_its_decay(tmp_path):
    """Its decay is `1 - n^(-3/4)` at step n, and `ema_decay` at most: 0, 0.405396, then 0.5 (not 0.561309)."""
    trainer = Trainer(make_config(tmp_path, steps=3, save_every=1, keep=3, ema_decay=0.5, warmup_steps=0))
    trainer.train()
    now, average = (
        [
            load_file(tmp_path / f"checkpoint-{step}" / name / "diffusion_pytorch_model.safetensors")
            for step in (1, 2, 3)
        ]
        for name in ("transformer", "transformer_ema")
    )
    for key in now[0]:
        second = 0.405396 * now[0][key] + 0.594604 * now[1][key]
        torch.testing.assert_close(average[0][key], now[0][key], msg=key)
        torch.testing.assert_close(average[1][key], second, rtol=1e-5, atol=1e-6, msg=key)
        torch.testing.assert_close(average[2][key], 0.5 * second + 0.5 * now[2][key], rtol=1e-5, atol=1e-6, msg=key)
    assert any((now[1][key] - now[0][key]).abs().max() > 1e-3 for key in now[0]), "the weights have moved"


def test_rows_of_a_batch_choose_views_of_their_own(tmp_path):
    """Six rows of one world of eight views: 28 pairs to choose from, and a world's views differ."""
    config = make_config(tmp_path, batch=6, views=2, scenes=1, scene_views=8, view_mix=(0.0, 0.0, 1.0))
    source = open_source("object", source_options(config))
    views = StepBatches(config, [source], [1.0])[0].batch.pixels
    world = source[0].pixels.float() / 127.5 - 1
    chosen = [tuple(int((world - view).abs().amax((1, 2, 3)).argmin()) for view in row) for row in views]
    assert all(len(set(row)) == 2 for row in chosen)
    assert len(set(chosen)) >= 5, chosen
    again = StepBatches(config, [source], [1.0])[0].batch.pixels
    assert torch.equal(again, views) and not torch.equal(StepBatches(config, [source], [1.0])[1].batch.pixels, views)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_some_targets_are_references_again(tmp_path, share):
    """Of 5 targets of 40 rows each, that share shows what one of the 3 references shows, with its camera."""
    config = make_config(
        tmp_path, batch=40, views=8, references=(3,), scenes=1, scene_views=8, repeated_references=share
    )
    step = StepBatches(config, [open_source("object", source_options(config))], [1.0])[0]
    references, targets = step.partition.order[:3], step.partition.order[3:]
    found = 0
    for row in range(40):
        for target in targets:
            same = [torch.equal(step.batch.pixels[row, target], step.batch.pixels[row, view]) for view in references]
            cameras = [torch.equal(step.batch.poses[row, target], step.batch.poses[row, view]) for view in references]
            assert same == cameras and sum(same) <= 1
            found += any(same)
    assert found == round(200 * share) or share == 0.5 and 75 <= found <= 125
