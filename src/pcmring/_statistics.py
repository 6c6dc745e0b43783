"""A buffer's counters. Apart from the other records: `dataclasses` takes longer to load than all of the ring."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BufferStatistics"]


@dataclass(frozen=True)
class BufferStatistics:
    """Counters of one buffer at one moment. All counts are frames unless the name says otherwise."""

    capacity: int
    channels: int
    dtype: str
    samplerate: float | None  #: hertz
    policy: str
    mirrored: bool  #: a view across the end of memory costs no copy
    nbytes: int  #: audio bytes held at most
    memory_bytes: int  #: all memory of the ring: audio, tables, rounding to pages
    frames_written: int
    oldest: int
    fill: int
    peak_fill: int  #: high-water mark of `fill`
    blocks: int  #: writes that stored at least one frame
    min_block: int
    max_block: int
    frames_lost: dict[str, int]  #: frames that never reached the ring, by cause
    gaps: int  #: entries ever made in the ledger
    frames_delivered: int  #: by the buffer's own reader
    frames_overrun: int  #: overwritten before the buffer's own reader took them
