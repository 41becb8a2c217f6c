"""Calls of one pipeline from several threads: one after the other."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from weakref import WeakKeyDictionary


__all__ = ["one_call_at_a_time"]


class _Turn:
    """A lock that knows who holds it: calls inside of calls would wait for themselves for ever."""

    def __init__(self):
        self.lock, self.holder = threading.Lock(), None

    def __enter__(self) -> None:
        if self.holder == threading.get_ident():
            raise RuntimeError(
                "This pipeline is in the middle of a call, on whose schedule and adapters another one within it (from"
                " a callback?) would write. Call it afterwards, or use a second pipeline with components of its own."
            )
        self.lock.acquire()
        self.holder = threading.get_ident()

    def __exit__(self, *error) -> None:
        self.holder = None
        self.lock.release()


# Beside the components and not in them, so that pipelines can still be copied and pickled
_turns: WeakKeyDictionary[object, _Turn] = WeakKeyDictionary()
_turns_guard = threading.Lock()


def one_call_at_a_time(method: Callable) -> Callable:
    """
    Decorates methods of a pipeline which run its components: those that threads call at the same time wait for each
    other, also in other pipelines that share a component. A scheduler knows how far the sampling has come, a
    transformer its step caches and the scale of its adapters, a pipeline the guidance: threads that shared them got
    wrong views without a word. A call within a call of the same thread is refused (`RuntimeError`).

    Args:
        method (`Callable`): of a pipeline with `components`.
    """

    @wraps(method)
    def wrapper(self, *args, **kwargs):
        shared = {id(part): part for part in self.components.values() if part is not None}
        with _turns_guard:
            turns = [_turns.setdefault(part, _Turn()) for _, part in sorted(shared.items())]
        with ExitStack() as stack:
            for turn in turns:  # in one order everywhere, so that no two calls wait for each other
                stack.enter_context(turn)
            return method(self, *args, **kwargs)

    return wrapper
