"""Writers: captures that other tools read, videos and pictures."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from ..files import folder_written_whole, write_json, written_whole
from ..geometry.cameras import Cameras, convert_axes
from ..geometry.trajectories import focus_point, looking_distances
from .images import save_image


__all__ = ["VIDEO_SUFFIXES", "strewn_points", "write_capture", "write_colmap", "write_video"]

VIDEO_SUFFIXES = (".mp4", ".gif")

_DRAWN = 4  # times as many points are strewn as are kept


def write_capture(
    folder: str | os.PathLike,
    images: Sequence[PIL.Image.Image],
    cameras: Cameras,
    suffix: str = ".png",
    generated: Sequence[bool] | None = None,
    times: torch.Tensor | None = None,
    names: Sequence[str] | None = None,
) -> Path:
    """
    Writes a capture that nerfstudio and instant-ngp train on as it is: `transforms.json` and `images/`. (gsplat's
    own trainer reads [`write_colmap`]'s form.)

    Poses have OpenGL axes. The lens stands at the top when all views share it, which every reader knows, and in each
    frame when they do not: nerfstudio takes a lens from one place or the other. `scale`, `offset` and `aabb_scale` are
    instant-ngp's: they bring what the cameras look at to the middle of its box, the farthest camera to 1.32 units from
    there, as its own converter does.

    Args:
        folder (`str` or `Path`):
            Where to; made if missing. Raises `FileExistsError` rather than write over anything.
        images (`Sequence[PIL.Image.Image]` of length V):
            The views.
        cameras (`Cameras` of shape `[V]`):
            Their cameras, without skew, which the format cannot say.
        suffix (`str`, defaults to `".png"`):
            Image format: `".png"`, or `".jpg"` (quality 95).
        generated (`Sequence[bool]` of length V, *optional*):
            Which views a model made: their frames say `"generated": true`.
        times (`torch.Tensor` of shape `[V]`, *optional*):
            Seconds, in captures of a moving world: `time` of each frame.
        names (`Sequence[str]` of length V, *optional*):
            Files of the views, inside the folder; `images/0000.png` and so on when not given.

    Returns:
        `Path`: the `transforms.json`.
    """
    folder = Path(folder)
    file = folder / "transforms.json"
    files = [f"images/{name}" for name in _checked_names(images, cameras, suffix)]
    for name, values in (("generated", generated), ("times", times), ("names", names)):
        if values is not None and len(values) != len(files):
            raise ValueError(f"`{name}` must have one value for each of the {len(files)} views, got {len(values)}.")
    files = files if names is None else list(names)
    _refuse_existing(file, *(folder / name for name in files))
    lenses = [_lens(camera) for camera in cameras]
    shared = lenses[0] if all(lens == lenses[0] for lens in lenses) else {}
    frames = []
    for number, pose in enumerate(convert_axes(cameras.world_from_camera, "opencv", "opengl").tolist()):
        frame = {"file_path": files[number]}
        if not shared:
            frame.update(lenses[number])
        if times is not None:
            frame["time"] = float(times[number])
        if generated is not None and generated[number]:
            frame["generated"] = True
        frames.append({**frame, "transform_matrix": pose})
    data = {"camera_model": "PINHOLE", **shared, **_ngp_box(cameras), "frames": frames}
    with _capture_written_whole(folder) as part:
        _save_images(part, files, images)
        write_json(part / file.name, data)
    return file


def write_colmap(
    folder: str | os.PathLike,
    images: Sequence[PIL.Image.Image],
    cameras: Cameras,
    points: torch.Tensor | None = None,
    binary: bool = True,
    suffix: str = ".png",
) -> Path:
    """
    Writes a capture as a COLMAP model, which gsplat, the 3D Gaussian Splatting code and nerfstudio train on: `images/`
    and `sparse/0/{cameras,images,points3D}` (and COLMAP's newer `rigs` and `frames`), PINHOLE, one camera for each
    lens. Needs `pip install kaleido-diffusers[captures]`.

    Args:
        folder (`str` or `Path`):
            Where to; made if missing. Raises `FileExistsError` rather than write over anything.
        images (`Sequence[PIL.Image.Image]` of length V):
            The views.
        cameras (`Cameras` of shape `[V]`):
            Their cameras, without skew, which PINHOLE cannot say.
        points (`torch.Tensor` of shape `[P, 3]`, *optional*):
            Sparse points in the world, from which trainers start. They are written grey and without tracks. When not
            given, [`strewn_points`] are written, with a warning: gsplat and the 3D Gaussian Splatting code do not run
            without any.
        binary (`bool`, defaults to `True`):
            `.bin` files, or else `.txt`.
        suffix (`str`, defaults to `".png"`):
            Image format: `".png"`, or `".jpg"` (quality 95).

    Returns:
        `Path`: the folder of the model, `sparse/0`.
    """
    try:
        import pycolmap
    except ImportError as error:
        raise ImportError("COLMAP models need pycolmap: pip install 'kaleido-diffusers[captures]'.") from error
    folder = Path(folder)
    model = folder / "sparse" / "0"
    names = _checked_names(images, cameras, suffix)
    _refuse_existing(model, *(folder / "images" / name for name in names))
    if points is None:
        points = strewn_points(cameras)
        warnings.warn(
            f"There are no sparse points: {len(points)} are strewn over what the cameras see, for trainers to start"
            " from. Those of a reconstruction are better.",
            stacklevel=2,
        )
    reconstruction, lenses = pycolmap.Reconstruction(), {}
    for number, (name, camera) in enumerate(zip(names, cameras), start=1):
        lens = _lens(camera)
        camera_id = lenses.setdefault(tuple(lens.values()), len(lenses) + 1)
        if not reconstruction.exists_camera(camera_id):
            params = [lens[key] for key in ("fl_x", "fl_y", "cx", "cy")]
            sizes = {"width": lens["w"], "height": lens["h"]}
            reconstruction.add_camera_with_trivial_rig(
                pycolmap.Camera(camera_id=camera_id, model="PINHOLE", params=params, **sizes)
            )
        rotation = pycolmap.Rotation3d(camera.world_from_camera[:3, :3].T.contiguous().numpy())
        rotation.normalize()  # a pose may be 1e-4 off a rotation; the centre stays where it is
        translation = -rotation.matrix() @ camera.centers.numpy()
        image = pycolmap.Image(name=name, camera_id=camera_id, image_id=number)
        reconstruction.add_image_with_trivial_frame(image, pycolmap.Rigid3d(rotation, translation))
    for point in points.to("cpu", torch.float64).numpy():
        reconstruction.add_point3D(point, pycolmap.Track(), np.full(3, 128, dtype=np.uint8))
    with _capture_written_whole(folder) as part:
        _save_images(part, [f"images/{name}" for name in names], images)
        (part / model.relative_to(folder)).mkdir(parents=True)
        (reconstruction.write_binary if binary else reconstruction.write_text)(part / model.relative_to(folder))
    return model


def strewn_points(cameras: Cameras, count: int = 10_000) -> torch.Tensor:
    """
    Points to start 3D Gaussian Splatting from where none are known: strewn over the pixels of the cameras, from half
    to twice as deep as what they look at, the same at every call. Of several cameras, at least two see each point,
    where there are as many.

    Args:
        cameras (`Cameras` of shape `[V]`): of the views.
        count (`int`, defaults to 10000): how many.

    Returns:
        `torch.Tensor` of shape `[P, 3]`, float64.
    """
    generator = torch.Generator().manual_seed(0)
    cameras = cameras.to("cpu")
    chosen = torch.randint(len(cameras), (_DRAWN * count,), generator=generator)
    x, y, depth = torch.rand(3, _DRAWN * count, 1, generator=generator, dtype=torch.float64)
    seers = cameras[chosen]
    height, width = seers.image_sizes.unsqueeze(-1).double().unbind(1)
    depths = looking_distances(cameras, cameras)[chosen, None] * 4 ** (depth - 0.5)
    points = seers.unproject(torch.stack([x * width, y * height], dim=-1), depths)[:, 0]
    seen = torch.zeros(len(points), dtype=torch.long)
    for camera in cameras[torch.linspace(0, len(cameras) - 1, min(len(cameras), 64), dtype=torch.float32).long()]:
        pixels, ahead = camera.project(points)
        inside = (pixels >= 0) & (pixels <= camera.image_sizes.flip(-1))
        seen += inside.all(-1) & (ahead > 0)
    return points[(seen < 2).long().argsort(stable=True)[:count]]


@contextmanager
def _capture_written_whole(folder: Path) -> Iterator[Path]:
    """Where to write a capture: aside, but for folders that hold something else, where images come before the cameras
    that make them a capture."""
    if folder.is_dir() and any(folder.iterdir()):
        yield folder
        return
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with folder_written_whole(folder) as part:
        yield part


def _checked_names(images: Sequence[PIL.Image.Image], cameras: Cameras, suffix: str) -> list[str]:
    """File names of the views, which sort as the views do; raises `ValueError` for what a capture cannot hold."""
    if suffix not in (".png", ".jpg"):
        raise ValueError(f"`suffix` must be '.png' or '.jpg', got {suffix!r}.")
    if len(images) != len(cameras) or not len(cameras):
        raise ValueError(f"`images` and `cameras` must be equally many, got {len(images)} and {len(cameras)}.")
    for number, (image, camera) in enumerate(zip(images, cameras)):
        size = tuple(camera.image_sizes.flip(-1).tolist())
        if image.size != size:
            raise ValueError(f"Image {number} is {image.size}, its camera is for {size} (width, height).")
    if (cameras.intrinsics[..., 0, 1] != 0).any():
        raise ValueError("A capture on disk has no place for the skew of `cameras`.")
    digits = max(4, len(str(len(images) - 1)))
    return [f"{number:0{digits}d}{suffix}" for number in range(len(images))]


def _refuse_existing(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} exists already.")


def _save_images(folder: Path, names: Sequence[str], images: Sequence[PIL.Image.Image]) -> None:
    for name, image in zip(names, images):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_image(image.convert("RGB"), folder / name, quality=95)


def _lens(camera: Cameras) -> dict[str, float]:
    (fl_x, _, cx), (_, fl_y, cy), _ = camera.intrinsics.tolist()
    height, width = camera.image_sizes.tolist()
    return {"fl_x": fl_x, "fl_y": fl_y, "cx": cx, "cy": cy, "w": width, "h": height}


def _ngp_box(cameras: Cameras) -> dict:
    """instant-ngp trains inside a box `aabb_scale` wide around (0.5, 0.5, 0.5) and places cameras there by
    `scale * center + offset`."""
    centers, together = cameras.centers, cameras.in_one_place
    focus = centers[0] if together else focus_point(cameras)
    reach = 1.0 if together else float((centers - focus).norm(dim=-1).max())
    scale = 1.32 / reach
    return {"aabb_scale": 32, "scale": scale, "offset": (0.5 - scale * focus).tolist()}


def write_video(path: str | os.PathLike, frames: Sequence[PIL.Image.Image], fps: float = 12.0) -> Path:
    """
    Writes frames as a video, whole or not at all.

    Args:
        path (`str` or `Path`):
            Ends in `.mp4` (H.264, needs `pip install kaleido-diffusers[video]`) or `.gif`.
        frames (`Sequence[PIL.Image.Image]`):
            Images of one size; for MP4 an odd height or width loses its last row or column.
        fps (`float`, defaults to `12.0`):
            Frames a second.

    Returns:
        `Path`: `path`.
    """
    path = Path(path)
    if not fps > 0:
        raise ValueError(f"`fps` must be positive, got {fps}.")
    if not len(frames):
        raise ValueError("A video needs at least one frame.")
    if len({frame.size for frame in frames}) != 1:
        raise ValueError(f"The frames of a video must share one size, got {sorted({f.size for f in frames})}.")
    if path.suffix not in VIDEO_SUFFIXES:
        raise ValueError(f"A video file must end in one of {VIDEO_SUFFIXES}, got {path.name!r}.")
    if path.suffix == ".gif":
        first, *rest = frames
        return save_image(first, path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
    with written_whole(path) as part:
        _write_mp4(part, frames, fps)
    return path


def _write_mp4(path: Path, frames: Sequence[PIL.Image.Image], fps: float) -> None:
    try:
        import av
        from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
    except ImportError as error:
        raise ImportError("MP4 needs PyAV: pip install 'kaleido-diffusers[video]'. GIF works without it.") from error
    width, height = (extent // 2 * 2 for extent in frames[0].size)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        codec = stream.codec_context  # BT.709 in limited range, and tagged so: players guess otherwise
        codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
        codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        for frame in frames:
            array = np.asarray(frame.convert("RGB"))[:height, :width]
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
