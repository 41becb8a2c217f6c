"""The closed count of operations agrees with torch's counter, and counts what the pipeline does."""

import pytest
import torch
from conftest import TINY, make_model, make_pipeline
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from kaleido_diffusers import KaleidoTransformer3DModel
from kaleido_diffusers.models.operations import forward_operations, sampling_operations


def attention(query_shape, key_shape, value_shape, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(query_shape, key_shape, value_shape)


# torch counts the attention of GPUs, not that of its CPU kernel
CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}


def counted(call) -> int:
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        call()
    return counter.get_total_flops()


def views(model: KaleidoTransformer3DModel, count: int, height: int, width: int) -> dict[str, torch.Tensor]:
    poses = torch.eye(4).repeat(1, count, 1, 1)
    intrinsics = torch.tensor([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]).repeat(1, count, 1, 1)
    hidden_states = torch.zeros(1, count, model.config.in_channels, height, width)
    call = {"hidden_states": hidden_states, "poses": poses, "intrinsics": intrinsics}
    return {name: value.to(model.device) for name, value in call.items()}


@pytest.mark.parametrize("pattern", [("global",), ("global", "view")])
@pytest.mark.parametrize(
    "num_cached, memory, targets", [(0, (3,), (2,)), (0, (2, 1), (2, 2)), (4, (), (3,)), (4, (2,), ()), (0, (), (2,))]
)
def test_a_forward_pass(pattern, num_cached, memory, targets):
    model = make_model(layer_pattern=pattern, sample_size=32)
    size = (32, 48)
    cache = None
    if num_cached:
        cache = model.encode_views(**views(model, num_cached, *size))
    groups = [number for number, count in enumerate((*memory, *targets)) for _ in range(count)]
    total = len(groups)
    call = dict(num_targets=sum(targets), view_groups=groups, cache=cache)
    real = counted(lambda: model(**views(model, total, *size), timestep=torch.zeros(1, total), **call))
    ours = forward_operations(model.config, memory, targets, num_cached, *size)
    assert ours == pytest.approx(real, rel=2e-3)  # torch also counts the few products that make the camera matrices


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_call_of_the_pipeline(cached, guidance):
    pipe = make_pipeline()
    pipe.set_progress_bar_config(disable=True)
    options = dict(num_inference_steps=3, views_per_group=2, use_reference_cache=cached)
    poses = torch.eye(4).repeat(8, 1, 1)
    poses[:, 0, 3] = torch.arange(8)
    photos = torch.rand(3, 3, 16, 16)
    size = dict(height=16, width=16)
    real = counted(lambda: pipe(photos, poses, fov=60, guidance_scale=guidance, **size, **options))
    ours = sampling_operations(pipe.transformer.config, 3, 5, 2, 3, guidance != 1.0, cached, **size)
    assert ours == pytest.approx(real, rel=5e-3)


def test_memory_has_a_bound():
    config = KaleidoTransformer3DModel(**TINY).config
    long = [sampling_operations(config, 3, count, 2, 3, max_memory_views=6) for count in (20, 40, 60)]
    assert long[2] - long[1] == long[1] - long[0]
    free = [sampling_operations(config, 3, count, 2, 3) for count in (20, 40, 60)]
    assert free[2] - free[1] > free[1] - free[0]
