"""diffusers' step caches: what they skip, and that no view gets what was computed for another."""

import pytest
import torch
from conftest import make_pipeline
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
    TextKVCacheConfig,
    apply_pyramid_attention_broadcast,
)
from test_pipeline import CLOSE, generate, make_inputs

from kaleido_diffusers import KaleidoReferenceCache


STEPS = 4  # at the timesteps 1000, 750, 500 and 250

# Every setting skips what it can, and how often the last layer then attends in four steps
CACHES = {
    "FirstBlock": (lambda pipe: FirstBlockCacheConfig(threshold=100.0), 1),
    "MagCache": (lambda pipe: MagCacheConfig(threshold=1.0, num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS), 1),
    "TaylorSeer": (lambda pipe: TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1), 2),
    "PAB": (
        lambda pipe: PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(-1, 1001),
            current_timestep_callback=lambda: pipe.current_timestep,
        ),
        2,
    ),
    "FasterCache": (
        lambda pipe: FasterCacheConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(-1, 1001),
            attention_weight_callback=lambda _: 0.5,
            is_guidance_distilled=True,
            current_timestep_callback=lambda: pipe.current_timestep,
        ),
        2,
    ),
    "SeaCache": (lambda pipe: SeaCacheConfig(threshold=1e9, max_consecutive_cached=0, residual_order=0), 2),
}


@pytest.fixture(params=CACHES)
def cached(request):
    """A pipeline with a step cache, and how often its last layer attends in a group."""
    pipe = make_pipeline()
    config, calls = CACHES[request.param]
    pipe.transformer.enable_cache(config(pipe))
    return pipe, calls


def attending_views(pipe) -> list[int]:
    """How many views the last layer attends for, an entry for each time."""
    counts = []
    pipe.transformer.transformer_blocks[-1].attn.to_q.register_forward_pre_hook(
        lambda _, inputs: counts.append(inputs[0].shape[1])
    )
    return counts


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("use_reference_cache", [True, False])
def test_steps_are_skipped_and_encoding_is_not(cached, guidance_scale, use_reference_cache):
    pipe, calls = cached
    counts = attending_views(pipe)
    images, cameras = make_inputs()
    options = {"guidance_scale": guidance_scale, "use_reference_cache": use_reference_cache, "steps": STEPS}
    first = generate(pipe, images, cameras, **options)
    if use_reference_cache:  # three references, a group of two that joins them, another, and a last one of one view
        expected = [[3], [2] * calls, [2], [2] * calls, [2], [1] * calls]
    else:
        expected = [[5] * calls, [7] * calls, [8] * calls]
    if guidance_scale == 1.0:
        assert counts == sum(expected, [])
    else:
        assert len(counts) == 3 * 2 * calls + 3 * use_reference_cache
    assert first.isfinite().all()
    assert torch.equal(first, generate(pipe, images, cameras, **options)), "nothing is left of the call before"
    pipe.transformer.disable_cache()
    exact = generate(pipe, images, cameras, **options)
    assert not torch.allclose(first, exact, atol=1e-4), "it did skip something"


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_groups_get_nothing_of_what_came_before_them(cached, guidance_scale):
    """Two groups in one call are those of two calls. The second group comes after two views were encoded, which are
    as many as it has itself, or right after the first group."""
    pipe, _ = cached
    images, cameras = make_inputs(num_targets=4)
    noise = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    options = {"guidance_scale": guidance_scale, "num_inference_steps": STEPS, "output_type": "pt"}
    of_references = pipe.encode_references(images, cameras[:3])
    for joins_memory in ("all", "none"):
        memory, views, options["joins_memory"] = of_references, [], joins_memory
        together = pipe(None, None, cameras[3:], memory=memory, latents=noise, views_per_group=2, **options).images
        for part in (slice(0, 2), slice(2, 4)):
            out = pipe(None, None, cameras[3:][part], memory=memory, latents=noise[part], **options)
            views.append(out.images)
            memory = out.memory
        torch.testing.assert_close(torch.cat(views), together, **CLOSE)


def test_branches_keep_to_themselves(cached):
    """Guidance 0 is the unconditional branch alone, which is what comes without references: frames of a video, whose
    positions depend on the seconds between them only."""
    pipe, _ = cached
    images, _ = make_inputs()
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    options = {"latents": noise, "target_times": [0.5, 0.7], "steps": STEPS}
    expected = generate(pipe, None, None, **options)
    unguided = generate(pipe, images, None, frame_times=[0.5, 1.0, 2.0], guidance_scale=0.0, **options)
    torch.testing.assert_close(unguided, expected, **CLOSE)
    conditional = generate(pipe, images, None, frame_times=[0.5, 1.0, 2.0], guidance_scale=1.0, **options)
    assert not torch.allclose(conditional, expected, atol=1e-3)


def test_a_step_cache_that_is_told_the_timestep_always_gets_a_number():
    pipe = make_pipeline()
    images, cameras = make_inputs()
    seen = []
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        current_timestep_callback=lambda: seen.append(float(pipe.current_timestep)) or seen[-1],
    )
    pipe.transformer.enable_cache(config)
    memory = pipe.encode_references(images, cameras[:3])
    assert set(seen) == {1000.0} and len(seen) == 3, "one for each layer"
    seen.clear()
    generate(pipe, None, None, cameras[3:7], memory=memory, steps=STEPS)
    asked = [seen[place] for place in range(0, len(seen), 3)]
    assert asked == [1000, 750, 500, 250] + [1000] + [1000, 750, 500, 250], "the first group is encoded in between"
    assert pipe.current_timestep == 1000


def test_settings_that_skip_nothing_change_nothing():
    images, cameras = make_inputs()
    options = {"steps": STEPS, "guidance_scale": 2.0}
    pipe = make_pipeline()
    expected = generate(pipe, images, cameras, **options)
    for config in (
        FirstBlockCacheConfig(threshold=0.0),
        TaylorSeerCacheConfig(disable_cache_before_step=STEPS),
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=1, current_timestep_callback=lambda: pipe.current_timestep
        ),
        SeaCacheConfig(retention_steps=STEPS),
    ):
        pipe.transformer.enable_cache(config)
        assert torch.equal(generate(pipe, images, cameras, **options), expected), type(config).__name__
        pipe.transformer.disable_cache()
    assert torch.equal(generate(pipe, images, cameras, **options), expected), "nothing stays behind"


def test_a_step_cache_applied_by_hand_is_reset_likewise():
    """diffusers' pages show `apply_...` beside `enable_cache`; and the list of hooks is older than the step cache."""
    images, cameras = make_inputs()
    options = {"steps": STEPS, "guidance_scale": 2.0}
    one, other = make_pipeline(), make_pipeline()
    one.transformer.enable_cache(CACHES["PAB"][0](one))
    expected = generate(one, images, cameras, **options)
    generate(other, images, cameras, **options)
    apply_pyramid_attention_broadcast(other.transformer, CACHES["PAB"][0](other))
    for _ in range(2):
        assert torch.equal(generate(other, images, cameras, **options), expected)


def test_encoded_views_do_not_depend_on_the_step_before(cached):
    pipe, _ = cached
    images, cameras = make_inputs()
    memories, encode = [], pipe._encode_memory

    def watched(latents, geometry, cache: KaleidoReferenceCache) -> None:
        encode(latents, geometry, cache)
        memories.append(cache)

    pipe._encode_memory = watched
    same = type(cameras).cat([cameras[:1]] * 4 + [cameras[4:6]])
    pipe(images[:1] * 4, same, max_memory_views=9, num_inference_steps=STEPS)
    keys = [memories[0].layer(index)[0] for index in range(3)]
    assert all((key[:, :4] - key[:, :1]).abs().max() < 1e-5 for key in keys), "the same view four times"


def test_step_caches_that_do_not_fit_say_so():
    pipe = make_pipeline()
    with pytest.raises(ValueError, match="called once for each. Pass .*is_guidance_distilled=True"):
        pipe.transformer.enable_cache(FasterCacheConfig(current_timestep_callback=lambda: pipe.current_timestep))
    with pytest.raises(ValueError, match="of which this model reads none"):
        pipe.transformer.enable_cache(TextKVCacheConfig())
    assert not pipe.transformer.is_cache_enabled
