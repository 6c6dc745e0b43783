"""The library's own errors: wrong moments. Wrong arguments are plain ValueError and TypeError."""

from __future__ import annotations

__all__ = ["BufferClosed", "FramesLost"]


class BufferClosed(ValueError):
    """The buffer, reader, view or capture was closed, or belongs to the process before a fork.

    A reader of a closed buffer first delivers what was stored; only then it raises this.
    """


class FramesLost(LookupError):
    """Frames asked for by position are no longer held.

    Attributes
    ----------
    start, stop : int
        The range asked for, positions in frames, half open.
    first, last : int
        The part of it that is gone, ``[first, last)``.
    oldest : int
        The oldest frame still held; reading from here on works.
    """

    def __init__(self, start: int, stop: int, oldest: int) -> None:
        self.start = start
        self.stop = stop
        self.oldest = oldest
        self.first = start
        self.last = min(stop, oldest)
        super().__init__(
            f"frames {self.first} to {self.last} of the range {start} to {stop} are gone: "
            f"the oldest frame held is {oldest}"
        )

    def __reduce__(self) -> tuple[type[FramesLost], tuple[int, int, int]]:
        return FramesLost, (self.start, self.stop, self.oldest)
