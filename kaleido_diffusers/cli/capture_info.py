"""What `kaleido info CAPTURE` tells: figures, warnings, and pictures of the cameras."""

from collections.abc import Iterator
from pathlib import Path

import PIL.Image
from tqdm.auto import tqdm

from ..captures.images import CaptureError
from ..captures.opening import CaptureOptions
from ..captures.pictures import camera_picture, camera_scene_html
from ..captures.scene import Scene
from ..captures.summary import capture_summary
from .loading import say_next


__all__ = ["describe_capture"]


def describe_capture(capture: str, options: CaptureOptions, output: Path) -> None:
    """Prints the summary of a capture and its warnings, and writes `<name>_cameras.png` and `<name>_cameras.html`. A
    picture whose package is not installed is left out, and that is said.

    Args:
        capture (`str`): path, as a command takes it.
        options (`CaptureOptions`): how it is read.
        output (`Path`): folder of the pictures.
    """
    scene = options.load(capture)
    summary = capture_summary(scene)
    print(summary.name)
    print(summary.table())
    kept_back, _ = options.split_of(scene)
    print(f"  {'kept back':<14} {len(kept_back)} of {len(scene)} photos, to compare with")
    for warning in summary.warnings:
        print(f"warning: {warning}")
    output.mkdir(parents=True, exist_ok=True)
    names = None if scene.image_paths is None else [path.name for path in scene.image_paths]
    drawn = {
        ".png": lambda path: camera_picture(scene.cameras, path, scene.points, names),
        ".html": lambda path: camera_scene_html(scene.cameras, path, scene.points, names, _photos(scene)),
    }
    for suffix, draw in drawn.items():
        path = output / f"{scene.name}_cameras{suffix}"
        try:
            print(f"wrote {draw(path)}")
        except ImportError as error:
            print(f"{path} was not drawn. {error}")
    say_next("render", capture)


def _photos(scene: Scene) -> Iterator[PIL.Image.Image | None]:
    """The photos one after the other; none for one that cannot be read, which is said."""
    for view in tqdm(range(len(scene)), desc="photos", disable=None):
        try:
            yield scene.images[view]
        except CaptureError as error:
            print(f"warning: {error}")
            yield None
