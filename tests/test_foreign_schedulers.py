"""Schedulers of diffusers: those that follow the flow are handed what each wants, the rest is refused by name."""

import pytest
import torch
from conftest import make_cameras, make_pipeline
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)

from kaleido_diffusers import KaleidoViewSynthesisPipeline, RectifiedFlowViewScheduler
from kaleido_diffusers.pipelines import generation, pipeline_kaleido


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SCHEDULERS = [
    (RectifiedFlowViewScheduler, {}),
    (RectifiedFlowViewScheduler, {"solver": "heun"}),
    (FlowMatchEulerDiscreteScheduler, {}),
    (FlowMatchEulerDiscreteScheduler, {"use_dynamic_shifting": True}),
    (FlowMatchEulerDiscreteScheduler, {"stochastic_sampling": True}),
    (FlowMatchHeunDiscreteScheduler, {}),
    (FlowMatchLCMScheduler, {}),
    (UniPCMultistepScheduler, FLOW),
    (UniPCMultistepScheduler, {**FLOW, "use_dynamic_shifting": True, "time_shift_type": "exponential"}),
    (DPMSolverMultistepScheduler, FLOW),
    (DPMSolverMultistepScheduler, {**FLOW, "algorithm_type": "sde-dpmsolver++"}),
    (DPMSolverSinglestepScheduler, FLOW),
]
IDS = [f"{kind.__name__}-{'-'.join(map(str, options.values()))}" for kind, options in SCHEDULERS]


def call(pipe, **options) -> torch.Tensor:
    cameras = make_cameras(4, height=32, width=32)
    options = {"num_inference_steps": 3, "height": 16, "width": 16, "output_type": "latent", **options}
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return pipe(images, cameras[:2], cameras[2:], **options).images


@pytest.mark.parametrize("kind, options", SCHEDULERS, ids=IDS)
def test_schedulers_that_follow_the_flow_end_where_it_does(kind, options):
    """Where the velocity is that of straight paths to one place, each scheduler arrives there."""
    scheduler = kind.from_config(RectifiedFlowViewScheduler().config, **options)
    generation.check_prediction_type(scheduler, "velocity")
    generator = torch.Generator().manual_seed(0)
    noise, clean = torch.randn(2, 1, 2, 3, 8, 8, generator=generator)
    timesteps = generation.set_timesteps(scheduler, 4, noise, 8, None)
    assert timesteps[0] >= 998, "from noise"
    latents = noise
    for timestep in timesteps:
        velocity = (latents - clean) / (timestep / 1000)
        latents = generation.take_step(scheduler, velocity, timestep, latents, generator)
    assert (noise - clean).abs().mean() > 1
    torch.testing.assert_close(latents, clean, rtol=0, atol=0.02)


@pytest.mark.parametrize("kind, options", SCHEDULERS, ids=IDS)
def test_the_pipeline_runs_each_of_them_and_its_seed_holds(kind, options):
    pipe = make_pipeline("velocity")
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **options)
    first, second, other = (call(pipe, generator=torch.Generator().manual_seed(seed)) for seed in (7, 7, 8))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind, options", SCHEDULERS, ids=IDS)
def test_those_that_draw_noise_share_no_groups(kind, options, monkeypatch):
    """Told by what they do: whether views follow from their noise alone, whatever the generator of the steps."""
    pipe = make_pipeline("velocity")
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **options)
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    first, second = (call(pipe, latents=noise, generator=torch.Generator().manual_seed(seed)) for seed in (7, 8))
    draws_noise = not torch.equal(first, second)
    is_known_to = "stochastic_sampling" in options or "algorithm_type" in options or kind is FlowMatchLCMScheduler
    assert draws_noise == is_known_to == generation.adds_noise(pipe.scheduler)
    monkeypatch.setattr(pipeline_kaleido.dist, "is_initialized", lambda: True)
    if draws_noise:
        with pytest.raises(ValueError, match=f"needs a scheduler whose steps draw no noise.*{kind.__name__}"):
            call(pipe, latents=noise, share_groups=True, joins_memory="none")


@pytest.mark.parametrize("kind", [FlowMatchLCMScheduler, FlowMatchEulerDiscreteScheduler])
def test_each_scene_has_its_own_noise(kind):
    """A scene of a batch with its generator is what it is alone, noise of the steps included."""
    pipe = make_pipeline("velocity")
    pipe.scheduler = kind(**({"stochastic_sampling": True} if kind is FlowMatchEulerDiscreteScheduler else {}))
    images = torch.rand(2, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    cameras = [make_cameras(3, seed=seed, height=16, width=16) for seed in (1, 2)]
    options = {"num_inference_steps": 3, "output_type": "latent", "num_samples": 2, "height": 16, "width": 16}
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    references, targets = [scene[:1] for scene in cameras], [scene[1:] for scene in cameras]
    together = pipe(images, references, targets, generator=generators, **options).images
    generator = torch.Generator().manual_seed(4)
    alone = pipe(images[1], references[1], targets[1], generator=[generator], **options).images
    torch.testing.assert_close(together[1], alone, rtol=0, atol=1e-4)
    assert not torch.equal(alone[:, 0], alone[:, 1]), "two samples differ"


@pytest.mark.parametrize(
    "scheduler",
    [
        EulerDiscreteScheduler(),
        DDIMScheduler(),
        LCMScheduler(),
        SASolverScheduler(**FLOW),
        DEISMultistepScheduler(**FLOW),  # ends at its last sigma, which is not 0
        UniPCMultistepScheduler(),
        UniPCMultistepScheduler(use_flow_sigmas=True),
        DPMSolverMultistepScheduler(prediction_type="flow_prediction"),
        FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_others_are_refused_with_the_names_of_those_that_work(scheduler):
    pipe = make_pipeline("velocity")
    pipe.scheduler = scheduler
    names = "RectifiedFlowViewScheduler; FlowMatchEulerDiscreteScheduler.*'flow_prediction'.*UniPCMultistepScheduler"
    with pytest.raises(ValueError, match=f"{type(scheduler).__name__}.*does not follow the flow.*{names}"):
        call(pipe)


def test_solvers_of_samples_work_where_the_model_predicts_samples():
    pipe = make_pipeline("sample")
    config = pipe.scheduler.config
    # One step is x_0, whatever the solver
    ours = call(pipe, generator=torch.Generator().manual_seed(0), sigmas=[0.999])
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(config, use_flow_sigmas=True)
    theirs = call(pipe, generator=torch.Generator().manual_seed(0), num_inference_steps=1)
    assert pipe.scheduler.timesteps.tolist() == [999]
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)
    for kind in (UniPCMultistepScheduler, DPMSolverSinglestepScheduler):
        pipe.scheduler = kind.from_config(config, use_flow_sigmas=True)
        assert call(pipe).isfinite().all()
    pipe.scheduler = UniPCMultistepScheduler.from_config(config, **FLOW)
    with pytest.raises(ValueError, match="predicts 'sample', which the UniPC.* would take for a 'velocity'"):
        call(pipe)


def test_a_pipeline_made_with_a_foreign_scheduler_knows_what_its_model_predicts():
    transformer = make_pipeline().transformer
    pipe = KaleidoViewSynthesisPipeline(transformer, UniPCMultistepScheduler(**FLOW))
    assert pipe.config.prediction_type == "velocity"


def test_sigmas_reach_those_that_take_them():
    pipe = make_pipeline("velocity")
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, **FLOW)
    call(pipe, sigmas=[1.0, 0.5, 0.25])
    assert pipe.scheduler.timesteps.tolist() == [999, 500, 250]
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    with pytest.raises(ValueError, match="FlowMatchHeunDiscreteScheduler takes no `sigmas`"):
        call(pipe, sigmas=[1.0, 0.5, 0.25])


def test_a_callback_may_return_nothing():
    pipe, steps = make_pipeline(), []

    def note(pipe, step, timestep, tensors):
        steps.append(step)

    given = call(pipe, generator=torch.Generator().manual_seed(0), callback_on_step_end=note)
    assert steps == [0, 1, 2]
    assert torch.equal(given, call(pipe, generator=torch.Generator().manual_seed(0)))
