"""The line of those who wait: one piece of work at a time, first come, first served."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


__all__ = ["Ticket", "Turns"]


@dataclass(eq=False)
class Ticket:
    """A place in the line: `seconds` that the work is thought to take, and when it `began`, by the clock."""

    seconds: float
    began: float | None = None


class Turns:
    """
    Tells who is next.

    Args:
        most (`int`): how many may wait.
        clock (`Callable`, defaults to `time.monotonic`): tells seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic):
        self._most, self._clock = most, clock
        self._line: list[Ticket] = []
        self._changed = threading.Condition()

    def join(self, seconds: float) -> Ticket:
        """A place at the end of the line; raises `ValueError` where it is too long.

        Args:
            seconds (`float`): that the work is thought to take.
        """
        with self._changed:
            if len(self._line) > self._most:
                seconds = round(self._left(self._line[:1]))
                raise ValueError(f"{self._most} others are waiting already: please come back in {seconds} seconds.")
            self._line.append(Ticket(seconds))
            return self._line[-1]

    def ahead(self, ticket: Ticket, patience: float = 1.0) -> tuple[int, float] | None:
        """
        How many are before a ticket, and the seconds that they are thought to take; nothing when it is its turn.

        Args:
            ticket (`Ticket`): of [`join`].
            patience (`float`, defaults to `1.0`): seconds to wait for the turn before telling.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._line[0] is ticket, patience)
            place = self._line.index(ticket)
            if not place:
                if ticket.began is None:
                    ticket.began = self._clock()
                return None
            return place, self._left(self._line[:place])

    def _left(self, tickets: list[Ticket]) -> float:
        """Seconds that the first tickets in the line are thought to take from now."""
        first = tickets[0]
        done = 0.0 if first.began is None else self._clock() - first.began
        return max(1.0, sum(ticket.seconds for ticket in tickets) - done)

    def leave(self, ticket: Ticket) -> float:
        """Gives the turn, or the place, to the next; returns how many seconds the work took.

        Args:
            ticket (`Ticket`): of [`join`].
        """
        with self._changed:
            self._line.remove(ticket)
            self._changed.notify_all()
            return 0.0 if ticket.began is None else self._clock() - ticket.began
