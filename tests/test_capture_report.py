"""The report on a capture: its figures are those of the cameras, and each warning comes when its fault is there."""

import json
import re
import subprocess
import sys
import warnings

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import random_poses, shared
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_diffusers import Cameras, Scene, cli, load_scene, sample_capture, trajectories
from kaleido_diffusers.captures.export import write_capture
from kaleido_diffusers.captures.pictures import camera_picture, camera_scene_html
from kaleido_diffusers.captures.summary import capture_summary
from kaleido_diffusers.geometry.cameras import look_at


def ring(num_views: int = 12, radius: float = 4.0) -> Cameras:
    """Cameras on a circle that look at the origin, 50 degrees wide."""
    angles = torch.linspace(0, 2 * torch.pi, num_views + 1, dtype=torch.float64)[:-1]
    centers = radius * torch.stack([angles.cos(), angles.sin(), 0 * angles], dim=-1)
    poses = look_at(centers, torch.zeros(3).double(), torch.tensor([0.0, 0.0, 1.0]).double())
    return Cameras.from_fov(poses, 50.0, [90, 120])


def scene_of(cameras: Cameras, **given) -> Scene:
    return Scene(images=[None] * len(cameras), cameras=cameras, name="made", **given)


def cloud(count: int = 400, center: float = 0.0) -> torch.Tensor:
    return center + 0.5 * torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# Figures


def test_figures_of_a_ring():
    summary = capture_summary(
        scene_of(
            ring(),
            points=cloud(),
            times=torch.linspace(0, 2, 12),
            masks=[None] * 12,
            splits={"train": list(range(9)), "test": [9, 10, 11]},
        )
    )
    assert summary.warnings == []
    assert summary.image_sizes == {(90, 120): 12}
    assert summary.extent == pytest.approx(8.0)
    assert summary.focus_distance == pytest.approx(4.0, rel=1e-3)
    assert summary.baselines == pytest.approx([8 * np.sin(np.pi / 12)] * 3)
    assert summary.fov[0] == pytest.approx((50.0, 50.0)) and summary.fov[1][0] < 50
    assert (summary.num_views, summary.num_masks, summary.num_points) == (12, 12, 400)
    assert summary.times == (0.0, 2.0) and summary.splits == {"train": 9, "test": 3}
    lines = summary.table().splitlines()
    assert len({line[:17].rstrip() for line in lines}) == len(lines)
    assert all(re.match(r"  [a-z ]{14} \S", line) for line in lines), "aligned"
    for words in ("120 x 90", "50.0 x 38.6 degrees", "8 between", "4 away", "train 9, test 3", "0 to 2 s"):
        assert words in summary.table(), words


def test_cameras_that_look_at_nothing_together():
    poses = torch.eye(4).double().repeat(5, 1, 1)
    poses[:, 0, 3] = torch.arange(5)
    parallel = Cameras.from_fov(poses, 50.0, [90, 120])
    outward = ring()
    backs = outward.world_from_camera @ torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]).double())
    for cameras in (parallel, outward.with_poses(backs), parallel[:1]):
        summary = capture_summary(scene_of(cameras))
        assert summary.focus_distance is None and "no common point" in summary.table()
        assert summary.warnings == []


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), num_views=st.integers(1, 8), size=st.floats(-4, 4), num_points=st.integers(0, 30))
def test_any_cameras_can_be_summarised(seed, num_views, size, num_points):
    generator = torch.Generator().manual_seed(seed)
    poses = random_poses(num_views, generator=generator, spread=10**size)
    points = torch.randn(num_points, 3, generator=generator)
    summary = capture_summary(scene_of(Cameras.from_fov(poses, 60.0, [9, 12]), points=points))
    distances = torch.cdist(poses[:, :3, 3], poses[:, :3, 3])
    assert summary.extent == pytest.approx(float(distances.max()))
    assert summary.baselines[0] <= summary.baselines[1] <= summary.baselines[2] <= summary.extent
    assert summary.table()


# Warnings


def off_centre(cameras: Cameras) -> Cameras:
    intrinsics = cameras.intrinsics.clone()
    intrinsics[3, 0, 2] += 20
    return Cameras(cameras.world_from_camera, intrinsics, cameras.image_sizes)


def one_zoomed(cameras: Cameras) -> Cameras:
    intrinsics = cameras.intrinsics.clone()
    intrinsics[3, :2, :2] *= 2.5
    return Cameras(cameras.world_from_camera, intrinsics, cameras.image_sizes)


def one_large(cameras: Cameras) -> Cameras:
    return Cameras.cat([cameras[:3], cameras[3:4].resized(270, 360), cameras[4:]])


def one_twin(cameras: Cameras) -> Cameras:
    return cameras[[*range(12), 5]]


def one_turned_away(cameras: Cameras) -> Cameras:
    poses = cameras.world_from_camera.clone()
    poses[3] = poses[3] @ torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]).double())
    return cameras.with_poses(poses)


def at_one_spot(cameras: Cameras) -> Cameras:
    poses = cameras.world_from_camera.clone()
    poses[:, :3, 3] = torch.tensor([3.0, 1.0, 2.0]).double()
    return cameras.with_poses(poses)


def hardly_moving(cameras: Cameras) -> Cameras:
    poses = cameras.world_from_camera[:1].repeat(12, 1, 1)
    poses[:, 2, 3] += torch.linspace(0, 0.008, 12)
    return cameras.with_poses(poses)


def one_astray(cameras: Cameras) -> Cameras:
    poses = cameras.world_from_camera.clone()
    poses[7, 0, 3] = 90.0
    return cameras.with_poses(poses)


@pytest.mark.parametrize(
    "fault, points, message",
    [
        (off_centre, None, r"principal point is far off centre, by up to 17% .* in 1 of 12 views \(3\)"),
        (one_zoomed, None, r"Fields of view differ much: 21 to 50 degrees"),
        (one_large, None, r"Image sizes differ much: 0.011 to 0.097 megapixels"),
        (one_twin, None, r"same pose as an earlier view: 1 of 13 views \(12\)"),
        (at_one_spot, None, r"All cameras stand at one spot"),
        (one_astray, None, r"Far from all other cameras: 1 of 12 views \(7\)"),
        (one_turned_away, cloud(), r"No point lies in the image of 1 of 12 views \(3\)"),
        (lambda cameras: cameras, torch.cat([cloud(90), cloud(30, 50.0)]), r"25% of the points lie in no image"),
        (hardly_moving, cloud(), r"The cameras hardly move: 0\.2% of their distance"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_fault_is_named_and_only_it(fault, points, message):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = capture_summary(scene_of(fault(ring()), points=points)).warnings
    assert re.search(message, "\n".join(found)), found
    assert len(found) == 1, found


def test_a_camera_that_stands_still_while_time_goes_on_is_no_twin():
    cameras = one_twin(ring())
    assert capture_summary(scene_of(cameras, times=torch.arange(13).double())).warnings == []


@pytest.mark.parametrize("name", ["kermit", "snowmiku", "chair", "skull", "ethiopian_head", "gso_elephant"])
def test_good_captures_raise_no_warning(name):
    summary = capture_summary(load_scene(shared(f"captures/{name}")))
    assert summary.warnings == [] and summary.focus_distance > 0


# Pictures


@pytest.mark.parametrize(
    "cameras", [ring(), ring()[:1], at_one_spot(ring()), one_large(ring())], ids=["ring", "one", "spot", "sizes"]
)
def test_the_picture_and_the_page_are_drawn(cameras, tmp_path):
    names = [f"photo {view}" for view in range(len(cameras))]
    for points in (None, cloud(), torch.zeros(0, 3)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            path = camera_picture(cameras, tmp_path / "cameras.png", points, names)
        image = np.asarray(PIL.Image.open(path).convert("RGB")).astype(int)
        assert image.shape[0] > 600 and image.shape[1] > 1200
        colourful = (image.max(-1) - image.min(-1) > 60).mean()
        assert 0.002 < colourful < 0.3, "frustums"
        page = camera_scene_html(cameras, tmp_path / "cameras.html", points, names).read_text()
        assert "photo 0" in page
    with pytest.raises(ValueError, match=r"shape \[V\], got \[\]"):
        camera_picture(cameras[0], tmp_path / "none.png")


def test_the_picture_stands_upright(tmp_path):
    """A ring of cameras looks the same whichever way its world is turned."""
    turn = random_poses(generator=torch.Generator().manual_seed(4), spread=0.0)
    views = []
    for number, world in enumerate((torch.eye(4).double(), turn)):
        # an arc: what a full ring calls away is a matter of rounding
        cameras = trajectories.orbit(ring(), num_views=7, degrees=100.0, elevation=20.0)
        cameras = cameras.with_poses(world @ cameras.world_from_camera)
        image = PIL.Image.open(camera_picture(cameras, tmp_path / f"{number}.png")).convert("L")
        views.append(np.asarray(image.crop((0, 60, 940, 700))).astype(float))
    assert np.abs(views[0] - views[1]).mean() < 1.0


def test_the_page_needs_no_network_and_carries_its_photos(tmp_path):
    scene = load_scene(sample_capture()).select(range(4))
    photos = [None, *list(scene.images)[1:]]
    names = ["<b>0</b></script>", "1", "2", "3"]
    page = camera_scene_html(scene.cameras, tmp_path / "a.html", names=names, thumbnails=iter(photos)).read_text()
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", page)
    assert '"showSendToCloud": false' in page
    assert page.count("data:image/jpeg;base64,") == 3
    assert "</script>at" not in page and "0</b></script>" not in page, "names cannot end the script"
    urls = json.loads(re.search(r"urls = (\[.*?\]);", page).group(1))
    assert urls[0] == "" and all(url.startswith("data:image/jpeg") for url in urls[1:])


# The command


def test_info_describes_a_capture(tmp_path, capsys):
    assert cli.main(["info", "sample", "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  photos +40$", out, re.MULTILINE) and "46.0 x 46.0 degrees" in out
    assert "warning" not in out
    written = [line.removeprefix("wrote ") for line in out.splitlines() if line.startswith("wrote ")]
    assert written == [str(tmp_path / f"sample_cameras{suffix}") for suffix in (".png", ".html")]
    assert (tmp_path / "sample_cameras.html").read_text().count("data:image/jpeg") == 40


def test_info_goes_on_past_what_is_wrong(tmp_path, capsys):
    cameras = one_twin(ring())
    file = write_capture(tmp_path / "odd", [PIL.Image.effect_noise((120, 90), 40)] * 13, cameras, suffix=".jpg")
    photo = file.parent / "images" / "0002.jpg"
    photo.write_bytes(photo.read_bytes()[:-2000])
    assert cli.main(["info", str(file.parent), "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "warning: The same pose as an earlier view: 1 of 13 views (0012.jpg)" in out
    assert re.search("warning: .*0002.jpg: the image is damaged", out)
    assert (tmp_path / "out" / "odd_cameras.html").read_text().count("data:image/jpeg") == 12
    assert cli.main(["info", str(tmp_path / "nothing")]) == 1
    assert "no such capture" in capsys.readouterr().err


def test_info_says_what_it_cannot_draw(tmp_path):
    """A Python in which matplotlib and plotly cannot be found."""
    code = f"""
import sys
sys.modules["matplotlib"] = sys.modules["plotly"] = None
from kaleido_diffusers import cli
sys.exit(cli.main(["info", "sample", "--output", {str(tmp_path)!r}]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for name, package in (("png", "matplotlib"), ("html", "plotly")):
        assert re.search(rf"sample_cameras\.{name} was not drawn\. .*{package}: pip install", result.stdout)
    assert not list(tmp_path.iterdir())
