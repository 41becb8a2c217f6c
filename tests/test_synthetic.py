"""The ray caster against its slow twin, and the worlds' promises."""

import math

import pytest
import reference
import torch

from kaleido_diffusers.worlds.synthetic import (
    SHAPES,
    SPLITS,
    TEXTURES,
    _cast,
    _pattern,
    _Solids,
    make_worlds,
    render,
    sample_views,
)


@pytest.mark.parametrize("name", SHAPES[2:])
def test_rays_meet_solids_where_the_slow_twin_does(name):
    """A march along each ray until the implicit solid is entered."""
    worlds = make_worlds([3], level="object", max_solids=1)
    worlds.shape.zero_()
    worlds.shape[0, 0] = SHAPES.index(name)
    worlds.size[0, 0] = torch.tensor([0.5, 0.5, 0.5] if name in ("torus", "cone", "blend") else [0.6, 0.4, 0.5])
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(300, 3, generator=generator), dim=-1)
    aims = worlds.center[0, 0] + 0.5 * torch.randn(300, 3, generator=generator)
    origins = aims - 3 * directions
    solids = _Solids(worlds, torch.zeros(1, dtype=torch.long), torch.zeros(1))
    distance, place, normal = (x[0] for x in _cast(solids, origins[None], directions[None]))
    size, center, rotation = worlds.size[0, 0], worlds.center[0, 0], worlds.rotation[0, 0]
    hits = 0
    for index in range(300):
        expected, chord = reference.march(
            name, size, (origins[index] - center) @ rotation, directions[index] @ rotation
        )
        if 0 < chord < 0.05:
            continue  # a ray that grazes: neither caster nor twin is to be trusted
        if chord == 0:
            assert distance[index] > 1e8 or abs(normal[index] @ directions[index]) < 0.3, index
        else:
            hits += 1
            assert abs(distance[index].item() - expected) < 5e-3, index
            assert place[index] == 0
    assert hits > 60
    met = distance < 1e8
    torch.testing.assert_close(normal[met].norm(dim=-1), torch.ones(int(met.sum())), atol=1e-4, rtol=0)
    assert ((normal[met] * directions[met]).sum(-1) < 0.02).all(), "normals face the ray"


def test_seeds_decide_everything():
    a, b = make_worlds([5, 6]), make_worlds([6])
    assert torch.equal(a.center[1], b.center[0]) and torch.equal(a.colors[1], b.colors[0])
    assert not torch.equal(a.center[0], a.center[1])
    poses, lenses, times = sample_views(b, 3, seed=1)
    again = sample_views(b, 3, seed=1)
    assert torch.equal(poses, again[0])
    assert torch.equal(render(b, poses, lenses, times, (16, 16)), render(b, poses, lenses, times, (16, 16)))
    assert not torch.equal(poses, sample_views(b, 3, seed=2)[0])
    starts = sorted((start, start + count) for start, count in SPLITS.values())
    assert all(end <= start for (_, end), (start, _) in zip(starts, starts[1:])), "splits share no seed"


@pytest.mark.parametrize("level", ["object", "scene"])
def test_cameras_stand_free_and_see_the_solids(level):
    worlds = make_worlds(range(40), level=level)
    poses, _, _ = sample_views(worlds, 6, seed=0)
    centers = poses[..., :3, 3]
    gaps = (centers[:, :, None] - worlds.center[:, None]).norm(dim=-1) - worlds.radius[:, None]
    assert gaps.where(worlds.radius[:, None] > 0, torch.inf).min() > 0
    if level == "scene":
        assert centers[..., 2].min() > 0.1
    images = render(worlds, *sample_views(worlds, 2, seed=0)[:2], size=(16, 16), samples=1)
    assert images.isfinite().all() and images.min() >= 0 and images.max() <= 1
    assert (images.flatten(3).std(-1).mean(-1) > 0.01).float().mean() > 0.95, "something is in sight"


def test_views_agree_with_their_cameras():
    """What one view shows at a surface point, another shows where the point projects."""
    worlds = make_worlds([11], level="scene", max_solids=3)
    poses, lenses, _ = sample_views(worlds, 2, seed=0, spread=0.1)
    worlds.gloss.zero_()
    worlds.shape.zero_()  # the ground alone
    worlds.texture[0, -1] = TEXTURES.index("noise")
    size = 96
    images = render(worlds, poses, lenses, size=(size, size), samples=2)[0]
    points = []
    for view in range(2):
        y, x = torch.meshgrid(*[(torch.arange(size) + 0.5) / size] * 2, indexing="ij")
        rays = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ torch.linalg.inv(lenses[0, view]).T
        rays = rays @ poses[0, view, :3, :3].T
        points.append(poses[0, view, :3, 3] - rays * (poses[0, view, 2, 3] / rays[..., 2:]))
    in_camera = (points[0] - poses[0, 1, :3, 3]) @ poses[0, 1, :3, :3]
    pixels = in_camera @ lenses[0, 1].T
    grid = 2 * pixels[..., :2] / pixels[..., 2:] - 1
    warped = torch.nn.functional.grid_sample(images[1:2], grid[None], align_corners=False)[0]
    near = ((grid.abs() < 0.95).all(-1)) & (in_camera[..., 2] > 0) & (in_camera[..., 2] < 6)
    assert near.float().mean() > 0.2
    assert (warped - images[0])[:, near].abs().mean() < 0.01


def test_distant_checks_do_not_shimmer():
    p = torch.stack([torch.linspace(0, 40, 500), torch.full((500,), 0.3), torch.full((500,), 0.2)], dim=-1)
    ground = torch.ones(500, dtype=torch.bool)
    sharp = _pattern("checks", p, torch.full((500,), 1e-3), ground)
    far = _pattern("checks", p, torch.full((500,), 6.0), ground)
    assert sharp.std() > 0.45 and far.std() < 0.1 and abs(far.mean() - 0.5) < 0.05
    for name in TEXTURES[1:]:
        blend = _pattern(name, 5 * torch.randn(1000, 3), torch.rand(1000) * 3 + 1e-4, torch.rand(1000) < 0.5)
        assert 0 <= blend.min() and blend.max() <= 1, name


def test_more_samples_converge():
    worlds = make_worlds([4], level="scene")
    poses, lenses, _ = sample_views(worlds, 1, seed=0)
    fine = render(worlds, poses, lenses, size=(24, 24), samples=8)
    errors = [(render(worlds, poses, lenses, size=(24, 24), samples=n) - fine).abs().mean() for n in (1, 3)]
    assert errors[1] < 0.5 * errors[0]


def test_motion_moves_the_solids_alone():
    worlds = make_worlds([2], level="object", motion=1.0, max_solids=2)
    poses, lenses, times = sample_views(worlds, 4, seed=0, kind="video")
    assert times[0].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    still = poses[:, :1].expand(-1, 4, -1, -1)
    images = render(worlds, still, lenses, times, (32, 32))[0]
    assert (images[1:] - images[:-1]).abs().mean((1, 2, 3)).min() > 1e-3
    frozen = make_worlds([2], level="object", motion=0.0, max_solids=2)
    images = render(frozen, still, lenses, times, (32, 32))[0]
    assert torch.equal(images[0], images[3])
    turning = poses[0].diff(dim=0)[:, :3, 3].norm(dim=-1)
    assert turning.max() < 3 * turning.min() + 1e-3, "the path is smooth"


def test_chunks_do_not_show():
    worlds = make_worlds([1, 2], level="mixed")
    poses, lenses, times = sample_views(worlds, 3, seed=0)
    whole = render(worlds, poses, lenses, times, (12, 12), samples=2)
    parts = render(worlds, poses, lenses, times, (12, 12), samples=2, rays_at_once=700)
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=0)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`level`"):
        make_worlds([0], level="city")
    with pytest.raises(ValueError, match="`max_solids`"):
        make_worlds([0], max_solids=0)
    with pytest.raises(ValueError, match="`kind`"):
        sample_views(make_worlds([0]), 2, 0, kind="film")
    assert math.isfinite(render(make_worlds([0]), *sample_views(make_worlds([0]), 1, 0)[:2], size=(4, 4)).mean())
