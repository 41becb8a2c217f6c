"""One thread for all that the viewer renders."""

import sys
import threading
import time
from collections.abc import Callable

from ..web.texts import as_markdown


__all__ = ["Jobs"]


class Jobs:
    """
    A thread that does one job after the other. Of each kind only the newest waits, and it waits for its delay.

    Args:
        say (`Callable`): told in Markdown what did not work.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._waiting: dict[str, tuple[float, Callable[[], None]]] = {}  # kind -> when it is due, job
        self._changed = threading.Condition()
        self.closing = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def put(self, kind: str, job: Callable[[], None], delay: float = 0.0) -> None:
        """
        Lets a job wait for its turn, instead of one of its kind that waits already.

        Args:
            kind (`str`): of the job.
            job (`Callable`): what to do.
            delay (`float`, defaults to `0.0`): seconds that it waits for a newer one.
        """
        with self._changed:
            self._waiting[kind] = (time.monotonic() + delay, job)
            self._changed.notify()

    def waits(self, *kinds: str) -> bool:
        """
        Whether the job at work is out of date: the viewer closes, or one of these kinds waits.

        Args:
            kinds (`str`): kinds of jobs.
        """
        return self.closing or any(kind in self._waiting for kind in kinds)

    def close(self) -> None:
        """Ends the thread after the job at work."""
        with self._changed:
            self.closing = True
            self._changed.notify()
        self._thread.join(timeout=30)

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while not self.closing:
                wait = None
                if self._waiting:
                    kind = min(self._waiting, key=lambda kind: self._waiting[kind][0])
                    wait = self._waiting[kind][0] - time.monotonic()
                    if wait <= 0:
                        return self._waiting.pop(kind)[1]
                self._changed.wait(wait)
        return None

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                job()
            except Exception as error:  # the page goes on; what failed is said there and in the terminal
                self._say(f"**This did not work:** {as_markdown(str(error))}")
                print(f"kaleido: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
