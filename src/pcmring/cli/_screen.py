"""Captions on a terminal: what is final scrolls up, below it the draft and how things are."""

from __future__ import annotations

import math
from contextlib import nullcontext
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pcmring.cli._subtitles import RATE

if TYPE_CHECKING:
    from rich.console import Console
    from typing_extensions import Self

    from pcmring._streaming import StreamingAudioManager
    from pcmring.pipeline import Caption, Captioner

__all__ = ["CaptionScreen", "level_db", "meter"]

#: What the level meter begins with, dBFS.
QUIETEST_DB = -60.0
#: The meter shows the peak of so many seconds.
METER_S = 0.2
REFRESHES_PER_SECOND = 8


def level_db(peak: float) -> float:
    """Full scale is 0."""
    return 20 * math.log10(peak) if peak > 0 else -math.inf


def meter(peak: float, line: str) -> RenderableType:
    """A bar for the level, and a line beside it."""
    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=-QUIETEST_DB, completed=max(0.0, level_db(peak) - QUIETEST_DB), width=12)
    grid.add_row(bar, Text(line, no_wrap=True, overflow="ellipsis"))
    return grid


class CaptionScreen:
    """Shows captions; on a terminal also level, fill, lag, losses and memory, all the time.

    Parameters
    ----------
    console : Console
    manager : StreamingAudioManager
        What records.
    captioner : Captioner
    """

    def __init__(self, console: Console, manager: StreamingAudioManager, captioner: Captioner) -> None:
        self._console = console
        self._manager = manager
        self._captioner = captioner
        self._draft = ""
        ring = manager.buffer
        self._ring_s = ring.capacity / (ring.samplerate or RATE) if ring is not None else math.inf
        self._live = (
            Live(
                console=console,
                get_renderable=self._render,
                refresh_per_second=REFRESHES_PER_SECOND,
                transient=True,
            )
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        (self._live or nullcontext()).__enter__()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        (self._live or nullcontext()).__exit__(exc_type, exc, traceback)

    def show(self, caption: Caption) -> None:
        """A final caption for good, a draft until the next one."""
        self._draft = "" if caption.is_final else caption.text
        if not caption.is_final:
            return
        at = f"{timedelta(seconds=caption.start // RATE)}  "
        if caption.lost:
            self._console.print(
                f"{at}[{caption.lost / RATE:.1f} s of speech were lost: the engine is too slow, try a smaller --model]"
            )
        if caption.error is not None:
            self._console.print(f"{at}[{caption.error}]")
        elif caption.text:
            merged = f"  [{caption.utterances} utterances at once]" if caption.utterances > 1 else ""
            self._console.print(Text(f"{at}{caption.text}{merged}"), soft_wrap=True)

    def _render(self) -> RenderableType:
        latest = self._manager.get_latest_audio(METER_S)
        peak = float(np.abs(latest).max(initial=0.0))
        return Group(Text(self._draft, style="dim", overflow="fold"), meter(peak, self._status(peak)))

    def _status(self, peak: float) -> str:
        info = self._manager.get_buffer_info()
        heard = self._captioner.segmenter.statistics
        lost = sum(info["frames_lost"].values()) + heard.frames_lost
        unread_s = info["frames_written"] / (info["device_sample_rate"] or RATE) - heard.position / RATE
        fill = max(0.0, unread_s / self._ring_s)
        behind = " BEHIND" if self._captioner.is_behind else ""
        away = "  DEVICE LOST" if info["state"] == "recovering" else ""
        return (
            f"{timedelta(seconds=heard.position // RATE)}  {level_db(peak):5.1f} dBFS  fill {fill:.0%}  "
            f"lag {self._captioner.lag_s:.1f} s{behind}  lost {lost}  "
            f"{info['memory_usage_mb']:.0f} of {self._manager.memory_monitor.max_memory_mb:.0f} MB{away}"
        )
