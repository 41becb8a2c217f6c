"""The objective, its partitions, and the proof that the model learns."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import conftest
import pytest
import torch
from conftest import make_model, random_poses

from kaleido_diffusers import Cameras, RectifiedFlowViewScheduler, sample_capture
from kaleido_diffusers.geometry.cameras import look_at, scene_frame
from kaleido_diffusers.geometry.views import ViewGeometry, Views, as_shown
from kaleido_diffusers.training.objective import ViewPartition, denoise_targets, draw_partition
from kaleido_diffusers.training.optimizer import make_optimizers


EXAMPLES = Path(__file__).parents[1] / "examples"


def make_batch(num_views: int = 5) -> Views:
    inputs = conftest.Views(num_views)
    geometry = ViewGeometry(inputs.poses, inputs.intrinsics.float(), inputs.times.float())
    return Views.seen(inputs.hidden_states.float(), geometry)


class Spy(torch.nn.Module):
    """Records what the objective asks of the model, and answers with what it is told."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.calls = answer, []

    def forward(self, hidden_states, timestep, **kwargs):
        self.calls.append((hidden_states, timestep, kwargs))
        return (self.answer(hidden_states, timestep, kwargs),)


@pytest.mark.parametrize("prediction_type", ["velocity", "sample"])
def test_the_loss_is_the_error_of_the_velocity(prediction_type):
    scheduler = RectifiedFlowViewScheduler(prediction_type=prediction_type)
    batch = make_batch()
    partition = ViewPartition(((3, 0), (1,)), ((4,), (2,)))
    spy = Spy(lambda x, t, kwargs: torch.zeros_like(x[:, 3:]))
    loss = denoise_targets(spy, scheduler, batch, partition, torch.Generator().manual_seed(0)).loss
    hidden_states, timestep, kwargs = spy.calls[0]
    assert torch.equal(hidden_states[:, :3], batch.pixels[:, [3, 0, 1]]), "references are clean, in their order"
    assert (timestep[:, :3] == 0).all() and (timestep[:, 3:] > 0).all()
    assert kwargs["view_groups"] == [0, 0, 1, 2, 3] and kwargs["num_targets"] == 2
    order = [3, 0, 1, 4, 2]
    expected = scene_frame(batch.poses[:, order], 3).normalize(batch.poses[:, order]).float()
    torch.testing.assert_close(kwargs["poses"], expected)
    sigma = (timestep[:, 3:] / 1000)[..., None, None, None]
    clean = batch.pixels[:, [4, 2]]
    noise = (hidden_states[:, 3:] - (1 - sigma) * clean) / sigma
    if prediction_type == "velocity":
        error = noise - clean
    else:
        error = clean / sigma.clamp_min(0.05)
    torch.testing.assert_close(loss, error.square().mean(), rtol=1e-3, atol=1e-3)
    right = Spy(lambda x, t, kwargs: noise - clean if prediction_type == "velocity" else clean)
    perfect = denoise_targets(right, scheduler, batch, partition, torch.Generator().manual_seed(0)).loss
    assert perfect < 1e-6


def test_training_shows_lenses_as_sampling_does():
    eyes = torch.tensor([[float(x), -9.0, 1.0] for x in range(5)], dtype=torch.float64)
    poses = look_at(eyes, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    cameras = Cameras.from_fov(poses.expand(3, 5, 4, 4), 10.0, [16, 16])
    batch = Views.seen(make_batch().pixels[:3], ViewGeometry.of(cameras))
    spy = Spy(lambda x, t, kwargs: torch.zeros_like(x[:, 2:]))
    partition, generator = ViewPartition(((0, 1),), ((2,), (3, 4))), torch.Generator().manual_seed(0)
    denoise_targets(spy, RectifiedFlowViewScheduler(), batch, partition, generator, 2.0)
    shown = as_shown(batch, 2, max_focal_length=2.0)
    assert shown.intrinsics[0, 0, 0, 0] == 2.0 and torch.equal(spy.calls[0][2]["poses"], shown.poses)
    torch.testing.assert_close(shown.poses[..., :3, :3], as_shown(batch, 2).poses[..., :3, :3])


def test_targets_of_a_group_share_their_noise_level():
    spy = Spy(lambda x, t, kwargs: torch.zeros_like(x[:, 1:]))
    partition = ViewPartition(((0,),), ((1, 2), (3,), (4,)))
    denoise_targets(spy, RectifiedFlowViewScheduler(), make_batch(), partition, torch.Generator().manual_seed(0))
    t = spy.calls[0][1]
    assert (t[:, 1] == t[:, 2]).all() and (t[:, 2] != t[:, 3]).all() and (t[0] != t[1])[1:].all()


def test_each_row_is_noised_by_its_own_generator():
    """Noise levels of the groups first, `sigmoid(0.8 + normal)`, then the noise."""
    batch = make_batch()
    spy = Spy(lambda x, t, kwargs: torch.zeros_like(x[:, 2:]))
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    partition = ViewPartition(((0, 1),), ((2,), (3, 4)))
    denoise_targets(spy, RectifiedFlowViewScheduler(), batch, partition, generators)
    hidden_states, timestep, _ = spy.calls[0]
    for row, seed in enumerate((7, 8)):
        again = torch.Generator().manual_seed(seed)
        sigma = torch.sigmoid(0.8 + torch.randn(1, 2, generator=again))[0, [0, 1, 1]]
        noise = torch.randn(1, 3, *batch.pixels.shape[2:], generator=again)[0]
        torch.testing.assert_close(timestep[row, 2:], 1000 * sigma)
        share = sigma[:, None, None, None]
        torch.testing.assert_close(hidden_states[row, 2:], (1 - share) * batch.pixels[row, 2:] + share * noise)


def test_dropped_references_still_set_frame_and_unit():
    spy = Spy(lambda x, t, kwargs: torch.zeros_like(x))
    batch = make_batch()
    partition = ViewPartition(((0, 1, 2),), ((3,), (4,)), drop_references=True)
    denoise_targets(spy, RectifiedFlowViewScheduler(), batch, partition, torch.Generator().manual_seed(0))
    hidden_states, timestep, kwargs = spy.calls[0]
    assert hidden_states.shape[1] == timestep.shape[1] == kwargs["num_targets"] == 2
    expected = scene_frame(batch.poses, 3).normalize(batch.poses)[:, 3:].float()
    torch.testing.assert_close(kwargs["poses"], expected)
    assert kwargs["times"].shape == (2, 2) and len(kwargs["view_groups"]) == 2


def test_video_and_cameras_use_one_path():
    """Frames with times, views with cameras, or both: the same parameters get gradients."""
    names = set()
    for poses, times in ((True, False), (False, True), (True, True)):
        model = make_model()
        batch = make_batch()
        if not poses:
            batch = replace(batch, poses=None, intrinsics=None)
        if not times:
            batch = replace(batch, times=None)
        partition = draw_partition(5, torch.Generator().manual_seed(1), num_references=2)
        denoise_targets(model, RectifiedFlowViewScheduler(), batch, partition, torch.Generator()).loss.backward()
        names.add(tuple(name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0))
    assert len(names) == 1 and len(next(iter(names))) == len(list(make_model().parameters()))


def test_partitions_cover_every_view_once_and_every_kind_comes():
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_partition(7, generator) for _ in range(600)]
    for partition in drawn:
        assert sorted(partition.order) == list(range(7))
        assert partition.targets and all(partition.targets) and all(partition.references)
        groups = partition.view_groups()
        assert groups == sorted(groups) and len(groups) == 7
        assert not (partition.drop_references and not partition.references)
    assert {p.num_references for p in drawn} == set(range(7))
    assert {len(p.references) for p in drawn} >= {0, 1, 2, 3}
    assert {max(map(len, p.targets)) for p in drawn} >= {1, 2, 4}
    dropped = sum(p.drop_references for p in drawn) / sum(bool(p.references) for p in drawn)
    assert 0.06 < dropped < 0.14
    ordered = [draw_partition(7, generator, num_references=3, ordered_references=1.0) for _ in range(100)]
    assert {tuple(map(len, p.references)) for p in ordered} == {(1, 2), (2, 1), (1, 1, 1)}
    fixed = draw_partition(7, generator, num_references=3, ordered_references=0.0, target_group_sizes=(1,))
    assert len(fixed.references) == 1 and fixed.num_references == 3 and len(fixed.targets) == 4
    with pytest.raises(ValueError, match="between 0 and 6"):
        draw_partition(7, generator, num_references=7)


def test_moving_the_world_leaves_the_loss():
    model, batch = make_model(torch.float64), make_batch()
    batch = replace(batch, pixels=batch.pixels.double())
    partition = ViewPartition(((0, 1),), ((2,), (3, 4)))
    losses = []
    for moved in (False, True):
        if moved:
            world = random_poses(2, 1, generator=torch.Generator().manual_seed(3))
            poses = world @ batch.poses
            poses[..., :3, 3] *= 4
            batch = replace(batch, poses=poses)
        generator = torch.Generator().manual_seed(0)
        losses.append(denoise_targets(model, RectifiedFlowViewScheduler(), batch, partition, generator).loss)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)


def test_every_parameter_has_one_optimizer():
    model = make_model()
    optimizers = make_optimizers(model)
    owned = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())
    muon = {id(p) for group in optimizers[0].param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        is_projection = "transformer_blocks" in name and p.ndim == 2 and "table" not in name
        assert (id(p) in muon) == is_projection, name
    for p in list(model.parameters())[1:]:
        p.requires_grad_(False)
    groups = [group for optimizer in make_optimizers(model, kind="adamw") for group in optimizer.param_groups]
    assert [id(p) for group in groups for p in group["params"]] == [id(next(model.parameters()))], "not what is frozen"


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_matrices_and_the_rest_move_at_rates_of_their_own_and_norms_never_decay(kind):
    """Without gradients a step is its decay alone: by `1 - rate x weight_decay` for matrices, nothing for the rest."""
    model = make_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers = make_optimizers(model, matrix_lr=0.1, other_lr=0.02, weight_decay=0.5, kind=kind)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for optimizer in optimizers:
        optimizer.step()
    kept = {"muon": 1 - 0.1 * 0.5, "adamw": 1 - 0.02 * 0.5}[kind]
    for name, p in model.named_parameters():
        is_matrix = "transformer_blocks" in name and p.ndim == 2 and "table" not in name
        torch.testing.assert_close(p, before[name] * (kept if is_matrix else 1.0), msg=name)


def test_the_first_step_of_adamw_is_its_rate():
    model = make_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for optimizer in make_optimizers(model, matrix_lr=0.1, other_lr=0.02):
        optimizer.step()
    for name, p in model.named_parameters():
        if p.ndim != 2 or "transformer_blocks" not in name or "table" in name:
            torch.testing.assert_close(p, before[name] - 0.02, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_the_second_step_of_adamw_remembers_the_first(kind):
    """Gradients of 1 and 3: nine tenths of the mean and 99 hundredths of the square are kept."""
    model = torch.nn.ModuleDict({"transformer_blocks": torch.nn.Linear(2, 2)})
    torch.nn.init.zeros_(model["transformer_blocks"].bias)
    optimizers = make_optimizers(model, other_lr=1.0, kind=kind)
    for gradient in (1.0, 3.0):
        for p in model.parameters():
            p.grad = torch.full_like(p, gradient)
        for optimizer in optimizers:
            optimizer.step()
    mean, square = (0.9 * 0.1 * 1 + 0.1 * 3) / 0.19, (0.99 * 0.01 * 1 + 0.01 * 9) / 0.0199
    torch.testing.assert_close(model["transformer_blocks"].bias, torch.full((2,), -1.0 - mean / square**0.5))


def overfit(output: Path, *arguments: str) -> dict:
    command = [sys.executable, str(EXAMPLES / "overfit_capture.py"), "--output", str(output), *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads((output / "curve.json").read_text())


def test_it_learns_a_capture_and_obeys_the_camera(tmp_path):
    """Two of four photos at 32 pixels after 200 steps, at 31.5 and 32.4 dB: far above their mean colour (13 dB), and
    lost when the poses are swapped (13.5 dB)."""
    arguments = "--photos 4 --views 4 --size 32 --layers 3 --heads 2 --steps 200 --batch 8".split()
    result = overfit(tmp_path, "--capture", sample_capture(), *arguments)
    assert min(result["psnr"]) > 20
    swapped = result["psnr with the target poses swapped"]
    assert min(a - b for a, b in zip(result["psnr"], swapped)) > 5


@pytest.mark.slow
def test_it_learns_the_fox(fox, tmp_path):
    """The issue's own bar: 25 dB on two targets from six references, 5 dB lost when their poses are swapped."""
    result = overfit(tmp_path, "--capture", str(fox), "--steps", "600")
    assert min(result["psnr"]) > 25
    swapped = result["psnr with the target poses swapped"]
    assert min(a - b for a, b in zip(result["psnr"], swapped)) > 5
