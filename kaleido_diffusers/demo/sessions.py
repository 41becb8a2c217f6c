"""What the app keeps of each visitor, apart from all others."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from .captures import Capture
from .views import Result


__all__ = ["Session", "Sessions"]


@dataclass
class Session:
    """
    One visitor's page.

    Attributes:
        capture (`Capture`, *optional*): what was loaded last.
        result (`Result`, *optional*): what was generated last.
        cancelled (`threading.Event`): of the work that runs for the visitor, or ran last.
        touched (`float`): when the visitor was heard of last, by the monotonic clock.
    """

    capture: Capture | None = None
    result: Result | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    touched: float = 0.0

    def begin(self) -> threading.Event:
        """Stops what runs for the visitor; returns the event that stops what begins now."""
        self.cancelled.set()
        self.cancelled = threading.Event()
        return self.cancelled


class Sessions:
    """
    The sessions by their keys, which browsers make up at random for each page.

    Args:
        most (`int`): how many to keep; the one unheard of for longest goes first.
        seconds (`float`): how long to keep one that is not heard of.
        clock (`Callable`, defaults to `time.monotonic`): tells seconds.
    """

    def __init__(self, most: int, seconds: float, clock: Callable[[], float] = time.monotonic):
        self._most, self._seconds, self._clock = most, seconds, clock
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def __getitem__(self, key: str) -> Session:
        """A visitor's session; a new one for who is not known, or not any more."""
        self.sweep()
        with self._lock:
            session = self._sessions.setdefault(key, Session())
            session.touched = self._clock()
            self._sessions.move_to_end(key)
            while len(self._sessions) > self._most:
                self._sessions.popitem(last=False)[1].cancelled.set()
            return session

    def drop(self, key: str) -> None:
        """Forgets a visitor, and stops what runs for them.

        Args:
            key (`str`): names the visitor.
        """
        with self._lock:
            session = self._sessions.pop(key, None)
        if session is not None:
            session.cancelled.set()

    def sweep(self) -> None:
        """Forgets the visitors who were not heard of for too long."""
        oldest = self._clock() - self._seconds
        for key in [key for key, session in list(self._sessions.items()) if session.touched < oldest]:
            self.drop(key)
