"""Laws of the geometry, over batch shapes and dtypes."""

import math
import pickle
import warnings

import pytest
import torch
from conftest import make_cameras, random_poses

from kaleido_diffusers import Cameras
from kaleido_diffusers.geometry.cameras import (
    check_rigid,
    common_focus,
    convert_axes,
    farthest_views,
    invert_intrinsics,
    invert_rigid,
    look_at,
    normalize_intrinsics,
    pytorch3d_from_world_from_camera,
    scene_frame,
    through_shorter_lenses,
    view_distances,
    world_from_camera_from_pytorch3d,
)
from kaleido_diffusers.geometry.views import ViewGeometry, as_shown


SHAPES = [(), (5,), (2, 3)]
TIGHT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_inverse_of_a_rigid_matrix(shape, dtype, tolerance):
    poses = random_poses(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    eye = torch.eye(4, dtype=dtype).expand_as(poses)
    torch.testing.assert_close(invert_rigid(poses) @ poses, eye, rtol=0, atol=tolerance)
    torch.testing.assert_close(invert_rigid(invert_rigid(poses)), poses, rtol=0, atol=tolerance)
    assert invert_rigid(poses).dtype == dtype


@pytest.mark.parametrize("shape", SHAPES)
def test_axes_convert_there_and_back(shape):
    poses = random_poses(*shape, generator=torch.Generator().manual_seed(0))
    names = ("opencv", "opengl", "pytorch3d")
    for source in names:
        for target in names:
            there = convert_axes(poses, source, target)
            torch.testing.assert_close(convert_axes(there, target, source), poses, **TIGHT)
            check_rigid(there)
    torch.testing.assert_close(world_from_camera_from_pytorch3d(*pytorch3d_from_world_from_camera(poses)), poses)


def test_axes_mean_what_their_names_say():
    """A camera at the origin that looks along the world's +X, with the world's +Z up."""
    opencv = look_at(torch.zeros(3), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0]))
    right, down, forward = opencv[:3, :3].T
    assert right.tolist() == [0, -1, 0] and down.tolist() == [0, 0, -1] and forward.tolist() == [1, 0, 0]
    opengl = convert_axes(opencv, "opencv", "opengl")
    assert (opengl[:3, :3].T == torch.stack([right, -down, -forward])).all()
    pytorch3d = convert_axes(opencv, "opencv", "pytorch3d")
    assert (pytorch3d[:3, :3].T == torch.stack([-right, -down, forward])).all()


def test_pytorch3d_multiplies_row_vectors():
    pose = random_poses(generator=torch.Generator().manual_seed(0))
    R, T = pytorch3d_from_world_from_camera(pose)
    point_world = torch.randn(3, dtype=torch.float64)
    opencv = (invert_rigid(pose) @ torch.cat([point_world, torch.ones(1, dtype=torch.float64)]))[:3]
    torch.testing.assert_close(point_world @ R + T, opencv * torch.tensor([-1, -1, 1]), **TIGHT)


@pytest.mark.parametrize("shape", SHAPES)
def test_projection_and_unprojection_are_inverse(shape):
    cameras = make_cameras(*shape)
    pixels = 60 * torch.rand(*shape, 7, 2, dtype=torch.float64)
    depths = 0.5 + torch.rand(*shape, 7, dtype=torch.float64)
    points = cameras.unproject(pixels, depths)
    again, again_depths = cameras.project(points)
    torch.testing.assert_close(again, pixels, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(again_depths, depths, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_crops_and_resizes_move_pixels_as_images_move(shape):
    cameras = make_cameras(*shape)
    points = cameras.unproject(10 + 30 * torch.rand(*shape, 7, 2).double(), 1 + torch.rand(*shape, 7).double())
    pixels, _ = cameras.project(points)
    cropped = cameras.cropped(5, -8, 40, 70)
    torch.testing.assert_close(cropped.project(points)[0], pixels - torch.tensor([-8.0, 5.0]), rtol=1e-9, atol=1e-9)
    assert cropped.image_sizes.expand(*shape, 2).reshape(-1, 2)[0].tolist() == [40, 70]
    resized = cameras.resized(96, 32)
    torch.testing.assert_close(resized.project(points)[0], pixels * torch.tensor([0.5, 2.0]), rtol=1e-9, atol=1e-9)
    back = resized.resized(48, 64)
    torch.testing.assert_close(back.intrinsics, cameras.intrinsics, **TIGHT)
    torch.testing.assert_close(resized.normalized_intrinsics, cameras.normalized_intrinsics, **TIGHT)


@pytest.mark.parametrize("turns", [1, 2, 3, 4, -1])
def test_rolled_cameras_see_what_turned_images_show(turns):
    skewed = make_cameras(4)
    straight = skewed.intrinsics.clone()
    straight[:, 0, 1] = 0
    cameras = Cameras(skewed.world_from_camera, straight, [48, 64])
    image = torch.arange(48 * 64.0).reshape(1, 48, 64)
    turned = torch.rot90(image, turns, (-2, -1))
    rolled = cameras.rolled(turns)
    assert rolled.image_sizes[0].tolist() == list(turned.shape[-2:])
    check_rigid(rolled.world_from_camera)
    pixels = torch.tensor([[0.5, 0.5], [10.5, 7.5], [63.5, 47.5]], dtype=torch.float64)
    points = cameras.unproject(pixels.expand(4, 3, 2), torch.ones(4, 3, dtype=torch.float64))
    seen, depths = rolled.project(points)
    torch.testing.assert_close(depths, torch.ones(4, 3, dtype=torch.float64))
    for before, after in zip(pixels.long(), seen[0].floor().long()):
        assert image[0, before[1], before[0]] == turned[0, after[1], after[0]]
    if turns % 4:
        with pytest.raises(ValueError, match="skew"):
            skewed.rolled(turns)


def test_rays_and_pluecker_coordinates():
    cameras = make_cameras(2, 3, height=4, width=6)
    origins, directions = cameras.rays()
    assert origins.shape == directions.shape == (2, 3, 4, 6, 3)
    pixels, depths = cameras.project((origins + 2 * directions).flatten(2, 3))
    expected = torch.tensor([2.5, 1.5], dtype=torch.float64)  # column 2, row 1
    torch.testing.assert_close(pixels.unflatten(2, (4, 6))[0, 0, 1, 2], expected, rtol=1e-9, atol=1e-9)
    assert (depths > 0).all()
    pluecker = cameras.plucker()
    assert pluecker.shape == (2, 3, 4, 6, 6)
    moved = torch.linalg.cross(origins + 3.7 * directions, directions)  # the moment does not depend on the point
    torch.testing.assert_close(pluecker[..., 3:], moved, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((pluecker[..., :3] * pluecker[..., 3:]).sum(-1).abs().max(), torch.zeros(()).double())
    mixed = Cameras.cat([make_cameras(1), make_cameras(1, height=40)])
    with pytest.raises(ValueError, match="one image size"):
        mixed.rays()


def test_relative_poses_compose():
    a, b, c = (make_cameras(4, seed=seed) for seed in range(3))
    torch.testing.assert_close(b.relative_to(c) @ a.relative_to(b), a.relative_to(c), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(a.relative_to(a), torch.eye(4).double().expand(4, 4, 4), rtol=0, atol=1e-12)


def test_cameras_index_join_and_move_like_tensors():
    cameras = make_cameras(2, 3)
    assert cameras[0].shape == (3,) and cameras[:, 1].shape == (2,) and cameras[..., 0].shape == (2,)
    assert cameras[None].shape == (1, 2, 3) and cameras[0, [0, 2]].shape == (2,)
    assert len(list(cameras)) == 2
    assert Cameras.cat([cameras, cameras]).shape == (4, 3)
    assert Cameras.stack([cameras, cameras]).shape == (2, 2, 3)
    with pytest.raises(IndexError):
        cameras[0, 0, 0]
    with pytest.raises(TypeError):
        len(cameras[0, 0])
    single = cameras.to(torch.float32)
    assert single.intrinsics.dtype == torch.float32 and single.image_sizes.dtype == torch.int64
    assert cameras.intrinsics.dtype == torch.float64, "nothing changes in place"
    copy = pickle.loads(pickle.dumps(cameras))
    assert torch.equal(copy.world_from_camera, cameras.world_from_camera)
    with pytest.raises(AttributeError, match="immutable"):
        cameras.intrinsics = None


def test_fields_of_view():
    cameras = Cameras.from_fov(torch.eye(4).expand(3, 4, 4), 60.0, [30, 40])
    torch.testing.assert_close(cameras.fov[:, 0], torch.full((3,), 60.0).double())
    vertical = 2 * math.degrees(math.atan(30 / 40 * math.tan(math.radians(30))))
    torch.testing.assert_close(cameras.fov[:, 1], torch.full((3,), vertical).double())


def test_fields_of_view_reach_from_edge_to_edge_where_the_centre_is_not_in_the_middle():
    """Edges at half and at one and a half focal lengths beside the axis."""
    lens = torch.tensor([[100.0, 0, 50], [0, 40, 20], [0, 0, 1]])
    camera = Cameras(torch.eye(4), lens, [80, 200])
    expected = math.degrees(math.atan(0.5) + math.atan(1.5))
    torch.testing.assert_close(camera.fov, torch.tensor([expected, expected], dtype=torch.float64))


def test_a_negative_depth_lies_behind_the_camera():
    camera = Cameras.from_fov(torch.eye(4), 90.0, [4, 8])  # a focal length of 4 pixels
    point = camera.unproject(torch.tensor([[6.0, 2.0]]), torch.tensor([-2.0]))
    torch.testing.assert_close(point, torch.tensor([[-1.0, 0.0, -2.0]], dtype=torch.float64))


# The normalised scene


@pytest.mark.parametrize("num_references", [0, 1, 3])
def test_normalising_has_an_inverse_and_forgets_the_world(num_references):
    generator = torch.Generator().manual_seed(0)
    cameras = make_cameras(5)
    poses = cameras.world_from_camera
    frame = scene_frame(poses, num_references)
    torch.testing.assert_close(cameras.normalized(frame).denormalized(frame).world_from_camera, poses, **TIGHT)
    world = random_poses(generator=generator, spread=4.0)
    moved = world @ poses
    moved[..., :3, 3] *= 7.0
    again = scene_frame(moved, num_references).normalize(moved)
    torch.testing.assert_close(again, frame.normalize(poses), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(again[0], torch.eye(4).double(), rtol=0, atol=1e-9)


def test_the_unit_of_a_scene():
    poses = torch.eye(4, dtype=torch.float64).repeat(4, 1, 1)
    poses[:, 0, 3] = torch.tensor([0.0, 2.0, 3.0, 10.0])
    assert scene_frame(poses, 3).scale == 3.0, "the largest distance between two references"
    assert scene_frame(poses, 1).scale == 10.0, "one reference: the largest distance from it"
    assert scene_frame(poses, 0).scale == 10.0
    assert scene_frame(poses, 3, camera_scale=2.0).scale == 1.5
    assert scene_frame(poses[:1], 1).scale == 1.0
    assert scene_frame(poses.expand(2, 4, 4, 4), 3).scale.tolist() == [3.0, 3.0]
    turned = random_poses(4, generator=torch.Generator().manual_seed(0))
    turned[:, :3, 3] = torch.tensor([1.0, 2.0, 3.0]) + 1e-16 * torch.randn(4, 3)
    turned[3, 0, 3] += 5
    assert abs(scene_frame(turned, 3).scale - 5) < 1e-9, "references in one place, up to rounding"
    with pytest.raises(ValueError, match="camera_scale"):
        scene_frame(poses, 3, camera_scale=0.0)
    with pytest.raises(ValueError, match="num_references"):
        scene_frame(poses, 5)


def test_view_distances_count_metres_radians_and_seconds():
    poses = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    poses[1, 0, 3] = 2.0
    poses[2, :3, :3] = look_at(torch.zeros(3), torch.tensor([1.0, 0, 0]), torch.tensor([0.0, -1, 0]))[:3, :3]
    times = torch.tensor([0.0, 0.5, 0.0])
    expected = torch.tensor([0.0, 2.0, math.pi / 2])
    torch.testing.assert_close(view_distances(poses, poses)[0].float(), expected)
    torch.testing.assert_close(view_distances(poses, poses, times, times)[0].float(), expected + times)
    torch.testing.assert_close(view_distances(times_a=times, times_b=times)[0], times)
    with pytest.raises(ValueError, match="poses or times"):
        view_distances()


def test_farthest_views_spread():
    line = torch.tensor([0.0, 1.0, 2.0, 3.0, 10.0])
    distances = (line[:, None] - line).abs()
    assert farthest_views(distances, 3) == [2, 4, 0]
    assert farthest_views(distances, 1, chosen=[0]) == [4]
    with pytest.raises(ValueError, match="between 0 and 5"):
        farthest_views(distances, 6)
    assert farthest_views(torch.zeros(3, 3), 3) == [0, 1, 2], "no view twice where all stand in one place"


# Bad input


def nan_pose():
    pose = torch.eye(4)
    pose[0, 3] = math.nan
    return pose


@pytest.mark.parametrize(
    "pose, message",
    [
        (nan_pose(), "NaN or infinite"),
        (2 * torch.eye(4), "last row"),
        (torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])), "scaled or sheared"),
        (torch.diag(torch.tensor([1.0, 1.0, -1.0, 1.0])), "reflection"),
        (torch.eye(3), r"\[\.\.\., 4, 4\]"),
    ],
)
def test_poses_that_are_not_rigid(pose, message):
    with pytest.raises(ValueError, match=message):
        Cameras(pose, torch.eye(3), [4, 4])


def test_the_error_names_the_pose():
    poses = torch.eye(4).repeat(5, 1, 1)
    poses[3] *= 2
    with pytest.raises(ValueError, match="number 3"):
        Cameras(poses, torch.eye(3), [4, 4])


@pytest.mark.parametrize(
    "intrinsics, sizes, message",
    [
        (torch.zeros(3, 3), [4, 4], "positive focal"),
        (torch.diag(torch.tensor([1.0, -1.0, 1.0])), [4, 4], "positive focal"),
        (torch.full((3, 3), math.nan), [4, 4], "finite"),
        (torch.ones(3, 3), [4, 4], "upper triangular"),
        (torch.eye(4), [4, 4], "`intrinsics` must have shape"),
        (torch.eye(3), [0, 4], "positive whole"),
        (torch.eye(3), [4.5, 4], "positive whole"),
        (torch.eye(3), [4, 4, 3], "`image_sizes` must have shape"),
        ("lens", [4, 4], "`intrinsics` must be a tensor"),
    ],
)
def test_lenses_that_cannot_be(intrinsics, sizes, message):
    with pytest.raises(ValueError, match=message):
        Cameras(torch.eye(4), intrinsics, sizes)


def test_a_principal_point_outside_the_image_is_a_warning():
    intrinsics = torch.tensor([[50.0, 0.0, 70.0], [0.0, 50.0, 20.0], [0.0, 0.0, 1.0]])
    with pytest.warns(UserWarning, match="1 of 1 cameras lies outside"):
        Cameras(torch.eye(4), intrinsics, [48, 64])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Cameras(torch.eye(4), intrinsics, [48, 80]).cropped(0, 0, 48, 64)


def test_normalised_intrinsics_have_no_pixels():
    intrinsics = torch.tensor([[50.0, 0.0, 32.0], [0.0, 60.0, 20.0], [0.0, 0.0, 1.0]])
    expected = torch.tensor([[50 / 64, 0.0, 0.5], [0.0, 1.5, 0.5], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(normalize_intrinsics(intrinsics, torch.tensor([40, 64])), expected)


def test_upper_triangular_matrices_are_inverted_by_a_formula():
    matrix = torch.tensor([[2.0, 1.0, 6.0], [0.0, 4.0, 8.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    by_hand = torch.tensor([[0.5, -0.125, -2.0], [0.0, 0.25, -2.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert torch.equal(invert_intrinsics(matrix), by_hand)
    lenses = make_cameras(3, 2).intrinsics
    torch.testing.assert_close(invert_intrinsics(lenses) @ lenses, torch.eye(3).double().expand(3, 2, 3, 3))


@pytest.mark.parametrize("offset, gap, together", [(0, 0, True), (0, 1e-3, False), (5e3, 1e-4, True), (5e6, 5, False)])
def test_cameras_in_one_place(offset, gap, together):
    """Poses of a tripod that were stored in float32 differ in the last digits; maps count metres from far away."""
    poses = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    poses[:, 0, 3] = offset + gap * torch.arange(3)
    assert Cameras.from_fov(poses, 60.0, [8, 8]).in_one_place == together


def test_numbers_keep_their_digits_and_belong_to_the_cameras():
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 3] = 500000.123
    lens = [[9.0, 0, 4], [0, 9.0, 4], [0, 0, 1]]
    assert Cameras(pose.tolist(), lens, [8, 8]).centers[0].item() == 500000.123
    assert Cameras([pose, pose], lens, [8, 8]).shape == (2,)
    cameras = Cameras(pose, lens, [8, 8])
    pose[0, 3] = 0.0
    assert cameras.centers[0].item() == 500000.123


def test_distances_need_both_sides():
    poses = random_poses(3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="of both sides"):
        view_distances(poses)
    with pytest.raises(ValueError, match="of both sides"):
        view_distances(poses, poses, times_b=torch.zeros(3))
    with pytest.raises(ValueError, match="needs poses or times"):
        view_distances()


def long_lenses(degrees: float = 12.0) -> tuple[Cameras, torch.Tensor]:
    """Five cameras far from the origin of the world around a point, 9 to 12 units away from it, and the point."""
    focus = torch.tensor([300.0, -40.0, 7.0], dtype=torch.float64)
    turns = torch.linspace(-0.7, 0.7, 5, dtype=torch.float64)
    away = torch.stack([turns.sin(), -turns.cos(), 0.3 * turns.cos() ** 3], dim=-1)
    away = away / away.norm(dim=-1, keepdim=True) * torch.linspace(9, 12, 5, dtype=torch.float64)[:, None]
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    return Cameras.from_fov(look_at(focus + away, focus, up), degrees, [40, 60]), focus


def test_what_cameras_look_at_together():
    cameras, focus = long_lenses()
    poses, lenses = cameras.world_from_camera, cameras.normalized_intrinsics
    torch.testing.assert_close(common_focus(poses, lenses), focus, rtol=0, atol=1e-6)
    assert torch.equal(
        common_focus(poses.expand(2, 5, 4, 4), lenses.expand(2, 5, 3, 3))[1], common_focus(poses, lenses)
    )
    torch.testing.assert_close(common_focus(poses[:2].float(), lenses[:2].float()), focus.float(), rtol=0, atol=0.05)


def test_cameras_that_look_at_nothing_together_say_so():
    cameras, focus = long_lenses()
    poses, lenses = cameras.world_from_camera, cameras.normalized_intrinsics
    away = poses.clone()
    away[2, :3, 1:3] *= -1  # looks the other way
    parallel = poses[:1].repeat(5, 1, 1)
    parallel[:, :3, 3] += poses[0, :3, :1].T * torch.arange(5)[:, None]
    in_one_place = poses.clone()
    in_one_place[:, :3, 3] = poses[0, :3, 3]
    aside = poses.clone()
    aside[2, :3, 3] += 3 * poses[2, :3, 0]  # 17 degrees beside its middle, where 6 are seen
    for other in (away, parallel, in_one_place, aside, poses[:1]):
        assert common_focus(other, lenses[: len(other)]).isnan().all()
    rows = common_focus(torch.stack([poses, parallel]), lenses.expand(2, 5, 3, 3))
    assert rows[1].isnan().all() and not rows[0].isnan().any()


def test_lenses_are_shortened_together_by_the_longest_of_the_references():
    """Those of a scene keep their proportions; a scene whose references the model knows is shown as it is."""
    cameras, _ = long_lenses()
    poses, lenses = cameras.world_from_camera.repeat(2, 1, 1, 1), cameras.normalized_intrinsics.repeat(2, 1, 1, 1)
    longest = lenses[0, 1, 1, 1].item()  # of the shorter side
    lenses[0, 0, :2, :2] /= 3
    lenses[1, :3, :2, :2] /= 8
    shown = as_shown(ViewGeometry(poses, lenses), num_references=3, max_focal_length=longest / 4).intrinsics
    torch.testing.assert_close(shown[0, :, :2, :2], (lenses[0, :, :2, :2] / 4).float())
    assert torch.equal(shown[1], lenses[1].float())
    alone = as_shown(ViewGeometry(poses[0, 1:], lenses[0, 1:]), num_references=1, max_focal_length=longest / 4)
    torch.testing.assert_close(alone.intrinsics[:, :2, :2], (lenses[0, 1:, :2, :2] / 4).float())


def test_through_shorter_lenses_what_is_looked_at_keeps_its_size():
    cameras, focus = long_lenses()
    poses, lenses = cameras.world_from_camera, cameras.normalized_intrinsics
    nearer, shorter = through_shorter_lenses(poses, lenses, focus, torch.tensor([0.25]))
    torch.testing.assert_close(shorter[:, :2, :2], lenses[:, :2, :2] / 4)
    assert torch.equal(shorter[:, :, 2], lenses[:, :, 2]) and torch.equal(nearer[:, :3, :3], poses[:, :3, :3])
    torch.testing.assert_close((nearer[:, :3, 3] - focus).norm(dim=-1), (poses[:, :3, 3] - focus).norm(dim=-1) / 4)
    for camera, made in zip(cameras, Cameras.from_normalized(nearer, shorter, (40, 60))):
        right, down = camera.world_from_camera[:3, 0], camera.world_from_camera[:3, 1]
        points = focus + torch.stack([0 * right, 0.5 * right, 0.2 * right - 0.3 * down])  # as far as the focus
        torch.testing.assert_close(made.project(points)[0], camera.project(points)[0], rtol=0, atol=1e-6)
    for zoom, point in ((1.0, focus), (0.25, torch.full((3,), torch.nan, dtype=torch.float64))):
        same = through_shorter_lenses(poses, lenses, point, torch.tensor([zoom]))
        assert torch.equal(same[0], poses) and torch.equal(same[1], lenses)
