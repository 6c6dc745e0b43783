"""Callables that others registered, in order.

Who owns what. What was handed over is held: a function, a lambda, a partial, a callable object have no other owner
that one could count on. A bound method is different: it is a temporary that its instance's owner knows nothing of, so
the instance is held weakly, and its callback is gone when the instance is. (W4L held both, and with its callbacks every
manager it had ever made.) An instance that cannot be weakly referenced is held.

No locks. Every change is one operation on a dict, which is atomic with the GIL and without. So all of it may be called
from any thread, from a callback, and from a finalizer that the garbage collector runs at the worst moment.
"""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

__all__ = ["Callback", "Callbacks", "name_of"]

Outcome = Literal["returned", "raised", "gone"]


def name_of(function: object) -> str:
    """A callable's name for a log line."""
    name = getattr(function, "__qualname__", None)
    return f"{getattr(function, '__module__', None)}.{name}" if isinstance(name, str) else repr(function)


class Callback:
    """One callable, held as this module says.

    Parameters
    ----------
    function : callable
        Anything that can be called with no arguments.
    what : str
        The argument's name in an error message.

    Raises
    ------
    TypeError
        `function` cannot be called.
    """

    __slots__ = ("_get", "failed", "key", "warned")

    def __init__(self, function: Callable[[], Any], what: str = "callback") -> None:
        if not callable(function):
            raise TypeError(f"{what} must be a callable without arguments, got {function!r}")
        self._get: Callable[[], Callable[[], Any] | None] = lambda: function
        self.key: object = id(function)
        self.failed = False  #: its last call raised, and that was logged
        self.warned = False  #: what its last call returned was of no use, and that was logged
        if inspect.ismethod(function):
            self.key = (id(function.__self__), id(function.__func__))
            with suppress(TypeError):  # the instance may have no room for a weak reference
                self._get = weakref.WeakMethod(function)

    def get(self) -> Callable[[], Any] | None:
        """The callable, or None if its instance is gone."""
        return self._get()

    def call(self, logger: logging.Logger, what: str, *, repeat: bool = True) -> tuple[Outcome, Any]:
        """Call it; log what it raises, with its traceback.

        Parameters
        ----------
        logger : logging.Logger
            Where a failure goes.
        what : str
            What it is called for, in the log line.
        repeat : bool
            False: after a failure, log again only after a call that worked.

        Returns
        -------
        ("returned", object), ("raised", None) or ("gone", None)
            The last where its instance is gone.
        """
        function = self._get()
        if function is None:
            return "gone", None
        try:
            result = function()
        except Exception:  # not our code, and the others must still run: the contract is the log with its traceback
            if repeat or not self.failed:
                logger.exception("%s %s failed", what, name_of(function))
            self.failed = True
            return "raised", None
        self.failed = False
        return "returned", result


class Callbacks:
    """Callables by stage, and in the order they came. One registered twice is called once.

    Parameters
    ----------
    stages : tuple of str
        Every callable of a stage comes before those of the next.
    """

    def __init__(self, stages: tuple[str, ...] = ("",)) -> None:
        self._stages: dict[str, dict[object, Callback]] = {stage: {} for stage in stages}

    def add(self, function: Callable[[], Any], stage: str = "") -> None:
        callback = Callback(function)
        entries = self._stages.get(stage)
        if entries is None:
            raise ValueError(f"stage must be one of {', '.join(map(repr, self._stages))}, got {stage!r}")
        self.remove(function)
        entries[callback.key] = callback

    def remove(self, function: Callable[[], Any]) -> bool:
        """Forget `function`; return whether it was there."""
        key = Callback(function).key
        found = False
        for entries in self._stages.values():
            entry = entries.pop(key, None)
            # An address is used again: the entry of a dead instance may stand where a living one's would.
            found = found or (entry is not None and entry.get() is not None)
        return found

    def live(self) -> list[Callback]:
        """All that can still be called, in order. Forgets those whose instance is gone."""
        result = []
        for entries in self._stages.values():
            for key, entry in entries.copy().items():  # copy() is atomic; iterating over the original is not
                if entry.get() is not None:
                    result.append(entry)
                elif entries.get(key) is entry:
                    entries.pop(key, None)
        return result

    def __len__(self) -> int:
        return len(self.live())
