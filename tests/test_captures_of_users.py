"""Captures as users have them: what other tools and other computers leave is read right, or said."""

import codecs
import io
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.PngImagePlugin
import pytest
import torch

from kaleido_diffusers import Cameras, cli, load_scene, sample_capture
from kaleido_diffusers.captures.export import write_colmap, write_video
from kaleido_diffusers.captures.images import CaptureError, load_image
from kaleido_diffusers.captures.posing.video import sharp_frames
from kaleido_diffusers.captures.readers.places import natural_order
from kaleido_diffusers.captures.readers.single_photo import photo_scene
from kaleido_diffusers.geometry.choosing import split_views


POSE = [[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 2.0], [0, 0, 0, 1.0]]
LENS = {"fl_x": 40.0, "fl_y": 40.0, "cx": 16.0, "cy": 12.0, "w": 32, "h": 24}


def picture(path: Path, size: tuple[int, int] = (32, 24), orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.new("RGB", size, "grey").save(path, exif=exif)
    return path


def frame(name: str, shift: float = 0.0, **more) -> dict:
    pose = [row[:] for row in POSE]
    pose[0][3] = shift
    return {"file_path": name, "transform_matrix": pose, **more}


def write(folder: Path, names: list[str], **common) -> Path:
    frames = [frame(name, number) for number, name in enumerate(names)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "transforms.json").write_text(json.dumps({**LENS, "frames": frames, **common}))
    return folder


def model(folder: Path, names: list[str], size: str = "32 24", gap: str = "\n") -> Path:
    folder.mkdir(parents=True)
    (folder / "cameras.txt").write_text(f"1 PINHOLE {size} 40 40 16 12\n")
    lines = (f"{number} 1 0 0 0 {number} 0 0 1 {name}\n{gap}" for number, name in enumerate(names, start=1))
    (folder / "images.txt").write_text("".join(lines))
    return folder


def test_the_largest_of_several_models(tmp_path):
    names = [picture(tmp_path / f"images/{number}.jpg").name for number in range(5)]
    model(tmp_path / "sparse/1", names[:2])
    model(tmp_path / "sparse/10", names)
    with pytest.warns(UserWarning, match="holds 2 models.*10, the largest, with 5 photos.*sparse/1 with 2"):
        assert len(load_scene(tmp_path)) == 5
    with pytest.warns(UserWarning) as heard:
        assert len(load_scene(tmp_path / "sparse/1")) == 2, "one that is named is read"
    (message,) = (str(warning.message) for warning in heard)
    assert "3 photos in" in message and "without a camera: left out (2.jpg, 3.jpg, 4.jpg)" in message


def test_images_without_lines_of_observations(tmp_path):
    names = [picture(tmp_path / f"images/{number} a.jpg").relative_to(tmp_path / "images").name for number in range(4)]
    folder = model(tmp_path / "sparse/0", names, gap="")
    (folder / "points3D.txt").touch()
    scene = load_scene(tmp_path)
    assert len(scene) == 4 and scene.points is None
    file = folder / "images.txt"
    file.write_text(file.read_text().replace("2 1 0 0 0", "1.5 2.5 -1\n2 1 0 0 0"))
    assert len(load_scene(tmp_path)) == 4, "some images have observations"
    file.write_text(file.read_text().replace("1.5 2.5 -1", "1.5 2.5"))
    with pytest.raises(CaptureError, match="'1.5 2.5' is neither an image nor observations"):
        load_scene(tmp_path)


def test_photos_that_are_a_smaller_copy(tmp_path):
    picture(tmp_path / "images/a.jpg", (16, 12))
    model(tmp_path / "sparse/0", ["a.jpg"], "33 25")
    with pytest.warns(UserWarning, match="1 of 1 photos have another size than their camera"):
        camera = load_scene(tmp_path).cameras[0]
    assert camera.image_sizes.tolist() == [12, 16]
    assert float(camera.intrinsics[0, 0]) == pytest.approx(40 * 16 / 33)


def test_numbers_count_but_every_nth_is_by_text(tmp_path):
    names = [f"images/{number}.png" for number in range(20)]
    for name in names:
        picture(tmp_path / name)
    scene = load_scene(write(tmp_path, names))
    assert [path.stem for path in scene.image_paths] == [str(number) for number in range(20)]
    kept = split_views(len(scene), scene.splits, "test", order=scene.text_order)
    by_text = sorted(range(20), key=str)
    assert kept == sorted(by_text[::8])
    (tmp_path / "train_test_split_2.json").write_text(json.dumps({"train_ids": [0, 1], "test_ids": [2, 3]}))
    assert load_scene(tmp_path).splits["test_2"] == [10, 11], "numbers of a split count names sorted as text"
    assert sorted(["a10", "a9", "a09"], key=natural_order) == ["a09", "a9", "a10"]
    natural_order("9" * 10_000)


@pytest.mark.parametrize("key", ["equirectangular", "latlong", "ftheta_p1", "orthographic", "b1"])
@pytest.mark.parametrize("of_frame", [False, True])
def test_lenses_of_other_kinds_are_refused(tmp_path, key, of_frame):
    picture(tmp_path / "a.png")
    write(tmp_path, ["a.png"], **({"frames": [frame("a.png", **{key: 1.0})]} if of_frame else {key: 1.0}))
    with pytest.raises(CaptureError, match=f"`{key}` names a lens that cannot be undone"):
        load_scene(tmp_path)
    write(tmp_path, ["a.png"], **{key: 0})
    assert len(load_scene(tmp_path)) == 1


def test_fields_of_view_in_degrees(tmp_path):
    picture(tmp_path / "a.png")
    lens = dict.fromkeys(("fl_x", "fl_y"))
    for more in ({"x_fov": 60.0}, {"x_fov": 60.0, "camera_angle_x": 1.2}, {"frames": [frame("a.png", x_fov=60.0)]}):
        data = {**{key: value for key, value in LENS.items() if key not in lens}, "frames": [frame("a.png")], **more}
        (tmp_path / "transforms.json").write_text(json.dumps(data))
        assert load_scene(tmp_path).cameras.fov[0, 0].item() == pytest.approx(60.0)
    write(tmp_path, ["a.png"], x_fov=1.2)
    with pytest.raises(CaptureError, match="`x_fov` must be in degrees"):
        load_scene(tmp_path)


def test_what_some_photos_prove_of_exif_holds_for_all(tmp_path):
    upright = {**LENS, "w": 24, "h": 32, "cx": 12.0, "cy": 16.0}
    frames = [frame("6.jpg", **upright), frame("3.jpg", 1.0, **LENS)]
    picture(tmp_path / "6.jpg", orientation=6), picture(tmp_path / "3.jpg", orientation=3)
    write(tmp_path, [], frames=frames)
    assert torch.equal(load_scene(tmp_path).cameras.world_from_camera[0, :3, :3].diagonal().abs(), torch.ones(3))
    rolls = load_scene(tmp_path).cameras.world_from_camera[:, 0, 0]
    assert (rolls == 1).all(), "the JSON holds both photos upright"
    write(tmp_path, [], frames=[frame("6.jpg", **LENS), frame("3.jpg", 1.0, **LENS)])
    scene = load_scene(tmp_path)
    assert scene.cameras.world_from_camera[:, 0, 0].round(decimals=6).tolist() == [-1.0, 0.0], "both stored"
    write(tmp_path, ["3.jpg"])
    with pytest.warns(UserWarning, match="1 of 1 photos have an EXIF rotation, and nothing proves"):
        load_scene(tmp_path)


@pytest.mark.parametrize("lens", ["angles", "center"])
def test_square_pixels_and_the_centre_tell_what_exif_did(tmp_path, lens):
    picture(tmp_path / "a.jpg", orientation=6)
    angles = {"camera_angle_x": 2 * np.arctan(12 / 40), "camera_angle_y": 2 * np.arctan(16 / 40)}
    said = angles if lens == "angles" else {"fl_x": 40.0, "fl_y": 40.0, "cx": 12.0, "cy": 16.0}
    (tmp_path / "transforms.json").write_text(json.dumps({**said, "frames": [frame("a.jpg")]}))
    camera = load_scene(tmp_path).cameras[0]
    assert camera.image_sizes.tolist() == [32, 24]
    np.testing.assert_allclose(camera.intrinsics.diagonal(), [40.0, 40.0, 1.0])
    assert camera.world_from_camera[0, 0] == 1


def test_frames_and_masks_of_scannetpp(tmp_path):
    for number in range(3):
        picture(tmp_path / f"resized_images/{number}.JPG".replace("JPG", "jpg"))
        picture(tmp_path / f"resized_anon_masks/{number}.png")
    frames = [frame(f"{number}.jpg", number, mask_path=f"{number}.png", is_bad=number == 1) for number in range(3)]
    write(tmp_path / "nerfstudio", [], frames=frames[:2], test_frames=frames[2:])
    with pytest.warns(UserWarning, match="1 of 2 frames are marked `is_bad`"):
        scene = load_scene(tmp_path / "nerfstudio", images=tmp_path / "resized_images")
    assert scene.splits == {"train": [0, 1], "test": [2]} and len(scene.masks) == 3
    shutil.rmtree(tmp_path / "resized_anon_masks")
    with pytest.warns(UserWarning, match="3 of 3 photos have no masks"):
        load_scene(tmp_path / "nerfstudio", images=tmp_path / "resized_images", missing="skip")


def test_masks_by_other_names(tmp_path):
    for number in range(2):
        picture(tmp_path / f"images/{number}.jpg"), picture(tmp_path / f"masks/{number}.png")
    model(tmp_path / "sparse/0", ["0.jpg", "1.jpg"])
    assert len(load_scene(tmp_path).masks) == 2
    (tmp_path / "masks/0.png").rename(tmp_path / "masks/mask_0.png")
    (tmp_path / "masks/1.png").rename(tmp_path / "masks/mask_1.png")
    with pytest.warns(UserWarning, match="none of the 2 masks in .*masks is called as a photo"):
        assert load_scene(tmp_path).masks is None


def test_a_split_whose_photos_are_missing_is_none(tmp_path):
    for number in range(9):
        picture(tmp_path / f"train/{number}.png")
    for split, names in (("train", [f"train/{n}" for n in range(9)]), ("test", ["test/0", "test/1"])):
        data = {"camera_angle_x": 0.8, "frames": [frame(name, i) for i, name in enumerate(names)]}
        (tmp_path / f"transforms_{split}.json").write_text(json.dumps(data))
    with pytest.warns(UserWarning, match="no photo of the test split is there"):
        scene = load_scene(tmp_path, missing="skip")
    assert split_views(len(scene), scene.splits, "test") == [0, 8]


@pytest.mark.parametrize("name", ["/home/user/scan/images/{}.png", "C:\\scan\\images\\{}.png", "../images/{}.png"])
def test_paths_of_another_computer(tmp_path, name):
    for number in range(2):
        picture(tmp_path / f"c/images/{number}.png")
    write(tmp_path / "c", [name.format(number) for number in range(2)])
    assert [path.stem for path in load_scene(tmp_path / "c", images=tmp_path / "c/images").image_paths] == ["0", "1"]
    with pytest.raises(CaptureError, match="--images"):
        load_scene(tmp_path / "c")


def test_photos_of_a_rig_are_not_mixed_up(tmp_path):
    names = [f"images/{side}/0.png" for side in ("back", "front")]
    for name in names:
        picture(tmp_path / name)
    write(tmp_path, names)
    with pytest.warns(UserWarning, match="skipped 1 of 2 frames without an image .images/back/0.png"):
        scene = load_scene(tmp_path, images=tmp_path / "images/front", missing="skip")
    assert scene.cameras.centers[:, 0].tolist() == [1.0]
    assert len(load_scene(tmp_path, images=tmp_path)) == len(load_scene(tmp_path, images=tmp_path / "images")) == 2
    picture(tmp_path / "flat/0.png")
    with pytest.raises(CaptureError, match="have different cameras, but both find the photo .*flat/0.png"):
        load_scene(tmp_path, images=tmp_path / "flat")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks(tmp_path, encoding):
    picture(tmp_path / "ä.png")
    text = write(tmp_path, ["ä.png"]) / "transforms.json"
    text.write_text(text.read_text(), encoding=encoding)
    assert len(load_scene(tmp_path)) == 1


def test_a_byte_order_mark_in_a_model(tmp_path):
    picture(tmp_path / "images/a.png")
    folder = model(tmp_path / "sparse/0", ["a.png"])
    for file in folder.iterdir():
        file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    assert len(load_scene(tmp_path)) == 1


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_points_of_a_ply_file(tmp_path, form):
    picture(tmp_path / "a.png")
    points = np.arange(12.0).reshape(4, 3)
    header = f"ply\nformat {form} 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
    body = points.astype(">f4" if "big" in form else "<f4").tobytes()
    body = "\n".join(" ".join(map(str, row)) for row in points).encode() if form == "ascii" else body
    (tmp_path / "p.ply").write_bytes(f"{header}end_header\n".encode() + body)
    write(tmp_path, ["a.png"], ply_file_path="p.ply")
    np.testing.assert_array_equal(load_scene(tmp_path).points, points)
    (tmp_path / "p.ply").write_bytes(f"{header}end_header\n".encode() + body[:-8])
    with pytest.raises(CaptureError, match="p.ply: not a PLY file of points"):
        load_scene(tmp_path)
    (tmp_path / "p.ply").unlink()
    with pytest.warns(UserWarning, match="`ply_file_path`. are missing"):
        assert load_scene(tmp_path).points is None


@pytest.mark.parametrize(
    "listed, on_disk", [("a/0.JPG", "a/0.jpg"), ("A/0.jpg", "a/0.jpg"), ("a/e\u0301.png", "a/\u00e9.png")]
)
def test_names_in_another_case(tmp_path, listed, on_disk):
    picture(tmp_path / on_disk)
    assert load_scene(write(tmp_path, [listed])).image_paths == [tmp_path / on_disk]
    (tmp_path / on_disk).rename(tmp_path / on_disk.replace(".jpg", ".webp").replace(".png", ".webp"))
    with pytest.raises(CaptureError, match=r"There is a .*\.webp: is the suffix listed wrongly"):
        load_scene(tmp_path)


def test_frames_whose_tracking_was_lost(tmp_path):
    for number in range(2):
        picture(tmp_path / f"{number}.png")
    lost = {"file_path": "1.png", "transform_matrix": [[float("-inf")] * 4] * 4}
    write(tmp_path, [], frames=[frame("0.png"), lost])
    with pytest.warns(UserWarning, match="skipped 1 of 2 frames without a pose .1.png"):
        assert len(load_scene(tmp_path, missing="skip")) == 1
    with pytest.raises(CaptureError, match="1 of 2 frames have no pose .1.png"):
        load_scene(tmp_path)


def test_files_that_begin_with_a_dot_are_no_photos(tmp_path):
    picture(tmp_path / "images/0.png")
    (tmp_path / "images/._0.png").write_bytes(b"\0\5\x16\7")
    rows = np.hstack([np.hstack([np.eye(3), np.zeros((3, 1)), [[24], [32], [40]]]).reshape(1, -1), [[1.0, 2.0]]])
    np.save(tmp_path / "poses_bounds.npy", rows)
    assert len(load_scene(tmp_path)) == 1


def test_links_of_the_cache_of_the_hub(tmp_path):
    repository = tmp_path / "datasets--someone--table"
    snapshot = repository / "snapshots/0123"
    picture(repository / "blobs/photo.png").rename(repository / "blobs/aa")
    (snapshot / "images").mkdir(parents=True)
    write(snapshot, ["images/0.png"])
    (snapshot / "transforms.json").rename(repository / "blobs/bb")
    (snapshot / "transforms.json").symlink_to("../../blobs/bb")
    (snapshot / "images/0.png").symlink_to("../../../blobs/aa")
    assert len(load_scene(snapshot)) == 1
    (tmp_path / "models--other--thing/blobs").mkdir(parents=True)
    secret = picture(tmp_path / "models--other--thing/blobs/photo.png")
    for target in (secret, tmp_path / "outside.png"):
        shutil.copy(repository / "blobs/aa", target)
        (snapshot / "images/0.png").unlink()
        (snapshot / "images/0.png").symlink_to(target)
        with pytest.raises(CaptureError, match="leaves the folder"):
            load_scene(snapshot)


def test_colour_profiles_are_applied(tmp_path):
    """Display P3's red is outside of sRGB's; by the matrices of both (200, 60, 40) is about (217, 42, 23)."""
    profile = PIL.ImageCms.ImageCmsProfile(io.BytesIO(display_p3()))
    for mode in ("RGB", "RGBA", "P"):
        image = PIL.Image.new("RGB", (8, 8), (200, 60, 40))
        image = image.quantize(2) if mode == "P" else image.convert(mode)
        image.save(tmp_path / "photo.png", icc_profile=profile.tobytes())
        pixel = load_image(tmp_path / "photo.png").getpixel((4, 4))
        assert np.abs(np.subtract(pixel, (217, 42, 23))).max() <= 3, (mode, pixel)
    PIL.Image.new("RGB", (8, 8), (200, 60, 40)).save(tmp_path / "plain.png")
    assert load_image(tmp_path / "plain.png").getpixel((4, 4)) == (200, 60, 40)


def display_p3() -> bytes:
    """A matrix profile with the primaries of Display P3 and the curve of sRGB."""
    srgb = bytearray(PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes())
    columns = {b"rXYZ": (0.51512, 0.2412, -0.00105), b"gXYZ": (0.29198, 0.69225, 0.04189)}
    columns[b"bXYZ"] = (0.1571, 0.06657, 0.78407)
    for number in range(int.from_bytes(srgb[128:132], "big")):
        entry = 132 + 12 * number
        name, offset = bytes(srgb[entry : entry + 4]), int.from_bytes(srgb[entry + 4 : entry + 8], "big")
        for axis, value in enumerate(columns.get(name, ())):
            place = offset + 8 + 4 * axis
            srgb[place : place + 4] = round(value * 65536).to_bytes(4, "big", signed=True)
    return bytes(srgb)


def test_written_videos_say_what_their_colours_mean(tmp_path):
    av = pytest.importorskip("av")
    colours = [(200, 40, 40), (40, 180, 60), (50, 60, 200), (220, 200, 50)]
    frame = PIL.Image.new("RGB", (128, 64))
    for number, colour in enumerate(colours):
        frame.paste(colour, (32 * number, 0, 32 * number + 32, 64))
    write_video(tmp_path / "flight.mp4", [frame] * 3)
    with av.open(str(tmp_path / "flight.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.colorspace, codec.color_range, codec.color_primaries, codec.color_trc) == (1, 1, 1, 1)
        picture = next(container.decode(video=0))
        seen = picture.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray()
    for number, colour in enumerate(colours):
        assert np.abs(seen[24:40, 32 * number + 8 : 32 * number + 24].mean((0, 1)) - colour).max() <= 3


def test_hdr_videos_are_refused_with_what_to_do(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "hlg.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.color_trc, stream.codec_context.color_primaries = 18, 9
        for _ in range(5):
            grey = np.full((64, 64, 3), 128, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    with pytest.raises(CaptureError, match="HDR video .HLG.*Convert it to SDR"):
        sharp_frames(tmp_path / "hlg.mp4", tmp_path / "frames", count=2)


def test_units_of_cameras_that_cannot_be_are_noticed():
    lens = torch.tensor([[1.2, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1.0]])
    with pytest.raises(ValueError, match="are they divided by width and height"):
        Cameras(torch.eye(4).repeat(2, 1, 1), lens, [192, 192])
    cameras = Cameras.from_normalized(torch.eye(4).repeat(2, 1, 1), lens, [192, 192])
    assert float(cameras.intrinsics[0, 0, 0]) == pytest.approx(230.4)
    with pytest.warns(UserWarning, match="in radians"):
        Cameras.from_fov(torch.eye(4).repeat(2, 1, 1), 1.05, [192, 192])


# What is no capture, and what to do then


def test_a_folder_of_photos_says_how_they_get_cameras(tmp_path):
    picture(tmp_path / "photos/a.jpg")
    with pytest.raises(CaptureError, match=r"no capture in a known format. \S+photos holds photos: `kaleido poses`"):
        load_scene(tmp_path)


def test_a_capture_one_folder_deeper_is_named(tmp_path):
    picture(tmp_path / "scan/a.png")
    write(tmp_path / "scan", ["a.png"])
    with pytest.raises(CaptureError, match=r"known format. There is one in \S+scan."):
        load_scene(tmp_path)


def test_half_of_a_model_says_what_is_missing(tmp_path):
    picture(tmp_path / "images/a.jpg")
    folder = model(tmp_path / "sparse/0", ["a.jpg"])
    (folder / "images.bin").touch()
    assert len(load_scene(tmp_path)) == 1, "a stray file beside a whole model does no harm"
    (folder / "images.txt").unlink()
    with pytest.raises(CaptureError, match=r"sparse/0 holds cameras.txt and images.bin: a model needs both"):
        load_scene(tmp_path)


def test_points_in_text_beside_a_binary_model(tmp_path):
    pytest.importorskip("pycolmap")
    scene = load_scene(sample_capture()).select([0, 1])
    model = write_colmap(tmp_path, scene.images, scene.cameras, torch.zeros(0, 3))
    (model / "points3D.bin").unlink()
    (model / "points3D.txt").write_text("1 0.5 1 2 128 128 128 0.1 1 0\n")
    assert load_scene(tmp_path).points.tolist() == [[0.5, 1.0, 2.0]]


@pytest.mark.parametrize("name", ["a.CR2", "c.dng", "d.avif"])
def test_photos_that_are_not_read_are_said_to_need_converting(tmp_path, name, capsys):
    (tmp_path / name).write_bytes(b"ftyp")
    told = f"{name}: {name[2:].upper()} photos are not read: convert them"
    for call in (lambda: load_scene(tmp_path), lambda: photo_scene(tmp_path / name, 60)):
        with pytest.raises(CaptureError, match=told):
            call()
    assert cli.main(["render", str(tmp_path / name), "--fov", "60", "--trajectory", "orbit"]) == 1
    assert told in capsys.readouterr().err
    write(tmp_path, [name])
    with pytest.raises(CaptureError, match=told):
        load_scene(tmp_path)


def panorama(path: Path, kind: str) -> Path:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description '
    written = {
        "attribute": b'GPano:ProjectionType="equirectangular"/>',
        "element": b"><GPano:ProjectionType>equirectangular</GPano:ProjectionType>",
        "cylinder": b'GPano:ProjectionType="cylindrical"/>',
        "other": b'GPano:StitchingSoftware="x"/>',
    }[kind]
    options = {"xmp": xmp + written}
    if path.suffix == ".png":
        options = {"pnginfo": PIL.PngImagePlugin.PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", (xmp + written).decode())
    PIL.Image.new("RGB", (64, 32)).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("kind", ["attribute", "element", "cylinder"])
def test_panoramas_are_refused(tmp_path, kind, suffix):
    path = panorama(tmp_path / f"a.{suffix}", kind)
    with pytest.raises(CaptureError, match="a panorama"):
        photo_scene(path, 90)
    with pytest.raises(CaptureError, match="a panorama"):
        load_scene(write(tmp_path, [path.name], w=64, h=32))
    assert len(photo_scene(panorama(path, "other"), 90)) == 1


def test_images_by_an_array_or_a_mask(tmp_path):
    names = [picture(tmp_path / f"{number}.png", (32 + number, 24)).name for number in range(3)]
    frames = [frame(name, **{**LENS, "w": 32 + number}) for number, name in enumerate(names)]
    images = load_scene(write(tmp_path, [], frames=frames)).images
    for index in (np.array([2, 0]), torch.tensor([2, 0]), np.array([-1, 0])):
        assert [image.width for image in images[index]] == [34, 32]
    assert [image.width for image in images[np.array([False, True, True])]] == [33, 34]
    assert images[np.int64(1)].width == 33 and images[torch.tensor(1)].width == 33


def test_a_linked_folder_of_photos_says_what_to_pass(tmp_path):
    picture(tmp_path / "elsewhere/a.png")
    write(tmp_path / "scan", ["images/a.png"])
    (tmp_path / "scan/images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CaptureError, match="leaves the folder of the capture. Pass `images` "):
        load_scene(tmp_path / "scan")
    assert len(load_scene(tmp_path / "scan", images=tmp_path / "elsewhere")) == 1


# Other inputs of these kinds


@pytest.mark.parametrize("lost", [None, [[0.0] * 4] * 4, [[None] * 4] * 4, [[0.0, 0, 0, 0]] * 3 + [[0.0, 0, 0, 1]]])
def test_poses_of_null_and_zeros_are_lost_too(tmp_path, lost):
    names = [picture(tmp_path / f"{number}.png").name for number in range(3)]
    frames = [frame(name, number) for number, name in enumerate(names)]
    frames[1]["transform_matrix"] = lost
    write(tmp_path, [], frames=frames)
    with pytest.warns(UserWarning, match=r"skipped 1 of 3 frames without a pose \(1.png\)"):
        assert [path.name for path in load_scene(tmp_path, "skip").image_paths] == ["0.png", "2.png"]
    with pytest.raises(CaptureError, match="1 of 3 frames have no pose"):
        load_scene(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_of_windows(tmp_path, encoding):
    """Byte order marks and UTF-16 in files of poses, and what Windows prints for no number."""
    pose = "\n".join(" ".join(map(str, row)) for row in POSE)
    for number, text in enumerate((pose, pose, pose.replace("1.0", "-1.#IND"))):
        picture(tmp_path / f"frame-{number:06d}.color.png")
        (tmp_path / f"frame-{number:06d}.pose.txt").write_text(text, encoding=encoding)
    (tmp_path / "intrinsics.txt").write_text("40 0 16\n0 40 12\n0 0 1\n", encoding=encoding)
    with pytest.warns(UserWarning, match="skipped 1 of 3 frames without a pose"):
        scene = load_scene(tmp_path, "skip")
    assert len(scene) == 2 and scene.cameras.intrinsics[0, 0].tolist() == [40.0, 0.0, 16.0]


def test_a_test_split_of_no_frames_is_none(tmp_path):
    names = [picture(tmp_path / f"train/{number}.png").name for number in range(9)]
    angle = {"camera_angle_x": 0.8}
    frames = [frame(f"train/{Path(name).stem}", number) for number, name in enumerate(names)]
    (tmp_path / "transforms_train.json").write_text(json.dumps({**angle, "frames": frames}))
    (tmp_path / "transforms_test.json").write_text(json.dumps({**angle, "frames": []}))
    scene = load_scene(tmp_path)
    assert len(scene) == 9 and split_views(9, scene.splits, "test") == [0, 8]


def test_the_folder_of_a_copy_may_be_named(tmp_path):
    """`images_4` passed as the folder of photos: its name says that the lens is to be scaled."""
    picture(tmp_path / "images_4/a.png", (8, 6))
    write(tmp_path, ["images/a.png"])
    for options in ({}, {"images": tmp_path / "images_4"}, {"downscale": 4}):
        camera = load_scene(tmp_path, **options).cameras[0]
        assert camera.image_sizes.tolist() == [6, 8] and float(camera.intrinsics[0, 0]) == 10.0


def test_points_of_gaussian_splatting(tmp_path):
    picture(tmp_path / "images/a.jpg")
    folder = model(tmp_path / "sparse/0", ["a.jpg"])
    header = (
        "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    )
    (folder / "points3D.ply").write_text(header + "0 1 2\n3 4 5\n")
    assert load_scene(tmp_path).points.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("key, value", [("fisheye", True), ("lens", "fisheye"), ("lens_distortion", [0.1, 0.0])])
@pytest.mark.parametrize("of_frame", [False, True])
def test_lenses_told_by_unknown_keys_are_refused(tmp_path, key, value, of_frame):
    picture(tmp_path / "a.png")
    write(tmp_path, ["a.png"], **({"frames": [frame("a.png", **{key: value})]} if of_frame else {key: value}))
    with pytest.raises(CaptureError, match=f"`{key}` .*tells of a lens in a way that is not known"):
        load_scene(tmp_path)
    for harmless in (False, [0.0, 0.0], None, "iPhone 15 back camera"):
        write(tmp_path, ["a.png"], **{key: harmless, "lens": 50.0 if key != "lens" else harmless})
        assert len(load_scene(tmp_path)) == 1


def test_a_centre_divided_by_the_picture_is_noticed(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="principal point of 1 of 1 cameras lies in the first pixel"):
        load_scene(write(tmp_path, ["a.png"], cx=0.5, cy=0.5))


def test_a_model_beside_numbered_ones_counts(tmp_path):
    names = [picture(tmp_path / f"images/{number}.jpg").name for number in range(4)]
    for place, count in (("sparse/0", 2), ("whole", 4)):
        model(tmp_path / place, names[:count])
    for file in (tmp_path / "whole").iterdir():
        file.rename(tmp_path / "sparse" / file.name)
    with pytest.warns(UserWarning, match="holds 2 models .* with 4 photos is read"):
        assert len(load_scene(tmp_path)) == 4


def test_zero_quaternions_are_lost_poses(tmp_path):
    names = [picture(tmp_path / f"images/{number}.jpg").name for number in range(3)]
    file = model(tmp_path / "sparse/0", names) / "images.txt"
    file.write_text(file.read_text().replace("2 1 0 0 0", "2 0 0 0 0"))
    with pytest.warns(UserWarning, match=r"skipped 1 of 3 frames without a pose \(1.jpg\)"):
        assert len(load_scene(tmp_path, "skip")) == 2
    tum = tmp_path / "tum"
    for number in range(3):
        picture(tum / f"rgb/{number}.png")
    lines = ["0 0 0 0 0 0 0 1", "1 nan nan nan nan nan nan nan", "2 2 0 0 0 0 0 0"]
    (tum / "groundtruth.txt").write_text("\n".join(lines))
    (tum / "rgb.txt").write_text("0 rgb/0.png\n1 rgb/1.png\n2 rgb/2.png\n")
    (tum / "intrinsics.txt").write_text("40 40 16 12")
    with pytest.warns(UserWarning, match="skipped 2 of 3 frames without a pose"):
        assert len(load_scene(tum, "skip")) == 1


def test_photos_without_a_camera_are_named(tmp_path):
    names = [picture(tmp_path / f"images/{number}.jpg").name for number in range(3)]
    (tmp_path / "images/notes.txt").touch(), (tmp_path / "images/._0.jpg").touch()
    model(tmp_path / "sparse/0", names[:2])
    with pytest.warns(UserWarning, match=r"1 photo in \S+images without a camera: left out \(2.jpg\)"):
        assert len(load_scene(tmp_path)) == 2
    (tmp_path / "images/2.jpg").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_scene(tmp_path)) == 2
