"""What the ring reports: plain records, no behaviour."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CAUSES", "Block", "Gap", "StreamTime"]

#: Why frames are missing, in the order of ring.h's enum pcmring_cause.
CAUSES = ("device_overflow", "dropped", "reopened", "paused")


class Block(NamedTuple):
    """A window of frames that a reader was given.

    Attributes
    ----------
    start : int
        Position of its first frame.
    frames : int
        Its length; shorter than asked only at the end of a closed buffer.
    array : ndarray, shape (frames, channels)
        The caller's own copy.
    lost : int
        Frames lost between the window before and this one.
    """

    start: int
    frames: int
    array: Any
    lost: int


class Gap(NamedTuple):
    """Frames that never reached the ring.

    Attributes
    ----------
    position : int
        The first frame stored after the gap.
    frames : int
        How many are missing just before it.
    cause : str
        "device_overflow", "dropped", "reopened" or "paused".
    exact : bool
        False when `frames` is an estimate from a clock.
    """

    position: int
    frames: int
    cause: str
    exact: bool


class StreamTime(float):
    """Seconds, with the clock they were measured on.

    Attributes
    ----------
    clock : str
        "adc": the device's clock (PortAudio's stream time), at the moment of capture.
        "monotonic": `time.monotonic`, when the frame had arrived; used where the host gave no
        believable capture time.
    """

    __slots__ = ("clock",)
    clock: str

    def __new__(cls, seconds: float, clock: str) -> Self:
        self = super().__new__(cls, seconds)
        self.clock = clock
        return self

    def __repr__(self) -> str:
        return f"StreamTime({float(self)!r}, clock={self.clock!r})"

    def __reduce__(self) -> tuple[type[StreamTime], tuple[float, str]]:
        return StreamTime, (float(self), self.clock)
