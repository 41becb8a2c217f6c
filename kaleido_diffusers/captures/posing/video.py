"""Sharp, well-spaced frames of a video, to be posed like photos."""

import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from tqdm.auto import tqdm

from ...files import OR_OVERWRITE, file_digest, folder_written_whole, write_json
from ..images import MAX_IMAGE_PIXELS, CaptureError
from ..readers.assembly import load_json
from ..readers.places import printable
from .photo_checks import SAME_PICTURE, difference, sharpness, thumbnail


__all__ = ["sharp_frames"]

_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg"  # no playlists: those name other files
_CUT = 0.07  # of the range of colours, in one step, beyond 1.5 times the steps before and after
_SURVEY_SIDE = 640  # pixels of the longer side at which sharpness is measured

_HDR_CURVES = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273


def sharp_frames(
    video: str | os.PathLike,
    output: str | os.PathLike,
    count: int = 80,
    start: float = 0.0,
    end: float | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """
    Writes the sharpest frame of each of `count` equal parts of a video, upright and with square pixels. In a video
    with cuts they come from the longest shot, and a warning lists the shots (fades are not noticed). Frames that show
    the same as an earlier one, because the camera stands still, are left out with a warning.

    The video is decoded twice, one frame at a time.

    Args:
        video (`str` or `Path`):
            A video file that FFmpeg reads. Needs `pip install kaleido-diffusers[video]`.
        output (`str` or `Path`):
            Folder for the frames, `<number of the frame>.jpg`. Beside it, `<output>.json` says what they were made
            from: a second call with the same arguments finds them and does nothing.
        count (`int`, defaults to 80):
            Most frames to write.
        start (`float`, defaults to 0.0):
            Seconds from which to take frames.
        end (`float`, *optional*):
            Seconds up to which to take frames; the end of the video when not given.
        overwrite (`bool`, defaults to `False`):
            Whether frames that an earlier call wrote give way, once the new ones are there. Anything else stays.

    Returns:
        `list[Path]`: the frames, in their order.

    Raises:
        [`CaptureError`]: when the video cannot be decoded, has no frames between `start` and `end`, or when `output`
        holds something else.
    """
    video, output = Path(video), Path(output)
    if count < 1:
        raise ValueError(f"`count` must be at least 1, got {count}.")
    if not video.is_file():
        raise CaptureError(f"{video}: no such video.")
    record = output.with_name(f"{output.name}.json")
    request = {"video": file_digest(video), "count": count, "start": start, "end": end}
    if output.exists() and not (overwrite and record.is_file()):
        if not record.is_file() or load_json(record) != request:
            raise CaptureError(f"{output} holds something else than these frames of {video.name}: {OR_OVERWRITE}")
        return sorted(output.glob("*.jpg"))
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with folder_written_whole(output, replaces=overwrite) as part:
        part.mkdir()
        _write(video, part, _chosen(video, _survey(video, start, end), count))
        write_json(record, request)
    return sorted(output.glob("*.jpg"))


class _Frame(NamedTuple):
    number: int
    seconds: float
    picture: Any  # av.VideoFrame
    pixel_shape: float  # width of a pixel over its height


class _Seen(NamedTuple):
    """What the first pass keeps of a frame.

    Attributes:
        number (`int`): of the frame in the video.
        seconds (`float`): its time.
        sharpness (`float`)
        step (`float`): difference to the frame before, in [0, 1]; infinite where the size of the frames changes.
    """

    number: int
    seconds: float
    sharpness: float
    step: float


def _survey(video: Path, start: float, end: float | None) -> list[_Seen]:
    """The frames between `start` and `end`."""
    seen, before = [], None
    for frame in _frames(video, "looking at frames"):
        if end is not None and frame.seconds > end:
            break
        if frame.seconds < start:
            continue
        width, height = frame.picture.width, frame.picture.height
        scale = min(1.0, _SURVEY_SIDE / max(width, height))
        size = (max(1, round(scale * width)), max(1, round(scale * height)))
        levels = frame.picture.reformat(*size, format="gray", interpolation="AREA").to_ndarray()
        small = frame.picture.reformat(32, 32, format="rgb24", interpolation="AREA").to_ndarray()
        same_size = before is not None and before[0] == size
        step = float(difference(before[1], small)) if same_size else math.inf
        seen.append(_Seen(frame.number, frame.seconds, sharpness(levels), step))
        before = (size, small)
    if not seen:
        between = f"from {start} s to {'the end' if end is None else f'{end} s'}"
        raise CaptureError(f"{video}: the video has no frames {between}.")
    return seen


def _chosen(video: Path, seen: list[_Seen], count: int) -> list[int]:
    """Numbers of the frames to write: the sharpest in each of `count` parts of the longest shot."""
    shots = _shots(seen)
    longest = max(shots, key=len)
    if len(shots) > 1:
        times = ", ".join(f"{shot[0].seconds:.1f}-{shot[-1].seconds:.1f}" for shot in shots[:20])
        warnings.warn(
            f"{video} has {len(shots)} shots ({times}{', ...' * (len(shots) > 20)} s). Frames are taken from the"
            f" longest, {longest[0].seconds:.1f}-{longest[-1].seconds:.1f} s; for another, pass `start` and `end`.",
            stacklevel=3,
        )
    bounds = np.linspace(0, len(longest), min(count, len(longest)) + 1).round().astype(int).tolist()
    parts = (longest[low:high] for low, high in zip(bounds, bounds[1:]))
    return [max(part, key=lambda frame: frame.sharpness).number for part in parts]


def _shots(seen: list[_Seen]) -> list[list[_Seen]]:
    """The frames, parted at cuts: a step that stands out from its neighbours, as neither flashes nor pans do."""
    steps = [0.0, *(frame.step for frame in seen[1:]), 0.0]
    cuts = [
        number
        for number in range(1, len(seen))
        if steps[number] == math.inf or steps[number] > _CUT + 1.5 * max(steps[number - 1], steps[number + 1])
    ]
    return [seen[low:high] for low, high in zip([0, *cuts], [*cuts, len(seen)])]


def _write(video: Path, folder: Path, chosen: list[int]) -> None:
    wanted, before, written = set(chosen), None, 0
    for frame in _frames(video, "writing frames", chosen[-1] + 1):
        if frame.number not in wanted:
            continue
        image = _upright(video, frame)
        small = thumbnail(image)
        if before is None or difference(before, small) >= SAME_PICTURE:
            image.save(folder / f"{frame.number:06d}.jpg", quality=95, subsampling=0)
            before, written = small, written + 1
    if written < len(chosen):
        message = f"{len(chosen) - written} of {len(chosen)} frames show the same as the one before and are left out"
        warnings.warn(f"{video}: {message}.", stacklevel=3)


def _upright(video: Path, frame: _Frame) -> PIL.Image.Image:
    """A frame as it is meant to be seen: with square pixels, and turned as the video says."""
    width, height, angle = frame.picture.width, frame.picture.height, frame.picture.rotation
    square = round(width * frame.pixel_shape)
    if angle % 90 or not width / 4 <= square <= 4 * width or square * height > MAX_IMAGE_PIXELS:
        raise CaptureError(
            f"{video}: {width} x {height} pixels, {frame.pixel_shape:.4g} times as wide as high and turned by {angle}"
            " degrees, are refused."
        )
    array = frame.picture.to_ndarray(format="rgb24", width=square, height=height)
    return PIL.Image.fromarray(np.rot90(array, angle // 90))


def _frames(video: Path, title: str, stop: int | None = None) -> Iterator[_Frame]:
    """The frames before number `stop`, one at a time. What is damaged is left out with a warning; raises
    [`CaptureError`] when nothing is left."""
    try:
        import av
    except ImportError as error:
        raise ImportError("Videos need PyAV: pip install 'kaleido-diffusers[video]'.") from error
    number, damage = 0, []
    try:
        with av.open(str(video.resolve()), options={"format_whitelist": _CONTAINERS}) as container:
            stream = _video_stream(video, container)
            pixel_shape, rate = float(stream.sample_aspect_ratio or 1), float(stream.average_rate or 25)
            beginning = float((stream.start_time or 0) * stream.time_base)
            pictures = _pictures(container, stream, damage)
            for picture in tqdm(pictures, desc=title, total=stop or stream.frames or None, unit="frame"):
                seconds = number / rate if picture.time is None else picture.time - beginning
                yield _Frame(number, seconds, picture, pixel_shape)
                number += 1
                if number == stop:
                    return
    except av.error.FFmpegError as error:
        damage.append(error)
    if not number:
        reason = damage[0] if damage else "it has no frames"
        raise CaptureError(f"{video}: not a video that can be read ({reason}).")
    if damage:
        message = f"{video} is damaged ({damage[0]}): the {number} frames that can be decoded are used"
        warnings.warn(f"{message}.", stacklevel=4)


def _video_stream(video: Path, container):
    """The first video stream of an open file, decoding by several threads."""
    if not container.streams.video:
        raise CaptureError(f"{video}: the file has no pictures.")
    stream = container.streams.video[0]
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_IMAGE_PIXELS:
        raise CaptureError(
            f"{video}: {width} x {height} pixels are more than the {MAX_IMAGE_PIXELS} that are allowed."
        )
    curve = _HDR_CURVES.get(int(stream.codec_context.color_trc or 0))
    if curve:
        raise CaptureError(
            f"{video}: is HDR video ({curve}), whose colours would come out washed out. Convert it to SDR first:"
            f" ffmpeg -i {printable(video.name)} -vf zscale=t=linear:npl=203,tonemap=clip,"
            "zscale=p=bt709:t=bt709:m=bt709,format=yuv420p sdr.mp4"
        )
    stream.thread_type = "AUTO"
    return stream


def _pictures(container, stream, damage: list[Exception]) -> Iterator:
    """The decoded pictures of a stream; what cannot be decoded is added to `damage`."""
    from av.error import InvalidDataError

    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except InvalidDataError as error:
            damage.append(error)
