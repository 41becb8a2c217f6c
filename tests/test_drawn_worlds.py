"""Worlds drawn by OpenGL: cameras, depth and light by their laws, splits by asset, motion, what no view may be.

They need EGL: on Debian and Ubuntu, `apt install libegl1 libgl1-mesa-dri`."""

import json

import numpy as np
import pytest
import torch
from world_assets import make_assets, photo

from kaleido_diffusers.captures.images import CaptureError
from kaleido_diffusers.training.batches import source_options
from kaleido_diffusers.training.config import TrainConfig
from kaleido_diffusers.worlds import drawing, drawn
from kaleido_diffusers.worlds.assets import MeshFile, asset_split, find_assets, load_mesh, shape
from kaleido_diffusers.worlds.drawing import Drawing, Item, Light, renderer
from kaleido_diffusers.worlds.drawn import DRAWN_KINDS, WorldSource
from kaleido_diffusers.worlds.sources import open_source


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    return make_assets(tmp_path_factory.mktemp("assets") / "small")


def source(assets, kind="worlds", **settings):
    settings = {"num_scenes": 50, "num_views": 5, "size": 48, **settings}
    return WorldSource(kind, assets=[assets], **settings)


def look_at_origin(eye) -> np.ndarray:
    return drawn._look(np.asarray(eye, float), np.zeros(3), 0.0)


def lens(fov=50.0, size=(64, 64)) -> np.ndarray:
    return drawn._intrinsics(np.array([fov]), size)


LIGHT = Light(np.array([0.3, -0.2, 1.0]), np.ones(3) * 0.6)


def scene_of(*items, **settings) -> Drawing:
    return Drawing(list(items), LIGHT, np.full((2, 3), 0.4), **settings)


# Laws of the renderer


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (80, 48)])
def test_depth_of_a_plane_is_the_one_of_geometry(size):
    poses = np.stack([look_at_origin((2, 1, 1.5)), look_at_origin((-1, 2, 3))])
    lenses = np.concatenate([lens(40, size), lens(70, size)])
    _, depth = renderer().draw(scene_of(Item(shape("plane"), drawing_place(200))), poses, lenses, size)
    bounds = []
    for shift in ((0, 0), (0, 1), (1, 0), (1, 1)):  # depth is that of a sample somewhere in the pixel
        y, x = (np.arange(side) + moved for side, moved in zip(size, shift))
        x, y = np.meshgrid(x / size[1], y / size[0])
        rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(lenses).swapaxes(1, 2)[:, None]
        downwards = (rays @ poses[:, None, :3, :3].swapaxes(-1, -2))[..., 2]
        bounds.append(-poses[:, 2, 3][:, None, None] / downwards)
    low, high = np.min(bounds, axis=0), np.max(bounds, axis=0)
    met = (low > 0) & (high < 50)
    assert met.mean() > 0.6
    assert (depth > 0.999 * low)[met].all() and (depth < 1.001 * high)[met].all()


def drawing_place(scale, move=(0, 0, 0)) -> np.ndarray:
    place = np.eye(4)
    place[:3, :3] *= scale
    place[:3, 3] = move
    return place


def test_a_marked_point_lies_where_the_camera_projects_it():
    point = np.array([0.3, -0.2, 0.4])
    ball = Item(shape("ball"), drawing_place(0.06, point), tint=(1, 0, 0), glow=1.0, gloss=0)
    poses = np.stack([look_at_origin(eye) for eye in ((2, 0.5, 1), (-1.5, 1, 2), (0.2, -2, 0.4))])
    lenses = np.concatenate([lens(fov, (60, 90)) for fov in (35, 50, 80)])
    views, _ = renderer().draw(scene_of(ball, backdrop=np.zeros((2, 3))), poses, lenses, (60, 90))
    for view, pose, intrinsics in zip(views, poses, lenses):
        camera = np.linalg.inv(pose) @ np.append(point, 1)
        expected = intrinsics @ (camera[:3] / camera[2])
        weight = view[..., 0].astype(float)
        y, x = np.meshgrid(np.arange(60) + 0.5, np.arange(90) + 0.5, indexing="ij")
        found = np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()
        assert np.abs(found - expected[:2] * [90, 60]).max() < 0.5


def test_pictures_are_upright_and_not_mirrored():
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    image[:16, :16] = (255, 0, 0)  # upper left of the file
    image[:16, 16:] = (0, 255, 0)
    from kaleido_diffusers.worlds.staging import _upright

    plane = Item(shape("plane"), _upright((0, 0, 0), (1.0, 0, 0), 2, 2), ("marks", image[::-1]), glow=1.0, gloss=0)
    view, _ = renderer().draw(scene_of(plane), look_at_origin((0, -2, 0))[None], lens(60), (64, 64))
    assert view[0, 20, 20].tolist() == view[0, 20, 44, [1, 0, 2]].tolist()
    assert view[0, 20, 20, 0] > 240 and view[0, 20, 20, 1:].max() == 0
    assert view[0, 44, 20].max() == 0


def test_a_thing_shades_the_ground_beside_it():
    ground = Item(shape("plane"), drawing_place(8), casts=False)
    light = Light(np.array([1.0, 0, 1.0]), np.ones(3), center=np.zeros(3), radius=3.0)
    pose, size = look_at_origin((0.01, 0, 6))[None], (64, 64)
    box = Item(shape("box"), drawing_place(1, (0, 0, 0.5)))
    shaded, depth = renderer().draw(Drawing([ground, box], light, np.full((2, 3), 0.2)), pose, lens(60), size)
    bare, _ = renderer().draw(Drawing([ground], light, np.full((2, 3), 0.2)), pose, lens(60), size)
    on_ground = np.abs(depth[0] - 6) < 0.05
    darker = (bare[0].mean(-1) - shaded[0].mean(-1) > 30) & on_ground
    assert 20 < darker.sum() < 500
    y, x = np.nonzero(darker)
    points = (np.stack([x, y, np.full_like(x, 0)], -1) + 0.5) / 64 - 0.5
    world = points @ pose[0, :3, :3].T
    assert world[:, 0].mean() < 0 and abs(world[:, 1].mean()) < 0.05, "away from the light"


def test_shared_views_are_counted_by_depth():
    item = Item(shape("box"), drawing_place(1))
    poses = np.stack([look_at_origin(eye) for eye in ((3, 0, 0.2), (2.9, 0.4, 0.2), (-3, 0, 0.2))])
    lenses = np.repeat(lens(45), 3, axis=0)
    _, depth = renderer().draw(scene_of(item), poses, lenses, (64, 64))
    share = drawn._shared(depth, poses, lenses, False)
    assert share[0, 1] > 0.7 and share[1, 0] > 0.7
    assert share[0, 2] < 0.1, "the far side of a box is another one"


def test_too_many_views_are_refused():
    with pytest.raises(ValueError, match="64"):
        renderer().draw(scene_of(), np.repeat(np.eye(4)[None], 65, 0), np.repeat(lens(), 65, 0), (8, 8))


# Worlds


@pytest.mark.parametrize("kind", DRAWN_KINDS)
def test_kinds_give_samples_that_follow_from_the_seed(kind, assets):
    first, again = source(assets, kind)[3], source(assets, kind)[3]
    assert torch.equal(first.pixels, again.pixels) and first.pixels.dtype == torch.uint8
    assert first.pixels.shape == (5, 3, 48, 48)
    assert not torch.equal(first.pixels, source(assets, kind)[4].pixels)
    assert (first.poses is None) == (kind == "clips")
    assert (first.times is None) == (kind not in ("motion", "clips"))
    if first.poses is not None:
        rotations = first.poses[:, :3, :3]
        torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).double().expand(5, 3, 3))
        assert first.poses.dtype == torch.float64 and torch.linalg.det(rotations).min() > 0.99
        again_poses = source(assets, kind)[3].poses
        assert torch.equal(first.poses, again_poses)


def test_no_view_is_flat_and_all_have_something_in_common(assets):
    worlds = source(assets, "worlds", num_views=6)
    for index in range(12):
        views = worlds[index].pixels.float()
        assert views.mean(1).flatten(1).std(-1).min() > 5, index


def test_spread_is_the_arc_of_the_cameras(assets):
    def apart(spread):
        worlds = source(assets, "objects", spread=(spread, spread), zoom=0.0)
        distances = [(worlds[i].poses[:, :3, 3] - worlds[i].poses[:1, :3, 3]).norm(dim=-1).max() for i in range(6)]
        return float(torch.stack(distances).median())

    assert apart(0.8) > 4 * apart(0.05)


def test_zoom_changes_the_field_of_view_within_a_world(assets):
    zoomed, plain = (source(assets, "objects", zoom=zoom)[1].intrinsics[:, 0, 0] for zoom in (1.0, 0.0))
    assert plain.std() == 0 and zoomed.std() > 0.05
    fov = 2 * torch.rad2deg(torch.atan(0.5 / zoomed))
    assert fov.min() > 24.9 and fov.max() < 90.1


def test_portrait_and_landscape_keep_pixels_square(assets):
    sample = source(assets, "objects", size=(64, 40))[0]
    assert sample.pixels.shape[-2:] == (64, 40)
    torch.testing.assert_close(sample.intrinsics[:, 0, 0] * 40, sample.intrinsics[:, 1, 1] * 64)


def test_moving_worlds_differ_by_their_time_alone(assets, monkeypatch):
    worlds = source(assets, "motion", num_views=6)
    still = [worlds[i] for i in range(10)]
    still = [s for s in still if (s.poses - s.poses[:1]).abs().max() < 1e-9]
    assert still, "in half of the worlds the camera stands"
    changed = [(s.pixels.float() - s.pixels[:1].float()).abs().mean((1, 2, 3)).max() for s in still]
    assert max(changed) > 2, "something moves"
    monkeypatch.setattr(drawn, "_moved", lambda world, *_: world)
    frozen = [source(assets, "motion", num_views=6)[i] for i in range(10)]
    frozen = [s for s in frozen if (s.poses - s.poses[:1]).abs().max() < 1e-9]
    for sample in frozen:  # what remains is exposure
        gray = sample.pixels.float().mean(1).flatten(1)
        gray = (gray - gray.mean(1, keepdim=True)) / gray.std(1, keepdim=True)
        assert (gray - gray[:1]).abs().mean() < 0.1


# Assets


def test_splits_share_no_asset(assets):
    lists = {split: find_assets([assets], split) for split in ("train", "validation", "test")}
    for name in ("photos", "textures", "meshes", "panoramas"):
        parts = [set(map(str, getattr(found, name))) for found in lists.values()]
        assert sum(map(len, parts)) == len(set.union(*parts)) and parts[0]
    assert lists["train"].scenes and not lists["test"].scenes, "scenes are few: they train alone"
    assert asset_split("horse.glb") == asset_split("horse2.glb") == asset_split("horse_c1.jpg")
    names = [
        asset_split(f"asset {chr(97 + a)}{chr(97 + b)}{chr(97 + c)}")
        for a in range(20)
        for b in range(20)
        for c in range(5)
    ]
    assert 0.86 < names.count("train") / len(names) < 0.94 and names.count("test") > 60


def test_splits_of_a_source_take_other_seeds_and_assets(assets):
    train, test = source(assets, "objects")[0], source(assets, "objects", split="test")[0]
    assert not torch.equal(train.pixels, test.pixels)
    assert source(assets, "scenes", split="test")[0].pixels.shape == (5, 3, 48, 48), "rooms stand in"


def test_assets_that_say_no_are_left_out(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.jpg"):
        photo(1).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "index.json").write_text(json.dumps([{"file": "b.jpg", "train": False}]))
    found = [find_assets([tmp_path], split) for split in ("train", "validation", "test")]
    assert [path.name for part in found for path in part.photos + part.textures] == ["a.jpg"]


def test_photos_alone_suffice(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(12):
        photo(number).save(tmp_path / "photos" / f"{chr(97 + number)}.jpg")
    for kind in ("objects", "rooms", "outdoors", "photos"):
        assert source(tmp_path, kind)[0].pixels.float().std() > 5


def test_normals_follow_round_things_and_keep_edges():
    ball = shape("ball").parts[0].vertices
    cosine = (ball[:, 3:6] * ball[:, :3]).sum(-1) / np.linalg.norm(ball[:, :3], axis=-1)
    assert np.quantile(np.abs(cosine), 0.1) > 0.98
    box = shape("box").parts[0].vertices
    assert (np.abs(box[:, 3:6]).max(-1) > 0.999).all()


def test_meshes_are_turned_z_up(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    tall = trimesh.creation.box((1, 5, 2))
    tall.export(tmp_path / "tall.glb")
    for up, extent in (("y", (1, 2, 5)), ("z", (1, 5, 2))):
        mesh = load_mesh(MeshFile(tmp_path / "tall.glb", up))
        np.testing.assert_allclose(mesh.high - mesh.low, extent, atol=1e-5)


def test_errors_name_what_was_wrong(assets, tmp_path):
    with pytest.raises(ValueError, match="kind.*castles"):
        source(assets, "castles")
    with pytest.raises(ValueError, match="assets"):
        WorldSource("objects")
    with pytest.raises(CaptureError, match="no such folder"):
        WorldSource("objects", assets=[tmp_path / "none"])
    with pytest.raises(CaptureError, match="holds no"):
        WorldSource("objects", assets=[tmp_path])
    with pytest.raises(ValueError, match="spread"):
        source(assets, spread=(0.5, 0.1))
    with pytest.raises(IndexError):
        source(assets)[50]
    (tmp_path / "broken.glb").write_bytes(b"glTF no")
    with pytest.raises(CaptureError, match="broken.glb"):
        load_mesh(MeshFile(tmp_path / "broken.glb"))


def test_what_is_missing_is_said(monkeypatch):
    moderngl = pytest.importorskip("moderngl")

    def refuse(**_):
        raise Exception("libEGL.so.1: cannot open shared object file")

    monkeypatch.setattr(moderngl, "create_standalone_context", refuse)
    with pytest.raises(ImportError, match="apt install libegl1 libgl1-mesa-dri"):
        drawing._context()


def test_workers_draw_what_the_main_process_draws(assets):
    worlds = source(assets, "objects", num_scenes=4, num_views=3, size=32)
    here = [worlds[i].pixels for i in range(4)]
    # Not by a fork of this process, which has drawn: Mesa's threads are not in it, and it may wait for them
    options = {"num_workers": 2, "timeout": 240, "multiprocessing_context": "forkserver"}
    loader = torch.utils.data.DataLoader(worlds, batch_size=None, **options)
    for mine, theirs in zip(here, loader):
        assert torch.equal(mine, theirs.pixels)


def test_the_trainer_opens_drawn_worlds(assets, tmp_path):
    config = TrainConfig(
        tmp_path, data=("rooms",), assets=(assets,), size=32, scene_views=4, scenes=10, arc=(0.1, 0.2)
    )
    opened = open_source("rooms", source_options(config))
    assert isinstance(opened, WorldSource) and len(opened) == 10 and opened[0].pixels.shape == (4, 3, 32, 32)
    assert open_source("objects", source_options(config, "validation")).first_seed != opened.first_seed
