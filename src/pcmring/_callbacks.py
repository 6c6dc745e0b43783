"""Callables that others registered, in order.

Who owns what. A function, a lambda, a partial, a callable object is held: it has no other owner that one could count
on. A bound method is a temporary, so its instance is held instead, weakly, and the callback is gone when the instance
is. An instance that cannot be weakly referenced is held.

No locks. Every change is one operation on a dict, which is atomic with the GIL and without. So all of it may be called
from any thread, from a callback, and from a finalizer that the garbage collector runs at the worst moment.
"""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

__all__ = ["Callback", "Callbacks"]


class Callback:
    """One callable, held as this module says.

    Raises
    ------
    TypeError
        `function` cannot be called.
    """

    __slots__ = ("failed", "get")

    def __init__(self, function: Callable[[], Any]) -> None:
        if not callable(function):
            raise TypeError(f"callback must be a callable without arguments, got {function!r}")
        self.failed = False  #: its last call raised
        self.get: Callable[[], Callable[[], Any] | None] = lambda: function  #: the callable; None once it is gone
        if inspect.ismethod(function):
            with suppress(TypeError):  # the instance may have no room for a weak reference
                self.get = weakref.WeakMethod(function)

    def call(self, logger: logging.Logger, what: str) -> bool:
        """Call it, and log what it raises with its traceback; return whether it raised nothing."""
        function = self.get()
        try:
            if function is not None:
                function()
        except Exception:  # not our code, and the others must still run: the contract is the log with its traceback
            logger.exception("%s %r failed", what, function)
            return False
        return True


def _same(one: Callable[[], Any], other: Callable[[], Any]) -> bool:
    """By identity: an instance whose == is ambiguous, as an array's, is none of our business."""
    if inspect.ismethod(one) and inspect.ismethod(other):
        return one.__self__ is other.__self__ and one.__func__ is other.__func__
    return one is other


class Callbacks:
    """Callables by stage, and in the order they came. One registered twice is called once.

    Parameters
    ----------
    stages : tuple of str
        Every callable of a stage comes before those of the next.
    """

    def __init__(self, stages: tuple[str, ...] = ("",)) -> None:
        self._stages: dict[str, dict[Callback, None]] = {stage: {} for stage in stages}

    def add(self, function: Callable[[], Any], stage: str = "") -> None:
        callback = Callback(function)
        if stage not in self._stages:
            raise ValueError(f"stage must be one of {', '.join(map(repr, self._stages))}, got {stage!r}")
        self.remove(function)
        self._stages[stage][callback] = None

    def remove(self, function: Callable[[], Any]) -> bool:
        """Forget `function`; return whether it was there."""
        found = False
        for entries in self._stages.values():
            for entry in entries.copy():  # atomic; iterating over the original is not
                live = entry.get()
                if live is None:
                    entries.pop(entry, None)
                elif _same(live, function):
                    entries.pop(entry, None)
                    found = True
        return found

    def live(self) -> list[Callback]:
        """All that can still be called, in order. Forgets those whose instance is gone."""
        result = []
        for entries in self._stages.values():
            for entry in entries.copy():
                if entry.get() is not None:
                    result.append(entry)
                else:
                    entries.pop(entry, None)
        return result

    def call(self, logger: logging.Logger, what: str) -> int:
        """Call all of them; log what they raise and return how many did."""
        return sum(not callback.call(logger, what) for callback in self.live())
