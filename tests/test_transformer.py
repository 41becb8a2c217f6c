"""The laws of the transformer, in float64 against the slow twin, each with a control that must fail."""

import copy

import pytest
import reference
import torch
import torch.nn.functional as F
from conftest import TINY, Views, make_model, random_poses

from kaleido_diffusers import KaleidoReferenceCache, KaleidoTransformer3DModel
from kaleido_diffusers.models.transformer_kaleido import KALEIDO_PRESETS


PATTERNS = [("global",), ("view", "global"), ("global", "view", "view")]
PARTITIONS = [  # group numbers, targets
    ([0, 0, 0, 1, 1], 2),
    ([0, 1, 1, 2, 3], 2),
    ([0, 0, 1, 2, 2, 3, 4], 4),
    ([0, 0, 0], 3),
    ([0, 1, 2], 3),
    ([0, 0, 1], 1),
]
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def changed(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a - b).abs().max().item() > 1e-4


@pytest.fixture(params=["prope", "gta"])
def encoding(request) -> str:
    return request.param


def run(model, views: Views, num_targets: int, groups=None, **replaced) -> torch.Tensor:
    return model(**views.kwargs(**replaced), view_groups=groups, num_targets=num_targets).sample


def run_cached(model, views: Views, num_targets: int, groups) -> torch.Tensor:
    """Memory group by group into a cache, then the targets."""
    num_memory = len(groups) - num_targets
    cache = KaleidoReferenceCache()
    for group in dict.fromkeys(groups[:num_memory]):
        index = [i for i in range(num_memory) if groups[i] == group]
        arguments = views.kwargs(index)
        del arguments["timestep"]
        model.encode_views(**arguments, cache=cache)
    assert len(cache) == num_memory
    index = slice(num_memory, None)
    return model(**views.kwargs(index), view_groups=groups[num_memory:], cache=cache).sample


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("groups, num_targets", PARTITIONS)
def test_forward_equals_the_slow_twin(pattern, groups, num_targets, encoding):
    model = make_model(torch.float64, layer_pattern=pattern, camera_encoding=encoding)
    views = Views(len(groups), batch=1).clean(len(groups) - num_targets)
    expected = reference.transformer(model, **views.kwargs(), view_groups=groups, num_targets=num_targets)
    torch.testing.assert_close(run(model, views, num_targets, groups), expected, **EXACT)


def test_gradients_equal_the_slow_twin(encoding):
    groups, num_targets = [0, 0, 1, 2, 3], 2
    model = make_model(torch.float64, layer_pattern=("view", "global"), camera_encoding=encoding)
    views = Views(5, batch=1).clean(3)
    weight = torch.randn(1, 2, 3, 8, 8, dtype=torch.float64)

    def gradients(sample):
        return torch.autograd.grad((sample * weight).sum(), list(model.parameters()))

    fast = gradients(run(model, views, num_targets, groups))
    slow = gradients(reference.transformer(model, **views.kwargs(), view_groups=groups, num_targets=num_targets))
    for (name, _), a, b in zip(model.named_parameters(), fast, slow):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
        assert b.abs().max() > 0, name


@pytest.mark.parametrize("without", ["poses", "times", "both"])
def test_forward_without_cameras_or_times_equals_the_slow_twin(without):
    model = make_model(torch.float64)
    views = Views(4, batch=1).clean(2)
    if without in ("poses", "both"):
        views.poses = views.intrinsics = None
    if without in ("times", "both"):
        views.times = None
    expected = reference.transformer(model, **views.kwargs(), view_groups=[0, 0, 1, 1], num_targets=2)
    torch.testing.assert_close(run(model, views, 2), expected, **EXACT)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("groups, num_targets", PARTITIONS)
@pytest.mark.parametrize("grad", [False, True])
def test_cached_equals_uncached(pattern, groups, num_targets, grad):
    model = make_model(torch.float64, layer_pattern=pattern)
    views = Views(len(groups)).clean(len(groups) - num_targets)
    with torch.set_grad_enabled(grad):
        expected = run(model, views, num_targets, groups)
        torch.testing.assert_close(run_cached(model, views, num_targets, groups), expected, **EXACT)
    if len(groups) > num_targets:
        views.hidden_states[:, 0] += 1
        assert changed(run_cached(model, views, num_targets, groups), expected)


def test_gradients_flow_through_the_cache():
    model = make_model(torch.float64)
    views, groups = Views(5).clean(3), [0, 0, 1, 2, 2]
    uncached = torch.autograd.grad(run(model, views, 2, groups).square().sum(), list(model.parameters()))
    cached = torch.autograd.grad(run_cached(model, views, 2, groups).square().sum(), list(model.parameters()))
    for a, b in zip(cached, uncached):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


def test_moving_the_whole_world_changes_nothing(encoding):
    model = make_model(torch.float64, camera_encoding=encoding)
    views = Views(5).clean(3)
    moved = random_poses(2, 1, generator=torch.Generator().manual_seed(1), spread=3.0) @ views.poses
    torch.testing.assert_close(run(model, views, 2, poses=moved), run(model, views, 2), rtol=1e-7, atol=1e-8)
    for view in (0, 4):
        one_moved = views.poses.clone()
        one_moved[:, view] = moved[:, view]
        assert changed(run(model, views, 2, poses=one_moved), run(model, views, 2))


def test_intrinsics_matter_to_prope_alone():
    views = Views(5).clean(3)
    zoomed = views.intrinsics.clone()
    zoomed[:, -1, 0, 0] *= 1.5
    for encoding, matters in (("prope", True), ("gta", False)):
        model = make_model(torch.float64, camera_encoding=encoding)
        assert changed(run(model, views, 2, intrinsics=zoomed), run(model, views, 2)) == matters


def test_references_of_one_group_have_no_order():
    model = make_model(torch.float64)
    views = Views(5).clean(3)
    order = [2, 0, 1, 3, 4]
    expected = run(model, views, 2)
    shuffled = model(**views.kwargs(order), num_targets=2).sample
    torch.testing.assert_close(shuffled, expected, **EXACT)
    ordered = [0, 1, 2, 3, 3]
    shuffled = model(**views.kwargs(order), view_groups=ordered, num_targets=2).sample
    assert changed(run(model, views, 2, ordered), shuffled)


def test_targets_of_one_group_have_no_order():
    model = make_model(torch.float64)
    views = Views(5).clean(2)
    order = [0, 1, 4, 2, 3]
    expected = run(model, views, 3)
    permuted = model(**views.kwargs(order), num_targets=3).sample
    torch.testing.assert_close(permuted, expected[:, [2, 0, 1]], **EXACT)
    assert changed(permuted, expected)


def test_target_groups_do_not_see_each_other():
    model = make_model(torch.float64, layer_pattern=("global", "view"))
    views, groups = Views(6).clean(2), [0, 0, 1, 1, 2, 3]
    expected = run(model, views, 4, groups)
    alone = model(**views.kwargs(slice(4)), view_groups=groups[:4], num_targets=2).sample
    torch.testing.assert_close(alone, expected[:, :2], **EXACT)
    altered = views.hidden_states.clone()
    altered[:, 4:] += 1
    again = run(model, views, 4, groups, hidden_states=altered)
    torch.testing.assert_close(again[:, :2], expected[:, :2], **EXACT)
    assert changed(again[:, 2:], expected[:, 2:])
    altered[:, 0] += 1
    assert changed(run(model, views, 4, groups, hidden_states=altered)[:, :2], expected[:, :2])


def test_one_camera_for_all_views_is_no_camera(encoding):
    model = make_model(torch.float64, camera_encoding=encoding)
    views = Views(4).clean(2)
    same = views.poses[:, :1].expand(-1, 4, -1, -1), views.intrinsics[:, :1].expand(-1, 4, -1, -1)
    expected = run(model, views, 2, poses=None, intrinsics=None)
    torch.testing.assert_close(run(model, views, 2, poses=same[0], intrinsics=same[1]), expected, rtol=1e-8, atol=1e-8)
    assert changed(run(model, views, 2), expected)


def test_identity_cameras_and_time_zero_are_exact_no_ops():
    model = make_model(torch.float64)
    views = Views(4).clean(2)
    expected = run(model, views, 2, poses=None, intrinsics=None, times=None)
    eye = torch.eye(4, dtype=torch.float64).expand(2, 4, 4, 4)
    lens = torch.eye(3, dtype=torch.float64).repeat(2, 4, 1, 1)
    lens[..., :2, 2] = 0.5
    still = run(model, views, 2, poses=eye, intrinsics=lens, times=torch.zeros(2, 4, dtype=torch.float64))
    assert torch.equal(still, expected)


def test_only_time_differences_matter():
    model = make_model(torch.float64)
    views = Views(4).clean(2)
    expected = run(model, views, 2)
    torch.testing.assert_close(run(model, views, 2, times=views.times + 7.5), expected, rtol=1e-7, atol=1e-8)
    late = views.times.clone()
    late[:, 3] += 7.5
    assert changed(run(model, views, 2, times=late), expected)


@pytest.mark.parametrize("factor", [3, 5])
def test_equal_normalised_points_get_equal_phases_at_every_resolution(factor):
    model = make_model(torch.float64)
    like = torch.zeros(1, 1, dtype=torch.float64)
    coarse = model._positions(None, None, None, 4, 6, like)["global"]
    fine = model._positions(None, None, None, 4 * factor, 6 * factor, like)["global"]
    for a, b in ((coarse.cos, fine.cos), (coarse.sin, fine.sin)):
        b = b.unflatten(2, (4 * factor, 6 * factor))[:, :, factor // 2 :: factor, factor // 2 :: factor].flatten(2, 3)
        torch.testing.assert_close(a, b, **EXACT)
    assert changed(coarse.cos[:, :, 0], coarse.cos[:, :, 1])


def test_a_selected_cache_restricts_what_targets_see():
    """Equal to an uncached run whose targets see some of the memory, while the memory sees all of itself."""
    model = make_model(torch.float64)
    views = Views(6).clean(4)
    arguments = views.kwargs(slice(4))
    del arguments["timestep"]
    with torch.no_grad():
        cache = model.encode_views(**arguments)
        targets = views.kwargs(slice(4, 6))
        chosen = model(**targets, cache=cache.select([3, 1])).sample
        other = model(**targets, cache=cache.select([1, 3])).sample
        torch.testing.assert_close(chosen, other, **EXACT)
        rows = model(**targets, cache=cache.select(torch.tensor([[3, 1], [0, 2]]))).sample
        torch.testing.assert_close(rows[:1], chosen[:1], **EXACT)
        assert changed(rows[1:], chosen[1:])

        # The same with the twin's dense mask, its memory rows untouched
        original = reference.group_mask

        def restricted(view_groups, num_targets, tokens, kind):
            mask = original(view_groups, num_targets, tokens, kind)
            for view in (0, 2):
                mask[4 * tokens :, view * tokens : (view + 1) * tokens] = False
            return mask

        reference.group_mask = restricted
        try:
            expected = reference.transformer(model, **views.kwargs(), view_groups=[0] * 4 + [1] * 2, num_targets=2)
        finally:
            reference.group_mask = original
    torch.testing.assert_close(chosen, expected, **EXACT)
    alone = run(model, views, 2, [0] * 4 + [1] * 2)
    assert changed(chosen, alone)


def test_cache_bookkeeping():
    model = make_model(layer_pattern=("global", "view", "global"))
    views = Views(4)
    arguments = {name: value.float() for name, value in views.kwargs(slice(3)).items() if name != "timestep"}
    with torch.no_grad():
        cache = model.encode_views(**arguments)
    heads, dim, tokens, layers = 2, 32, 4, 2
    assert (len(cache), cache.batch_size, cache.tokens_per_view) == (3, 2, tokens)
    assert cache.nbytes == 2 * layers * 2 * 3 * tokens * heads * dim * 4
    assert cache.moved(dtype=torch.float64).nbytes == 2 * cache.nbytes
    assert set(cache._layers) == {0, 2}, "only global layers keep keys and values"
    joined = KaleidoReferenceCache.cat([cache.select([0]), cache.select([1])])
    assert (joined.batch_size, len(joined)) == (4, 1)
    for mine, theirs in zip(joined.layer(2), cache.layer(2)):
        torch.testing.assert_close(mine[2:, 0], theirs[:, 1])
    with pytest.raises(ValueError, match="equally many views"):
        KaleidoReferenceCache.cat([cache, cache.select([0])])
    with pytest.raises(IndexError, match="between 0 and 2"):
        cache.select([3])


def test_targets_leave_the_cache_as_it_was():
    model = make_model(torch.float64)
    views = Views(5).clean(3)
    with torch.no_grad():
        arguments = views.kwargs(slice(3))
        del arguments["timestep"]
        cache = model.encode_views(**arguments)
        before = [x.clone() for x in cache.layer(0)]
        first = model(**views.kwargs(slice(3, 5)), cache=cache).sample
        buffer = cache._layers[0].buffer
        second = model(**views.kwargs(slice(3, 5)), cache=cache).sample
    assert cache._layers[0].buffer is buffer, "the room behind the memory is reused, not copied, at the next step"
    assert len(cache) == 3
    assert torch.equal(first, second)
    for x, y in zip(cache.layer(0), before):
        assert torch.equal(x, y)


def test_gradient_checkpointing_gives_the_same_gradients():
    views, groups = Views(5).clean(3), [0, 0, 1, 2, 3]
    plain = make_model(torch.float64).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.enable_gradient_checkpointing()
    calls = []
    checkpointed.transformer_blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for model in (plain, checkpointed):
        run(model, views, 2, groups).square().sum().backward()
    assert len(calls) == 2, "a checkpointed block runs again in the backward pass"
    for (name, a), b in zip(plain.named_parameters(), checkpointed.parameters()):
        assert torch.equal(a.grad, b.grad), name


# Sizes and precision


def test_presets_have_the_sizes_that_their_names_promise():
    promised = {"tiny": 12e6, "small": 100e6, "base": 350e6, "large": 1.3e9, "xl": 3.1e9}
    assert set(promised) == set(KALEIDO_PRESETS)
    for name, count in promised.items():
        with torch.device("meta"):
            model = KaleidoTransformer3DModel.from_preset(name)
        assert abs(model.num_parameters() / count - 1) < 0.05, name


def test_defaults_are_the_tiny_preset():
    default = KaleidoTransformer3DModel().config
    for name, value in KALEIDO_PRESETS["tiny"].items():
        assert default[name] == value


def test_activations_of_a_deep_stack_stay_within_float16():
    """28 layers (the depth of `base`) with gate and up projections 30 times too large."""
    model = KaleidoTransformer3DModel.from_preset("base", in_channels=3, sample_size=16)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "scale_shift_table" in name:
                parameter.normal_(std=0.5)  # open gates
            if "gate_proj" in name or "up_proj" in name:
                parameter.mul_(30)
    largest = {}

    def watch(name):
        def hook(module, inputs, output):
            for x in (*inputs, output):
                if torch.is_tensor(x):
                    largest[name] = max(largest.get(name, 0.0), x.abs().max().item())

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(watch(name))
    views = {name: value.float() for name, value in Views(2, batch=1, size=16).clean(1).kwargs().items()}
    with torch.no_grad():
        model(**views, num_targets=1)
    downs = [largest[f"transformer_blocks.{i}.ff.down_proj"] for i in range(28)]
    assert min(downs) > 100, "the test must stress the product of gate and up"
    # `largest` also sees the timesteps' 1000 and everything before and after each down projection
    assert max(largest.values()) < 65504


def test_feed_forwards_that_outgrow_float16_give_what_float32_gives():
    """Products of gate and up of a million; a quarter of the tokens stays small, and as it was."""
    model = make_model(num_layers=1)
    block = model.transformer_blocks[0]
    hidden = torch.randn(1, 2, 16, block.norm1.weight.numel(), generator=torch.Generator().manual_seed(0))
    hidden[:, :, ::4] *= 1e-3
    with torch.no_grad():
        for name in ("gate_proj", "up_proj"):
            getattr(block.ff, name).weight *= 300
        inner = F.silu(block.ff.gate_proj(hidden)) * block.ff.up_proj(hidden)
        assert inner.abs().amax() > 65504 and inner[:, :, ::4].abs().amax() < 64
        zero, one = torch.zeros_like(hidden), torch.ones_like(hidden)
        exact = block.norm4(block.ff(hidden), one, zero)
        block.half()
        half = block.norm4(block.ff(hidden.half()), one.half(), zero.half())
        small = block.ff(hidden[:, :, ::4].half()).float()
        block.float()
        torch.testing.assert_close(half.float(), exact, rtol=0.02, atol=0.02)
        torch.testing.assert_close(small, block.ff(hidden[:, :, ::4]), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("length, tolerance", [(1.0, 0.02), (50.0, 0.06)])
def test_bfloat16_survives_long_paths(length, tolerance):
    """Camera matrices are applied in float32, so that only the rounding of queries, keys and values remains."""
    model = make_model()
    views = Views(8, batch=1).clean(4)
    place = torch.linspace(0, length, 8, dtype=torch.float64)
    views.poses[..., :3, 3] = torch.stack([place, 0.1 * place, 0 * place], dim=-1)
    views.poses[..., :3, :3] = torch.eye(3, dtype=torch.float64)
    arguments = {name: value.float() for name, value in views.kwargs().items()}
    expected = model(**arguments, num_targets=4).sample
    half = make_model().to(torch.bfloat16)
    arguments["hidden_states"] = arguments["hidden_states"].bfloat16()
    sample = half(**arguments, num_targets=4).sample.float()
    assert sample.isfinite().all()
    assert (sample - expected).norm() / expected.norm() < tolerance


def test_float16_keeps_the_modulation_in_float32(tmp_path):
    make_model().save_pretrained(tmp_path, variant="fp16")
    model = KaleidoTransformer3DModel.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16)
    assert model.dtype == torch.float16
    assert model.transformer_blocks[0].scale_shift_table.dtype == torch.float32
    assert model.time_embed.linear.weight.dtype == torch.float32
    assert model.transformer_blocks[0].attn.to_q.weight.dtype == torch.float16


# Habits of diffusers


@pytest.mark.parametrize("backend", ["native", "_native_math", "_native_flash", "flex"])
def test_attention_backends_agree(backend):
    model = make_model()
    views = {name: value.float() for name, value in Views(5).clean(3).kwargs().items()}
    options = {"view_groups": [0, 0, 1, 2, 3], "num_targets": 2}
    with torch.no_grad():
        expected = model(**views, **options).sample
    try:
        model.set_attention_backend(backend)
        with torch.no_grad():  # flex has no backward pass on the CPU
            sample = model(**views, **options).sample
    finally:
        model.set_attention_backend("native")  # also the default of the process
    torch.testing.assert_close(sample, expected, rtol=1e-4, atol=1e-4)


def test_a_backend_that_cannot_run_says_so():
    with pytest.raises((RuntimeError, ValueError), match="(?i)flash"):
        make_model().set_attention_backend("flash")
    with pytest.raises(ValueError, match="must be one of"):
        make_model().set_attention_backend("warp")


def test_fused_projections_change_nothing():
    model = make_model(torch.float64)
    views = Views(4).clean(2)
    expected = run(model, views, 2)
    model.fuse_qkv_projections()
    assert hasattr(model.transformer_blocks[0].attn, "to_qkv")
    torch.testing.assert_close(run(model, views, 2), expected, **EXACT)
    model.unfuse_qkv_projections()
    torch.testing.assert_close(run(model, views, 2), expected, **EXACT)


def test_lora_layers_take_their_scale():
    from peft import LoraConfig

    model = make_model()
    views = {name: value.float() for name, value in Views(4).clean(2).kwargs().items()}
    base = model(**views, num_targets=2).sample
    targets = ["to_q", "to_k", "to_v", "to_out.0", "gate_proj", "up_proj", "down_proj"]
    model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    adapted = model(**views, num_targets=2).sample
    assert changed(adapted, base)
    silent = model(**views, num_targets=2, attention_kwargs={"scale": 0.0}).sample
    assert torch.equal(silent, base)
    arguments = {name: value[:, :2] for name, value in views.items() if name != "timestep"}
    loud, quiet = (model.encode_views(**arguments, attention_kwargs={"scale": s}).layer(1)[0] for s in (1.0, 0.0))
    assert changed(loud, quiet), "encode_views passes the scale on"


def test_step_caches_and_casting_accept_the_model():
    from diffusers import FirstBlockCacheConfig

    views = {name: value.float() for name, value in Views(4).clean(2).kwargs().items()}
    model = make_model()
    expected = model(**views, num_targets=2).sample
    model.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    with model.cache_context("cond"):
        torch.testing.assert_close(model(**views, num_targets=2).sample, expected)
    model.disable_cache()

    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    sample = model(**views, num_targets=2).sample
    assert model.transformer_blocks[0].attn.to_q.weight.dtype == torch.float8_e4m3fn
    assert (sample - expected).norm() / expected.norm() < 0.2


def test_blocks_are_found_by_name():
    model = make_model()
    assert {type(block).__name__ for block in model.transformer_blocks} == set(model._repeated_blocks)
    assert model._no_split_modules == model._repeated_blocks
    assert len(model.attn_processors) == TINY["num_layers"]


# Bad input


@pytest.mark.parametrize(
    "config, message",
    [
        ({"num_key_value_heads": 3}, "must divide"),
        ({"rope_axes_dim": (5, 6, 5)}, "three even numbers"),
        ({"rope_axes_dim": (6, 6, 6)}, "multiple of 4"),
        ({"camera_encoding": "pluecker"}, "camera_encoding"),
        ({"layer_pattern": ("local",)}, "layer_pattern"),
        ({"sample_size": 10}, "multiple of `patch_size`"),
    ],
)
def test_configs_that_make_no_model(config, message):
    with pytest.raises(ValueError, match=message):
        KaleidoTransformer3DModel(**{**TINY, **config})


def test_unknown_presets_are_refused():
    with pytest.raises(ValueError, match="tiny, small, base, large, xl"):
        KaleidoTransformer3DModel.from_preset("huge")


@pytest.mark.parametrize(
    "replaced, options, message",
    [
        ({}, {}, "`num_targets` is required"),
        ({}, {"num_targets": 5}, "between 1 and the 4 views"),
        ({}, {"num_targets": 2, "view_groups": [0, 0, 0, 1]}, "memory and targets into one group"),
        ({}, {"num_targets": 2, "view_groups": [0, 1, 0, 1]}, "non-decreasing"),
        ({}, {"num_targets": 2, "view_groups": [0, 1]}, "must be 4 non-decreasing"),
        ({"intrinsics": None}, {"num_targets": 2}, "`intrinsics` are needed"),
        ({"poses": None}, {"num_targets": 2}, "without `poses`"),
        ({"times": torch.zeros(2, 4, 1)}, {"num_targets": 2}, r"`times` must have shape \[2, 4\]"),
        ({"hidden_states": torch.zeros(2, 4, 4, 8, 8)}, {"num_targets": 2}, r"\[B, V, 3, H, W\]"),
        ({"hidden_states": torch.zeros(2, 4, 3, 6, 8)}, {"num_targets": 2}, "multiples of the patch size"),
    ],
)
def test_arguments_that_do_not_fit(replaced, options, message):
    with pytest.raises(ValueError, match=message):
        make_model(torch.float64)(**Views(4).kwargs(**replaced), **options)


def test_a_cache_of_another_batch_or_size_is_refused():
    model = make_model(torch.float64)
    views = Views(3)
    arguments = views.kwargs(slice(2))
    del arguments["timestep"]
    cache = model.encode_views(**arguments)
    for other in (Views(1, batch=1), Views(1, size=16)):
        with pytest.raises(ValueError, match="`cache` was made for 2 rows of views with 4 tokens"):
            model(**other.kwargs(), cache=cache)
    with pytest.raises(ValueError, match="must be 0 or all"):
        model(**views.kwargs(), cache=cache, num_targets=1)
    target = views.kwargs(slice(2, None))
    for name in ("poses", "times"):
        left_out = {name: None, **({"intrinsics": None} if name == "poses" else {})}
        with pytest.raises(ValueError, match=f"holds views with `{name}`"):
            model(**{**target, **left_out}, cache=cache)


def test_a_cache_that_misses_a_layer_is_refused():
    cache = KaleidoReferenceCache()
    x = torch.zeros(1, 2, 4, 2, 8)
    with torch.no_grad():
        cache.at(0, 2).extend(x, x)
        cache.commit(2, 1, 4, True, False)
        cache.at(0, 2)
        cache.at(1, 2).extend(x, x)
        with pytest.raises(RuntimeError, match="layer was skipped"):
            cache.commit(2, 1, 4, True, False)


@pytest.mark.parametrize("padding", range(0, 64, 8))
def test_a_loaded_model_computes_what_the_saved_one_did(padding, tmp_path):
    """Wherever in the file its tensors begin: a single view goes through kernels that round by alignment."""
    model = make_model()
    model.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length] + b" " * padding
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    loaded = KaleidoTransformer3DModel.from_pretrained(tmp_path)
    assert all(weight.data_ptr() % 64 == 0 for weight in (*loaded.parameters(), *loaded.buffers()))
    file.unlink()
    views = torch.rand(1, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    timestep = torch.full((1, 1), 500.0)
    with torch.no_grad():
        a, b = (one(views, timestep, num_targets=1).sample for one in (model, loaded))
    assert torch.equal(a, b)
    single = KaleidoTransformer3DModel.from_single_file(dict(model.state_dict()), config=str(tmp_path))
    assert all(weight.data_ptr() % 64 == 0 for weight in single.parameters())
