"""Programs set torch's default dtype to what their own model or solver wants: nothing here changes."""

from collections.abc import Iterator

import pytest
import torch
from conftest import make_pipeline

from kaleido_diffusers import Cameras, RectifiedFlowViewScheduler, load_scene, sample_capture, trajectories
from kaleido_diffusers.evaluation.baselines import nearest_reference, plane_sweep
from kaleido_diffusers.evaluation.protocol import capture_case, evaluate
from kaleido_diffusers.geometry.choosing import coverage
from kaleido_diffusers.geometry.views import Views
from kaleido_diffusers.training.objective import denoise_targets, draw_partition
from kaleido_diffusers.worlds.sources import SyntheticSource


def results() -> Iterator[torch.Tensor | Cameras]:
    """What the parts of the package make of the same inputs."""
    scene = load_scene(sample_capture()).select([0, 5, 10, 20])
    cameras = scene.cameras
    yield from (cameras, cameras.resized(37, 51), cameras.cropped(3, 4, 20, 30), *cameras[:1].resized(8, 8).rays())
    yield Cameras.from_fov([torch.eye(4).tolist()], 60, [30, 40])
    yield from (trajectories.camera_path(name, cameras, 5) for name in trajectories.PATHS)
    yield coverage(cameras[:2], cameras[2:])
    images, small = scene.fitted(range(4), 16, 16)
    yield from (
        images,
        nearest_reference(images[:2], small[:2], small[2:]),
        plane_sweep(images[:2], small[:2], small[2:]),
    )
    result = evaluate(None, [capture_case(scene, [0], 16, 16, 2)], (2,))
    yield torch.tensor([list(map(float, (row["psnr"], row["ssim"]))) for row in result.summary()], dtype=torch.float64)
    scheduler = RectifiedFlowViewScheduler()
    scheduler.set_timesteps(7)
    yield from (scheduler.sigmas, scheduler.timesteps, scheduler.sample_sigmas(2, 3, torch.Generator().manual_seed(0)))
    yield scheduler.step(images, scheduler.timesteps[0].item(), images, return_dict=False)[0]
    for level, kind in (("object", "views"), ("scene", "views"), ("mixed", "moving")):
        sample = SyntheticSource(level, kind, num_scenes=2, num_views=2, size=16, samples=1)[1]
        yield from (sample.pixels, sample.poses, sample.intrinsics)
    pipe = PIPELINES.setdefault("one", make_pipeline(layer_pattern=("global", "view")))
    options = {"num_inference_steps": 2, "height": 8, "width": 8, "output_type": "pt"}
    for more in ({}, {"use_reference_cache": False}, {"guidance_scale": 2.0, "generation_order": "anchors"}):
        generator = torch.Generator().manual_seed(0)
        yield pipe(scene.images[:2], cameras[:2], cameras[2:], generator=generator, **options, **more).images
    pose = [torch.eye(4).tolist()]
    lens = [[40, 0, 16], [0, 40, 16], [0, 0, 1]]
    generator = torch.Generator().manual_seed(0)
    yield pipe(images[:1], pose, pose, intrinsics=lens, generator=generator, **options).images
    generator = torch.Generator().manual_seed(0)
    yield pipe(images[:2], frame_times=[0, 1.5], target_times=[1], generator=generator, **options).images
    partition = draw_partition(4, torch.Generator().manual_seed(0), 2, 0.0)
    batch = Views.stack(
        [Views.seen(images[..., :8, :8], SyntheticSource(num_scenes=1, num_views=4, size=8)[0].geometry())]
    )
    yield denoise_targets(pipe.transformer, scheduler, batch, partition, torch.Generator().manual_seed(0)).loss


PIPELINES = {}


@pytest.fixture(scope="module")
def expected() -> list:
    with torch.no_grad():
        return list(results())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_another_default_dtype_changes_nothing(dtype, expected):
    torch.set_default_dtype(dtype)
    try:
        found = list(results())
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        if isinstance(other, Cameras):
            one, other = ((x.world_from_camera, x.intrinsics) for x in (one, other))
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
