"""Camera paths: their shapes, and that neither the frame nor the unit of the world matters to them."""

import inspect
import math
import typing

import pytest
import torch
from conftest import make_cameras, random_poses

from kaleido_diffusers import Cameras, trajectories
from kaleido_diffusers.cli.settings import RenderSettings
from kaleido_diffusers.geometry.cameras import look_at
from kaleido_diffusers.geometry.choosing import INVENTED, seen_share, tour
from kaleido_diffusers.geometry.trajectories import ABOUT_FOCUS, PATHS, _so3_exp, _so3_log


def ring(count: int = 12, height: float = 1.0) -> Cameras:
    angles = torch.arange(count, dtype=torch.float64) * 2 * math.pi / count
    centers = torch.stack([3 * angles.cos(), 3 * angles.sin(), torch.full_like(angles, height)], dim=-1)
    focus, up = torch.tensor([0.0, 0.0, 0.2]).double(), torch.tensor([0.0, 0.0, 1.0]).double()
    return Cameras.from_fov(look_at(centers, focus, up), 50.0, [32, 32])


def test_focus_and_up_of_a_ring():
    cameras = ring()
    focus, up = torch.tensor([[0.0, 0.0, 0.2], [0.0, 0.0, 1.0]]).double()
    torch.testing.assert_close(trajectories.focus_point(cameras), focus, atol=5e-3, rtol=0)
    torch.testing.assert_close(trajectories.up_direction(cameras), up, atol=1e-6, rtol=0)
    torch.testing.assert_close(trajectories.up_direction(cameras[:2]), up, atol=1e-2, rtol=0)


def test_orbit():
    path = trajectories.orbit(ring(), 8)
    focus = trajectories.focus_point(ring())
    distances = (path.centers - focus).norm(dim=-1)
    torch.testing.assert_close(distances, distances[:1].expand(8))
    pixels, depths = path.project(focus.expand(8, 1, 3))
    torch.testing.assert_close(pixels, torch.full((8, 1, 2), 16.0).double(), rtol=1e-6, atol=1e-6)
    assert (depths > 0).all()
    steps = (path.centers.roll(-1, 0) - path.centers).norm(dim=-1)
    torch.testing.assert_close(steps, steps[:1].expand(8), msg="a full circle closes without repeating its start")
    high = trajectories.orbit(ring(), 4, degrees=90, elevation=60, radius=2.0)
    torch.testing.assert_close((high.centers - focus)[:, 2], torch.full((4,), 2 * math.sin(math.pi / 3)).double())
    with pytest.raises(ValueError, match="radius"):
        trajectories.orbit(ring(), 4, radius=-1.0)
    with pytest.raises(ValueError, match="num_views"):
        trajectories.orbit(ring(), 0)


def test_an_arc_flies_where_the_photos_are():
    def azimuths(path: Cameras) -> list[float]:
        x, y, _ = (path.centers - trajectories.focus_point(path)).unbind(-1)
        return torch.rad2deg(torch.atan2(y, x)).tolist()

    ring_of_36 = ring(36)
    part = ring_of_36[[7, 2, 10, 3, 6, 4, 5, 8, 9]]  # from 20 to 100 degrees, in no order
    assert azimuths(trajectories.arc(part, 5)) == pytest.approx([20, 40, 60, 80, 100], abs=1)
    across = ring_of_36[[34, 35, 0, 1, 2, 3]]  # over the seam of the angles
    assert azimuths(trajectories.arc(across, 3)) == pytest.approx([-20, 5, 30], abs=1)
    near = trajectories.arc(ring_of_36[[4, 5]], 3, focus=torch.tensor([0.0, 0.0, 0.2]))
    assert azimuths(near)[1] == pytest.approx(45, abs=1) and len(near) == 3
    spread = near.centers[0] - near.centers[2]
    assert float(spread.norm()) == pytest.approx(2 * 3 * math.sin(math.radians(10)), rel=0.02), "20 degrees at least"
    torch.testing.assert_close(trajectories.arc(ring(), 8).centers, trajectories.orbit(ring(), 8).centers)


def test_a_tour_goes_from_neighbour_to_neighbour():
    walk = tour(ring(36)[[9, 1, 5, 3, 7]])
    assert walk in ([1, 3, 2, 4, 0], [0, 4, 2, 3, 1])
    assert tour(ring()[:1]) == [0]


def test_what_is_seen_falls_with_the_angle():
    cameras = ring(36)
    shares = seen_share(cameras[[0, 9]], cameras[[0, 1, 18]]).tolist()
    assert shares[0] == pytest.approx(1.0, abs=1e-6) and shares[0] > shares[1] > INVENTED > 0.3 > shares[2]


def test_spiral_starts_at_the_first_camera_and_looks_at_the_focus():
    path = trajectories.spiral(ring(), 10)
    torch.testing.assert_close(path.centers[0], ring().centers[0])
    pixels, _ = path.project(trajectories.focus_point(ring()).expand(10, 1, 3))
    torch.testing.assert_close(pixels, torch.full((10, 1, 2), 16.0).double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ABOUT_FOCUS)
def test_one_camera_needs_a_focus(name):
    path = PATHS[name]
    cameras = ring()[:1]
    with pytest.raises(ValueError, match="pass `focus`"):
        path(cameras, 6)
    with pytest.raises(ValueError, match=r"finite point \[3\]"):
        path(cameras, 6, focus=torch.zeros(2))
    flight = path(cameras, 6, focus=[0.0, 0.0, 0.2])
    assert (flight.centers - flight.centers[0]).norm(dim=-1).max() > 0.5


def test_keyframes_of_several_image_sizes_are_refused():
    cameras = Cameras.cat([ring()[:1], ring()[1:2].resized(16, 32)])
    with pytest.raises(ValueError, match="one image size"):
        trajectories.keyframes(cameras, 4)


def test_dolly_zoom_keeps_the_subject_in_size():
    cameras, path = ring(), trajectories.dolly_zoom(ring(), 5, factor=3.0)
    focus = trajectories.focus_point(cameras)
    sideways = cameras.world_from_camera[0, :3, 0]
    sizes = []
    for camera in path:
        pixels, _ = camera.project(torch.stack([focus - 0.1 * sideways, focus + 0.1 * sideways]))
        sizes.append((pixels[1] - pixels[0]).norm())
    torch.testing.assert_close(torch.stack(sizes), torch.stack(sizes[:1]).expand(5), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(path.intrinsics[-1, 0, 0], 3 * path.intrinsics[0, 0, 0])


@pytest.mark.parametrize("closed", [False, True])
def test_keyframes_pass_through_the_keys_without_a_jolt(closed):
    keys = make_cameras(4)
    keys = Cameras(keys.world_from_camera, keys.intrinsics, keys.image_sizes)
    count = 4 + closed
    path = trajectories.keyframes(keys, (count - 1) * 200 + 1, closed=closed)
    torch.testing.assert_close(path.world_from_camera[::200][:4], keys.world_from_camera, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(path.intrinsics[::200][:4], keys.intrinsics, rtol=1e-7, atol=1e-7)
    jumps = path.world_from_camera.diff(dim=0).diff(dim=0).abs().amax((-2, -1))
    moves = path.world_from_camera.diff(dim=0).abs().amax((-2, -1))
    assert jumps.max() < 0.05 * moves.max(), "velocity and angular velocity are continuous"
    with pytest.raises(ValueError, match="two cameras"):
        trajectories.keyframes(keys[:1], 5)


def test_rotation_vectors_near_zero_and_half_turns():
    axis = torch.nn.functional.normalize(torch.tensor([1.0, -2.0, 0.5]).double(), dim=0)
    for angle in (0.0, 1e-9, 1e-4, 1.0, math.pi - 1e-7):
        torch.testing.assert_close(_so3_log(_so3_exp(angle * axis)), angle * axis, rtol=1e-6, atol=1e-9)
    half = _so3_exp(math.pi * axis)
    torch.testing.assert_close(_so3_exp(_so3_log(half)), half, rtol=0, atol=1e-9)


def capture(count: int = 9, seed: int = 0) -> Cameras:
    """Handheld: cameras around a thing, nearly level, none quite aimed at it."""
    generator = torch.Generator().manual_seed(seed)
    jitter = 0.3 * torch.randn(2, count, 3, generator=generator, dtype=torch.float64)
    cameras = ring(count)
    focus, up = torch.tensor([0.0, 0.0, 0.2]).double(), torch.tensor([0.0, 0.0, 1.0]).double()
    return Cameras.from_fov(look_at(cameras.centers + jitter[0], focus + jitter[1], up), 50.0, [24, 32])


def angle_between(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Degrees between directions `[..., 3]`, exact near 0 and near 180."""
    cross = torch.linalg.cross(*torch.broadcast_tensors(a, b)).norm(dim=-1)
    return torch.rad2deg(torch.atan2(cross, (a * b).sum(-1)))


def world(poses: torch.Tensor, motion: torch.Tensor, scale: float) -> torch.Tensor:
    """Poses of a world that was scaled and moved."""
    moved = motion @ poses
    moved[..., :3, 3] = scale * (poses[..., :3, 3] @ motion[:3, :3].T) + motion[:3, 3]
    return moved


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("scale", [1.0, 0.02, 300.0])
def test_a_path_moves_with_the_world(name, scale):
    cameras = capture()
    motion = random_poses(generator=torch.Generator().manual_seed(3), spread=4.0)
    path = PATHS[name](cameras, num_views=7)
    moved = PATHS[name](cameras.with_poses(world(cameras.world_from_camera, motion, scale)), num_views=7)
    expected = world(path.world_from_camera, motion, scale)
    torch.testing.assert_close(moved.world_from_camera, expected, rtol=1e-6, atol=1e-6 * scale)
    torch.testing.assert_close(moved.intrinsics, path.intrinsics)
    assert (path.centers.diff(dim=0).abs().amax() > 0) == (name not in ("pan", "tilt"))


@pytest.mark.parametrize("name", PATHS)
def test_paths_take_cameras_of_any_precision(name):
    path = PATHS[name](capture(), num_views=7)
    rough = PATHS[name](capture().to(torch.float32), num_views=7)
    assert path.world_from_camera.dtype == rough.world_from_camera.dtype == torch.float64
    torch.testing.assert_close(rough.world_from_camera, path.world_from_camera, rtol=0, atol=1e-4)
    torch.testing.assert_close(rough.intrinsics, path.intrinsics, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", PATHS)
def test_every_path_has_its_number_of_views_and_the_first_lens(name):
    cameras = capture()
    for num_views in (1, 2, 5):
        path = PATHS[name](cameras, num_views=num_views)
        assert path.shape == (num_views,)
        torch.testing.assert_close(path.intrinsics[0], cameras.intrinsics[0])
        assert path.image_sizes.tolist() == [[24, 32]] * num_views
    with pytest.raises(ValueError, match="num_views"):
        PATHS[name](cameras, num_views=0)
    with pytest.raises(ValueError, match="at least two cameras|shape \\[V\\]"):
        PATHS[name](cameras[0], num_views=4)


def test_the_registry_holds_every_path_and_the_command_line_offers_it():
    paths = {
        name.replace("_", "-"): getattr(trajectories, name)
        for name in set(trajectories.__all__) - {"camera_path"}
        if "num_views" in getattr(getattr(trajectories, name), "__annotations__", {})
    }
    assert paths == PATHS
    assert {name for name, path in PATHS.items() if "focus" in inspect.signature(path).parameters} == set(ABOUT_FOCUS)
    offered = typing.get_args(typing.get_type_hints(RenderSettings)["trajectory"])
    assert offered == ("none", *PATHS)


@pytest.mark.parametrize("degrees", [50.0, -120.0])
def test_pan_turns_about_up_where_it_stands(degrees):
    cameras = capture()
    up = trajectories.up_direction(cameras)
    path = trajectories.pan(cameras, num_views=6, degrees=degrees)
    torch.testing.assert_close(path.world_from_camera[0], cameras.world_from_camera[0])
    torch.testing.assert_close(path.centers, cameras.centers[:1].expand(6, 3))
    rotations = path.world_from_camera[:, :3, :3]
    torch.testing.assert_close(rotations.mT @ up, (rotations[0].mT @ up).expand(6, 3), msg="up stays where it was")
    level = path.forward - (path.forward @ up)[:, None] * up
    turned = angle_between(level[:1], level)
    torch.testing.assert_close(turned, abs(degrees) * torch.linspace(0, 1, 6).double())
    to_the_right = (path.forward[1] - path.forward[0]) @ cameras.world_from_camera[0, :3, 0]
    assert to_the_right.sign() == math.copysign(1, degrees)


@pytest.mark.parametrize("degrees", [40.0, -25.0])
def test_tilt_turns_about_the_right_axis_where_it_stands(degrees):
    cameras = capture()
    first = cameras.world_from_camera[0]
    path = trajectories.tilt(cameras, num_views=5, degrees=degrees)
    torch.testing.assert_close(path.world_from_camera[0], first)
    torch.testing.assert_close(path.centers, first[:3, 3].expand(5, 3))
    torch.testing.assert_close(path.world_from_camera[:, :3, 0], first[:3, 0].expand(5, 3))
    turned = angle_between(path.forward[:1], path.forward)
    torch.testing.assert_close(turned, abs(degrees) * torch.linspace(0, 1, 5).double())
    upwards = (path.forward[1] - path.forward[0]) @ -first[:3, 1]
    assert upwards.sign() == math.copysign(1, degrees)


@pytest.mark.parametrize("path", [trajectories.pan, trajectories.tilt])
def test_a_full_turn_does_not_repeat_its_first_view(path):
    forward = path(capture(), num_views=8, degrees=360.0).forward
    steps = angle_between(forward, forward.roll(-1, 0))
    torch.testing.assert_close(steps, steps[:1].expand(8))
    assert steps[0] > 10


@pytest.mark.parametrize("distance", [0.5, -1.5])
def test_dolly_moves_along_its_optical_axis_only(distance):
    cameras = capture()
    path = trajectories.dolly(cameras, num_views=5, distance=distance)
    first = cameras.world_from_camera[0]
    torch.testing.assert_close(path.world_from_camera[:, :3, :3], first[:3, :3].expand(5, 3, 3))
    travelled = (path.centers - first[:3, 3]) @ first[:3, :3]
    reach = distance * (trajectories.focus_point(cameras) - first[:3, 3]).norm()
    torch.testing.assert_close(travelled[:, 2], reach * torch.linspace(0, 1, 5).double())
    torch.testing.assert_close(travelled[:, :2], torch.zeros(5, 2).double(), rtol=0, atol=1e-12)


def test_lemniscate_is_a_closed_figure_of_eight_through_the_first_camera():
    cameras = capture()
    first, focus = cameras.world_from_camera[0], trajectories.focus_point(cameras)
    path = trajectories.lemniscate(cameras, num_views=400, amplitude=0.3)
    pixels, depths = path.project(focus.expand(400, 1, 3))
    torch.testing.assert_close(pixels, torch.tensor([16.0, 12.0]).double().expand(400, 1, 2), rtol=1e-6, atol=1e-6)
    assert (depths > 0).all()
    x, y, z = ((path.centers - first[:3, 3]) @ first[:3, :3] / (focus - first[:3, 3]).norm()).unbind(-1)
    torch.testing.assert_close(z, torch.zeros_like(z), rtol=0, atol=1e-12, msg="it lies in the plane of the camera")
    torch.testing.assert_close((x**2 + y**2) ** 2, 0.3**2 * (x**2 - y**2), rtol=1e-6, atol=1e-12)  # Bernoulli's
    at_first = (x.abs() + y.abs() < 1e-9).nonzero().flatten().tolist()
    assert at_first == [0, 200], "it passes the first camera twice"
    torch.testing.assert_close(x.abs().max(), torch.tensor(0.3).double(), rtol=1e-4, atol=0)
    assert (x[1:200] > 0).all() and (x[201:] < 0).all(), "one loop to each side"
    steps = (path.centers - path.centers.roll(1, 0)).norm(dim=-1)
    assert steps[0] < 1.01 * steps[1:].max(), "the last view joins the first"
