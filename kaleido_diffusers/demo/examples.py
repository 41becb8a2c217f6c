"""Views of the captures that ship, generated ahead by `python examples/make_demo_results.py`, so that a visitor sees
something at once."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import PIL.Image

from ..captures.images import save_image
from .captures import Capture
from .limits import Limits
from .views import Result, Wish, best_path, plan_views


__all__ = ["example_result", "example_wish", "write_example"]

_FOLDER = Path(__file__).parent / "results"


def example_wish(capture: Capture, limits: Limits) -> Wish:
    """What was asked for.

    Args:
        capture (`Capture`): a capture that ships.
        limits (`Limits`): what is allowed.
    """
    wish = Wish()
    count = min(wish.references, limits.references, len(capture))
    return replace(wish, path=best_path(capture), views=min(wish.views, limits.views), references=count)


def example_result(name: str, capture: Capture, limits: Limits) -> Result | None:
    """The views of a capture that ships; nothing where none were generated, or another number is allowed.

    Args:
        name (`str`): of the capture.
        capture (`Capture`): the same, as the app keeps it.
        limits (`Limits`): what is allowed.
    """
    file = _FOLDER / f"{name}.jpg"
    if not file.is_file():
        return None
    wish = example_wish(capture, limits)
    plan = plan_views(capture, wish, limits)
    with PIL.Image.open(file) as strip:
        side = strip.height
        views = [strip.crop((left, 0, left + side, side)).convert("RGB") for left in range(0, strip.width, side)]
    if len(views) != len(plan.targets) or side != capture.pixels.shape[-1]:
        return None
    return Result(capture, wish, plan, views, plan.nearest(capture))


def write_example(name: str, views: Sequence[PIL.Image.Image]) -> Path:
    """Keeps views beside each other in one picture.

    Args:
        name (`str`): of the capture.
        views (`Sequence[PIL.Image.Image]`): its views.
    """
    side = views[0].height
    strip = PIL.Image.new("RGB", (side * len(views), side))
    for number, view in enumerate(views):
        strip.paste(view, (number * side, 0))
    _FOLDER.mkdir(exist_ok=True)
    return save_image(strip, _FOLDER / f"{name}.jpg", quality=92)
