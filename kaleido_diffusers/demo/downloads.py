"""Files that hold a result, to be watched and to be downloaded."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import PIL.Image

from ..captures.export import write_capture, write_video
from ..captures.images import tensor_to_image
from ..geometry.cameras import Cameras
from .views import Result


__all__ = ["FPS", "SIZES", "enlarged", "write_files", "write_film"]

FPS = 8.0
SIZES = (1, 2, 4, 8)  # times as large as the views were generated
_SHOWN = 512  # pixels a side at least of what is watched: browsers enlarge with less care


def enlarged(image: PIL.Image.Image, factor: float | None = None) -> PIL.Image.Image:
    """
    A picture, enlarged by bicubic interpolation, which adds no detail.

    Args:
        image (`PIL.Image.Image`): the picture.
        factor (`float`, *optional*): how many times as large; until it is large enough to be watched when not given.
    """
    factor = max(1.0, _SHOWN / max(image.size)) if factor is None else factor
    if factor == 1:
        return image
    return image.resize([round(factor * side) for side in image.size], PIL.Image.Resampling.BICUBIC)


def write_film(views: Sequence[PIL.Image.Image], file: Path) -> Path:
    """Writes views as a film to watch.

    Args:
        views (`Sequence[PIL.Image.Image]`): the views.
        file (`Path`): an MP4.
    """
    return write_video(file, [enlarged(view) for view in views], FPS)


def write_files(result: Result, folder: Path, factor: int = 1, view: int = 1) -> list[Path]:
    """
    Writes one view as PNG, all of them as MP4 and as GIF, and with their references as a capture folder in a zip, in
    which the views keep the size that they were generated at, as cameras and `transforms.json` have it.

    Args:
        result (`Result`): the views.
        folder (`Path`): where the files go.
        factor (`int`, defaults to `1`): how many times as large PNG, MP4 and GIF are.
        view (`int`, defaults to `1`): the view to write as PNG, from 1.
    """
    folder.mkdir(parents=True)
    views = [enlarged(image, factor) for image in result.views]
    one = folder / f"kaleido_view_{view}.png"
    views[view - 1].save(one)
    films = [write_video(folder / f"kaleido{suffix}", views, FPS) for suffix in (".mp4", ".gif")]
    return [one, *films, _zip(result, folder)]


def _zip(result: Result, folder: Path) -> Path:
    references, capture = result.plan.references, result.capture
    images = [tensor_to_image(capture.pixels[photo] / 255) for photo in references] + result.views
    cameras = Cameras.cat([capture.cameras[references], result.plan.targets[: len(result.views)]])
    names = [f"references/photo_{photo + 1:04d}.png" for photo in references]
    names += [f"views/view_{view + 1:04d}.png" for view in range(len(result.views))]
    generated = [False] * len(references) + [True] * len(result.views)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        write_capture(Path(scratch) / "kaleido", images, cameras, generated=generated, names=names)
        return Path(shutil.make_archive(str(folder / "kaleido"), "zip", scratch, "kaleido"))
