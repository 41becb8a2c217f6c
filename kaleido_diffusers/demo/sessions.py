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
    One visitor.

    Attributes:
        capture (`Capture`, *optional*): what was loaded last.
        result (`Result`, *optional*): what was generated last.
        picked (`tuple[int, ...]`): photos that the visitor chose as references; none: the app chooses.
        thumbnails (`dict`): files of the photos to click on, which are made once.
        page (`str`): the page whose work runs, or ran last.
        cancelled (`threading.Event`): of the work that runs for the visitor, or ran last.
        glanced (`threading.Event`): of the live view of the free camera, likewise.
        touched (`float`): when the visitor was heard of last, by the monotonic clock.
    """

    capture: Capture | None = None
    result: Result | None = None
    picked: tuple[int, ...] = ()
    thumbnails: dict[tuple[int, int, bool], str] = field(default_factory=dict)
    page: str = ""
    cancelled: threading.Event = field(default_factory=threading.Event)
    glanced: threading.Event = field(default_factory=threading.Event)
    touched: float = 0.0

    def begin(self, page: str = "") -> threading.Event:
        """Stops what runs for the visitor; returns the event that stops what begins now.

        Args:
            page (`str`, defaults to `""`): the page that wants it.
        """
        self.end()
        self.page = page
        self.cancelled = threading.Event()
        return self.cancelled

    def glance(self, page: str = "") -> threading.Event:
        """Stops the live view that is made for the visitor, and nothing else: it may come late, when the visitor has
        long begun what counts. Returns the event that stops the one that begins now.

        Args:
            page (`str`, defaults to `""`): the page that wants it.
        """
        self.glanced.set()
        self.page = page
        self.glanced = threading.Event()
        return self.glanced

    def end(self) -> None:
        """Stops all that runs for the visitor."""
        self.cancelled.set()
        self.glanced.set()


class Sessions:
    """
    The sessions by the keys of visitors' pages, which browsers make up at random. A page that is loaded again has
    another key, and a token that it brings along, see [`enter`].

    Args:
        most (`int`): how many to keep; the one unheard of for longest goes first.
        seconds (`float`): how long to keep one that is not heard of.
        clock (`Callable`, defaults to `time.monotonic`): tells seconds.
    """

    def __init__(self, most: int, seconds: float, clock: Callable[[], float] = time.monotonic):
        self._most, self._seconds, self._clock = most, seconds, clock
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._tokens: OrderedDict[str, str] = OrderedDict()  # page -> token
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def enter(self, page: str, token: str) -> Session:
        """The session of a page that is loaded, or loaded again.

        Args:
            page (`str`): its key.
            token (`str`): a secret of the browser's window, the same after the page was loaded again.
        """
        with self._lock:
            self._tokens[page] = token
            while len(self._tokens) > 4 * self._most:
                self._tokens.popitem(last=False)
        return self[page]

    def leave(self, page: str) -> None:
        """A page is closed, or loaded again: stops its work, and forgets a visitor who has no token to come back with.

        Args:
            page (`str`): its key.
        """
        with self._lock:
            token = self._tokens.pop(page, None)
            session = None if token is None else self._sessions.get(token)
        if token is None:
            self.drop(page)
        elif session is not None and session.page == page:
            session.end()

    def __getitem__(self, key: str) -> Session:
        """A visitor's session; a new one for who is not known, or not any more."""
        self.sweep()
        with self._lock:
            key = self._tokens.get(key, key)
            session = self._sessions.setdefault(key, Session())
            self._touch(key)
            while len(self._sessions) > self._most:
                self._sessions.popitem(last=False)[1].end()
            return session

    def hear(self, key: str) -> None:
        """Keeps a visitor whose work goes on, or waits for its turn, which may take longer than sessions are kept.

        Args:
            key (`str`): names the visitor.
        """
        with self._lock:
            key = self._tokens.get(key, key)
            if key in self._sessions:
                self._touch(key)

    def _touch(self, key: str) -> None:
        self._sessions[key].touched = self._clock()
        self._sessions.move_to_end(key)

    def drop(self, key: str) -> None:
        """Forgets a visitor, and stops what runs for them.

        Args:
            key (`str`): names the visitor: a token, or a page that has none.
        """
        with self._lock:
            session = self._sessions.pop(key, None)
        if session is not None:
            session.end()

    def sweep(self) -> None:
        """Forgets the visitors who were not heard of for too long."""
        oldest = self._clock() - self._seconds
        for key in [key for key, session in list(self._sessions.items()) if session.touched < oldest]:
            self.drop(key)
