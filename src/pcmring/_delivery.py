"""What a program is told of its stream: its own functions, and the thread that brings them audio.

Threads: `Delivery` owns one thread and one reader of the ring; a function that is slow makes this reader fall
behind, and nothing else. The other functions are called by the session's thread, without any lock held.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pcmring.errors import BufferClosed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pcmring._resample import ResamplingReader

__all__ = ["Delivery", "StreamHandlers"]

logger = logging.getLogger(__name__)


class StreamHandlers:
    """A program's functions, called when something happens to its stream. Any may be None, and be set at any time.

    They may do what they like, also stop the recording. One that raises is logged with its traceback, and again
    only after a call that worked; the recording goes on. KeyboardInterrupt and SystemExit end the thread they
    come up in: the delivery of audio, or, raised by another function, the recording.

    Attributes
    ----------
    on_audio_data : callable
        ``f(audio)``, audio an ndarray of float32, shape (frames, channels), at the configured rate: the stream
        without a gap while the function keeps up.
    on_buffer_full : callable
        ``f()``: frames were lost since somebody reads too slowly: `on_audio_data` itself, so that the ring
        overtook it, or a guarded reader (a file on a slow disk), so that new frames found no place. Once when it
        begins, again only after a second without loss.
    on_stream_error : callable
        ``f(error)``, an Exception: the device is gone, silent or failed. Once per incident.
    on_stream_recovered : callable
        ``f()``: audio comes again.
    """

    def __init__(self) -> None:
        self.on_audio_data: Callable[[NDArray[Any]], object] | None = None
        self.on_buffer_full: Callable[[], object] | None = None
        self.on_stream_error: Callable[[Exception], object] | None = None
        self.on_stream_recovered: Callable[[], object] | None = None
        self._failing: set[str] = set()

    def call(self, name: str, *arguments: object) -> None:
        """Call the function `name`, if there is one."""
        function = getattr(self, name)
        if function is None:
            return
        try:
            function(*arguments)
        except Exception:  # not our code, and the stream must go on: the contract is the log with its traceback
            if name not in self._failing:
                logger.exception("%s failed; the recording goes on", name)
            self._failing.add(name)
        except BaseException as end:
            logger.critical("%s raised %s: no more calls", name, type(end).__name__)
            raise
        else:
            self._failing.discard(name)


class Delivery:
    """Brings what `reader` reads to `on_audio_data`, block after block, until the ring's end.

    Parameters
    ----------
    reader : ResamplingReader
        Its own; closed at the end.
    handlers : StreamHandlers
    block_frames : int
        Frames per call, at the reader's rate; less before a loss and at the end.
    after : Thread, optional
        Of another delivery to the same function: it ends first.
    """

    def __init__(
        self,
        reader: ResamplingReader,
        handlers: StreamHandlers,
        block_frames: int,
        after: threading.Thread | None = None,
    ) -> None:
        self.reader = reader
        self._handlers = handlers
        self._block_frames = block_frames
        self._after = after
        self.thread = threading.Thread(target=self._run, daemon=True, name="pcmring delivery")
        self.thread.start()

    def _run(self) -> None:
        if self._after is not None:
            self._after.join()
            self._after = None
        with self.reader as reader:
            try:
                while True:
                    block = reader.read(self._block_frames, None)
                    if len(block):
                        self._handlers.call("on_audio_data", block)
            except BufferClosed:  # the recording is over and was read to its end; or `close`
                return

    def close(self) -> bool:
        """No more calls after the present one. Return whether some were left. Any thread."""
        is_cut = self.thread.is_alive()
        self.reader.close()
        return is_cut
