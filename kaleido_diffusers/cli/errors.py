"""How a verb ends when it does not end well: in a sentence, and never in a traceback."""

import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Protocol, TextIO

from tqdm import tqdm

from ..files import DiskFullError


__all__ = ["INTERRUPTED", "Verb", "plain", "run_verb"]

INTERRUPTED = 130  # what shells say of a program that Ctrl-C has ended: 128 and the number of the signal
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e]")
_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "bad_alloc")


class Verb(Protocol):
    """What the command line runs."""

    def run(self) -> None:
        """Does the work. `KeyboardInterrupt` may bring along what was saved and how to go on."""


def plain(text: str) -> str:
    """Text without control characters, which would reach the terminal as commands: names come out of files of others.

    Args:
        text (`str`): any; line ends and tabs stay, all others are written out.
    """
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


class _PlainOutput:
    """A stream that writes [`plain`] text."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(plain(text))

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def run_verb(run: Callable[[], None], debug: bool = False) -> int:
    """
    Runs a verb and says in one line on standard error why it failed. Python's traceback of what nobody has foreseen
    goes into a file.

    Args:
        run (`Callable`): of a [`Verb`].
        debug (`bool`, defaults to `False`): show every traceback.

    Returns:
        `int`: the exit status: 0, 130 after Ctrl-C, or else 1.
    """
    try:
        with redirect_stdout(_PlainOutput(sys.stdout)):
            run()
            sys.stdout.flush()
        return 0
    except BrokenPipeError:  # `kaleido info | head`: nobody reads on, and Python shall not say so when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as error:
        told = str(error) or "What was written is whole. Run it again, with --overwrite where it asks for that."
        told, status, failure = f"stopped. {told}", INTERRUPTED, error
    except Exception as error:
        told, status, failure = _told(error, debug), 1, error
    if debug:
        traceback.print_exception(failure)
    for bar in list(getattr(tqdm, "_instances", ())):  # the line is to stand alone, not behind a bar
        bar.close()
    print(f"kaleido: {plain(told)}", file=sys.stderr)
    return status


def _told(error: Exception, debug: bool) -> str:
    """What to say of an error."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, MemoryError) or any(words in text.lower() for words in _NO_MEMORY):
        first = text.splitlines()[0]
        return (
            f"out of memory ({first}). Smaller views (--height, --width), fewer at once (--views-per-group, --batch)"
            " or --max-memory-views take less."
        )
    if isinstance(error, OSError) and not isinstance(error, DiskFullError) and error.errno == 28:
        return f"the disk is full ({text}). Make room and run the same command again."
    if isinstance(error, (ValueError, ImportError, OSError, FloatingPointError)):
        return text
    where = "above" if debug else _kept_traceback(error)
    return f"unexpected {type(error).__name__}: {text.splitlines()[0]} This is a bug; its traceback is {where}"


def _kept_traceback(error: Exception) -> str:
    """Writes the traceback to a file, whose name is returned."""
    lines = traceback.format_exception(error)
    try:
        with tempfile.NamedTemporaryFile("w", prefix="kaleido-", suffix=".txt", delete=False) as file:
            file.writelines(lines)
        return f"in {file.name}"
    except OSError:
        return "shown by --debug"
