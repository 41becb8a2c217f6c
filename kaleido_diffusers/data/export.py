"""Writers: captures that other tools read, videos and pictures."""

import json
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image

from ..cameras import Cameras, convert_axes


__all__ = ["VIDEO_SUFFIXES", "write_capture", "write_video"]

VIDEO_SUFFIXES = (".mp4", ".gif")


def write_capture(
    folder: str | os.PathLike, images: Sequence[PIL.Image.Image], cameras: Cameras, suffix: str = ".png"
) -> Path:
    """
    Writes a capture that nerfstudio, gsplat and instant-ngp read: `transforms.json` (OpenGL axes, intrinsics for each
    frame) and `images/`.

    Args:
        folder (`str` or `Path`):
            Where to; made if missing. Raises `FileExistsError` rather than write over anything.
        images (`Sequence[PIL.Image.Image]` of length V):
            The views.
        cameras (`Cameras` of shape `[V]`):
            Their cameras, without skew, which the format cannot say.
        suffix (`str`, defaults to `".png"`):
            Image format: `".png"`, or `".jpg"` (quality 95).

    Returns:
        `Path`: the `transforms.json`.
    """
    folder = Path(folder)
    file = folder / "transforms.json"
    if len(images) != len(cameras):
        raise ValueError(f"`images` and `cameras` must be equally many, got {len(images)} and {len(cameras)}.")
    names = [f"images/{number:04d}{suffix}" for number in range(len(images))]
    for path in (file, *(folder / name for name in names)):
        if path.exists():
            raise FileExistsError(f"{path} exists already.")
    for number, (image, camera) in enumerate(zip(images, cameras)):
        size = tuple(camera.image_sizes.flip(-1).tolist())
        if image.size != size:
            raise ValueError(f"Image {number} is {image.size}, its camera is for {size} (width, height).")
    if (cameras.intrinsics[..., 0, 1] != 0).any():
        raise ValueError("`transforms.json` has no place for the skew of `cameras`.")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    frames = []
    poses = convert_axes(cameras.world_from_camera, "opencv", "opengl")
    for name, image, camera, pose in zip(names, images, cameras, poses):
        height, width = camera.image_sizes.tolist()
        image.convert("RGB").save(folder / name, quality=95)
        matrix = camera.intrinsics.tolist()
        frames.append(
            {
                "file_path": name,
                "fl_x": matrix[0][0],
                "fl_y": matrix[1][1],
                "cx": matrix[0][2],
                "cy": matrix[1][2],
                "w": width,
                "h": height,
                "transform_matrix": pose.tolist(),
            }
        )
    data = {"camera_model": "PINHOLE", "frames": frames}
    file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return file


def write_video(path: str | os.PathLike, frames: Sequence[PIL.Image.Image], fps: float = 12.0) -> Path:
    """
    Writes frames as a video.

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
    if not len(frames):
        raise ValueError("A video needs at least one frame.")
    if len({frame.size for frame in frames}) != 1:
        raise ValueError(f"The frames of a video must share one size, got {sorted({f.size for f in frames})}.")
    if path.suffix == ".gif":
        first, *rest = frames
        first.save(path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
    elif path.suffix == ".mp4":
        _write_mp4(path, frames, fps)
    else:
        raise ValueError(f"A video file must end in one of {VIDEO_SUFFIXES}, got {path.name!r}.")
    return path


def _write_mp4(path: Path, frames: Sequence[PIL.Image.Image], fps: float) -> None:
    try:
        import av
    except ImportError as error:
        raise ImportError("MP4 needs PyAV: pip install 'kaleido-diffusers[video]'. GIF works without it.") from error
    width, height = (extent // 2 * 2 for extent in frames[0].size)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            array = np.asarray(frame.convert("RGB"))[:height, :width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")))
        container.mux(stream.encode())
