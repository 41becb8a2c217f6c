"""The pipeline with real tiny components: what comes out, in which order, from which memory."""

import math
from contextlib import contextmanager

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import make_pipeline, random_poses
from diffusers import AutoencoderKL, AutoencoderTiny, FlowMatchEulerDiscreteScheduler
from peft import LoraConfig
from torch._dynamo.testing import CompileCounter

from kaleido_diffusers import Cameras, KaleidoViewSynthesisPipeline, RectifiedFlowViewScheduler
from kaleido_diffusers.geometry.cameras import look_at
from kaleido_diffusers.geometry.views import ViewGeometry
from kaleido_diffusers.pipelines.generation import order_targets, set_timesteps


CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def make_inputs(num_references: int = 3, num_targets: int = 5, seed: int = 0, size=(10, 12)):
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(3, *size, generator=generator) for _ in range(num_references)]
    poses = random_poses(num_references + num_targets, generator=generator)
    return images, Cameras.from_fov(poses, 55.0, list(size))


def generate(pipe, images, cameras, *args, seed: int = 0, steps: int = 3, **options) -> torch.Tensor:
    options = {"output_type": "pt", "views_per_group": 2, **options}
    generator = torch.Generator().manual_seed(seed)
    return pipe(images, cameras, *args, num_inference_steps=steps, generator=generator, **options).images


@pytest.fixture(scope="module")
def pipe() -> KaleidoViewSynthesisPipeline:
    return make_pipeline(layer_pattern=("global", "view"))


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
@pytest.mark.parametrize("generation_order", ["given", "nearest", "anchors"])
@pytest.mark.parametrize("views_per_group", [1, 2, 5])
def test_the_reference_cache_changes_nothing(pipe, guidance_scale, generation_order, views_per_group):
    images, cameras = make_inputs()
    options = {
        "guidance_scale": guidance_scale,
        "generation_order": generation_order,
        "views_per_group": views_per_group,
    }
    cached = generate(pipe, images, cameras, **options)
    assert cached.shape == (5, 3, 8, 8)
    torch.testing.assert_close(cached, generate(pipe, images, cameras, use_reference_cache=False, **options), **CLOSE)
    assert not torch.allclose(cached, generate(pipe, images[::-1], cameras, **options), atol=1e-3)


@pytest.mark.parametrize("use_reference_cache", [True, False])
@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 2.5])
def test_guidance_goes_from_the_unconditional_prediction_through_the_conditional(guidance_scale, use_reference_cache):
    """One step from sigma 1 to 0 is `noise - velocity`, and the velocity is `u + s (c - u)` of two calls of the
    transformer: `u` of the targets alone, `c` of references and targets."""
    pipe = make_pipeline("velocity")
    images, _ = make_inputs(num_references=2, size=(8, 8))
    poses = random_poses(4, generator=torch.Generator().manual_seed(1))
    poses[0] = torch.eye(4)  # the scene's frame is the first reference's,
    poses[1, :3, 3] = torch.tensor([0.6, 0.8, 0.0])  # and its unit the way to the second: 1
    cameras = Cameras.from_fov(poses, 90.0, [8, 8])
    lens = torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]]).expand(1, 4, 3, 3)  # of 90 degrees
    noise = torch.randn(1, 2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    references = 2 * torch.stack(images)[None] - 1
    with torch.no_grad():
        c = pipe.transformer(
            torch.cat([references, noise], dim=1),
            torch.tensor([[0.0, 0.0, 1000.0, 1000.0]]),
            poses=poses[None].float(),
            intrinsics=lens,
            view_groups=[0, 0, 1, 1],
            num_targets=2,
        ).sample
        u = pipe.transformer(
            noise, torch.full((1, 2), 1000.0), poses=poses[None, 2:].float(), intrinsics=lens[:, 2:], num_targets=2,
            view_groups=[0, 0],
        ).sample  # fmt: skip
    assert (c - u).abs().mean() > 0.1, "the references say something"
    options = {"guidance_scale": guidance_scale, "use_reference_cache": use_reference_cache, "output_type": "latent"}
    views = generate(pipe, images, cameras, steps=1, latents=noise[0], **options)
    torch.testing.assert_close(views, (noise - (u + guidance_scale * (c - u)))[0], **CLOSE)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_results_come_in_the_order_of_the_targets(solver):
    pipe = make_pipeline(num_layers=1)
    pipe.scheduler = RectifiedFlowViewScheduler.from_config(pipe.scheduler.config, solver=solver)
    images, cameras = make_inputs(num_targets=4)
    together = generate(pipe, images, cameras, views_per_group=4)
    for order in ("nearest", "anchors"):
        reordered = generate(pipe, images, cameras, views_per_group=4, generation_order=order)
        torch.testing.assert_close(reordered, together, **CLOSE)
    permutation = [2, 0, 3, 1]
    noise = torch.randn(4, 3, 8, 8)
    expected = generate(pipe, images, cameras[:3], cameras[3:], latents=noise)
    assert expected.shape == (4, 3, 8, 8)
    permuted = generate(
        pipe, images, cameras[:3], cameras[3:][permutation], latents=noise[permutation], views_per_group=4
    )
    all_at_once = generate(pipe, images, cameras[:3], cameras[3:], latents=noise, views_per_group=4)
    torch.testing.assert_close(permuted, all_at_once[permutation], **CLOSE)


@pytest.mark.parametrize("joins_memory", ["all", "first", "none"])
def test_groups_attend_to_the_views_that_join_the_memory(pipe, joins_memory):
    images, cameras = make_inputs(num_targets=6)
    noise = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def changed(group: int) -> list[bool]:
        """Which of the three groups come out otherwise when the noise of one does."""
        other = noise.clone()
        other[2 * group] += 1.0
        options = {"views_per_group": 2, "joins_memory": joins_memory, "max_memory_views": 7}
        views, others = (generate(pipe, images, cameras, latents=start, **options) for start in (noise, other))
        return [not torch.equal(a, b) for a, b in zip(views.split(2), others.split(2))]

    assert changed(0) == [True, joins_memory != "none", joins_memory != "none"]
    assert changed(1) == [False, True, joins_memory == "all"]


def test_generated_views_join_the_memory(pipe):
    images, cameras = make_inputs()
    base = generate(pipe, images, cameras, views_per_group=1)
    noise = torch.randn(5, 3, 8, 8)
    first = generate(pipe, images, cameras, views_per_group=1, latents=noise)
    noise[0] += 1.0
    second = generate(pipe, images, cameras, views_per_group=1, latents=noise)
    assert not torch.allclose(first[4], second[4], atol=1e-4), "the last view depends on the first"
    parallel = [generate(pipe, images, cameras, views_per_group=5, latents=x) for x in (noise, noise)]
    assert torch.equal(*parallel)
    assert base.shape == first.shape


def test_poses_together_or_apart_in_any_form(pipe):
    images, cameras = make_inputs()
    expected = generate(pipe, images, cameras)
    torch.testing.assert_close(generate(pipe, images, cameras[:3], cameras[3:]), expected)
    poses, intrinsics = cameras.world_from_camera, cameras.intrinsics[0]
    for form in (poses, poses.float(), poses.numpy(), poses.tolist(), list(poses)):
        torch.testing.assert_close(generate(pipe, images, form, intrinsics=intrinsics), expected, **CLOSE)
    torch.testing.assert_close(generate(pipe, images, poses, fov=55.0), expected, **CLOSE)
    torch.testing.assert_close(
        generate(pipe, images, poses[:3], poses[3:], intrinsics=intrinsics.expand(3, 3, 3)), expected, **CLOSE
    )
    zoomed = intrinsics * torch.tensor([2.0, 2.0, 1.0])[:, None]
    zoomed[:2, 2] = intrinsics[:2, 2]
    other = generate(pipe, images, poses[:3], poses[3:], intrinsics=intrinsics, target_intrinsics=zoomed)
    assert not torch.allclose(other, expected, atol=1e-3)


def test_without_intrinsics_a_field_of_view_is_assumed_aloud(pipe):
    images, cameras = make_inputs()
    with pytest.warns(UserWarning, match="60 degrees is assumed"):
        assumed = generate(pipe, images, cameras.world_from_camera)
    torch.testing.assert_close(assumed, generate(pipe, images, cameras.world_from_camera, fov=60.0))


def test_images_in_any_form(pipe, tmp_path):
    images, cameras = make_inputs(size=(8, 8))
    pictures = [PIL.Image.fromarray((x.permute(1, 2, 0) * 255).round().byte().numpy()) for x in images]
    expected = generate(pipe, pictures, cameras)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, picture in zip(paths, pictures):
        picture.save(path)
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    tensors = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    forms = [paths, [str(p) for p in paths], arrays, list(arrays), arrays / 255.0, tensors, tensors / 255]
    for form in forms:
        torch.testing.assert_close(generate(pipe, form, cameras), expected, **CLOSE)


def test_the_world_does_not_matter(pipe):
    """Neither its frame nor its unit."""
    images, cameras = make_inputs()
    expected = generate(pipe, images, cameras)
    moved = random_poses(generator=torch.Generator().manual_seed(5), spread=9.0) @ cameras.world_from_camera
    moved[:, :3, 3] *= 13.0
    torch.testing.assert_close(generate(pipe, images, cameras.with_poses(moved)), expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(generate(pipe, images, cameras, camera_scale=2.0), expected, atol=1e-3)


def test_resolutions_and_crops(pipe):
    images, cameras = make_inputs(size=(20, 40))
    assert generate(pipe, images, cameras, height=16, width=12).shape == (5, 3, 16, 12)
    cut = [image[:, :, 10:30] for image in images]  # the centred square
    expected = generate(pipe, images, cameras)
    torch.testing.assert_close(generate(pipe, cut, cameras.cropped(0, 10, 20, 20)), expected, **CLOSE)


def test_video_needs_no_cameras(pipe):
    frames = [torch.rand(3, 8, 8) for _ in range(2)]

    def video(frame_times, target_times, **options):
        generator = torch.Generator().manual_seed(0)
        return pipe(
            frames,
            frame_times=frame_times,
            target_times=target_times,
            num_inference_steps=3,
            generator=generator,
            output_type="pt",
            **options,
        ).images

    views = video([0.0, 0.5], [0.1, 0.2, 0.4])
    assert views.shape == (3, 3, 8, 8)
    torch.testing.assert_close(video([3.0, 3.5], [3.1, 3.2, 3.4]), views, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(video([0.0, 0.5], [0.1, 0.2, 0.3]), views, atol=1e-3)
    poses = random_poses(5, generator=torch.Generator().manual_seed(0))
    moving = video([0.0, 0.5], [0.1, 0.2, 0.4], poses=poses, fov=50.0)
    assert not torch.allclose(moving, views, atol=1e-3), "a moving world seen by a moving camera"
    ordered = video([0.0, 0.5], [0.4, 0.3, 0.1], generation_order="nearest", views_per_group=1)
    assert ordered.shape == (3, 3, 8, 8)


def test_seconds_since_any_epoch_will_do(pipe):
    images, _ = make_inputs(num_targets=0)
    times = ([0.0, 0.5, 1.0], [0.25, 0.75])
    views = [
        generate(
            pipe, images, None, frame_times=[t + start for t in times[0]], target_times=[t + start for t in times[1]]
        )
        for start in (0.0, 1.7e9)
    ]
    torch.testing.assert_close(views[1], views[0], **CLOSE)


@pytest.mark.parametrize("options", [{}, {"max_memory_views": 2}, {"generation_order": "nearest"}])
def test_a_batch_equals_its_scenes_alone(pipe, options):
    scenes = [make_inputs(seed=seed) for seed in (0, 1)]
    alone = [generate(pipe, *scene, seed=number, **options) for number, scene in enumerate(scenes)]
    generators = [torch.Generator().manual_seed(number) for number in (0, 1)]
    batch = pipe(
        [images for images, _ in scenes],
        [cameras for _, cameras in scenes],
        num_inference_steps=3,
        generator=generators,
        output_type="pt",
        views_per_group=2,
        **options,
    ).images
    torch.testing.assert_close(batch, torch.stack(alone), **CLOSE)
    poses = torch.stack([cameras.world_from_camera for _, cameras in scenes])
    lens = scenes[0][1].intrinsics[0]
    generators = [torch.Generator().manual_seed(number) for number in (0, 1)]
    again = pipe(
        torch.stack([torch.stack(images) for images, _ in scenes]),
        poses,
        intrinsics=lens,
        num_inference_steps=3,
        generator=generators,
        output_type="pt",
        views_per_group=2,
        **options,
    ).images
    torch.testing.assert_close(again, batch, **CLOSE)


def test_samples_go_separate_ways(pipe):
    images, cameras = make_inputs(num_targets=3)
    noise = torch.randn(3, 2, 3, 8, 8)
    samples = generate(pipe, images, cameras, num_samples=2, latents=noise)
    assert samples.shape == (3, 2, 3, 8, 8)
    for sample in range(2):
        alone = generate(pipe, images, cameras, latents=noise[:, sample])
        torch.testing.assert_close(samples[:, sample], alone, **CLOSE)


def test_a_memory_of_more_views_than_it_recalls_asks_for_the_targets(pipe):
    images, cameras = make_inputs()
    views = pipe.encode_references(images, cameras[:3], max_memory_views=2).views
    with pytest.raises(ValueError, match="`targets` must be given: they decide which 2 of 3 views are recalled"):
        views.recall(lambda *_: None)


@pytest.mark.parametrize("max_memory_views", [1, 2, 3])
def test_memory_is_bounded(pipe, max_memory_views):
    images, cameras = make_inputs(num_references=4, num_targets=6)
    seen = []
    original = pipe.transformer.forward

    def watch(*args, **kwargs):
        result = original(*args, **kwargs)
        seen.append(len(kwargs["cache"]))
        return result

    pipe.transformer.forward = watch
    try:
        views = generate(pipe, images, cameras, max_memory_views=max_memory_views)
    finally:
        del pipe.transformer.forward
    assert views.isfinite().all()
    assert max(seen) == max_memory_views
    assert torch.equal(generate(pipe, images, cameras, max_memory_views=10), generate(pipe, images, cameras))


def test_bounded_memory_holds_the_nearest_views(pipe):
    """On a line of cameras the target next to reference 3 must not notice reference 0."""
    poses = torch.eye(4, dtype=torch.float64).repeat(5, 1, 1)
    poses[:, 0, 3] = torch.tensor([0.0, 1.0, 2.0, 3.0, 2.9])
    cameras = Cameras.from_fov(poses, 55.0, [8, 8])
    images = [torch.rand(3, 8, 8) for _ in range(4)]
    expected = generate(pipe, images, cameras, max_memory_views=2)
    for changed, matters in ((0, False), (1, False), (2, True), (3, True)):
        altered = list(images)
        altered[changed] = 1 - altered[changed]
        same = torch.allclose(generate(pipe, altered, cameras, max_memory_views=2), expected, atol=1e-4)
        assert same != matters, changed


def test_orders_of_generation(pipe):
    def line(places):
        poses = torch.eye(4).repeat(1, len(places), 1, 1)
        poses[0, :, 0, 3] = torch.tensor(places)
        return ViewGeometry(poses, None, None)

    references, targets = line([0.0]), line([5.0, 1.0, 3.0, 2.0, 9.0])
    assert pipe.order_targets(references, targets, "given", 2) == [0, 1, 2, 3, 4]
    assert pipe.order_targets(references, targets, "nearest", 2) == [1, 3, 2, 0, 4]
    anchors = pipe.order_targets(references, targets, "anchors", 2)
    assert anchors[:2] == [2, 4] and sorted(anchors) == [0, 1, 2, 3, 4]
    assert pipe.order_targets(line([]), targets, "nearest", 2)[0] == 0


def test_what_is_nearest_counts_from_all_that_is_known():
    """From a reference at 0: first what stands at 1, then -1.2, which is nearer to the reference than 2.3 to 1."""

    def on_a_line(*places: float) -> ViewGeometry:
        poses = torch.eye(4).repeat(1, len(places), 1, 1)
        poses[0, :, 0, 3] = torch.tensor(places)
        return ViewGeometry(poses)

    assert order_targets(on_a_line(0.0), on_a_line(2.3, 1.0, -1.2), "nearest", 4) == [1, 2, 0]


@pytest.mark.parametrize(
    "scheduler, targets, shift",
    [
        (RectifiedFlowViewScheduler(use_dynamic_shifting=True, base_image_seq_len=512), 4, 0.5 * math.log(1024 / 512)),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 1, 0.5),  # 256 tokens: its `base_shift`
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 16, 1.15),  # 4096: its `max_shift`
    ],
)
def test_schedules_shift_with_the_tokens_of_a_group(scheduler, targets, shift):
    """Views of 64 x 64 in patches of 4 are 256 tokens. The middle of two steps moves from logit 0 to the shift."""
    timesteps = set_timesteps(scheduler, 4, torch.zeros(1, targets, 3, 64, 64), 2, None)
    torch.testing.assert_close(timesteps, torch.tensor([1000.0, 1000 / (1 + math.exp(-shift))]))


def test_no_references_at_all(pipe):
    _, cameras = make_inputs()
    views = generate(pipe, [], None, cameras, guidance_scale=3.0)
    assert views.shape == (8, 3, 8, 8) and views.isfinite().all()
    uncached = generate(pipe, None, None, cameras, guidance_scale=3.0, use_reference_cache=False)
    torch.testing.assert_close(uncached, views, **CLOSE)
    lens = torch.tensor([[9.0, 0, 4], [0, 9, 4], [0, 0, 1]])
    poses = cameras.world_from_camera
    given, named = (generate(pipe, None, None, poses, **{key: lens}) for key in ("intrinsics", "target_intrinsics"))
    assert torch.equal(given, named) and not torch.allclose(given, views, atol=1e-3)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_output_types(pipe, output_type):
    images, cameras = make_inputs(num_targets=2)
    out = pipe(images, cameras, num_inference_steps=2, output_type=output_type)
    views = out.images
    assert len(views) == 2
    if output_type == "pil":
        assert isinstance(views, list) and views[0].size == (8, 8) and views[0].mode == "RGB"
    elif output_type == "np":
        assert isinstance(views, np.ndarray) and views.shape == (2, 8, 8, 3) and 0 <= views.min() <= views.max() <= 1
    else:
        assert torch.is_tensor(views) and views.shape == (2, 3, 8, 8)
    as_tuple = pipe(images, cameras, num_inference_steps=2, output_type=output_type, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 1
    batch = pipe([images] * 2, [cameras] * 2, num_inference_steps=2, output_type=output_type, num_samples=3).images
    assert len(batch) == 2 and len(batch[0]) == 2 and len(batch[0][0]) == 3


def test_pil_pt_and_latents_agree(pipe):
    images, cameras = make_inputs(num_targets=2)
    tensor = generate(pipe, images, cameras)
    latents = generate(pipe, images, cameras, output_type="latent")
    torch.testing.assert_close((latents / 2 + 0.5).clamp(0, 1), tensor)
    picture = generate(pipe, images, cameras, output_type="pil")[1]
    expected = (tensor[1].permute(1, 2, 0) * 255).round().numpy()
    assert np.abs(np.asarray(picture, dtype=float) - expected).max() <= 1


def make_vae(kind: str):
    torch.manual_seed(0)
    if kind == "tiny":
        return AutoencoderTiny(
            latent_channels=4,
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.1,
    )


def test_latents_are_shifted_and_scaled_as_the_autoencoder_says():
    """By 0.1 and 0.5 here: into latents by subtraction and product, back by division and sum."""
    pipe = make_pipeline("velocity", make_vae("kl"), in_channels=4)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 3, 3, 16, 16, generator=generator) * 2 - 1
    latents = torch.randn(1, 3, 4, 8, 8, generator=generator)
    with torch.no_grad():
        own = pipe.vae.encode(pixels[0]).latent_dist.mode()
        torch.testing.assert_close(pipe.encode_images(pixels)[0], (own - 0.1) * 0.5, **CLOSE)
        decoded = pipe.vae.decode(latents[0] * 2 + 0.1).sample
        torch.testing.assert_close(pipe.decode_latents(latents)[0], decoded, **CLOSE)
        there_and_back = pipe.decode_latents(pipe.encode_images(pixels))[0]
        torch.testing.assert_close(there_and_back, pipe.vae.decode(own).sample, **CLOSE)
    assert (decoded - pipe.vae.decode(latents[0] * 2).sample).abs().max() > 1e-3, "the shift shows in the pixels"


@pytest.mark.parametrize("kind", ["tiny", "kl"])
def test_latents_of_an_image_autoencoder(kind, tmp_path):
    pipe = make_pipeline("velocity", make_vae(kind), in_channels=4)
    images, cameras = make_inputs()
    views = generate(pipe, images, cameras)
    assert views.shape == (5, 3, 16, 16), "sample_size counts latents"
    latents = generate(pipe, images, cameras, output_type="latent")
    assert latents.shape == (5, 4, 8, 8)
    decoded = pipe.decode_latents(latents[None])[0]
    torch.testing.assert_close((decoded / 2 + 0.5).clamp(0, 1), views, **CLOSE)
    pixels = torch.rand(2, 3, 3, 16, 16) * 2 - 1
    alone = torch.stack([pipe.encode_images(pixels[:, i : i + 1])[:, 0] for i in range(3)], dim=1)
    torch.testing.assert_close(pipe.encode_images(pixels), alone, msg="each view passes on its own", **CLOSE)
    assert generate(pipe, None, None, cameras).shape == (8, 3, 16, 16), "no references at all"
    if kind == "kl":
        moments = pipe.vae.encode(pixels[0]).latent_dist.mode()
        torch.testing.assert_close(pipe.encode_images(pixels)[0], (moments - 0.1) * 0.5, **CLOSE)
    pipe.save_pretrained(tmp_path)
    loaded = KaleidoViewSynthesisPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(generate(loaded, images, cameras), views)


def test_callbacks_see_and_change_every_step(pipe):
    images, cameras = make_inputs()
    calls = []

    def watch(pipeline, step, timestep, tensors):
        calls.append((step, timestep.item(), tuple(tensors["latents"].shape)))
        assert pipeline.current_timestep == timestep and pipeline.num_timesteps == 9
        return {}

    untouched = generate(pipe, images, cameras, callback_on_step_end=watch)
    assert [step for step, _, _ in calls] == list(range(9)), "three groups of three steps"
    assert calls[0][2] == (1, 2, 3, 8, 8) and calls[-1][2] == (1, 1, 3, 8, 8)
    zeroed = generate(pipe, images, cameras, callback_on_step_end=lambda *a: {"latents": 0 * a[3]["latents"]})
    torch.testing.assert_close(zeroed, torch.full_like(untouched, 0.5))

    def stop(pipeline, step, timestep, tensors):
        pipeline._interrupt = step >= 1
        return tensors

    steps = []
    generate(pipe, images, cameras, callback_on_step_end=lambda p, s, t, x: steps.append(s) or stop(p, s, t, x))
    assert steps == [0, 1]


def test_callbacks_know_the_group(pipe):
    """Five targets in groups of two."""
    images, cameras = make_inputs()
    seen = []

    def watch(pipeline, step, timestep, tensors):
        seen.append((pipeline.current_group, pipeline.num_groups, tensors["targets"].tolist()))
        return {}

    options = {"callback_on_step_end": watch, "callback_on_step_end_tensor_inputs": ["targets"]}
    generate(pipe, images, cameras, steps=1, **options)
    assert seen == [(0, 3, [[0, 1]]), (1, 3, [[2, 3]]), (2, 3, [[4]])]


def test_a_list_of_generators_is_of_scenes_or_of_samples(pipe):
    """Each sample is what a call with its generator alone gives, also in a batch: scene by scene."""
    images, cameras = make_inputs(num_targets=2)
    other = make_inputs(num_targets=2, seed=1)
    options = {"num_inference_steps": 2, "output_type": "pt"}

    def alone(scene, seed):
        return pipe(*scene, generator=torch.Generator().manual_seed(seed), **options).images

    def generators(count):
        return [torch.Generator().manual_seed(seed) for seed in range(count)]

    samples = pipe(images, cameras, num_samples=2, generator=generators(2), **options).images
    for seed in range(2):
        torch.testing.assert_close(samples[:, seed], alone((images, cameras), seed), **CLOSE)
    batch = [images, other[0]], [cameras, other[1]]
    both = pipe(*batch, num_samples=2, generator=generators(4), **options).images
    assert both.shape == (2, 2, 2, 3, 8, 8)
    for row, scene in enumerate([(images, cameras), other]):
        for sample in range(2):
            torch.testing.assert_close(both[row, :, sample], alone(scene, 2 * row + sample), **CLOSE)
    scenes = pipe(*batch, generator=generators(2), **options).images
    torch.testing.assert_close(scenes[1], alone(other, 1), **CLOSE)
    with pytest.raises(ValueError, match="one for each of the 2 scenes, or one for each of the 4 samples; got 3"):
        pipe(*batch, num_samples=2, generator=generators(3), **options)


def test_poses_may_lack_their_last_row(pipe):
    images, cameras = make_inputs(num_targets=2)
    options = {"fov": 55.0, "steps": 1}
    poses = cameras.world_from_camera
    expected = generate(pipe, images, poses, **options)
    assert torch.equal(generate(pipe, images, poses[:, :3], **options), expected)
    assert torch.equal(generate(pipe, images, poses[:3, :3].numpy(), poses[3:, :3].tolist(), **options), expected)
    short = Cameras(poses[:, :3], cameras.intrinsics, cameras.image_sizes)
    assert torch.equal(short.world_from_camera, poses)
    with pytest.raises(ValueError, match=r"shape \[.*4, 4\]"):
        generate(pipe, images, poses[:, :, :3], **options)


def test_guidance_away_from_the_references_is_refused(pipe):
    images, cameras = make_inputs()
    with pytest.raises(ValueError, match="`guidance_scale` must be 0 or more .*, got -1.5"):
        generate(pipe, images, cameras, guidance_scale=-1.5)


def test_generators_decide(pipe):
    images, cameras = make_inputs()
    assert torch.equal(generate(pipe, images, cameras, seed=1), generate(pipe, images, cameras, seed=1))
    assert not torch.equal(generate(pipe, images, cameras, seed=1), generate(pipe, images, cameras, seed=2))
    for scenes in (images, [images] * 3):
        with pytest.raises(ValueError, match="`generator` must be one"):
            pipe(scenes, cameras if scenes is images else [cameras] * 3, generator=[torch.Generator()] * 2)


def test_schedulers_of_diffusers_work_with_velocities():
    pipe = make_pipeline("velocity")
    images, cameras = make_inputs()
    expected = generate(pipe, images, cameras, sigmas=[1.0, 0.6, 0.2])
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    torch.testing.assert_close(generate(pipe, images, cameras, sigmas=[1.0, 0.6, 0.2]), expected, **CLOSE)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    assert generate(pipe, images, cameras).isfinite().all()
    pipe.scheduler = RectifiedFlowViewScheduler(use_dynamic_shifting=True, base_image_seq_len=2)
    assert not torch.allclose(generate(pipe, images, cameras), expected, atol=1e-3)
    pipe.scheduler = RectifiedFlowViewScheduler(shift=3.0)
    ours = generate(pipe, images, cameras)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    torch.testing.assert_close(generate(pipe, images, cameras), ours, msg="steps spread alike", **CLOSE)


@pytest.mark.parametrize("how", ["from_config", "fresh", "loaded"])
def test_a_foreign_scheduler_is_refused_where_the_model_predicts_samples(how, tmp_path):
    pipe = make_pipeline("sample")
    if how == "from_config":
        pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    elif how == "fresh":
        pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    else:
        pipe.save_pretrained(tmp_path)
        pipe = KaleidoViewSynthesisPipeline.from_pretrained(tmp_path, scheduler=FlowMatchEulerDiscreteScheduler())
    with pytest.raises(ValueError, match="take for a 'velocity'"):
        generate(pipe, *make_inputs())


def test_a_scheduler_that_takes_the_prediction_for_something_else_is_refused():
    pipe = make_pipeline("sample")
    pipe.scheduler = RectifiedFlowViewScheduler(solver="heun")
    with pytest.raises(ValueError, match="predicts 'sample'.*from_config"):
        generate(pipe, *make_inputs())


def test_offloading_hooks(pipe):
    images, cameras = make_inputs()
    expected = generate(pipe, images, cameras)
    other = KaleidoViewSynthesisPipeline.from_pipe(pipe)
    torch.testing.assert_close(generate(other, images, cameras), expected)
    model = make_pipeline(layer_pattern=("global", "view"))
    model.transformer.enable_group_offload(
        onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type="leaf_level"
    )
    torch.testing.assert_close(generate(model, images, cameras), expected)


def test_a_transformer_spread_by_a_device_map(pipe, tmp_path):
    """The CPU and the disk stand in for two devices: accelerate moves what a block needs to where it runs."""
    expected = generate(pipe, *make_inputs())
    pipe.transformer.save_pretrained(tmp_path / "model")
    blocks = {f"transformer_blocks.{index}": "disk" if index else "cpu" for index in range(3)}
    others = {name: "cpu" for name, _ in pipe.transformer.named_children() if name != "transformer_blocks"}
    parameters = {name: "cpu" for name, _ in pipe.transformer.named_parameters(recurse=False)}
    spread = type(pipe.transformer).from_pretrained(
        tmp_path / "model", device_map=blocks | others | parameters, offload_folder=tmp_path / "offload"
    )
    assert spread.transformer_blocks[2].attn.to_q.weight.is_meta, "on the disk"
    other = KaleidoViewSynthesisPipeline(spread, pipe.scheduler)
    torch.testing.assert_close(generate(other, *make_inputs()), expected)


def test_views_decode_one_by_one_and_in_tiles():
    pipe = make_pipeline("velocity", make_vae("kl"), in_channels=4)
    sizes = []
    pipe.vae.decoder.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape)))
    images, cameras = make_inputs()
    options = {"height": 32, "width": 48, "views_per_group": 5}
    expected = generate(pipe, images, cameras, **options)
    assert sizes == [(5, 4, 16, 24)]
    sizes.clear()
    pipe.vae.enable_slicing()
    torch.testing.assert_close(generate(pipe, images, cameras, **options), expected)
    assert sizes == [(1, 4, 16, 24)] * 5
    sizes.clear()
    pipe.vae.enable_tiling()
    pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = 16, 32
    tiled = generate(pipe, images, cameras, **options)
    assert tiled.shape == expected.shape and max(max(size[2:]) for size in sizes) == 16
    assert (tiled - expected).abs().mean() < 0.1


# References that are encoded once


@contextmanager
def counted_views(pipe):
    """A list of the views that go through the transformer, an entry for each forward pass."""
    counts = []

    def hook(_module, args, kwargs):
        counts.append((args[0] if args else kwargs["hidden_states"]).shape[1])

    handle = pipe.transformer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance_scale": 2.5, "views_per_group": 1},
        {"num_samples": 2},
        {"generation_order": "nearest"},
        {"max_memory_views": 2},
        {"camera_scale": 1.7},
        {"use_reference_cache": False},
    ],
    ids=str,
)
def test_targets_of_a_memory_equal_those_of_their_references(pipe, options):
    images, cameras = make_inputs()
    settled = {name: options[name] for name in ("max_memory_views", "camera_scale") if name in options}
    free = {name: value for name, value in options.items() if name not in settled}
    expected = generate(pipe, images, cameras, **options)
    memory = pipe.encode_references(images, cameras[:3], **settled)
    assert len(memory) == 3 and (memory.height, memory.width) == (8, 8)
    for _ in range(2):  # a call leaves the memory as it was
        again = generate(pipe, None, None, cameras[3:], memory=memory, **free)
        torch.testing.assert_close(again, expected, **CLOSE)
        assert len(memory) == 3
    bare = generate(pipe, None, None, cameras.world_from_camera[3:], memory=memory, **free)
    torch.testing.assert_close(bare, expected, **CLOSE)


def test_views_through_lenses_that_the_model_does_not_know_are_shown_from_nearer(pipe):
    """In a call and from a memory, as cameras that were put there by hand are by a model without a limit."""
    turns = torch.linspace(-0.5, 0.5, 6, dtype=torch.float64)
    eyes = torch.stack([20 * turns.sin(), -20 * turns.cos(), 1 + turns], dim=-1)
    poses = look_at(eyes, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    cameras = Cameras.from_fov(poses, 10.0, [12, 12])
    images = [torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(view)) for view in range(3)]
    limit = make_pipeline(layer_pattern=("global", "view"), max_focal_length=1.5)
    factor = 1.5 / cameras.normalized_intrinsics[0, 0, 0].item()
    nearer, shorter = poses.clone(), cameras.normalized_intrinsics.clone()
    nearer[:, :3, 3] *= factor
    shorter[:, :2, :2] *= factor
    nearer = Cameras.from_normalized(nearer, shorter, (12, 12))
    expected = generate(pipe, images, nearer)
    torch.testing.assert_close(generate(limit, images, cameras), expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(generate(pipe, images, cameras), expected, atol=1e-2)
    memory = limit.encode_references(images, cameras[:3])
    from_memory = generate(limit, None, None, cameras[3:], memory=memory)
    torch.testing.assert_close(from_memory, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(generate(limit, images, nearer), expected, rtol=1e-3, atol=1e-4)


def test_references_are_encoded_once(pipe):
    images, cameras = make_inputs()
    with counted_views(pipe) as counts:
        memory = pipe.encode_references(images, cameras[:3])
        assert counts == [3]
        for target in (3, 4):
            generate(pipe, None, None, cameras[target : target + 1], memory=memory, steps=2)
        assert counts == [3, 1, 1, 1, 1]


def test_a_memory_grows_by_what_was_generated(pipe):
    """A long path in several calls is the same as in one, and what one call generated the next attends to."""
    images, cameras = make_inputs()
    noise = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = generate(pipe, images, cameras, latents=noise)
    memory, views = pipe.encode_references(images, cameras[:3]), []
    with counted_views(pipe) as counts:
        for part in (slice(0, 2), slice(2, 4), slice(4, 5)):
            out = pipe(
                target_poses=cameras[3:][part],
                memory=memory,
                latents=noise[part],
                num_inference_steps=3,
                output_type="pt",
            )
            views.append(out.images)
            memory = out.memory
    torch.testing.assert_close(torch.cat(views), expected, **CLOSE)
    assert len(memory) == 8
    remembered = memory.views.views()[0][0, 3:] / 2 + 0.5
    torch.testing.assert_close(remembered.clamp(0, 1), torch.cat(views))  # clean, not as noise
    assert counts == [2, 2, 2] + [2] + [2, 2, 2] + [2] + [1, 1, 1], "generated views are encoded once"
    assert pipe(images, cameras, num_inference_steps=1).memory is None


def test_a_memory_of_one_reference_takes_its_unit_from_camera_scale(pipe):
    images, cameras = make_inputs(num_references=1)
    reach = (cameras.centers - cameras.centers[0]).norm(dim=-1).max().item()
    expected = generate(pipe, images, cameras)
    memory = pipe.encode_references(images, cameras[:1], camera_scale=1 / reach)
    torch.testing.assert_close(generate(pipe, None, None, cameras[1:], memory=memory), expected, **CLOSE)
    world = pipe.encode_references(images, cameras[:1])
    assert world.frame.scale.item() == 1.0
    assert not torch.allclose(generate(pipe, None, None, cameras[1:], memory=world), expected, atol=1e-3)


def test_frames_and_moving_worlds_have_memories_too(pipe):
    images, cameras = make_inputs(num_targets=2)
    times = {"frame_times": [10.0, 10.5, 11.0]}
    for poses, targets in ((None, None), (cameras[:3], cameras[3:])):
        expected = generate(pipe, images, poses, targets, target_times=[10.2, 10.9], **times)
        memory = pipe.encode_references(images, poses, **times)
        views = generate(pipe, None, None, targets, target_times=[10.2, 10.9], memory=memory)
        torch.testing.assert_close(views, expected, **CLOSE)


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_memories_of_latents(kind):
    pipe = make_pipeline(vae=make_vae(kind), in_channels=4)
    images, cameras = make_inputs(size=(16, 16))
    options = {"height": 16, "width": 16}
    expected = generate(pipe, images, cameras, **options)
    memory = pipe.encode_references(images, cameras[:3], **options)
    torch.testing.assert_close(generate(pipe, None, None, cameras[3:], memory=memory), expected, **CLOSE)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": [torch.rand(3, 8, 8)]}, "`images` cannot be given along with `memory`"),
        ({"poses": torch.eye(4)[None]}, "`poses` cannot be given"),
        ({"fov": 50.0}, "`fov` cannot be given"),
        ({"target_intrinsics": torch.eye(3)}, "`target_intrinsics` cannot be given .* as `Cameras`"),
        ({"camera_scale": 2.0}, "`camera_scale` cannot be given"),
        ({"max_memory_views": 2}, "`max_memory_views` cannot be given"),
        ({"height": 12}, "8 x 8 pixels .* `height` is 12 and `width` None"),
        ({"target_poses": None}, "`target_poses` must be given with this `memory`: its references have cameras"),
        ({"target_times": [1.0]}, "`target_times` must not be given with this `memory`: its references have no times"),
        ({"target_poses": torch.eye(4)}, r"must have shape \[V, 4, 4\]"),
    ],
)
def test_arguments_that_do_not_go_with_a_memory(pipe, change, message):
    images, cameras = make_inputs()
    memory = pipe.encode_references(images, cameras[:3])
    arguments = {"target_poses": cameras[3:], "memory": memory, "num_inference_steps": 1}
    with pytest.raises(ValueError, match=message):
        pipe(**{**arguments, **change})


def test_a_memory_belongs_to_its_pipeline_and_adapters():
    pipe = make_pipeline()
    images, cameras = make_inputs()
    memory = pipe.encode_references(images, cameras[:3])
    with pytest.raises(ValueError, match="another pipeline"):
        make_pipeline()(target_poses=cameras[3:], memory=memory)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    with pytest.raises(ValueError, match="made with no adapter, and now there is adapter 'default'"):
        pipe(target_poses=cameras[3:], memory=memory)


def test_a_memory_is_of_one_scene_and_not_empty(pipe):
    images, cameras = make_inputs()
    with pytest.raises(ValueError, match="at least one reference"):
        pipe.encode_references([], cameras[:0])
    with pytest.raises(ValueError, match="one scene, got a batch"):
        pipe.encode_references([images], [cameras[:3]])


# Bad input


@pytest.mark.parametrize(
    "change, message",
    [
        ({"poses": torch.eye(4).repeat(3, 1, 1)}, "at least one more to generate, got 3"),
        ({"poses": torch.eye(4).repeat(2, 1, 1), "target_poses": torch.eye(4)[None]}, "each of the 3 images, got 2"),
        ({"target_poses": torch.zeros(0, 4, 4), "poses": torch.eye(4).repeat(3, 1, 1)}, "nothing to generate"),
        ({"poses": 2 * torch.eye(4).repeat(5, 1, 1)}, "`poses` must hold rigid"),
        ({"poses": torch.eye(4)}, r"`poses` must have shape \[V, 4, 4\]"),
        ({"poses": "front"}, "`poses` must be an array"),
        ({"poses": None}, "need `poses`, or `frame_times`"),
        ({"poses": None, "frame_times": [0.0, 1.0], "target_times": [2.0]}, "`frame_times` must hold a time"),
        ({"poses": None, "target_times": [2.0]}, "must be given together"),
        ({"poses": None, "frame_times": [0.0, 1.0, float("nan")], "target_times": [2.0]}, "finite seconds"),
        ({"poses": None, "frame_times": [0, 1, 2], "target_times": [2.0], "fov": 40.0}, "without `poses`"),
        ({"frame_times": [0, 1, 2], "target_times": [2.0]}, "8 views, but the times 4"),
        ({"fov": 190.0}, "`fov` must lie between"),
        ({"fov": 50.0, "intrinsics": torch.eye(3)}, "`fov` is for poses without intrinsics"),
        ({"intrinsics": torch.zeros(3, 3), "fov": None}, "positive focal"),
        ({"intrinsics": torch.ones(2, 3, 3), "fov": None}, "`intrinsics` must have shape"),
        ({"images": [torch.rand(3, 8, 8) * 3] * 3}, r"must lie in \[0, 1\]"),
        ({"images": [torch.full((3, 8, 8), float("nan"))] * 3}, r"must lie in \[0, 1\]"),
        ({"images": [torch.rand(5, 8, 8)] * 3}, r"tensors \[3, H, W\], got shape \[5, 8, 8\]"),
        ({"images": [1, 2, 3]}, "got int"),
        ({"images": ["missing.png"] * 3}, "missing.png: no such image"),
        ({"height": 9}, "multiples of 4"),
        ({"output_type": "jpeg"}, "`output_type`"),
        ({"generation_order": "random"}, "`generation_order`"),
        ({"joins_memory": "some"}, "`joins_memory`"),
        ({"joins_memory": "first", "share_groups": True}, "needs the processes of `torch.distributed`"),
        ({"views_per_group": 0}, "`views_per_group` must be a positive"),
        ({"max_memory_views": 0}, "`max_memory_views` must be a positive"),
        ({"max_memory_views": 2, "use_reference_cache": False}, "needs the reference cache"),
        ({"num_samples": 1.5}, "`num_samples` must be a positive"),
        ({"camera_scale": -1.0}, "`camera_scale`"),
        ({"latents": torch.zeros(5, 3, 4, 4)}, r"`latents` must have shape \[5, 3, 8, 8\]"),
        ({"callback_on_step_end_tensor_inputs": ["prompt"]}, "must be among"),
        ({"num_inference_steps": 0}, "positive integer"),
    ],
)
def test_arguments_that_do_not_fit(pipe, change, message):
    images, cameras = make_inputs()
    arguments = {"images": images, "poses": cameras.world_from_camera, "fov": 50.0, "num_inference_steps": 1}
    if change.get("poses", 0) is None:
        arguments.pop("fov")
    with pytest.raises(ValueError, match=message):
        pipe(**{**arguments, **change})


def test_cameras_of_another_image_size_are_refused(pipe):
    images, cameras = make_inputs()
    with pytest.raises(ValueError, match="Image 0 is 12 x 10 pixels, but its camera in `poses` is for 24 x 20"):
        generate(pipe, images, cameras.resized(20, 24))
    with pytest.raises(ValueError, match="have intrinsics already"):
        generate(pipe, images, cameras, intrinsics=torch.eye(3))
    with pytest.raises(ValueError, match="`fov` is for poses without"):
        generate(pipe, images, cameras, fov=50.0)


def test_batches_that_do_not_match(pipe):
    images, cameras = make_inputs()
    with pytest.raises(ValueError, match="one entry for each of the 2 scenes, got 1"):
        generate(pipe, [images, images], [cameras])
    with pytest.raises(ValueError, match="must share their numbers"):
        generate(pipe, [images, images[:2]], [cameras, cameras])
    with pytest.raises(ValueError, match="a list of `Cameras`"):
        generate(pipe, [images, images], cameras)


def test_compiled_blocks_are_not_compiled_again_as_the_memory_grows():
    pipe = make_pipeline()
    poses = torch.eye(4).repeat(18, 1, 1)
    poses[:, 0, 3] = torch.arange(18)
    photos = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def run(references: int, targets: int, **options) -> torch.Tensor:
        options = {"fov": 60, "num_inference_steps": 2, "views_per_group": 2, "output_type": "pt", **options}
        generator = torch.Generator().manual_seed(0)
        return pipe(photos[:references], poses[: references + targets], generator=generator, **options).images

    calls = [(3, 12, {}), (3, 12, {"max_memory_views": 5}), (3, 6, {}), (6, 9, {"views_per_group": 3})]
    plain = [run(references, targets, **options) for references, targets, options in calls]
    counter = CompileCounter()
    torch._dynamo.reset()
    pipe.transformer.compile_repeated_blocks(backend=counter, fullgraph=True)
    run(3, 8)
    run(4, 3)  # a last group that is smaller
    compiled = counter.frame_count
    assert 0 < compiled <= 8, "torch gives up after eight"
    for (references, targets, options), expected in zip(calls, plain):
        torch.testing.assert_close(run(references, targets, **options), expected, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == compiled
    torch._dynamo.reset()


# What people hand over that is nearly right


def test_images_may_come_from_a_generator(pipe):
    images, cameras = make_inputs()
    expected = generate(pipe, images, cameras)
    assert torch.equal(generate(pipe, (image for image in images), cameras), expected)
    memory = pipe.encode_references(iter(images), cameras[:3])
    assert len(memory) == 3


def test_a_lens_for_each_view_is_not_one_number():
    with pytest.raises(ValueError, match=r"`fov` must be one number .* got \[50, 60\].*`intrinsics`, one for each"):
        Cameras.from_fov(torch.eye(4).repeat(2, 1, 1), [50, 60], [10, 12])


@pytest.mark.parametrize("views", [3, 8])
def test_lenses_of_a_batch_that_may_be_meant_for_its_views_are_refused(pipe, views):
    """Of 3 scenes with 3 references, or with 3 targets, [3, 3, 3] says nothing."""
    images, cameras = make_inputs()
    scenes, poses = [images[:3]] * 3, cameras.world_from_camera.expand(3, -1, -1, -1)
    if views == 8:
        scenes, poses = [images[:2]] * 3, poses[:, :5]
    lens = torch.tensor([[12.0, 0, 6], [0, 12, 5], [0, 0, 1]])
    of_views = {"intrinsics": lens.repeat(3, 1, 1)} if views == 3 else {"target_intrinsics": lens.repeat(3, 1, 1)}
    poses = (poses,) if views == 3 else (poses[:, :2], poses[:, 2:])
    with pytest.raises(ValueError, match=r"of 3 lenses may be one for each of the 3 scenes, or for each view"):
        generate(pipe, scenes, *poses, **({"intrinsics": lens} | of_views))
    shared = generate(pipe, scenes, *poses, intrinsics=lens)
    each = {name: lens.expand(3, 3, 3, 3) for name in of_views}
    if views == 8:
        assert torch.equal(generate(pipe, scenes, *poses, intrinsics=lens, **each), shared)
    two = scenes[:2], *(part[:2] for part in poses)
    if views == 3:
        made = generate(pipe, *two, intrinsics=lens.repeat(2, 1, 1))
        torch.testing.assert_close(made, shared[:2], msg="two lenses for two scenes of 3 views are no riddle", **CLOSE)
    else:  # those of two views are
        with pytest.raises(ValueError, match=r"of 2 lenses may be one for each of the 2 scenes, or for each view"):
            generate(pipe, *two, intrinsics=lens.repeat(2, 1, 1))


def test_an_autoencoder_that_does_not_fit_is_named():
    channels = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    vae = AutoencoderTiny(**channels, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    options = {"in_channels": 4, "out_channels": 4}
    images, cameras = make_inputs()
    generate(make_pipeline(vae=vae, **options), images, cameras, height=16, width=16)
    pipe = make_pipeline(**options)
    told = "works on views of 4 channels, but there is no `vae`, and pixels have 3 channels: pass the `vae`"
    with pytest.raises(ValueError, match=told):
        generate(pipe, images, cameras)
    with pytest.raises(ValueError, match=told):
        pipe.encode_references(images, cameras[:3])
    pipe = make_pipeline(vae=vae, in_channels=16, out_channels=16)
    with pytest.raises(
        ValueError, match="of 16 channels, but the `vae`, AutoencoderTiny, makes latents of 4 channels"
    ):
        generate(pipe, images, cameras)
    with pytest.raises(ValueError, match=r"makes latents of 4 channels.*`None` for pixels"):
        generate(make_pipeline(vae=vae), images, cameras)
