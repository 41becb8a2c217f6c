"""Threads that share a pipeline, or its parts: each gets the views that it would have got alone."""

import copy
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import make_pipeline
from test_pipeline import generate, make_inputs

from kaleido_diffusers import KaleidoViewSynthesisPipeline, RectifiedFlowViewScheduler


@pytest.mark.parametrize("solver", ["euler", "heun", "multistep"])
def test_threads_get_the_views_that_they_would_have_got_alone(solver):
    pipe = make_pipeline()
    pipe.scheduler = RectifiedFlowViewScheduler.from_config(pipe.scheduler.config, solver=solver)
    sharing = KaleidoViewSynthesisPipeline(pipe.transformer, pipe.scheduler)
    sharing.set_progress_bar_config(disable=True)
    dice = random.Random(0)
    calls = [
        {
            "steps": dice.randint(1, 4),
            "guidance_scale": dice.choice([1.0, 2.0, 4.0]),
            "views_per_group": 3,
            "seed": i,
        }
        for i in range(16)
    ]

    def call(number: int) -> torch.Tensor:
        images, cameras = make_inputs(num_references=1 + number % 3, seed=number)
        one = (pipe, sharing)[number % 2]
        if number % 3:
            return generate(one, images, cameras, **calls[number])
        count = len(images)
        memory = one.encode_references(images, cameras[:count])
        return generate(one, None, None, cameras[count:], memory=memory, **calls[number])

    alone = [call(number) for number in range(16)]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(call, range(16)))
    for number, (one, other) in enumerate(zip(alone, together)):
        assert torch.equal(one, other), f"call {number}"


def test_a_call_within_a_call_is_refused_and_the_pipeline_lives_on():
    pipe = make_pipeline()
    images, cameras = make_inputs()
    alone = generate(pipe, images, cameras)

    def nested(pipe, step, timestep, tensors):
        generate(pipe, images, cameras)
        return tensors

    with pytest.raises(RuntimeError, match="in the middle of a call"):
        generate(pipe, images, cameras, callback_on_step_end=nested)
    assert torch.equal(generate(pipe, images, cameras), alone)
    assert torch.equal(generate(copy.deepcopy(pipe), images, cameras), alone)
