"""One recording: a source, the ring it writes into, and the thread that sees to it that audio keeps coming.

Who owns what. A session owns its ring, its source and one thread, the watchdog. The ring is the source's own
format and never replaced, so a reader of it reads the whole recording. It is closed when the recording is over:
readers first get what is stored, then their waits and loops end. The audio stays readable through the session.

What is guaranteed. `_source_lock` is held to open, start, stop and close the source, never while a program's
function runs; and under it nothing is opened once the end was asked for. So after `stop` nothing records, whoever
called it, from wherever. A device may hang while it is opened, with the lock: then the end closes the ring without
it, and the watchdog closes the source when the device lets it go. `_end_lock` makes the end one, and comes first.
The watchdog is woken by `_orders`, whose `put` may be called from a finalizer.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import numpy as np

import pcmring._statistics  # noqa: F401 - not in the watchdog: a fork in the middle of an import spoils the child's
from pcmring._buffer import AudioBuffer, AudioView
from pcmring._config import MAX_BUFFER_SIZE_SECONDS
from pcmring._delivery import Delivery, StreamHandlers
from pcmring._late import MissingPackage, load
from pcmring._memory import MB, MemoryUnreadable
from pcmring._monitor import StreamLease
from pcmring._portaudio import PortAudioSource, refresh
from pcmring._resample import ResamplingReader
from pcmring._sources import FileSource, Source, SourceError
from pcmring._succession import Succession
from pcmring.errors import BufferClosed, FramesLost
from pcmring.memory_manager import DEFAULT_BUFFER_MEMORY_LIMIT_MB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pcmring._config import AudioConfig
    from pcmring._monitor import MemoryMonitor
    from pcmring._tracker import AudioBufferTracker
    from pcmring.devices import AudioDeviceManager

__all__ = ["CaptureSession"]

logger = logging.getLogger(__name__)

#: A source that brings nothing for this long, or for so many of its blocks if that is longer, is taken for gone.
#: Longer than what schedulers, USB resets and power saving were seen to take, short enough that a speaker notices.
SILENCE_LIMIT_S = 1.0
SILENCE_LIMIT_BLOCKS = 10

#: A device that was opened gets longer for its first audio: Bluetooth and sound servers take seconds.
FIRST_AUDIO_S = 5.0
FIRST_AUDIO_STEP_S = 0.1

#: Pauses between attempts to reopen: the first comes at once, then each pause doubles. Not tuned; the longest is
#: what somebody who plugs a microphone in again will wait at most.
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0

#: The ring always holds the longest history that may be asked for, and a second for those who read its oldest frames
#: meanwhile: so the history may grow during a recording, and slow readers have time. Where that is more than the
#: limit (many channels at high rates), what fits, but at least the history asked for.
MARGIN_S = 1.0
RING_LIMIT_BYTES = DEFAULT_BUFFER_MEMORY_LIMIT_MB * MB

#: Frames per call of `on_audio_data` where the settings leave the block to the system.
BLOCK_FRAMES = 512

#: A device that is being reopened gets this long before a stop leaves it to the watchdog. A server that hangs keeps
#: whoever opens a stream for 30 s (PulseAudio).
REOPENING_S = 1.0

#: Time that the watchdog wakes up too late, if it is more than this, is no silence of the device: the process had been
#: stopped, or the machine slept. It sleeps as long at a time: what it does not notice of a standstill is short beside
#: the silence it waits for.
OVERSLEPT_S = 0.25

State = Literal["new", "starting", "capturing", "recovering", "finished", "failed", "stopped"]


def _pauses() -> Iterator[float]:
    yield 0.0
    pause = FIRST_PAUSE_S
    while True:
        yield pause
        pause = min(2 * pause, LONGEST_PAUSE_S)


class CaptureSession:
    """One recording from the device that is selected when it starts.

    Starts once and stops once. Everything may be called by any thread, also from the handlers.

    Parameters
    ----------
    device_manager : AudioDeviceManager
        Makes the source. Its settings at the start are this recording's.
    handlers : StreamHandlers, optional
        Told of errors and recovery.
    buffer_size_seconds : float, optional
        History the ring holds at least; that of the settings if not given.
    buffer_tracker : AudioBufferTracker, optional
        Told of the ring.
    memory_monitor : MemoryMonitor, optional
        Asked to clean up if memory is high, once a second, unless it has a thread for that.
    allow_default_device : bool, optional
        A lost device may be replaced by the system's default one.

    Attributes
    ----------
    config : AudioConfig
        The settings it works with: a copy.
    state : str
        "new"; "starting" until the first block came; "capturing"; "recovering" while the device is lost; then
        "stopped", or "finished" if the source came to its end, or "failed" if it did and cannot be reopened.
    error : Exception or None
        The latest of the source.
    device_name : str
        What is recorded from.
    """

    def __init__(
        self,
        device_manager: AudioDeviceManager,
        handlers: StreamHandlers | None = None,
        *,
        buffer_size_seconds: float | None = None,
        buffer_tracker: AudioBufferTracker | None = None,
        memory_monitor: MemoryMonitor | None = None,
        allow_default_device: bool = False,
    ) -> None:
        self._device_manager = device_manager
        self._handlers = handlers or StreamHandlers()
        self._buffer_tracker = buffer_tracker
        self._memory_monitor = memory_monitor
        self._allow_default_device = allow_default_device
        self.config: AudioConfig = replace(device_manager.config)
        if buffer_size_seconds is not None:
            self.config.buffer_size_seconds = buffer_size_seconds
        self.state: State = "new"
        self.error: Exception | None = None
        self.device_name = ""
        self._succession: Succession | None = None
        self._source_lock = threading.RLock()  # which knows whose it is: see `_end`
        self._end_lock = threading.Lock()
        self._orders: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_stopping = False
        self._is_over = False
        self._is_hanging = False
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="pcmring watchdog")
        self._pid = os.getpid()
        self._source: Source | None = None
        self._buffer: AudioBuffer | None = None
        self._past_overflows = 0
        self._started_ns = 0
        self._missing_since_ns = 0
        self._delivery: Delivery | None = None
        self._lost = 0
        self._is_losing = False
        self._history: AudioView | None = None  # keeps the closed ring's memory

    def __repr__(self) -> str:
        return f"<CaptureSession {self.state}{'' if self._source is None else ' of ' + self._source.name}>"

    # ---- life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open the device and record, from the first frame it gives.

        Raises
        ------
        SourceError, OSError, ValueError, MissingPackage
            It cannot be opened. Nothing is held.
        RuntimeError
            It was started before.
        """
        if self._memory_monitor is not None:
            with suppress(MemoryUnreadable, ModuleNotFoundError):
                self._memory_monitor.get_memory_usage()  # loads psutil; an import that a fork falls into is half a one
        with self._source_lock:
            if self.state != "new":
                raise RuntimeError("a session records once; make another")
            source = self._device_manager.create_source()
            buffer = None
            try:
                source.open()
                if source.channels != self.config.channels and 1 not in (source.channels, self.config.channels):
                    raise SourceError(
                        source.name, f"it has {source.channels} channels; {self.config.channels} cannot be made of them"
                    )
                if source.samplerate != self.config.sample_rate:
                    load("soxr")
                buffer = self._make_ring(source)
                self._succession = Succession(source, buffer, self.config, self._allow_default_device)
                self._source, self._buffer = source, buffer
                self._started_ns = time.monotonic_ns()
                self.device_name = source.name
                self.state = "starting"
                source.start(buffer)
                self._thread.start()
            except BaseException:
                self.abandon()  # the thread may run: what was interrupted (Ctrl-C) may be its start
                source.close()
                if buffer is not None:
                    buffer.close()
                self.state = "failed"
                raise

    def _make_ring(self, source: Source) -> AudioBuffer:
        frame_bytes = source.channels * source.dtype.itemsize
        affordable_s = RING_LIMIT_BYTES / (frame_bytes * source.samplerate)
        seconds = max(self.config.buffer_size_seconds + MARGIN_S, min(MAX_BUFFER_SIZE_SECONDS + MARGIN_S, affordable_s))
        buffer = AudioBuffer(
            round(seconds * source.samplerate),
            source.channels,
            source.dtype,
            self._buffer_tracker,
            samplerate=source.samplerate,
            policy="drop",
            name=source.name,
        )
        # Ends the guard of the buffer's own reader: without guarded readers the ring then overwrites.
        buffer.reader().close()
        return buffer

    def stop(self) -> None:
        """Stop recording and close the ring. When this returns nothing is captured any more. Idempotent.

        Readers can read on to the end of what was captured. Does not wait for them; interrupts any other wait.
        """
        if self._pid != os.getpid():
            return  # the recording is the parent's
        self.abandon()
        self._end("stopped")

    def abandon(self) -> None:
        """Have the watchdog stop within `SILENCE_LIMIT_S`. Takes no lock: may be called by a finalizer."""
        self._is_stopping = True
        self._orders.put(None)

    def join(self, timeout: float) -> bool:
        """Wait until all is delivered and the session's threads have ended; False if the time was up before.

        Does not wait for a thread that hangs in the device.

        Called by a handler, which is one of these threads, it returns True at once.
        """
        threads = [] if self._is_hanging else [self._thread]
        if self._delivery is not None:
            threads.append(self._delivery.thread)
        if threading.current_thread() in (self._thread, *threads):
            return True
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def deliver(self, start: Literal["now"] | int, after: CaptureSession | None = None) -> None:
        """Have `on_audio_data` called with what comes from `start` on, once `after` has delivered its last.

        There is one delivery per session.
        """
        if self._delivery is None:
            with suppress(BufferClosed):  # the recording is over
                reader = self.reader(start, name="on_audio_data")
                before = None if after is None or after._delivery is None else after._delivery.thread
                self._delivery = Delivery(reader, self._handlers, self.config.block_frames or BLOCK_FRAMES, before)

    def end_delivery(self) -> bool:
        """Deliver no more after the present call; return whether there was more."""
        return self._delivery is not None and self._delivery.close()

    def release(self) -> None:
        """Give up the audio of a recording that is over."""
        self._history = None

    def _end(self, state: State) -> None:
        with self._end_lock:
            if self._is_over:
                return
            try:
                is_free = self._source_lock.acquire(timeout=REOPENING_S)
                if self._buffer is not None and self._source is not None:
                    if is_free:
                        self._source.close()
                    if not self._buffer.closed:
                        self._history = self._buffer.view(self._buffer.oldest, self._buffer.frames_written)
                        self._buffer.close()
                self._is_over = True  # not before: what was interrupted (Ctrl-C) can be done again
                self._is_hanging = not is_free
                self.state = state
                self._ready.set()
            finally:
                # At once, and whatever `is_free` says: a Ctrl-C may have come before that was set, or may come here.
                try:  # noqa: SIM105 - one call more
                    self._source_lock.release()
                except RuntimeError:
                    pass  # not ours: another thread hangs in it
        if not is_free:
            logger.warning("%s hangs while it is reopened: its thread is left behind", self.device_name)

    # ---- facts ------------------------------------------------------------------------------------------------------

    @property
    def buffer(self) -> AudioBuffer:
        """AudioBuffer: the ring, in the source's own format. Policy "drop", with no guarded reader at first."""
        if self._buffer is None:
            raise RuntimeError("the session was not started")
        return self._buffer

    @property
    def source(self) -> Source:
        """Source: what is recorded from; another one after a recovery."""
        if self._source is None:
            raise RuntimeError("the session was not started")
        return self._source

    @property
    def is_recording(self) -> bool:
        """bool: audio comes, or would if the device were there."""
        return self.state in ("starting", "capturing", "recovering") and self._pid == os.getpid()

    @property
    def overflows(self) -> int:
        """int: times the device said that it had lost frames."""
        return self._past_overflows + (0 if self._source is None else self._source.counters.overflows)

    @property
    def undelivered(self) -> int:
        """int: frames that `on_audio_data` has not taken yet, at the configured rate."""
        if self._delivery is None:
            return 0
        reader = self._delivery.reader
        return max(0, round(reader.output_position(self.buffer.frames_written)) - reader.position)

    @property
    def delivery_lost(self) -> int:
        """int: frames that `on_audio_data` lost by being too slow, at the configured rate."""
        return 0 if self._delivery is None else self._delivery.reader.lost

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until the first block has arrived; False if the time or the recording was over before."""
        self._ready.wait(timeout)
        return self._buffer is not None and self._buffer.frames_written > 0

    # ---- reading ----------------------------------------------------------------------------------------------------

    def reader(
        self, start: Literal["now", "oldest"] | SupportsIndex = "now", *, guard: bool = False, name: str | None = None
    ) -> ResamplingReader:
        """Open a reader at the configured rate and channels, float32. It ends with the recording.

        Parameters
        ----------
        start : {"now", "oldest"} or int, optional
            A position of the ring. 0 is the first frame of the recording.
        guard : bool, optional
            The ring drops new frames, and counts them, rather than those this reader has not read.
        name : str, optional
            For people.

        Raises
        ------
        BufferClosed
            The recording is over.
        """
        config = self.config
        return ResamplingReader(self.buffer, config.sample_rate, config.channels, start=start, guard=guard, name=name)

    def latest(self, frames: int) -> tuple[int, NDArray[Any]]:
        """Return the newest frames of the ring, as they are stored, and the position of the first.

        Works when the recording is over, too.
        """
        with suppress(BufferClosed):
            stop = self.buffer.frames_written
            start = max(self.buffer.oldest, stop - frames)
            while True:
                with suppress(FramesLost):
                    return start, self.buffer.read_range(start, stop)
                start = min(stop, self.buffer.oldest)
        view = self._history
        if view is None:  # released
            return 0, np.empty((0, self.buffer.channels), self.buffer.dtype)
        start = max(view.start, view.stop - frames)
        return start, view.array[start - view.start :].copy()

    # ---- the watchdog -----------------------------------------------------------------------------------------------

    @property
    def silence_limit_s(self) -> float:
        """float: seconds without audio after which the device is taken for gone."""
        return max(SILENCE_LIMIT_S, SILENCE_LIMIT_BLOCKS * self.config.block_frames / self.config.sample_rate)

    def _watch(self) -> None:
        state: State = "failed"
        try:
            with StreamLease():
                state = self._watch_sources()
        except Exception as error:  # told by `state` and `error`, and by the thread's end
            self.error = error
            raise
        finally:
            self._end(state)
            if self._is_hanging:
                self.source.close()  # it may have been started after the end
        with suppress(BufferClosed):  # the audio was given up meanwhile: by a handler, or while a device hung
            self._notice_losses()

    def _watch_sources(self) -> State:
        """Return how it ended."""
        if self._await_block(0):
            self._enter("capturing")
        while True:
            outcome = self._watch_source()
            if isinstance(outcome, str):
                return outcome
            self.error = outcome
            if isinstance(self._source, FileSource):  # played again it would begin anew
                self._handlers.call("on_stream_error", outcome)
                return "failed"
            if not self._recover(outcome):
                return "stopped"

    def _enter(self, state: State) -> None:
        with self._source_lock:
            if not self._is_over:
                self.state = state
        if state == "capturing":
            self._ready.set()

    def _await_block(self, position: int) -> bool:
        """Wait until the frame at `position` has come; False if it does not in time, or the source ends before."""
        deadline = time.monotonic() + FIRST_AUDIO_S
        with suppress(BufferClosed), self.buffer.reader(position) as reader:
            while self.source.active and time.monotonic() < deadline:
                if len(reader.read(1, FIRST_AUDIO_STEP_S)):
                    return True
            return reader.available > 0
        return False

    def _sleep(self, seconds: float) -> bool:
        """Sleep, and return False as soon as the end is asked for."""
        with suppress(queue.Empty):
            self._orders.get(timeout=seconds)
        return not self._is_stopping

    def _watch_source(self) -> State | Exception:
        """Return when the source brings nothing more: an error, or how it ended."""
        source = self.source
        stood_still_s, awake_ns = 0.0, 0
        while not self._is_stopping:
            now_ns, arrival_ns = time.monotonic_ns(), source.last_arrival_ns
            if arrival_ns > awake_ns:
                stood_still_s = 0.0
            silent_s = max(0.0, (now_ns - max(arrival_ns, self._started_ns)) * 1e-9 - stood_still_s)
            if not source.active:
                if not source.finished:
                    return "stopped"  # by another: at the end of the interpreter all sources are
                return source.error or "finished"
            if silent_s >= self.silence_limit_s:
                return SourceError(source.name, f"no audio has come for {silent_s:.1f} s")
            self._notice_losses()
            self._watch_memory()
            if standstill_s := self._pause(source, self.silence_limit_s - silent_s):
                stood_still_s, awake_ns = stood_still_s + standstill_s, time.monotonic_ns()
        return "stopped"

    def _pause(self, source: Source, seconds: float) -> float:
        """Sleep, until the end at most; return early if the process stood still, and for how many seconds."""
        now_s = time.monotonic()
        end_s = now_s + seconds
        while now_s < end_s and source.active and not self._is_stopping:
            step_s = min(OVERSLEPT_S, end_s - now_s)
            if isinstance(source, PortAudioSource):  # its `wait` has to poll
                self._sleep(step_s)
            else:
                source.wait(step_s)
            now_s, begin_s = time.monotonic(), now_s
            if (standstill_s := now_s - begin_s - step_s - OVERSLEPT_S) > 0.0:
                return standstill_s
        return 0.0

    def _recover(self, error: Exception) -> bool:
        """Reopen until audio comes again; False if the end is asked for before."""
        self._enter("recovering")
        self._missing_since_ns = max(self.source.last_arrival_ns, self._started_ns)
        logger.warning("%s is lost: %s", self.device_name, error)
        self._handlers.call("on_stream_error", error)
        position, is_open = self.buffer.frames_written, False
        for attempt, pause_s in enumerate(_pauses()):
            if not self._sleep(pause_s):
                break
            if not is_open or self.buffer.frames_written == position:  # else audio came during the pause
                position, is_open = self.buffer.frames_written, False
                try:
                    is_open = self._reopen(attempt)
                except (OSError, RuntimeError, ValueError, MissingPackage) as failure:
                    logger.debug("attempt %d to reopen %s: %s", attempt + 1, self.device_name, failure)
            if is_open and self._await_block(position):
                self._enter("capturing")
                logger.warning("%s records again", self.device_name)
                self._handlers.call("on_stream_recovered")
                return True
        return False

    def _reopen(self, attempt: int) -> bool:
        """Start a source into the ring; False if the end was asked for."""
        with self._source_lock:
            if self._is_stopping:
                return False
            overflows = self.source.counters.overflows
            self.source.close()
            if attempt and isinstance(self._source, PortAudioSource):
                with suppress(RuntimeError):  # other streams, or a hanging one: known devices must do
                    refresh()
            assert self._succession is not None
            source = self._succession.open(attempt)
            self._started_ns = time.monotonic_ns()
            try:
                source.start(self.buffer, missing_since_ns=self._missing_since_ns)
            except BaseException:
                source.close()
                raise
            self._source = source
            self.device_name = source.name
            self._past_overflows += overflows
            return True

    def _notice_losses(self) -> None:
        lost = self.buffer.statistics().frames_lost["dropped"] + self.delivery_lost
        if lost > self._lost and not self._is_losing:
            self._handlers.call("on_buffer_full")
        self._is_losing = lost > self._lost
        self._lost = lost

    def _watch_memory(self) -> None:
        monitor = self._memory_monitor
        if monitor is None or monitor.monitoring:
            return
        try:
            monitor.cleanup()
        except MemoryUnreadable:
            pass  # the monitor has logged it; the next reading may work
        except MissingPackage as missing:
            logger.warning("memory is not watched: %s", missing)
            self._memory_monitor = None
