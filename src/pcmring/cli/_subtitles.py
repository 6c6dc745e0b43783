"""Captions as text, JSON lines, SubRip and WebVTT; each caption is on the disk when the next one comes."""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from html import escape
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

    from pcmring.pipeline import Caption

__all__ = ["Subtitles", "as_json", "timecode"]

RATE = 16000


def timecode(frame: int, decimal_mark: str = ".") -> str:
    """``hh:mm:ss.mmm``."""
    milliseconds = frame * 1000 // RATE
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{decimal_mark}{milliseconds:03}"


def as_json(caption: Caption) -> str:
    """One line. Seconds are from the recording's first frame."""
    return json.dumps(
        {
            "start_s": round(caption.start / RATE, 3),
            "stop_s": round(caption.stop / RATE, 3),
            "text": caption.text,
            "is_final": caption.is_final,
            "words": [[word.text, round(word.start / RATE, 3), round(word.stop / RATE, 3)] for word in caption.words],
            "utterances": caption.utterances,
            "frames_lost_before": caption.lost,
            "gaps": [gap._asdict() for gap in caption.gaps],
            "error": None if caption.error is None else str(caption.error),
        }
    )


class Subtitles:
    """The files that final captions go into, as they come.

    Parameters
    ----------
    srt, vtt : Path, optional
        New files.

    Raises
    ------
    FileExistsError, OSError
        A file is there already, or cannot be made.
    """

    def __init__(self, srt: Path | None = None, vtt: Path | None = None) -> None:
        self._count = 0
        with ExitStack() as stack:
            self._srt, self._vtt = (
                None if path is None else stack.enter_context(path.open("x", encoding="utf-8")) for path in (srt, vtt)
            )
            _append(self._vtt, "WEBVTT\n\n")
            self._files = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        with suppress(OSError):  # all was flushed, or it was said why not
            self._files.close()

    def add(self, caption: Caption) -> None:
        """Append a final caption that has words in it.

        Raises
        ------
        OSError
            With the file's name.
        """
        if not caption.is_final or not caption.text:
            return
        self._count += 1
        start, stop = caption.start, caption.speech_stop
        _append(self._srt, f"{self._count}\n{timecode(start, ',')} --> {timecode(stop, ',')}\n{caption.text}\n\n")
        _append(self._vtt, f"{timecode(start)} --> {timecode(stop)}\n{escape(caption.text, quote=False)}\n\n")


def _append(file: IO[str] | None, text: str) -> None:
    if file is not None:
        try:
            file.write(text)
            file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, file.name) from error
