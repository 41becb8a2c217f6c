"""Scenes for training: shards, captures and synthetic worlds through one door."""

import json
import tarfile

import PIL.Image
import pytest
import torch
from conftest import shared

from kaleido_diffusers import Cameras, load_scene, sample_capture
from kaleido_diffusers.captures.scene import CaptureError
from kaleido_diffusers.geometry.choosing import sample_view_subset
from kaleido_diffusers.geometry.views import Views, as_shown
from kaleido_diffusers.training.batches import StepBatches, open_sources, source_options
from kaleido_diffusers.training.config import TrainConfig
from kaleido_diffusers.worlds.samples import InMemory, scene_sample
from kaleido_diffusers.worlds.shard_writing import write_shards
from kaleido_diffusers.worlds.sources import CaptureSource, ShardSource, SyntheticSource, open_source


@pytest.mark.parametrize("kind", ["views", "video", "moving"])
def test_shards_give_back_what_was_written(kind, tmp_path):
    source = SyntheticSource("object", kind, num_scenes=3, num_views=4, size=16, samples=2)
    paths = write_shards(tmp_path, (source[i] for i in range(3)), scenes_per_shard=2)
    assert [path.name for path in paths] == ["shard-000000.tar", "shard-000001.tar"]
    names = [path.with_suffix(ending).name for path in paths for ending in (".index", ".tar")]
    assert sorted(path.name for path in tmp_path.iterdir()) == names, "no part is left"
    read = ShardSource(tmp_path)
    assert len(read) == 3
    for index in range(3):
        original, again = source[index], read[index]
        assert (original.pixels.int() - again.pixels.int()).abs().float().mean() < 4, "JPEG"
        for name in ("poses", "intrinsics", "times"):
            a, b = getattr(original, name), getattr(again, name)
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a.double(), b.double(), rtol=1e-6, atol=1e-6)
    assert (source[0].poses is None) == (kind == "video") and (source[0].times is None) == (kind == "views")
    with pytest.raises(FileExistsError):
        write_shards(tmp_path, [source[0]])


def test_shards_resize_with_their_cameras(tmp_path):
    source = SyntheticSource("scene", num_scenes=1, num_views=2, size=32)
    write_shards(tmp_path, [source[0]])
    small = ShardSource(tmp_path, size=16)[0]
    assert small.pixels.shape == (2, 3, 16, 16)
    torch.testing.assert_close(small.intrinsics.float(), source[0].intrinsics, rtol=1e-5, atol=1e-5)


def test_shards_of_images_of_several_sizes(tmp_path):
    """As another tool may write them: every image brings its own intrinsics."""
    folder = tmp_path / "scene"
    folder.mkdir()
    for number, size in enumerate([(20, 40), (40, 20)]):
        PIL.Image.new("RGB", size).save(folder / f"{number:03d}.png")
    lenses = [[[1.0, 0, 0.5], [0, 0.5, 0.5], [0, 0, 1]], [[0.5, 0, 0.5], [0, 1.0, 0.5], [0, 0, 1]]]  # 20 px each
    (folder / "scene.json").write_text(
        json.dumps({"poses": torch.eye(4).repeat(2, 1, 1).tolist(), "intrinsics": lenses})
    )
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(folder, arcname="scene")
    sample = ShardSource(tmp_path / "a.tar", size=8)[0]
    torch.testing.assert_close(sample.intrinsics[:, [0, 1], [0, 1]], torch.ones(2, 2).double())


def test_views_keep_their_cameras_beyond_a_thousand(tmp_path):
    views = torch.arange(1003).view(-1, 1, 1, 1).expand(-1, 3, 8, 8) % 251
    sample = Views(pixels=views.to(torch.uint8), times=torch.arange(1003.0))
    write_shards(tmp_path, [sample])
    again = ShardSource(tmp_path)[0]
    assert (again.pixels[:, 0, 0, 0].int() - views[:, 0, 0, 0]).abs().max() <= 2
    assert again.times.tolist() == list(range(1003))


def test_shards_are_continued(tmp_path):
    source = SyntheticSource(num_scenes=3, num_views=2, size=8)
    write_shards(tmp_path, [source[0], source[1]], scenes_per_shard=2)
    write_shards(tmp_path, [source[2]], scenes_per_shard=2, first=2)
    assert len(ShardSource(tmp_path)) == 3 and ShardSource(tmp_path).fewest_views == 2


def test_shards_that_cannot_be_read(tmp_path):
    with pytest.raises(CaptureError, match="holds no .*tar"):
        ShardSource(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"not a tar" * 200)
    with pytest.raises(CaptureError, match="a.tar"):
        ShardSource(tmp_path)
    path = write_shards(tmp_path / "b", [SyntheticSource(num_scenes=1, num_views=2, size=8)[0]])[0]
    with tarfile.open(path) as tar:
        tar.extractall(tmp_path / "c", filter="data")
    (tmp_path / "c" / "00000000" / "scene.json").write_text('{"poses": [1, 2, 3]}')
    with tarfile.open(tmp_path / "c" / "d.tar", "w") as tar:
        tar.add(tmp_path / "c" / "00000000", arcname="x")
    with pytest.raises(CaptureError, match="does not describe its 2 views"):
        ShardSource(tmp_path / "c" / "d.tar")[0]


def test_a_capture_is_a_source_of_one_scene():
    source = CaptureSource(sample_capture(), 24)
    scene = load_scene(sample_capture())
    sample = scene_sample(scene, 24, [0, 5])
    assert len(source) == 1 and sample.pixels.shape == (2, 3, 24, 24) and sample.pixels.dtype == torch.uint8
    torch.testing.assert_close(sample.poses, scene.cameras.world_from_camera[[0, 5]])
    with pytest.raises(IndexError):
        source[1]
    train, test = (CaptureSource(sample_capture(), 24, split=split)[0] for split in ("train", "test"))
    assert (len(train), len(test)) == (35, 5)
    torch.testing.assert_close(test.poses, scene.cameras.world_from_camera[::8])


def test_blender_captures_come_with_their_splits():
    scene = load_scene(shared("captures/chair"))
    assert len(scene) == 125 and {name: len(views) for name, views in scene.splits.items()} == {
        "train": 100,
        "test": 25,
    }
    assert scene.image_paths[scene.splits["test"][0]].parent.name == "test"
    assert scene.images[0].getpixel((0, 0)) == (255, 255, 255), "transparent pixels lie over white"
    black = load_scene(shared("captures/chair"), background=(0, 0, 0))
    assert black.images[0].getpixel((0, 0)) == (0, 0, 0)
    centers = scene.cameras.centers
    facing = (-centers / centers.norm(dim=-1, keepdim=True) * scene.cameras.forward).sum(-1)
    assert facing.min() > 0.98, "all cameras look at the chair"


def test_view_subsets():
    generator = torch.Generator().manual_seed(0)
    poses = torch.eye(4, dtype=torch.float64).repeat(10, 1, 1)
    poses[:, 0, 3] = torch.arange(10)
    cameras = Cameras.from_fov(poses, 60.0, [8, 8])

    def draw(mix):
        return sample_view_subset(10, cameras, None, 4, generator, mix)

    for _ in range(20):
        near, far, any_views = draw((1, 0, 0)), draw((0, 1, 0)), draw((0, 0, 1))
        for chosen in (near, far, any_views):
            assert len(set(chosen)) == 4
        assert max(near) - min(near) <= 6
        assert max(far) - min(far) >= 6
    times = torch.arange(10) / 10
    clip = sample_view_subset(10, None, times, 4, generator, (1, 0, 0))
    assert max(clip) - min(clip) <= 6
    with pytest.raises(ValueError, match="4, but the scene has 3"):
        sample_view_subset(3, None, None, 4, generator)


def make_config(tmp_path, **options) -> TrainConfig:
    defaults = {"size": 8, "batch": 4, "views": 5, "scenes": 6, "scene_views": 6, "render_samples": 1}
    return TrainConfig(output=tmp_path, **{**defaults, **options})


def test_a_step_is_decided_by_seed_and_number_alone(tmp_path):
    config = make_config(tmp_path, data=("object=3", "video"))
    sources, weights = open_sources(config)
    assert weights == [0.75, 0.25]
    whole = StepBatches(config, sources, weights)
    again = StepBatches(config, *open_sources(config))
    halves = [StepBatches(config, sources, weights, rank, 2) for rank in range(2)]
    kinds = set()
    for step in (7, 0, 3, 12):
        a, b = whole[step], again[step]
        assert torch.equal(a.batch.pixels, b.batch.pixels) and a.partition == b.partition
        parts = [half[step] for half in halves]
        assert [part.rows for part in parts] == [[0, 2], [1, 3]]
        for part in parts:
            assert part.partition == a.partition
            assert torch.equal(part.batch.pixels, a.batch.pixels[part.rows])
        assert -1 <= a.batch.pixels.min() and a.batch.pixels.max() <= 1
        kinds.add((a.batch.poses is None, a.batch.times is None))
    assert kinds == {(False, True), (True, False)}
    with pytest.raises(ValueError, match="multiple of the 3 processes"):
        StepBatches(config, sources, weights, 0, 3)


def test_scenes_that_do_not_fit_together_are_refused(tmp_path):
    still, moving = (
        SyntheticSource("object", kind, num_scenes=1, num_views=6, size=8)[0] for kind in ("views", "moving")
    )
    for order in ([still, moving], [moving, still]):
        batches = StepBatches(make_config(tmp_path, batch=8), [order], [1.0])
        with pytest.raises(CaptureError, match="with and without times"):
            for step in range(20):
                batches[step]
    write_shards(tmp_path, [still.select(range(3))])
    with pytest.raises(CaptureError, match="a scene of 3 views; `views` asks for 5"):
        open_sources(make_config(tmp_path, data=(str(tmp_path),)))


def test_times_keep_their_digits(tmp_path):
    sample = SyntheticSource("object", "video", num_scenes=1, num_views=6, size=8)[0]
    late = Views(pixels=sample.pixels, times=sample.times.double() + 1.7e9)
    steps = [StepBatches(make_config(tmp_path), [[entry]], [1.0])[0] for entry in (sample, late)]
    batches = [as_shown(step.batch, 1).times for step in steps]
    torch.testing.assert_close(*batches, rtol=0, atol=1e-5)


def test_sources_by_name(tmp_path):
    config = make_config(tmp_path)
    assert isinstance(open_source(sample_capture(), source_options(config)), CaptureSource)
    write_shards(tmp_path / "s", [SyntheticSource(num_scenes=1, num_views=2, size=8)[0]])
    assert isinstance(open_source(str(tmp_path / "s"), source_options(config)), ShardSource)
    with pytest.raises(CaptureError, match="neither a kind of world"):
        open_source("nowhere", source_options(config))
    with pytest.raises(ValueError, match="positive number"):
        open_sources(make_config(tmp_path, data=("object=-1",)))
    train, validation = (open_source("object", source_options(config, split)) for split in ("train", "validation"))
    assert not torch.equal(train[0].pixels, validation[0].pixels)
    kept = InMemory(train)
    assert len(kept) == 6 and torch.equal(kept[2].pixels, train[2].pixels)
    with pytest.raises(ValueError, match="`split`"):
        SyntheticSource(split="holdout")
    with pytest.raises(ValueError, match="`num_scenes`"):
        SyntheticSource(num_scenes=0)
