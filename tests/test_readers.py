"""Every format is read right: real captures by epipolar lines, others as their own tools write them."""

import gzip
import json
import os
import random
import shutil
import tarfile
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import SHARED, blobs, found, random_poses, shared
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_diffusers import Cameras, load_scene, sample_capture
from kaleido_diffusers.captures.images import CaptureError, tensor_to_image
from kaleido_diffusers.captures.readers.single_photo import photo_scene
from kaleido_diffusers.captures.scene import Scene
from kaleido_diffusers.geometry.cameras import convert_axes, invert_rigid, look_at
from kaleido_diffusers.worlds.shard_writing import write_shards
from kaleido_diffusers.worlds.sources import SyntheticSource


# What is read agrees with the photos


def matches(scene: Scene, first: int, second: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels `[P, 2]` of SIFT features that are each other's nearest in two photos."""
    pycolmap = pytest.importorskip("pycolmap")
    points, descriptors, extractor = [], [], pycolmap.FeatureExtractor.create()
    for index in (first, second):
        grey = np.asarray(scene.images[index].convert("L"))
        keypoints, described = extractor.extract(pycolmap.Bitmap.from_array(grey))
        points.append(torch.tensor([[point.x, point.y] for point in keypoints], dtype=torch.float64))
        descriptors.append(torch.from_numpy(np.asarray(described.data, dtype=np.float32)))
    distances = torch.cdist(*descriptors)
    best = distances.topk(2, largest=False)
    mutual = distances.argmin(0)[best.indices[:, 0]] == torch.arange(len(distances))
    good = mutual & (best.values[:, 0] < 0.75 * best.values[:, 1])
    return points[0][good], points[1][best.indices[good, 0]]


def epipolar_error(cameras: Cameras, a: torch.Tensor, b: torch.Tensor) -> float:
    """Median distance in pixels, over matches `[P, 2]`, from the epipolar lines that two cameras draw."""
    second_from_first = cameras[1].camera_from_world @ cameras[0].world_from_camera
    rotation, (x, y, z) = second_from_first[:3, :3], second_from_first[:3, 3]
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    inverses = torch.linalg.inv(cameras.intrinsics)
    fundamental = inverses[1].T @ cross @ rotation @ inverses[0]
    a, b = (torch.nn.functional.pad(p, (0, 1), value=1.0) for p in (a, b))
    lines_b, lines_a = a @ fundamental.T, b @ fundamental
    offsets = (b * lines_b).sum(-1).abs()
    distances = offsets / lines_b[:, :2].norm(dim=-1) + offsets / lines_a[:, :2].norm(dim=-1)
    return float(distances.median() / 2)


CAPTURES = {
    "fox": ({}, (0, 3), 2.0),
    "fox_colmap": ({"images": SHARED / "captures/fox/images"}, (0, 3), 2.0),
    "skull": ({}, (0, 1), 1.0),
    "snowmiku": ({}, (0, 3), 1.0),
    "kermit": ({}, (0, 1), 1.0),
    "chair": ({}, (114, 40), 1.0),
    "ethiopian_head": ({}, (0, 1), 2.0),
    "gso_elephant": ({}, (4, 6), 1.0),
    "sevenscenes": ({}, (0, 12), 1.5),
}


def read(name: str, **options) -> Scene:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_scene(shared(f"captures/{name}"), missing="skip", **options)


@pytest.mark.parametrize("name", CAPTURES)
def test_real_photos_lie_on_the_epipolar_lines_of_their_cameras(name):
    options, pair, most = CAPTURES[name]
    scene = read(name, **options)
    pair = [(scene.text_order or range(len(scene)))[place] for place in pair]
    cameras, found = scene.cameras[pair], matches(scene, *pair)
    assert len(found[0]) >= 20
    assert epipolar_error(cameras, *found) < most
    turned = cameras.world_from_camera.clone()
    axis = torch.tensor([[0.0, -1, 1, 0], [1, 0, -1, 0], [-1, 1, 0, 0], [0] * 4], dtype=torch.float64)
    turned[1] = turned[1] @ torch.linalg.matrix_exp(0.1 * axis)
    assert epipolar_error(cameras.with_poses(turned), *found) > 1.5 * most, "a wrong pose is seen"


@pytest.mark.parametrize("name", ["fox_colmap", "snowmiku", "kermit"])
def test_points_of_real_models_project_where_they_were_seen(name):
    """The mean distance is the model's own reprojection error, in the zoomed pixels of the straight photo; it stays so
    in a crop, resized, and rolled."""
    pycolmap = pytest.importorskip("pycolmap")
    scene = read(name, **CAPTURES[name][0])
    model = pycolmap.Reconstruction(str(shared(f"captures/{name}/sparse/0")))
    names = [path.name for path in scene.image_paths]
    totals = {"whole": [], "cropped and resized": [], "rolled": [], "theirs": []}
    for image in model.images.values():
        camera, theirs = scene.cameras[names.index(image.name)], model.cameras[image.camera_id]
        seen = [(point.xy, model.points3D[point.point3D_id].xyz) for point in image.points2D if point.has_point3D()]
        pixels, points = (torch.from_numpy(np.array(part)) for part in zip(*seen))
        rays = torch.from_numpy(theirs.cam_from_img(pixels.numpy()))
        straight = rays @ camera.intrinsics[:2, :2].T + camera.intrinsics[:2, 2]
        height, width = camera.image_sizes.tolist()
        zoom = camera.intrinsics[0, 0] / theirs.focal_length_x
        back = torch.from_numpy(
            theirs.img_from_cam(
                (camera.camera_from_world[:3, :3] @ points.T).T.numpy() + camera.camera_from_world[:3, 3].numpy()
            )
        )
        totals["theirs"].append((back - pixels).norm(dim=-1) * zoom)
        totals["whole"].append((camera.project(points)[0] - straight).norm(dim=-1))
        part = camera.cropped(10, 20, height - 40, width - 60).resized((height - 40) // 2, (width - 60) // 2)
        scale = torch.tensor([((width - 60) // 2) / (width - 60), ((height - 40) // 2) / (height - 40)])
        moved = (straight - torch.tensor([20.0, 10.0])) * scale
        totals["cropped and resized"].append((part.project(points)[0] - moved).norm(dim=-1) / scale.mean())
        rolled = torch.stack([straight[:, 1], width - straight[:, 0]], dim=-1)
        totals["rolled"].append((camera.rolled(1).project(points)[0] - rolled).norm(dim=-1))
    means = {key: float(torch.cat(parts).mean()) for key, parts in totals.items()}
    own = means.pop("theirs")
    for key, mean in means.items():
        assert mean < max(0.5, 1.1 * own), (key, mean, own)


def aligned(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The similarity (scaled rotation `[3, 3]`, offset `[3]`) that brings centres `ours` `[V, 3]` onto `theirs`."""
    a, b = ours - ours.mean(0), theirs - theirs.mean(0)
    u, s, vh = torch.linalg.svd(b.T @ a)
    sign = torch.diag(torch.tensor([1.0, 1.0, float(torch.linalg.det(u @ vh))], dtype=torch.float64))
    rotation = u @ sign @ vh
    scale = (s * sign.diagonal()).sum() / a.square().sum()
    return scale * rotation, theirs.mean(0) - scale * rotation @ ours.mean(0)


def test_fox_is_one_scene_in_both_formats():
    ours, theirs = read("fox"), read("fox_colmap", **CAPTURES["fox_colmap"][0])
    assert [path.name for path in ours.image_paths] == [path.name for path in theirs.image_paths]
    matrix, offset = aligned(ours.cameras.centers, theirs.cameras.centers)
    moved = ours.cameras.centers @ matrix.T + offset
    extent = (theirs.cameras.centers.amax(0) - theirs.cameras.centers.amin(0)).norm()
    assert (moved - theirs.cameras.centers).norm(dim=-1).median() / extent < 0.005
    rotation = matrix / torch.linalg.det(matrix) ** (1 / 3)
    turned = rotation @ ours.cameras.world_from_camera[:, :3, :3]
    between = turned.mT @ theirs.cameras.world_from_camera[:, :3, :3]
    angles = torch.rad2deg(((between.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(-1, 1).acos())
    assert angles.median() < 1.0
    text = load_scene(shared("captures/fox_colmap/sparse_txt/0"), images=SHARED / "captures/fox/images")
    torch.testing.assert_close(text.cameras.world_from_camera, theirs.cameras.world_from_camera, rtol=0, atol=1e-9)
    torch.testing.assert_close(text.cameras.intrinsics, theirs.cameras.intrinsics, rtol=0, atol=1e-6)
    assert len(text.points) == len(theirs.points) == 12580


def test_masks_are_those_of_the_photos():
    scene = read("ethiopian_head")
    assert len(scene.masks) == 66 and scene.masks[3].mode == "L"
    image, mask = (np.asarray(x.convert("L"), dtype=float) for x in (scene.images[3], scene.masks[3]))
    assert 0.05 < (mask > 128).mean() < 0.9
    part = scene.select([5, 3])
    assert np.array_equal(np.asarray(part.masks[1]), mask) and image.shape == mask.shape


# Formats as their own tools write them


POINTS = torch.tensor([[0.0, 0.0, 0.0], [0.8, 0.2, -0.1], [-0.4, 0.6, 0.5]], dtype=torch.float64)


def draw(path: Path, camera: Cameras) -> None:
    """A photo of soft dots at `POINTS`, rendered where the camera sees them."""
    tensor_to_image(blobs(camera[None], POINTS, radius=1.0)[0]).save(path)


@pytest.fixture
def photos(tmp_path) -> tuple[Path, Cameras]:
    """Four rendered photos `NNN.png` of 40 x 30 pixels in `images/`, and their cameras."""
    folder = tmp_path / "capture" / "images"
    folder.mkdir(parents=True)
    centers = 3 * torch.nn.functional.normalize(random_poses(4, generator=torch.Generator().manual_seed(0))[:, :3, 3])
    poses = look_at(centers, torch.zeros(3).double(), torch.tensor([0.0, 0, 1]).double())
    intrinsics = torch.tensor([[35.0, 0, 19.0], [0, 36.0, 16.0], [0, 0, 1]], dtype=torch.float64)
    cameras = Cameras(poses, intrinsics, [30, 40])
    for number, camera in enumerate(cameras):
        draw(folder / f"{number:03d}.png", camera)
    return folder.parent, cameras


def assert_same(scene: Scene, cameras: Cameras, atol: float = 1e-9) -> None:
    """The cameras are those that the photos were rendered with, and the photos show the points where they project, as
    they are, and cropped and resized."""
    torch.testing.assert_close(scene.cameras.world_from_camera, cameras.world_from_camera, rtol=0, atol=atol)
    torch.testing.assert_close(scene.cameras.intrinsics, cameras.intrinsics, rtol=0, atol=atol)
    assert torch.equal(scene.cameras.image_sizes, cameras.image_sizes)
    height, width = cameras.image_sizes[0].tolist()
    for size in ((height, width), (36, 24)):
        views, fitted = scene.fitted(range(len(scene)), *size)
        pixels, _ = fitted.project(POINTS.expand(len(fitted), -1, 3))
        seen = 0
        for view, places in zip(views, pixels):
            for place in places:
                apart = (places - place).norm(dim=-1).sort().values[1]
                if apart > 8 and 4 < place[0] < size[1] - 4 and 4 < place[1] < size[0] - 4:
                    assert (found(view, place, 4) - place).norm() < 0.5
                    seen += 1
        assert seen >= 2


@pytest.mark.parametrize("binary", [True, False])
def test_colmap_as_pycolmap_writes_it(photos, binary):
    pycolmap = pytest.importorskip("pycolmap")
    folder, cameras = photos
    model = pycolmap.Reconstruction()
    for number, camera in enumerate(cameras):
        params = [*camera.intrinsics.diagonal()[:2].tolist(), *camera.intrinsics[:2, 2].tolist()]
        theirs = pycolmap.Camera(model="PINHOLE", width=40, height=30, params=params, camera_id=number + 1)
        model.add_camera_with_trivial_rig(theirs)
        image = pycolmap.Image(name=f"{number:03d}.png", camera_id=number + 1, image_id=number + 1)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(camera.camera_from_world[:3].numpy()))
    points = np.random.default_rng(0).normal(size=(5, 3))
    for point in points:
        model.add_point3D(point, pycolmap.Track(), np.zeros(3, dtype=np.uint8))
    (folder / "sparse" / "0").mkdir(parents=True)
    (model.write_binary if binary else model.write_text)(str(folder / "sparse" / "0"))
    scene = load_scene(folder)
    assert_same(scene, cameras)
    assert sorted(scene.points.tolist()) == sorted(points.tolist()) and scene.name == "capture"
    shutil.move(folder / "images" / "002.png", folder / "sparse" / "002.png")
    with pytest.raises(CaptureError, match="1 of 4 images are missing .002.png."):
        load_scene(folder)
    with pytest.warns(UserWarning, match="skipped 1 of 4"):
        assert len(load_scene(folder, missing="skip")) == 3


def test_llff_as_its_loader_undoes_it(photos):
    """LLFF's own loader turns (down, right, backward) into OpenGL's axes by swapping columns."""
    folder, cameras = photos
    opengl = convert_axes(cameras.world_from_camera, "opencv", "opengl").numpy()
    right, up, backward, center = np.moveaxis(opengl[:, :3], -1, 0)
    column = np.tile([60.0, 80.0, 70.0], (4, 1))
    rows = np.stack([-up, right, backward, center, column], axis=-1).reshape(4, 15)
    np.save(folder / "poses_bounds.npy", np.concatenate([rows, [[1.0, 9.0]] * 4], axis=1))
    halved = torch.tensor([[35.0, 0, 20.0], [0, 35.0, 15.0], [0, 0, 1]], dtype=torch.float64)
    cameras = Cameras(cameras.world_from_camera, halved, [30, 40])
    for number, camera in enumerate(cameras):
        draw(folder / "images" / f"{number:03d}.png", camera)
    assert_same(load_scene(folder), cameras)
    (folder / "images" / "003.png").unlink()
    with pytest.raises(CaptureError, match="poses of 4 photos, but .*images holds 3"):
        load_scene(folder)


def test_real_estate_10k(photos):
    folder, cameras = photos
    lines = ["https://example.org/watch?v=abc"]
    for number, camera in enumerate(cameras):
        (folder / "images" / f"{number:03d}.png").rename(folder / "images" / f"{9_000_000 + 500 * number}.png")
        values = [35 / 40, 36 / 30, 19 / 40, 16 / 30, 0, 0, *camera.camera_from_world[:3].flatten().tolist()]
        lines.append(" ".join([str(9_000_000 + 500 * number), *map(repr, values)]))
    (folder / "clip.txt").write_text("\n".join(lines))
    for path in (folder, folder / "clip.txt"):
        scene = load_scene(path)
        assert_same(scene, cameras)
        assert scene.times is None and scene.name == "clip", "a still scene, filmed"
    (folder / "images").rename(folder / "clip")
    assert_same(load_scene(folder), cameras)


@pytest.mark.parametrize("kind", ["ndc_isotropic", "ndc_norm_image_bounds"])
def test_co3d(photos, kind):
    """PyTorch3D: rows times matrices, x left, y up, and normalised device coordinates."""
    folder, cameras = photos
    category = folder.parent / "apple"
    category.mkdir()
    entries = []
    for number, camera in enumerate(cameras):
        flip = torch.diag(torch.tensor([-1.0, -1, 1])).double()
        half = np.array([15.0, 15.0] if kind == "ndc_isotropic" else [20.0, 15.0])
        entry = {
            "sequence_name": "1_2_3",
            "frame_number": number,
            "image": {"path": f"apple/1_2_3/images/{number:03d}.png", "size": [30, 40]},
            "mask": {"path": f"apple/1_2_3/masks/{number:03d}.png", "mass": 3.0},
            "viewpoint": {
                "R": (flip @ camera.camera_from_world[:3, :3]).T.tolist(),
                "T": (flip @ camera.camera_from_world[:3, 3]).tolist(),
                "focal_length": (np.array([35.0, 36.0]) / half).tolist(),
                "principal_point": ((np.array([20.0, 15.0]) - [19.0, 16.0]) / half).tolist(),
                "intrinsics_format": kind,
            },
        }
        entries += [entry, {**entry, "sequence_name": "other"}]
    with gzip.open(category / "frame_annotations.jgz", "wt", encoding="utf-8") as stream:
        json.dump(entries, stream)
    (folder / "masks").mkdir()
    for number in range(4):
        PIL.Image.new("L", (40, 30), 255).save(folder / "masks" / f"{number:03d}.png")
    folder.rename(category / "1_2_3")
    assert_same(load_scene(category / "1_2_3"), cameras)
    assert_same(load_scene(category, scene="1_2_3"), cameras)
    with pytest.raises(CaptureError, match="choose one by `scene`: 1_2_3, other"):
        load_scene(category)


def test_zero123(photos):
    folder, cameras = photos
    focal = 20 / np.tan(np.radians(49.1) / 2)
    intrinsics = torch.tensor([[focal, 0, 20], [0, focal, 20], [0, 0, 1]], dtype=torch.float64)
    cameras = Cameras(cameras.world_from_camera, intrinsics, [40, 40])
    for number, camera in enumerate(cameras):
        draw(folder / f"{number:03d}.png", camera)
        blender = convert_axes(camera.world_from_camera, "opencv", "opengl")
        np.save(folder / f"{number:03d}.npy", invert_rigid(blender)[:3].numpy())
    assert_same(load_scene(folder), cameras)


def test_tum(photos):
    folder, cameras = photos
    from scipy.spatial.transform import Rotation

    names, truth = ["# color images"], ["# timestamp tx ty tz qx qy qz qw"]
    for number, camera in enumerate(cameras):
        names.append(f"{1000 + number / 10:.4f} images/{number:03d}.png")
        quaternion = Rotation.from_matrix(camera.world_from_camera[:3, :3].numpy()).as_quat()
        values = [*camera.centers.tolist(), *quaternion.tolist()]
        truth.append(f"{1000 + number / 10 + 0.004:.4f} " + " ".join(map(repr, map(float, values))))
    names.append("1009.0 images/000.png")  # long after the last pose
    (folder / "rgb.txt").write_text("\n".join(names))
    (folder / "groundtruth.txt").write_text("\n".join(truth))
    with pytest.raises(CaptureError, match="holds no intrinsics. Looked for: color-intrinsics.txt"):
        load_scene(folder)
    (folder / "intrinsics.txt").write_text("35 36 18.5 15.5\n")  # OpenCV counts from the centre of the first pixel
    with pytest.warns(UserWarning, match="1 frames have no pose"):
        assert_same(load_scene(folder), cameras)
    (folder / "intrinsics.txt").write_text("35 36 18.5 15.5 -0.2 0.01 0 0\n")
    with pytest.warns(UserWarning, match="1 frames have no pose"):
        bent = load_scene(folder)
    assert not torch.equal(
        torch.tensor(np.asarray(bent.images[0])), torch.tensor(np.asarray(PIL.Image.open(bent.image_paths[0])))
    )
    for wrong in ("35 36 18.5 15.5 0.1", "35 7 18.5\n0 36 15.5\n0 0 1", "35 36 nan 15.5"):
        (folder / "intrinsics.txt").write_text(wrong)
        with pytest.raises(CaptureError, match="intrinsics.txt: (must hold|a camera with skew)"):
            load_scene(folder)


def test_seven_scenes(photos):
    folder, cameras = photos
    for number, pose in enumerate(cameras.world_from_camera.numpy()):
        (folder / "images" / f"{number:03d}.png").rename(folder / f"frame-{number:06d}.color.png")
        np.savetxt(folder / f"frame-{number:06d}.pose.txt", pose)
    np.savetxt(folder / "camera-intrinsics.txt", cameras.intrinsics[0].numpy())
    assert_same(load_scene(folder), cameras)


def transforms(cameras: Cameras, **common) -> dict:
    poses = convert_axes(cameras.world_from_camera, "opencv", "opengl").tolist()
    frames = [{"file_path": f"images/{n:03d}.png", "transform_matrix": pose} for n, pose in enumerate(poses)]
    return {"fl_x": 35.0, "fl_y": 36.0, "cx": 19.0, "cy": 16.0, "w": 40, "h": 30, "frames": frames, **common}


def test_dl3dv_and_smaller_copies(photos):
    """DL3DV lists images of the full size and ships those of a quarter."""
    folder, cameras = photos
    data = transforms(cameras, fl_x=140.0, fl_y=144.0, cx=76.0, cy=64.0, w=160, h=120, camera_model="OPENCV", k1=0.0)
    (folder / "transforms.json").write_text(json.dumps(data))
    with pytest.raises(CaptureError, match="40 x 30 pixels, its camera is for 160 x 120"):
        load_scene(folder)
    (folder / "images").rename(folder / "images_4")
    assert_same(load_scene(folder), cameras)
    assert_same(load_scene(folder, downscale=4), cameras)
    with pytest.raises(CaptureError, match="4 of 4 images are missing"):
        load_scene(folder, downscale=2)
    (folder.parent / "hash" / "nerfstudio").mkdir(parents=True)
    for name in ("images_4", "transforms.json"):
        shutil.move(folder / name, folder.parent / "hash" / "nerfstudio" / name)
    assert_same(load_scene(folder.parent / "hash"), cameras)


def test_splits_by_name_and_by_number(photos):
    folder, cameras = photos
    data = transforms(cameras, train_filenames=["images/003.png", "images/000.png"], test_filenames=["images/001.png"])
    (folder / "transforms.json").write_text(json.dumps(data))
    (folder / "train_test_split_2.json").write_text(json.dumps({"train_ids": [0, 3], "test_ids": [1, 2]}))
    scene = load_scene(folder)
    assert scene.splits == {"train": [3, 0], "test": [1], "train_2": [0, 3], "test_2": [1, 2]}
    (folder / "images" / "001.png").unlink()
    with pytest.warns(UserWarning, match="skipped 1 of 4"):
        scene = load_scene(folder, missing="skip")
    assert scene.splits == {"train": [2, 0], "train_2": [0, 2], "test_2": [1]}, "an emptied split is none"
    data["test_filenames"] = ["images/009.png"]
    (folder / "transforms.json").write_text(json.dumps(data))
    with pytest.raises(CaptureError, match="test split names what is no frame .images/009.png."):
        load_scene(folder, missing="skip")
    data["test_filenames"] = ["./images/002.png"]
    (folder / "transforms.json").write_text(json.dumps(data))
    with pytest.warns(UserWarning, match="skipped 1 of 4"):
        assert load_scene(folder, missing="skip").splits["test"] == [1], "however the path is written"
    for ids in ([0, 4], "all", [0.5]):
        (folder / "train_test_split_2.json").write_text(json.dumps({"train_ids": ids, "test_ids": []}))
        with pytest.raises(CaptureError, match="`train_ids` must be a list of numbers from 0 to 3"):
            load_scene(folder, missing="skip")


def test_fisheye_photos_become_straight(photos):
    folder, cameras = photos
    data = transforms(cameras, camera_model="OPENCV_FISHEYE", k1=0.05, k2=-0.01)
    (folder / "transforms.json").write_text(json.dumps(data))
    scene = load_scene(folder)
    torch.testing.assert_close(scene.cameras.intrinsics[:, :2, 2], cameras.intrinsics[:, :2, 2])
    assert scene.images[1].getpixel((19, 16))[0] > 150, "the origin is in the middle, where the lens does not bend"


def test_masks_follow_the_lens_and_the_rotation(photos):
    """A mask that equals its photo stays equal to it after distortion and EXIF rotation are undone."""
    folder, cameras = photos
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data = transforms(cameras, k1=-0.2)
    for number, frame in enumerate(data["frames"]):
        noise = PIL.Image.effect_noise((40, 30), 90)
        noise.convert("RGB").save(folder / "images" / f"{number:03d}.png", exif=exif)
        noise.save(folder / "images" / f"{number:03d}_mask.png")
        frame["mask_path"] = f"images/{number:03d}_mask.png"
    (folder / "transforms.json").write_text(json.dumps(data))
    scene = load_scene(folder)
    assert scene.images[0].size == (30, 40)
    for image, mask in zip(scene.images, scene.masks):
        assert np.array_equal(np.asarray(image)[..., 0], np.asarray(mask))
    PIL.Image.new("L", (8, 8)).save(folder / "images" / "000_mask.png")
    with pytest.raises(CaptureError, match="000_mask.png: the mask has .8, 8. pixels"):
        load_scene(folder).masks[0]
    (folder / "images" / "000_mask.png").unlink()
    with pytest.raises(CaptureError, match="its mask .*000_mask.png is missing"):
        load_scene(folder)
    with pytest.warns(UserWarning, match="1 of 4 photos have no masks: none are used"):
        assert load_scene(folder, missing="skip").masks is None


def test_smaller_photos_keep_the_field_of_view(photos):
    """Without width and height in the file, pixels are those of the photo as listed, and an angle is an angle."""
    folder, cameras = photos
    shutil.copytree(folder / "images", folder / "images_2")
    for path in (folder / "images_2").iterdir():
        PIL.Image.open(path).resize((20, 15)).save(path)
    for lens in ({"fl_x": 35.0, "fl_y": 36.0}, {"camera_angle_x": 1.0}):
        data = {"frames": transforms(cameras)["frames"], **lens}
        (folder / "transforms.json").write_text(json.dumps(data))
        whole, small = load_scene(folder), load_scene(folder, downscale=2)
        assert small.images[0].size == (20, 15)
        torch.testing.assert_close(small.cameras.fov, whole.cameras.fov)
        shutil.move(folder / "images", folder / "away")
        if "fl_x" in lens:
            with pytest.raises(CaptureError, match="without `w` and `h` the pixels of its lens"):
                load_scene(folder)
        else:
            torch.testing.assert_close(load_scene(folder).cameras.fov, whole.cameras.fov)
        shutil.move(folder / "away", folder / "images")


def test_photos_of_another_capture_are_not_taken(photos):
    folder, cameras = photos
    data = transforms(cameras)
    for frame in data["frames"]:
        frame["file_path"] = frame["file_path"].removeprefix("images/")
    (folder / "transforms.json").write_text(json.dumps(data))
    (folder / "images").rename(folder.with_name("capture_2"))
    with pytest.raises(CaptureError, match="4 of 4 images are missing"):
        load_scene(folder)


def test_links_that_leave_the_folder_by_any_reader(photos):
    folder, cameras = photos
    (folder / "images" / "000.png").rename(folder.parent / "secret.png")
    (folder / "images" / "000.png").symlink_to(folder.parent / "secret.png")
    np.save(folder / "poses_bounds.npy", np.tile([0, 1, 0, 0, 30, 1, 0, 0, 0, 40, 0, 0, -1, 0, 35, 1, 9.0], (4, 1)))
    with pytest.raises(CaptureError, match="leaves the folder"):
        load_scene(folder)


def test_a_turned_tiff_is_refused(photos):
    folder, cameras = photos
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data = transforms(cameras)
    data["frames"][0]["file_path"] = "images/000.tiff"
    PIL.Image.new("RGB", (40, 30)).save(folder / "images" / "000.tiff", exif=exif)
    (folder / "transforms.json").write_text(json.dumps(data))
    with pytest.raises(CaptureError, match="a TIFF photo with a rotation"):
        load_scene(folder)


def test_a_scene_of_a_shard(tmp_path):
    source = SyntheticSource("object", "views", num_scenes=2, num_views=3, size=16, samples=1)
    (file,) = write_shards(tmp_path, [source[0], source[1]])
    with pytest.raises(CaptureError, match="holds 2 scenes; choose one by `scene`: 00000000, 00000001"):
        load_scene(file)
    scene = load_scene(tmp_path, scene="00000001")
    assert len(scene) == 3 and scene.images[0].size == (16, 16)
    torch.testing.assert_close(scene.cameras.world_from_camera, source[1].poses)
    (tmp_path / "evil").mkdir()
    with tarfile.open(file) as original, tarfile.open(tmp_path / "evil" / "a.tar", "w") as tar:
        for member in original.getmembers()[:4]:
            stream = original.extractfile(member)
            member.name = member.name.replace("00000000", "../../outside")
            tar.addfile(member, stream)
    assert load_scene(tmp_path / "evil").name == "outside", "part of the names of files that are written"
    write_shards(tmp_path / "video", [SyntheticSource("object", "video", num_scenes=1, num_views=3, size=16)[0]])
    with pytest.raises(CaptureError, match="video without cameras"):
        load_scene(tmp_path / "video")


def test_a_photo_is_a_capture(tmp_path):
    PIL.Image.new("RGB", (360, 240)).save(tmp_path / "a.jpg")
    assert photo_scene(tmp_path / "a.jpg", 60).cameras.fov[0].tolist()[0] == pytest.approx(60)
    with pytest.raises(CaptureError, match="the field of view is not known"):
        photo_scene(tmp_path / "a.jpg")
    exif = PIL.Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 50
    PIL.Image.new("RGB", (360, 240)).save(tmp_path / "b.jpg", exif=exif)
    expected = np.degrees(2 * np.arctan(36 / 2 / 50))
    assert photo_scene(tmp_path / "b.jpg").cameras.fov[0].tolist()[0] == pytest.approx(expected, abs=1e-6)


# What cannot be read


def test_images_are_decoded_once_within_a_bound(photos, monkeypatch):
    folder, cameras = photos
    (folder / "transforms.json").write_text(json.dumps(transforms(cameras)))
    scene = load_scene(folder)
    first = scene.images[0]
    (folder / "images" / "000.png").unlink()
    assert scene.images[0] == first and scene.images[0] is not first, "kept, and not shared"
    monkeypatch.setattr("kaleido_diffusers.captures.scene.CACHE_BYTES", 2 * 40 * 30 * 3)
    assert [image.size for image in scene.images[[1, 2, 3]]] == [(40, 30)] * 3
    with pytest.raises(CaptureError, match="000.png: no such image"):
        scene.images[0]


def test_ten_thousand_frames_open_in_little_memory(tmp_path):
    (tmp_path / "images").mkdir()
    PIL.Image.new("RGB", (64, 48)).save(tmp_path / "images" / "a.jpg")
    generator = torch.Generator().manual_seed(0)
    poses = convert_axes(random_poses(10_000, generator=generator), "opencv", "opengl").tolist()
    frames = []
    for number, pose in enumerate(poses):
        os.link(tmp_path / "images" / "a.jpg", tmp_path / "images" / f"{number}.jpg")
        frames.append({"file_path": f"images/{number}.jpg", "transform_matrix": pose})
    common = {"fl_x": 60.0, "w": 64, "h": 48, "k1": 0.01}
    (tmp_path / "transforms.json").write_text(json.dumps({**common, "frames": frames}))
    tracemalloc.start()
    scene = load_scene(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(scene) == 10_000 and peak < 300e6


FILES = {
    "kermit": "sparse/0/images.bin",
    "snowmiku": "sparse/0/cameras.bin",
    "fox_colmap": "sparse_txt/0/images.txt",
    "ethiopian_head": "poses_bounds.npy",
    "gso_elephant": "003.npy",
    "sevenscenes": "frame-000240.pose.txt",
    "chair": "transforms_train.json",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["bits", "cut", "empty", "noise"])
def test_damaged_files_end_in_our_error_or_in_a_scene(name, damage, tmp_path):
    """Bits flipped in real files, near the front where counts and types stand and anywhere."""
    original = shared(f"captures/{name}")
    copy = tmp_path / name
    pictures = ["*.jpg"] if name == "gso_elephant" else ["*.jpg", "*.png"]
    shutil.copytree(original, copy, ignore=shutil.ignore_patterns("images", *pictures))
    dice = random.Random(f"{name} {damage}")
    content = (original / FILES[name]).read_bytes()
    target = copy / FILES[name]
    images = SHARED / "captures/fox/images" if name == "fox_colmap" else original / "images"
    options = {"images": images if images.is_dir() else original, "missing": "skip"}
    folder = copy / "sparse_txt/0" if name == "fox_colmap" else copy
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(load_scene(folder, **options)), "whole, it is read"
    for _ in range(25 if damage == "bits" else 3):
        changed = bytearray(content)
        if damage == "bits":
            for _ in range(dice.choice([1, 1, 4])):
                changed[dice.randrange(dice.choice([64, len(content)]))] ^= 1 << dice.randrange(8)
        elif damage == "cut":
            changed = changed[: dice.randrange(len(content))]
        else:
            changed = dice.randbytes(500) if damage == "noise" else b""
        target.unlink()
        target.write_bytes(changed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                load_scene(folder, **options)
            except CaptureError as error:
                assert str(tmp_path) in str(error) or str(original) in str(error)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from(["sequence_name", "image", "viewpoint", "mask", "R", "T", "size", "path", "focal_length"])


@settings(max_examples=100, deadline=None)
@given(changes=st.dictionaries(KEYS, VALUES, min_size=1, max_size=3), top=VALUES, replace_all=st.booleans())
def test_annotations_that_cannot_be(tmp_path_factory, changes, top, replace_all):
    folder = tmp_path_factory.mktemp("co3d") / "apple"
    (folder / "a" / "images").mkdir(parents=True)
    PIL.Image.new("RGB", (4, 4)).save(folder / "a" / "images" / "0.png")
    entry = {"sequence_name": "a", "image": {"path": "apple/a/images/0.png", "size": [4, 4]}}
    entry["viewpoint"] = {"R": np.eye(3).tolist(), "T": [0, 0, 0], "focal_length": [2, 2], "principal_point": [0, 0]}
    for key, value in changes.items():
        for place in (entry, entry.get("image"), entry.get("viewpoint")):
            if isinstance(place, dict) and key in place:
                place[key] = value
    with gzip.open(folder / "frame_annotations.jgz", "wt", encoding="utf-8") as stream:
        json.dump(top if replace_all else [entry], stream)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert len(load_scene(folder / "a")) == 1
        except CaptureError as error:
            assert str(folder) in str(error)


def test_hostile_models(photos):
    pytest.importorskip("pycolmap")
    folder, cameras = photos
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    lens = "1 PINHOLE 40 30 35 36 19 16\n"
    pose = "1 1 0 0 0 0 0 0 1 {}\n\n"
    lost = r"1 of 1 frames have no pose \(000\.png\): their matrices have NaN, infinite"
    cases = [
        (lens, pose.format("../../secret.png"), "leaves the folder"),
        (lens, pose.format("/etc/passwd"), "leaves the folder"),
        (lens, pose.format("000.png").replace("1 1 0", "1 nan 0"), lost),
        (lens, pose.format("000.png").replace("1 1 0", "1 0 0"), lost),
        (lens, pose.format("000.png").replace("1 1 0", "1 2 0"), "not a unit quaternion"),
        (lens, pose.format("000.png").replace("0 1 000", "inf 1 000"), lost),
        (lens, pose.format("000.png").replace(" 1 000", " 2 000"), "camera 2, which is not listed"),
        (lens, "# none\n", "lists no images"),
        (lens, "1 1 0 0\n", "'1 1 0 0' is not an image"),
        (lens.replace("35 36", "0 36"), pose.format("000.png"), "focal length must be positive"),
        (lens.replace("PINHOLE", "PINHOLES"), pose.format("000.png"), "'PINHOLES' is not known"),
        (lens.replace(" 16", ""), pose.format("000.png"), "needs 4 finite parameters"),
        (lens.replace("40 30", "40 0"), pose.format("000.png"), "the size 40 x 0 is no image's"),
        (lens.replace("40 30", "80 30"), pose.format("000.png"), "40 x 30 pixels, its camera is for 80 x 30"),
    ]
    for camera, image, message in cases:
        (model / "cameras.txt").write_text(camera)
        (model / "images.txt").write_text(image)
        with pytest.raises(CaptureError, match=message):
            load_scene(folder)
    (model / "images.txt").write_bytes(os.fsencode(pose.format("a\udcff.png")))
    (model / "cameras.txt").write_text(lens)
    with pytest.raises(CaptureError, match="1 of 1 images are missing") as error:
        load_scene(folder)
    str(error.value).encode("utf-8")
    PIL.Image.new("RGB", (40, 30)).save(os.fsencode(folder / "images") + b"/a\xff.png", "PNG")
    assert len(load_scene(folder)) == 1


def test_tars_are_not_trusted(tmp_path):
    (tmp_path / "bad.tar").write_bytes(b"not a tar")
    with pytest.raises(CaptureError, match="bad.tar: not a shard"):
        load_scene(tmp_path / "bad.tar")
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        tar.add(Path(sample_capture()) / "transforms.json", "a/scene.json")
        tar.add(Path(sample_capture()) / "images" / "0000.jpg", "a/000.jpg")
    with pytest.raises(CaptureError, match="scene 'a': is a video without cameras"):
        load_scene(tmp_path / "bad.tar")
