"""What is looked at before a verb says or does anything."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..pipelines.generation import check_guidance
from ..pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline


__all__ = ["check_at_least", "check_folder", "check_views", "errors_first"]


@contextmanager
def errors_first() -> Iterator[None]:
    """Spans the checks of a verb, whose warnings wait until all of it has passed: where something raises, that stands
    alone, and the warnings come when the command is given right."""
    with warnings.catch_warnings(record=True) as held:
        yield
    for warning in held:
        warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)


def check_at_least(settings: object, **least: int) -> None:
    """Raises `ValueError` that names the option of a setting that is too small; `None` is none.

    Args:
        settings (`object`): of a verb.
        least (`int`): by the names of settings, their smallest values.
    """
    for name, low in least.items():
        value = getattr(settings, name)
        if value is not None and value < low:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {low}, got {value}.")


def check_folder(path: Path) -> None:
    """Raises `ValueError` for an `--output` folder that cannot be made, as it, or what it would lie in, is a file.

    Args:
        path (`Path`): of the folder, which may be missing.
    """
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ValueError(f"--output {path}: {there} is a file, and not a folder to write into.")


def check_views(
    pipe: KaleidoViewSynthesisPipeline, height: int | None, width: int | None, guidance_scale: float = 1.0
) -> None:
    """Raises `ValueError` for views that a pipeline cannot make, before it is called.

    Args:
        pipe ([`KaleidoViewSynthesisPipeline`]): that is to make them.
        height (`int`, *optional*): of the views in pixels; the model's own when not given.
        width (`int`, *optional*): likewise.
        guidance_scale (`float`, defaults to `1.0`): classifier-free guidance.
    """
    side = pipe.default_sample_size
    pipe.check_memory_inputs(height or side, width or side, None)
    check_guidance(guidance_scale)
