"""The solver against known flows and the slow twin, and diffusers' contract."""

import math

import pytest
import reference
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from kaleido_diffusers import RectifiedFlowViewScheduler


SOLVERS = ("euler", "heun", "multistep")


def velocity(x: torch.Tensor, sigma) -> torch.Tensor:
    """A flow whose path is known: dx/dsigma = cos(3 sigma) x."""
    return torch.cos(3 * torch.as_tensor(sigma, dtype=x.dtype)) * x


def exact(x: torch.Tensor) -> torch.Tensor:
    """The solution at sigma 0 from sigma 1."""
    return x * math.exp(-math.sin(3.0) / 3)


def sample(scheduler, x: torch.Tensor, steps: int) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(velocity(x, t / 1000), t, x).prev_sample
    return x


@pytest.mark.parametrize("solver, order, above", [("euler", 1, 0.15), ("heun", 2, 0.15), ("multistep", 2, 0.4)])
def test_solvers_converge_at_their_order(solver, order, above):
    scheduler = RectifiedFlowViewScheduler(solver=solver)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    errors = [(sample(scheduler, x, steps) - exact(x)).norm().item() for steps in (32, 64, 128)]
    rates = [math.log2(a / b) for a, b in zip(errors, errors[1:])]
    assert all(order - 0.15 < rate < order + above for rate in rates), rates
    assert scheduler.order == (2 if solver == "heun" else 1), "model calls a step"


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_steps_equal_the_slow_twin(solver, shift):
    scheduler = RectifiedFlowViewScheduler(solver=solver, shift=shift)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    result = sample(scheduler, x, 7)
    plain = RectifiedFlowViewScheduler(shift=shift)
    plain.set_timesteps(7)
    sigmas = plain.sigmas.tolist()
    assert len(sigmas) == 8 and sigmas[0] == 1 and sigmas[-1] == 0
    torch.testing.assert_close(result, reference.integrate(velocity, x, sigmas, solver), rtol=1e-6, atol=1e-6)


def test_multistep_takes_either_prediction():
    """The same flow told as a velocity, and as `x_0 = x - sigma velocity`."""
    start, ends = torch.randn(2, 3, 4, dtype=torch.float64), []
    for prediction_type in ("velocity", "sample"):
        scheduler = RectifiedFlowViewScheduler(solver="multistep", prediction_type=prediction_type)
        scheduler.set_timesteps(6)
        x = start
        for t in scheduler.timesteps:
            told = velocity(x, t / 1000)
            x = scheduler.step(told if prediction_type == "velocity" else x - t / 1000 * told, t, x).prev_sample
        ends.append(x)
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("prediction_type", ["velocity", "sample"])
def test_clean_views_are_untouched_to_the_bit(solver, prediction_type):
    scheduler = RectifiedFlowViewScheduler(solver=solver, prediction_type=prediction_type)
    scheduler.set_timesteps(4)
    x = torch.randn(2, 3, 5).to(torch.bfloat16)
    start = x.clone()
    noisy = torch.tensor([[True, False, True], [False, False, True]])
    t = torch.where(noisy, 1000.0, 0.0)
    for call in range(4 * scheduler.order - (scheduler.order - 1)):
        moved = scheduler.step(torch.randn(2, 3, 5), t, x).prev_sample
        assert moved.dtype == torch.bfloat16
        assert torch.equal(moved[~noisy], start[~noisy])
        if solver != "heun" or call % 2 == 0:
            lower = scheduler.sigmas < t[..., None] / 1000 - 1e-6
            t = 1000 * torch.where(lower, scheduler.sigmas, torch.zeros(())).amax(-1)
        x = moved
    assert (t == 0).all()
    assert not torch.equal(x[noisy], start[noisy])


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_sigma_for_each_view_equals_one_for_all(solver):
    scheduler = RectifiedFlowViewScheduler(solver=solver, prediction_type="sample")
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    clean = torch.randn(2, 3, 4, dtype=torch.float64)

    def go(spread):
        scheduler.set_timesteps(5)
        y = x
        for t in scheduler.timesteps:
            timestep = t.double().expand(2, 3) if spread else t
            y = scheduler.step(clean + 0.1 * torch.tanh(y), timestep, y).prev_sample
        return y

    torch.testing.assert_close(go(True), go(False), rtol=1e-6, atol=1e-6)


def test_the_last_step_lands_on_the_predicted_sample():
    """Also below sigma_min, where the clamped velocity alone would fall short."""
    scheduler = RectifiedFlowViewScheduler(prediction_type="sample")
    scheduler.set_timesteps(sigmas=[1.0, 0.5, 0.02])
    x, clean = torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    for t in scheduler.timesteps:
        x = scheduler.step(clean, t, x).prev_sample
    assert torch.equal(x, clean)


def test_velocity_of_a_predicted_sample():
    scheduler = RectifiedFlowViewScheduler(prediction_type="sample")
    clean, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    for sigma in (0.9, 0.05):
        noisy = scheduler.scale_noise(clean, 1000 * sigma, noise)
        found = scheduler.to_velocity(clean, noisy, torch.tensor(sigma))
        torch.testing.assert_close(found, noise - clean, rtol=1e-4, atol=1e-4)
    noisy = scheduler.scale_noise(clean, 10.0, noise)
    clamped = scheduler.to_velocity(clean, noisy, torch.tensor(0.01))
    torch.testing.assert_close(clamped, (noise - clean) * 0.01 / 0.05, rtol=1e-3, atol=1e-3)


def test_noise_for_each_view():
    scheduler = RectifiedFlowViewScheduler()
    clean, noise = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    t = torch.tensor([[0.0, 500.0, 1000.0], [250.0, 0.0, 0.0]])
    noisy = scheduler.scale_noise(clean, t, noise)
    assert torch.equal(noisy, scheduler.add_noise(clean, noise, t))
    assert torch.equal(noisy[0, 0], clean[0, 0]) and torch.equal(noisy[0, 2], noise[0, 2])
    torch.testing.assert_close(noisy[1, 0], 0.75 * clean[1, 0] + 0.25 * noise[1, 0])
    assert scheduler.scale_noise(clean.half(), t, noise.half()).dtype == torch.float16
    assert torch.equal(scheduler.scale_model_input(clean, t), clean)
    assert scheduler.init_noise_sigma == 1.0


def test_training_sigmas_follow_their_distribution():
    def draw(**config):
        generator = torch.Generator().manual_seed(0)
        return RectifiedFlowViewScheduler(**config).sample_sigmas(200, 500, generator)

    for mean, std in ((0.8, 1.0), (0.0, 1.0), (1.5, 0.7)):
        logits = torch.logit(draw(logit_mean=mean, logit_std=std).double())
        assert abs(logits.mean() - mean) < 0.02 and abs(logits.std() - std) < 0.02
    assert draw().median() > 0.65, "the default is biased to noise"
    uniform = draw(training_distribution="uniform")
    assert abs(uniform.mean() - 0.5) < 0.005 and abs(uniform.std() - 12**-0.5) < 0.005
    assert 0 < uniform.min() and uniform.max() <= 1
    assert torch.equal(draw(), draw())


def test_the_shift_grows_with_the_tokens():
    scheduler = RectifiedFlowViewScheduler(use_dynamic_shifting=True, base_image_seq_len=64)
    middles = []
    for tokens in (64, 256, 1024):
        scheduler.set_timesteps(10, mu=scheduler.calculate_mu(tokens))
        middles.append(scheduler.sigmas[5].item())
    assert middles == pytest.approx([0.5, 2 / 3, 0.8], abs=1e-6), "shift 1, 2 and 4 (Stable Diffusion 3, eq. 23)"
    with pytest.raises(ValueError, match="`mu` is required"):
        scheduler.set_timesteps(10)


def test_configs_travel_to_and_from_flow_match_euler():
    ours = RectifiedFlowViewScheduler(shift=2.5)
    theirs = FlowMatchEulerDiscreteScheduler.from_config(ours.config)
    assert theirs.config.shift == 2.5
    again = RectifiedFlowViewScheduler.from_config(theirs.config)
    assert again.config.shift == 2.5
    sigmas = [1.0, 0.75, 0.5, 0.25]
    ours.set_timesteps(sigmas=sigmas)
    theirs.set_timesteps(sigmas=sigmas)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps)
    x, v = torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    for t in ours.timesteps:
        a, b = ours.step(v, t, x).prev_sample, theirs.step(v, t, x).prev_sample
        torch.testing.assert_close(a, b)
        x = a


def test_save_and_load(tmp_path):
    scheduler = RectifiedFlowViewScheduler(solver="heun", prediction_type="sample", logit_mean=0.3)
    scheduler.save_pretrained(tmp_path)
    loaded = RectifiedFlowViewScheduler.from_pretrained(tmp_path)
    for name in ("solver", "prediction_type", "logit_mean", "logit_std", "shift"):
        assert loaded.config[name] == scheduler.config[name]


def test_schedules_that_are_given():
    scheduler = RectifiedFlowViewScheduler(shift=2.0)
    scheduler.set_timesteps(timesteps=[900.0, 300.0])
    assert scheduler.sigmas.tolist() == pytest.approx([0.9, 0.3, 0.0])
    scheduler.set_timesteps(sigmas=[0.5, 0.0])
    assert scheduler.sigmas.tolist() == pytest.approx([2 / 3, 0.0])
    heun = RectifiedFlowViewScheduler(solver="heun")
    heun.set_timesteps(3)
    assert heun.timesteps.tolist() == pytest.approx([1000, 2000 / 3, 2000 / 3, 1000 / 3, 1000 / 3])
    assert heun.num_inference_steps == 3


def test_sampling_can_begin_in_the_middle():
    scheduler = RectifiedFlowViewScheduler()
    scheduler.set_timesteps(4)
    x, v = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)
    scheduler.step(v, scheduler.timesteps[2], x)
    assert scheduler.step_index == 3
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(1)
    moved = scheduler.step(v, scheduler.timesteps[1], x).prev_sample
    torch.testing.assert_close(moved, torch.full_like(x, -0.25))
    assert scheduler.begin_index == 1


def test_heun_can_begin_in_the_middle():
    scheduler = RectifiedFlowViewScheduler(solver="heun")
    x = torch.full((1, 1, 2), 0.6, dtype=torch.float64)
    for begin in (None, 4):
        scheduler.set_timesteps(5)
        if begin is not None:
            scheduler.set_begin_index(begin)
        moved = x
        for t in scheduler.timesteps[4:]:
            moved = scheduler.step(torch.ones_like(x), t, moved).prev_sample
        torch.testing.assert_close(moved, torch.zeros_like(x), msg=f"begin index {begin}")
    with pytest.raises(ValueError, match="must be even"):
        scheduler.set_begin_index(3)


def test_one_view_with_a_timestep_of_its_own():
    scheduler = RectifiedFlowViewScheduler()
    scheduler.set_timesteps(4)
    x = torch.ones(1, 1, 2)
    assert torch.equal(scheduler.step(x, torch.tensor([[0.0]]), x).prev_sample, x), "a clean view stays"
    moved = scheduler.step(x, torch.tensor([[500.0]]), x).prev_sample
    torch.testing.assert_close(moved, torch.full_like(x, 0.75))


def test_heun_lets_a_view_that_has_arrived_be_while_another_is_corrected():
    """From 1 by the slopes 2 and 4: a view at sigma 0.5 arrives at 0 at once, one at sigma 1 moves by their mean."""
    scheduler = RectifiedFlowViewScheduler(solver="heun")
    scheduler.set_timesteps(2)
    x = torch.ones(1, 2)
    predicted = scheduler.step(torch.full_like(x, 2.0), torch.tensor([[500.0, 1000.0]]), x).prev_sample
    assert predicted.tolist() == [[0.0, 0.0]]
    corrected = scheduler.step(torch.full_like(x, 4.0), torch.tensor([[0.0, 500.0]]), predicted).prev_sample
    assert corrected.tolist() == [[0.0, -0.5]]


def test_heun_waits_for_no_corrector_behind_the_last_step():
    scheduler = RectifiedFlowViewScheduler(solver="heun")
    scheduler.set_timesteps(1)
    x = torch.full((1, 2), 3.0)
    for _ in range(2):
        moved = scheduler.step(torch.ones_like(x), torch.tensor([[1000.0, 1000.0]]), x).prev_sample
        assert moved.tolist() == [[2.0, 2.0]]


def test_the_dynamic_shift_multiplies_the_static_one():
    scheduler = RectifiedFlowViewScheduler(shift=3.0, use_dynamic_shifting=True, base_image_seq_len=256)
    assert scheduler.calculate_mu(1024) == pytest.approx(math.log(3 * 2))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda s: s.set_timesteps(0), "positive integer"),
        (lambda s: s.set_timesteps(), "positive integer"),
        (lambda s: s.set_timesteps(sigmas=[0.5, 0.7]), "fall strictly"),
        (lambda s: s.set_timesteps(sigmas=[1.2, 0.7]), "fall strictly"),
        (lambda s: s.set_timesteps(sigmas=[math.nan]), "fall strictly"),
        (lambda s: s.set_timesteps(sigmas=[]), "fall strictly"),
        (lambda s: s.set_timesteps(sigmas=[1.0], timesteps=[1000.0]), "Only one"),
        (lambda s: s.set_timesteps(3, sigmas=[1.0]), "1 steps, but 3"),
        (lambda s: s.step(torch.zeros(1, 1), 3, torch.zeros(1, 1)), "integer index"),
        (lambda s: s.step(torch.zeros(1, 1), torch.tensor(3), torch.zeros(1, 1)), "integer index"),
        (lambda s: s.step(torch.zeros(1, 1), 3.5, torch.zeros(1, 1)), "one of `scheduler.timesteps`"),
        (lambda s: RectifiedFlowViewScheduler(solver="rk4"), "`solver`"),
        (lambda s: RectifiedFlowViewScheduler(prediction_type="epsilon"), "`prediction_type`"),
        (lambda s: RectifiedFlowViewScheduler(training_distribution="beta"), "`training_distribution`"),
        (lambda s: RectifiedFlowViewScheduler(sigma_min=0.0), "`sigma_min`"),
        (lambda s: RectifiedFlowViewScheduler(num_train_timesteps=2**31), "`num_train_timesteps` must be a whole"),
        (lambda s: RectifiedFlowViewScheduler(num_train_timesteps=0.5), "`num_train_timesteps` must be a whole"),
        (lambda s: RectifiedFlowViewScheduler(base_image_seq_len=0), "`base_image_seq_len` must be a whole"),
        (lambda s: RectifiedFlowViewScheduler(logit_std=float("nan")), "`logit_std` must be positive"),
        (lambda s: RectifiedFlowViewScheduler(logit_mean=float("inf")), "`logit_mean` must lie"),
        (lambda s: RectifiedFlowViewScheduler(shift=0.0), "`shift`"),
    ],
)
def test_bad_arguments(call, message):
    scheduler = RectifiedFlowViewScheduler()
    with pytest.raises(ValueError, match=message):
        call(scheduler)


def test_a_heun_step_out_of_turn_is_refused():
    scheduler = RectifiedFlowViewScheduler(solver="heun")
    scheduler.set_timesteps(4)
    x = torch.zeros(1, 2)
    scheduler.step(x, torch.tensor([[1000.0, 1000.0]]), x)
    with pytest.raises(ValueError, match="second call of a Heun step"):
        scheduler.step(x, torch.tensor([[1000.0, 500.0]]), x)


@pytest.mark.parametrize("sigmas", [[1.0, 0.5, 0.5], [0.0], [1.0, 0.5, -0.1], [1.1, 0.5], []])
def test_schedules_fall_strictly_within_one_and_zero(sigmas):
    with pytest.raises(ValueError, match="must fall strictly"):
        RectifiedFlowViewScheduler().set_timesteps(sigmas=sigmas)
