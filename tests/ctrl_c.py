"""A Ctrl-C at a chosen moment. Python looks for signals where a function begins, and after a call."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from native_support import PACKAGE_ROOT

if TYPE_CHECKING:
    from typing_extensions import Self

OURS = PACKAGE_ROOT / "pcmring"


class CtrlC:
    """In a `with`, raise KeyboardInterrupt at the n-th moment of this thread at which it can come to pcmring's code.

    Once what was called has done its work, its result is lost. Not within what pcmring calls: Python's own code that
    takes a lock (threading, logging) can leave it locked.

    Attributes
    ----------
    moments : int
        How many there were.
    has_come : bool
        The moment was reached. The KeyboardInterrupt ends at the end of the `with`.
    """

    def __init__(self, moment: int | None = None) -> None:
        self.moment = moment
        self.moments = 0
        self.has_come = False

    def __enter__(self) -> Self:
        self._before = sys.unraisablehook
        sys.unraisablehook = self._tell  # one that comes in a finalizer is lost
        sys.setprofile(self._see)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        sys.setprofile(None)
        sys.unraisablehook = self._before
        return self.has_come and kind is KeyboardInterrupt

    def _tell(self, unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.exc_type is not KeyboardInterrupt:
            self._before(unraisable)

    def _see(self, frame: FrameType, event: str, function: object) -> None:
        where = {"call": frame, "c_return": frame, "return": frame.f_back}.get(event)
        if where is None or not _is_ours(where):
            return
        if event == "call" and frame.f_code.co_flags & inspect.CO_GENERATOR:
            return  # going on after a yield: Python 3.10 would skip what is to be done there in the end
        if getattr(function, "__name__", "") == "__enter__":
            return  # `with lock` is Python's own to keep whole, which 3.14 does not
        if self.moments == self.moment:
            self.has_come = True
            raise KeyboardInterrupt
        self.moments += 1


def _is_ours(frame: FrameType) -> bool:
    return Path(frame.f_code.co_filename).is_relative_to(OURS)
