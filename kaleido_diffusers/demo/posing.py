"""Cameras of a visitor's photos, found by `kaleido poses` in a process of its own: COLMAP cannot be interrupted from
within, and what it takes of the memory is given back for certain."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path

from .limits import Progress, Stopped, in_background


__all__ = ["pose_photos"]

_BAR = re.compile(r"^(?P<what>[a-z ]+): +\d+%\|.*\| (?P<done>\d+)/(?P<total>\d+)")
_SENTENCES = {  # of the bars of `kaleido poses`
    "looking at frames": "Looking for the sharpest frames of the video",
    "writing frames": "Taking them out of the video",
    "looking at photos": "Looking at the photos",
    "copying photos": "Copying the photos",
    "finding features": "Finding details in the photos",
    "matching pairs": "Finding the same details in pairs of photos",
    "placing photos": "Placing the cameras",
}
_PREFIX = "kaleido: "


def pose_photos(
    photos: Path, output: Path, seconds: float, cancelled: threading.Event, frames: int = 40
) -> Generator[Progress, None, list[str]]:
    """
    Yields the progress; returns warnings, a sentence each.

    Args:
        photos (`Path`): a folder of photos, or a video.
        output (`Path`): folder for the capture.
        seconds (`float`): after which to give up.
        cancelled (`threading.Event`): ends the work when it is set, with [`Stopped`].
        frames (`int`, defaults to `40`): most frames that are taken of a video.

    Raises `ValueError` with what went wrong and what to do about it.
    """
    command = [sys.executable, "-m", "kaleido_diffusers.cli", "poses", str(photos), "--output", str(output)]
    command += ["--frames", str(frames)]
    package = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    late = threading.Event()
    threading.Thread(target=_end, args=(process, cancelled, late, seconds), daemon=True).start()
    said = []
    yield Progress("Starting to find the cameras")
    try:
        for line in in_background(lambda report: _read(process, report), cancelled):
            if bar := _BAR.match(line):
                text = _SENTENCES.get(bar["what"], bar["what"].capitalize())
                yield Progress(text, int(bar["done"]), int(bar["total"]))
            elif line.startswith(_PREFIX):
                said.append(re.sub(rf"{re.escape(str(output))}[^\s:]*: ", "", line.removeprefix(_PREFIX)))
    finally:
        process.kill()
        process.wait()
    if cancelled.is_set():
        raise Stopped
    if late.is_set():
        raise ValueError(f"Finding the cameras took more than {seconds / 60:g} minutes: give fewer photos.")
    warnings = [line.removeprefix("warning: ") for line in said if line.startswith("warning: ")]
    errors = [line for line in said if not line.startswith("warning: ")]
    if process.returncode or not (output / "report.json").is_file():
        raise ValueError(errors[-1] if errors else "The cameras of these photos could not be found.")
    return warnings


def _read(process: subprocess.Popen, report) -> None:
    """Reports the lines of a process, and the states of its bars, which end in a carriage return."""
    for line in process.stderr:  # universal newlines: a carriage return ends a line
        report(line.strip())
    process.wait()


def _end(process: subprocess.Popen, cancelled: threading.Event, late: threading.Event, seconds: float) -> None:
    """Kills a process when it is not wanted any more, or takes too long."""
    limit = time.monotonic() + seconds
    while process.poll() is None:
        if time.monotonic() > limit:
            late.set()
        if cancelled.wait(0.1) or late.is_set():
            process.kill()
            return
