"""`StreamingAudioManager`: the newest audio of a device at any time, at the rate and with the channels wanted.

Threads: a manager's `_lock` orders its starts, and guards which recording is the present one; it is never held
while a program's function runs, nor while one waits for a thread. The rest is `CaptureSession`'s.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import numpy as np

from pcmring._buffer import AudioBuffer
from pcmring._config import MAX_BUFFER_SIZE_SECONDS, AudioConfig
from pcmring._delivery import StreamHandlers
from pcmring._memory import MB, MemoryUnreadable
from pcmring._monitor import MemoryMonitor
from pcmring._resample import ResamplingReader
from pcmring._resources import ResourceManager
from pcmring._session import CaptureSession
from pcmring._sources import number
from pcmring._tracker import AudioBufferTracker
from pcmring.devices import AudioDeviceManager
from pcmring.errors import BufferClosed

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

__all__ = ["StreamingAudioManager"]

logger = logging.getLogger(__name__)

#: What `on_audio_data` gets to take what was captured before a stop. Then the rest is left.
DRAIN_S = 5.0

#: Audio before the wanted, that the resampler needs to be in its stride: more than the filters of soxr's HQ are long.
RUN_UP_S = 0.1


class _Handler:
    """An attribute of a manager that its `StreamHandlers` keeps."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, manager: StreamingAudioManager | None, owner: type) -> Any:
        return self if manager is None else getattr(manager._handlers, self._name)

    def __set__(self, manager: StreamingAudioManager, function: Callable[..., object] | None) -> None:
        if function is not None and not callable(function):
            raise TypeError(f"{self._name} must be a callable or None, got {function!r}")
        setattr(manager._handlers, self._name, function)
        manager._deliver("now")


def _converted(frames: NDArray[Any], samplerate: float, config: AudioConfig) -> NDArray[np.float32]:
    """All of `frames` at the configured rate and channels."""
    if len(frames) == 0:
        return np.empty((0, config.channels), np.float32)
    if (samplerate, frames.shape[1]) == (config.sample_rate, config.channels) and frames.dtype == np.float32:
        return frames
    buffer = AudioBuffer(len(frames), frames.shape[1], frames.dtype, samplerate=samplerate)
    with ResamplingReader(buffer, config.sample_rate, config.channels, start=0) as reader:
        buffer.write(frames)
        buffer.close()  # so that the reader gives the last frame, too
        return reader.read(math.ceil(len(frames) * config.sample_rate / samplerate) + 1)


def _latest(session: CaptureSession, seconds: float) -> NDArray[np.float32]:
    """The newest audio of a recording, at its configured rate and channels."""
    config = session.config
    samplerate = session.buffer.samplerate or 0.0
    wanted = round(seconds * config.sample_rate)
    ratio = Fraction(config.sample_rate) / Fraction(samplerate)
    if ratio == 1:
        return _converted(session.latest(wanted)[1], samplerate, config)
    # Beginning where a frame falls on one of the output's, all calls give the same frames.
    period, run_up = ratio.denominator, round(RUN_UP_S * samplerate)
    if period > run_up:
        period = 1
    start, frames = session.latest(math.ceil(wanted / ratio) + run_up + period)
    audio = _converted(frames[-start % period :], samplerate, config)
    return audio[max(0, len(audio) - wanted) :]


class StreamingAudioManager:
    """Records from the selected device into a ring, and gives out the newest audio.

    Everything may be called by any thread, also from the `on_…` functions. After `stop_recording` and `cleanup` it
    can start again. As a context manager it cleans up at the end.

    Parameters
    ----------
    device_manager : AudioDeviceManager
        What to record from, and how. A change of its settings counts from the next start on.
    memory_monitor : MemoryMonitor, optional
        May be shared: nothing here changes it for others. While recording, memory is watched by it.

    Attributes
    ----------
    on_audio_data, on_buffer_full, on_stream_error, on_stream_recovered : callable or None
        See `StreamHandlers`. May be set at any time. `on_audio_data` set before the start gets every frame; set
        while recording, those from now on.
    allow_default_device : bool
        If the device is lost, the system's default one may take its place. False at first.
    last_error : Exception or None
        Why the latest start failed, or what the latest recording met.
    memory_monitor, buffer_tracker, resource_manager
        What it works with.
    """

    on_audio_data = _Handler()
    on_buffer_full = _Handler()
    on_stream_error = _Handler()
    on_stream_recovered = _Handler()

    def __init__(self, device_manager: AudioDeviceManager, memory_monitor: MemoryMonitor | None = None) -> None:
        if not isinstance(device_manager, AudioDeviceManager):
            raise TypeError(f"device_manager must be an AudioDeviceManager, got {device_manager!r}")
        if memory_monitor is not None and not isinstance(memory_monitor, MemoryMonitor):
            raise TypeError(f"memory_monitor must be a MemoryMonitor or None, got {memory_monitor!r}")
        self.device_manager = device_manager
        self.memory_monitor = memory_monitor or MemoryMonitor()
        self.buffer_tracker = AudioBufferTracker(self.memory_monitor)
        self.resource_manager = ResourceManager(self.memory_monitor)
        self.allow_default_device = False
        self._handlers = StreamHandlers()
        self._buffer_size_seconds: float | None = None
        self._start_error: Exception | None = None
        self._lock = threading.Lock()
        self._session: CaptureSession | None = None
        self._pushed: AudioBuffer | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.cleanup()

    def __del__(self) -> None:
        session = getattr(self, "_session", None)
        if session is not None and session.is_recording and not sys.is_finalizing():
            session.abandon()
            warnings.warn(f"{self!r} was not stopped", ResourceWarning, stacklevel=2, source=self)

    # ---- recording --------------------------------------------------------------------------------------------------

    def start_recording(self) -> bool:
        """Record from the selected device. What an earlier recording had left is dropped.

        Returns
        -------
        bool
            True if it records, also if it did before. False if the device cannot be opened: that is logged,
            `last_error` tells why, and `on_stream_error` is called. `wait_ready` tells when audio comes.

        Raises
        ------
        MissingPackage
            A package that the device needs is not installed.
        """
        with self._lock:
            if self.is_recording:
                return True
            last = self._session
            session = CaptureSession(
                self.device_manager,
                self._handlers,
                buffer_size_seconds=self.buffer_size_seconds,
                buffer_tracker=self.buffer_tracker,
                memory_monitor=self.memory_monitor,
                allow_default_device=self.allow_default_device,
            )
            self._release()
            self._start_error = None
            try:
                session.start()
                self._session = session
            except (OSError, ValueError) as error:
                self._start_error = error
            except BaseException:  # a Ctrl-C, and nobody else knows of this session
                session.stop()
                raise
            else:
                if self.on_audio_data is not None:
                    session.deliver(0, after=last)
        if self._start_error is None:
            return True
        logger.error("recording cannot start: %s", self._start_error)
        self._handlers.call("on_stream_error", self._start_error)
        return False

    def stop_recording(self) -> None:
        """Stop. What was captured until now stays readable, and was given to `on_audio_data`. Idempotent.

        Waits for `on_audio_data` to take what it has not taken yet, 5 s at most; called by one of the `on_…`
        functions it returns at once, and the rest comes afterwards.
        """
        session = self._session
        if session is None:
            return
        session.stop()
        if not session.join(DRAIN_S) and session.end_delivery():
            logger.warning("on_audio_data has not taken all audio %g s after the stop: the rest is left", DRAIN_S)

    def cleanup(self) -> None:
        """Stop, and give all memory back. Idempotent; it can be started again. A shared monitor is left alone."""
        self.stop_recording()
        with self._lock:
            self._release()
        self.resource_manager.cleanup()

    def _release(self) -> None:
        """Drop the audio of what is over."""
        if self._session is not None:
            self._session.release()
        self._session = None
        if self._pushed is not None:
            self._pushed.close()
        self._pushed = None

    def _deliver(self, start: Literal["now"]) -> None:
        session = self._session
        if session is not None and self.on_audio_data is not None:
            session.deliver(start)

    def _audio_callback(self, data: Any, *_: object) -> None:
        """Take in audio of a program that captures by itself, while nothing is being recorded here.

        Parameters
        ----------
        data : array-like, shape (frames, channels) or (frames,)
            At the configured rate. Of several channels a mono stream gets the mean.

        Raises
        ------
        RuntimeError
            A device is being recorded, or another thread is in here.
        """
        config = self.device_manager.config
        with self._lock:
            if self.is_recording:
                raise RuntimeError("a device is being recorded: it alone writes; stop_recording() first")
            if self._pushed is None:
                self._release()
                self._pushed = AudioBuffer(
                    config.sample_rate * MAX_BUFFER_SIZE_SECONDS,
                    config.channels,
                    np.float32,
                    self.buffer_tracker,
                    samplerate=config.sample_rate,
                )
            ring = self._pushed
        block = np.asarray(data)
        if ring.channels == 1 and block.ndim == 2 and block.shape[1] > 1:
            block = _converted(block, config.sample_rate, config)
        ring.write(block)
        if self.on_audio_data is not None:
            self._handlers.call("on_audio_data", ring.get_latest(min(len(block), ring.capacity)))

    # ---- audio ------------------------------------------------------------------------------------------------------

    def get_latest_audio(self, seconds: float | None = None) -> NDArray[np.float32]:
        """Return the newest audio, of the present recording or else of the latest.

        As much as there is; never a frame twice. Where the device runs at another rate, the last few milliseconds
        are resampled without what follows them.

        Parameters
        ----------
        seconds : float, optional
            The buffer's size if not given, and at most.

        Returns
        -------
        ndarray of float32, shape (n, channels)
            At the configured rate and channels; n may be 0.

        Raises
        ------
        ValueError, TypeError
            `seconds` is negative, or no number.
        """
        wanted_s = self.buffer_size_seconds
        if seconds is not None:
            if not number(seconds, "seconds") >= 0:
                raise ValueError(f"seconds must be 0 or more, got {seconds!r}")
            wanted_s = min(wanted_s, float(seconds))
        session, pushed = self._session, self._pushed
        if session is not None:
            return _latest(session, wanted_s)
        if pushed is not None and pushed.samplerate is not None:
            with suppress(BufferClosed):  # given up this moment
                return pushed.get_latest(round(wanted_s * pushed.samplerate))
        return np.empty((0, self.device_manager.config.channels), np.float32)

    def reader(
        self, start: Literal["now", "oldest"] | SupportsIndex = "now", *, guard: bool = False, name: str | None = None
    ) -> ResamplingReader:
        """Open a reader of the present recording for one more consumer. It ends with the recording.

        Parameters
        ----------
        start : {"now", "oldest"} or int, optional
            The next frame to come; the oldest held; or a position of `buffer`, 0 being the recording's first.
        guard : bool, optional
            Rather drop new frames, and count them, than overwrite what this reader has not read.
        name : str, optional
            For people.

        Returns
        -------
        ResamplingReader
            Of float32 at the configured rate and channels.

        Raises
        ------
        RuntimeError
            Nothing is being recorded.
        """
        session = self._session
        if session is None or not session.is_recording:
            raise RuntimeError("nothing is being recorded: start_recording() first")
        return session.reader(start, guard=guard, name=name)

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until the recording's first audio has arrived; False if the time or the recording was over before."""
        session = self._session
        return session is not None and session.wait_ready(timeout)

    def set_buffer_size(self, seconds: float) -> None:
        """Set how much audio `get_latest_audio` goes back. Nothing is lost, also while recording.

        The ring holds the longest size in any case (or, at rates and channels for which that is more than 100 MB,
        the size set when the recording starts): so a larger size has history from before it was set.

        Parameters
        ----------
        seconds : float
            1 to 30.

        Raises
        ------
        ValueError, TypeError
            It is not; nothing was changed.
        """
        self._buffer_size_seconds = AudioConfig(buffer_size_seconds=seconds).buffer_size_seconds

    # ---- facts ------------------------------------------------------------------------------------------------------

    @property
    def buffer_size_seconds(self) -> float:
        """float: as `set_buffer_size` set it, else as the settings say."""
        size = self._buffer_size_seconds
        return self.device_manager.config.buffer_size_seconds if size is None else size

    @property
    def is_recording(self) -> bool:
        """bool: audio comes, or would if the device had not been lost."""
        session = self._session
        return session is not None and session.is_recording

    @property
    def state(self) -> str:
        """str: "idle", or that of the recording, see `CaptureSession`."""
        return "idle" if self._session is None else self._session.state

    @property
    def last_error(self) -> Exception | None:
        session = self._session
        return self._start_error if session is None else session.error

    @property
    def buffer(self) -> AudioBuffer | None:
        """AudioBuffer or None: the ring, in the device's own format. Closed when the recording is over."""
        session = self._session
        return self._pushed if session is None else session.buffer

    def get_buffer_info(self) -> dict[str, Any]:
        """Return what there is now.

        Returns
        -------
        dict
            ``memory_usage_mb`` (of the process; NaN if it cannot be read), ``buffer_memory_mb`` (of the audio),
            ``fill_level`` (0 to 1: audio there is, of `buffer_size_seconds`), ``buffer_size_seconds``,
            ``sample_rate`` and ``channels`` (of the audio given out), ``state``, ``is_recording``, ``error`` (text or
            None),
            ``device`` (name or None), ``device_sample_rate``, ``device_channels``, ``device_dtype``,
            ``frames_written`` (at the device's rate), ``frames_lost`` (those that never reached the ring, by cause),
            ``gaps`` (how often), ``overflows`` (of the device), ``callback_frames_waiting`` (not yet taken by
            `on_audio_data`), ``callback_frames_lost`` (since it was too slow).
        """
        try:
            usage = self.memory_monitor.get_memory_usage()
        except (MemoryUnreadable, ModuleNotFoundError):
            usage = math.nan
        config, session = self.device_manager.config, self._session
        info: dict[str, Any] = {
            "memory_usage_mb": usage,
            "buffer_memory_mb": self.buffer_tracker.get_total_buffer_memory() / MB,
            "buffer_size_seconds": self.buffer_size_seconds,
            "sample_rate": config.sample_rate,
            "channels": config.channels,
            "state": self.state,
            "is_recording": self.is_recording,
            "error": None if self.last_error is None else str(self.last_error),
            "device": None,
            "device_sample_rate": None,
            "device_channels": None,
            "device_dtype": None,
            "overflows": 0,
            "callback_frames_lost": 0,
            "callback_frames_waiting": 0,
        }
        statistics = None
        ring = self._pushed if session is None else session.buffer
        if ring is not None:
            with suppress(BufferClosed):  # given up this moment
                statistics = ring.statistics()
        if session is not None and statistics is not None:
            info |= {
                "sample_rate": session.config.sample_rate,
                "channels": session.config.channels,
                "device": session.device_name,
                "device_sample_rate": statistics.samplerate,
                "device_channels": statistics.channels,
                "device_dtype": statistics.dtype,
                "overflows": session.overflows,
                "callback_frames_lost": session.delivery_lost,
                "callback_frames_waiting": session.undelivered,
            }
        written = 0 if statistics is None else statistics.frames_written
        wanted = self.buffer_size_seconds * (statistics.samplerate or 1) if statistics else 1
        return info | {
            "frames_written": written,
            "fill_level": min(1.0, written / wanted),
            "frames_lost": {} if statistics is None else statistics.frames_lost,
            "gaps": 0 if statistics is None else statistics.gaps,
        }
