"""Lenses: pycolmap is the oracle of every formula, drawn points that of the photos."""

import PIL.Image
import pytest
import torch
from conftest import blobs, found

from kaleido_diffusers import Cameras
from kaleido_diffusers.captures.images import CaptureError, as_image_tensor, fit_cameras, fit_image, tensor_to_image
from kaleido_diffusers.captures.lenses import (
    ColmapLens,
    FisheyeLens,
    RadialTangentialLens,
    seen_straight,
    undistort,
    undistorted_camera,
)
from kaleido_diffusers.captures.photos import Optics, Photo, photo_cameras
from kaleido_diffusers.captures.readers.colmap import MODELS, camera_of


pycolmap = pytest.importorskip("pycolmap")

HEIGHT, WIDTH = 90, 120
POINTS = torch.tensor([[0.0, 0.0, 2.0], [0.5, 0.3, 2.0], [-0.5, -0.35, 2.1], [0.4, -0.4, 2.4]], dtype=torch.float64)
TERMS = {
    "SIMPLE_RADIAL": (-0.1,),
    "RADIAL": (-0.1, 0.05),
    "OPENCV": (-0.2, 0.05, 0.003, -0.002),
    "OPENCV_FISHEYE": (0.03, -0.02, 0.01, 0.004),
    "FULL_OPENCV": (-0.1, 0.05, 0.003, -0.002, 0.01, 0.1, 0.02, 0.01),
    "FOV": (0.6,),
    "SIMPLE_RADIAL_FISHEYE": (0.05,),
    "RADIAL_FISHEYE": (0.05, -0.02),
    "THIN_PRISM_FISHEYE": (0.03, -0.02, 0.001, 0.002, 0.01, 0.004, 0.001, -0.001),
    "RAD_TAN_THIN_PRISM_FISHEYE": (0.03, -0.02, 0.01, 0.0, 0.0, 0.0, 0.001, 0.002, 0.001, 0.0, -0.001, 0.0),
    "SIMPLE_DIVISION": (-0.1,),
    "DIVISION": (-0.1,),
    "EUCM": (0.6, 1.1),
}


def params_of(model: str) -> tuple[float, ...]:
    count = dict(MODELS.values())[model]
    terms = TERMS.get(model, ())
    return (*((130.0,) if count - len(terms) == 3 else (130.0, 128.0)), 58.0, 47.0, *terms)


@pytest.mark.parametrize("model", [name for name, _ in MODELS.values()])
def test_every_model_of_colmap_bends_as_pycolmap_does(model):
    params = params_of(model)
    oracle = pycolmap.Camera(model=model, width=WIDTH, height=HEIGHT, params=params)
    camera = camera_of("here", model, WIDTH, HEIGHT, params)
    expected = torch.from_numpy(oracle.img_from_cam(POINTS.numpy()))
    plane = POINTS[:, :2] / POINTS[:, 2:]
    bent = plane if camera.lens is None else camera.lens.bend(plane)
    intrinsics = torch.tensor(camera.intrinsics, dtype=torch.float64)
    torch.testing.assert_close(bent @ intrinsics[:2, :2].T + intrinsics[:2, 2], expected, rtol=0, atol=1e-9)
    assert camera.lens is None or not torch.equal(bent, plane)


def test_all_models_that_pycolmap_knows_are_known():
    known = {int(value): name for name, value in pycolmap.CameraModelId.__members__.items() if int(value) >= 0}
    known = {number: name for number, name in known.items() if name not in ("INVALID", "EQUIRECTANGULAR")}
    assert {number: name for number, (name, _) in MODELS.items()} == known, "a panorama has no pinhole camera"


LENSES = [
    RadialTangentialLens(k1=0.06, k2=-0.08, p1=-0.001, p2=0.002),
    RadialTangentialLens(k1=-0.25, k2=0.05, k3=0.01, p1=0.003, p2=-0.002),
    RadialTangentialLens(k1=0.1, k2=0.02, k4=0.3, k5=0.02, k6=0.01),
    FisheyeLens(k1=-0.05, k2=0.02),
    ColmapLens("FOV", WIDTH, HEIGHT, params_of("FOV")),
]


@pytest.mark.parametrize("lens", LENSES, ids=str)
def test_undistorted_photos_show_points_where_the_camera_projects_them(lens):
    intrinsics = torch.tensor([[130.0, 0.0, 58.0], [0.0, 128.0, 47.0], [0.0, 0.0, 1.0]])
    cameras = Cameras(torch.eye(4)[None], intrinsics, [HEIGHT, WIDTH])
    bent = torch.nn.functional.pad(lens.bend(POINTS[:, :2] / POINTS[:, 2:]), (0, 1), value=1.0)
    photo = blobs(cameras, bent)[0]
    straight, camera = undistort(photo, cameras[0], lens)
    assert straight.shape == photo.shape
    pixels, _ = camera.project(POINTS)
    moved = 0.0
    for pixel, raw in zip(pixels.float(), cameras[0].project(POINTS)[0]):
        moved = max(moved, (found(photo, pixel, 10) - raw).norm().item())
        assert (found(straight, pixel, 10) - pixel).norm() < 0.15
    assert moved > 0.2, "the distortion is visible"
    bright, _ = undistort(torch.ones_like(photo), cameras[0], lens)
    assert bright.min() > 0.999, "no pixel of the result lies outside the photo"
    torch.testing.assert_close(camera.intrinsics[:2, 2].float(), intrinsics[:2, 2]), "the principal point stays"


def test_the_remap_follows_pycolmap():
    """The photo read where pycolmap says that each straight pixel was seen."""
    lens = RadialTangentialLens(k1=-0.2, k2=0.05, p1=0.003, p2=-0.002)
    generator = torch.Generator().manual_seed(0)
    photo = torch.rand(1, 3, 9, 12, generator=generator)
    photo = torch.nn.functional.interpolate(photo, (HEIGHT, WIDTH), mode="bicubic")[0].clamp(0, 1)
    intrinsics = torch.tensor([[130.0, 0.0, 58.0], [0.0, 128.0, 47.0], [0.0, 0.0, 1.0]])
    straight, camera = undistort(photo, Cameras(torch.eye(4), intrinsics, [HEIGHT, WIDTH]), lens)
    size = {"width": WIDTH, "height": HEIGHT}
    pinhole = pycolmap.Camera(model="PINHOLE", params=[*camera.intrinsics.diagonal()[:2].tolist(), 58.0, 47.0], **size)
    params = [130.0, 128.0, 58.0, 47.0, lens.k1, lens.k2, lens.p1, lens.p2]
    bent = pycolmap.Camera(model="OPENCV", params=params, **size)
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    rays = torch.from_numpy(pinhole.cam_from_img(torch.stack([x, y], dim=-1).reshape(-1, 2).double().numpy()))
    pixels = bent.img_from_cam(torch.nn.functional.pad(rays, (0, 1), value=1.0).numpy())
    grid = 2 * torch.from_numpy(pixels) / torch.tensor([WIDTH, HEIGHT]) - 1
    grid = grid.view(1, HEIGHT, WIDTH, 2).float()
    expected = torch.nn.functional.grid_sample(photo[None], grid, align_corners=False, padding_mode="border")[0]
    torch.testing.assert_close(straight, expected, rtol=0, atol=1e-4)


class CountingLens(RadialTangentialLens):
    """Knows how many points it was asked for."""

    counted: list[int] = []

    def bend(self, points):
        self.counted.append(points[..., 0].numel())
        return super().bend(points)


def large_photo(lens, path, orientation: int = 1) -> tuple[Photo, Cameras]:
    """800 x 600 pixels of drawn points as a lens shows them, and the camera that sees them straight and upright."""
    intrinsics = torch.tensor([[840.0, 0, 388], [0, 836, 308], [0, 0, 1]])
    cameras = Cameras(torch.eye(4)[None], intrinsics, [600, 800])
    bent = torch.nn.functional.pad(lens.bend(POINTS[:, :2] / POINTS[:, 2:]), (0, 1), value=1.0)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    tensor_to_image(blobs(cameras, bent, radius=12.0)[0]).save(path, exif=exif)
    turns = {1: 0, 6: 3}[orientation]
    photo = Photo(path, Optics(cameras[0], lens), turns)
    return photo, photo_cameras([photo], torch.eye(4, dtype=torch.float64)[None], ["it"])[0]


@pytest.mark.parametrize("lens, orientation", [(LENSES[1], 6), (LENSES[3], 1)])
def test_a_lens_is_undone_at_the_size_that_is_asked_for(tmp_path, lens, orientation):
    photo, camera = large_photo(lens, tmp_path / "a.png", orientation)
    upright = camera.image_sizes.tolist()
    view, size = photo.load_fitted(64, 48)
    assert list(size) == upright == ([600, 800] if orientation == 1 else [800, 600])
    pixels, _ = fit_cameras(camera, 64, 48).project(POINTS)
    for pixel in pixels.float():
        if (pixel > 4).all() and (pixel < torch.tensor([44, 60])).all():
            assert (found(view, pixel, 4) - pixel).norm() < 0.1
    torch.testing.assert_close(view, fit_image(photo.load(), 64, 48), rtol=0, atol=0.02)
    small, _ = photo.load_fitted(upright[0], upright[1])
    torch.testing.assert_close((small * 255).round(), as_image_tensor(photo.load()) * 255, rtol=0, atol=1.01)


def test_large_photos_take_few_points_of_their_lens(tmp_path):
    photo, _ = large_photo(CountingLens(k1=-0.1), tmp_path / "a.png")
    CountingLens.counted.clear()
    photo.load_fitted(64, 64)
    assert CountingLens.counted == [256 * 256], "four times the size"
    photo.load()
    assert CountingLens.counted[1] == 201 * 268, "every third pixel of 600 x 800"


def test_between_its_nodes_a_lens_is_followed_to_a_hundredth_of_a_pixel():
    lens, size = LENSES[1], (1500, 2000)
    camera = Cameras(torch.eye(4), torch.tensor([[2100.0, 0, 970], [0, 2090, 770], [0, 0, 1]]), size)
    straight = undistorted_camera(camera, lens)
    ramp = torch.arange(2000.0).expand(1, 1500, 2000)  # the value of a pixel is where it lies
    columns = seen_straight(ramp, camera, lens, straight)[0]
    rows, places = torch.randint(0, 1500, (200,)), torch.randint(2, 1998, (200,))
    pixels = torch.stack([places + 0.5, rows + 0.5], dim=-1).double()
    rays = (pixels - straight.intrinsics[:2, 2]) / straight.intrinsics.diagonal()[:2]
    expected = lens.bend(rays)[:, 0] * 2100 + 970 - 0.5
    torch.testing.assert_close(columns[rows, places].double(), expected.clamp(0, 1999), rtol=0, atol=0.01)


@pytest.mark.parametrize("k1", [-3.0, 5000.0])
def test_distortion_that_folds_the_image_is_refused(k1):
    camera = Cameras(torch.eye(4), torch.tensor([[130.0, 0, 58], [0, 128, 47], [0, 0, 1]]), [HEIGHT, WIDTH])
    with pytest.raises(CaptureError, match="folds the image"):
        undistorted_camera(camera, RadialTangentialLens(k1=k1))
