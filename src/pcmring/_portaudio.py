"""Sound cards, through sounddevice and PortAudio, without Python in the audio path.

PortAudio's thread calls the C function of `CaptureCallback`; sounddevice only opens and starts the stream
(its `_StreamBase` takes a C function's address: the "expert mode" of its documentation). Nothing here is
called by that thread: whether a stream has ended is asked, never told, since a Python callback at the end
would have to take the GIL.

Threads: `_lock` guards PortAudio's library-wide state (initialising, listing); each source has a lock of its
own for its stream. Order: a source's, then `_lock`.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import sys
import threading
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from pcmring._capture import CaptureCallback
from pcmring._late import load
from pcmring._sources import (
    Source,
    SourceCounters,
    SourceError,
    check_format,
    count,
    live,
    log_start,
    positive,
    stop_all,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

    from pcmring._buffer import AudioBuffer

__all__ = ["AudioDevice", "PortAudioSource", "inputs", "match", "refresh"]

logger = logging.getLogger(__name__)

#: Reentrant: a forgotten source may be collected, and its stream closed, while this thread lists devices.
_lock = threading.RLock()
_is_registered = False
_was_refreshed = False

#: Streams in which PortAudio hangs, with the captures whose memory they know.
_abandoned: dict[int, tuple[Any, CaptureCallback]] = {}

# PaErrorCode: the device does not do this format, but may do another.
_INVALID_CHANNEL_COUNT, _INVALID_SAMPLE_RATE, _FORMAT_NOT_SUPPORTED = -9998, -9997, -9994
_ANOTHER_FORMAT = (_INVALID_CHANNEL_COUNT, _INVALID_SAMPLE_RATE, _FORMAT_NOT_SUPPORTED)

#: `stop` looks this often whether the last block has come: far less than a block.
STOP_STEP_S = 0.001

#: What PortAudio gets to cancel its thread; it takes a millisecond or for ever.
ABORT_S = 1.0

#: `wait` looks this often whether the stream has ended.
WAIT_STEP_S = 0.02


@dataclass(frozen=True)
class AudioDevice:
    """Something to record from.

    What can be given to `AudioDeviceManager.select_device`: its `id`, or its `name`.
    """

    id: int | str  #: PortAudio's index, valid until devices are listed anew; the name of a generator; a file's path
    name: str
    hostapi: str  #: "ALSA", "Core Audio", "Windows WASAPI" …, "" if kind is not "device"
    channels: int  #: at most
    samplerate: float  #: the device's own, hertz
    is_default: bool  #: what is recorded from when none is selected
    kind: str  #: "device", "file" or "generator"


def load_sounddevice() -> Any:
    """sounddevice, loaded so that at the end of the interpreter our streams end before it ends PortAudio.

    Functions registered with atexit run in reverse order, and closing a stream that PortAudio has freed is a crash.
    """
    global _is_registered
    sounddevice = load("sounddevice")
    with _lock:
        if not _is_registered:
            atexit.register(_at_exit, sounddevice)
            _is_registered = True
    return sounddevice


def _at_exit(sounddevice: Any) -> None:
    stop_all()
    # sounddevice ends PortAudio as often as it began it, which would wait for a stream that hangs, and take the
    # library away from a thread that hangs in it
    if _abandoned or not _lock.acquire(timeout=ABORT_S):
        sounddevice._initialized = 0


def inputs() -> list[AudioDevice]:
    """Return the devices that can be recorded from, as PortAudio knew them when it was started.

    Raises
    ------
    MissingPackage
        sounddevice or PortAudio is not installed.
    """
    sounddevice = load_sounddevice()
    with _lock:
        hostapis = sounddevice.query_hostapis()
        devices = sounddevice.query_devices()
        default = _default_input(sounddevice, hostapis)
        return [
            AudioDevice(
                id=index,
                name=device["name"],
                hostapi=hostapis[device["hostapi"]]["name"],
                channels=device["max_input_channels"],
                samplerate=float(device["default_samplerate"]),
                is_default=index == default,
                kind="device",
            )
            for index, device in enumerate(devices)
            if device["max_input_channels"] > 0
        ]


def _default_input(sounddevice: Any, hostapis: Sequence[dict[str, Any]]) -> int:
    """The default input's index, -1 if there is none. A name the user gave sounddevice counts if it fits."""
    chosen = sounddevice.default.device[0]
    if isinstance(chosen, int):
        return chosen
    try:
        return int(sounddevice.query_devices(chosen, "input")["index"])
    except (ValueError, sounddevice.PortAudioError):
        return next((int(api["default_input_device"]) for api in hostapis if api["default_input_device"] >= 0), -1)


def refresh() -> None:
    """Make PortAudio look for devices again; ids may change.

    Raises
    ------
    RuntimeError
        One of our sources has a stream, which PortAudio would end (it does end those of others in this process);
        or PortAudio hangs in a device that is gone.
    """
    global _was_refreshed
    sounddevice = load_sounddevice()
    with _lock:
        if any(isinstance(source, PortAudioSource) for source in list(live)):
            raise RuntimeError("devices cannot be looked for while a stream is open: stop the sources first")
        if _abandoned:  # ending PortAudio would wait for them for ever
            raise RuntimeError("devices cannot be looked for while PortAudio hangs in a device that is gone")
        _was_refreshed = True
        sounddevice._terminate()
        sounddevice._initialize()


def match(devices: Sequence[AudioDevice], wanted: int | str) -> AudioDevice:
    """The device with the id, the name, or the one whose name contains `wanted`.

    One piece of hardware may appear once in each of a system's host APIs: then the default device's API decides,
    or the text may be "name, host API".

    Raises
    ------
    ValueError
        None, or several; it lists what there is.
    """
    if isinstance(wanted, int):
        found = [device for device in devices if device.id == wanted]
    else:
        text = wanted.casefold()
        found = [device for device in devices if text in (device.name.casefold(), _full_name(device).casefold())]
        found = found or [device for device in devices if text in _full_name(device).casefold()]
        if len(found) > 1:
            preferred = {device.hostapi for device in devices if device.is_default}
            found = [device for device in found if device.hostapi in preferred] or found
    if len(found) == 1:
        return found[0]
    there = "; ".join(f"{device.id}: {_full_name(device)}" for device in found or devices) or "none"
    if found:
        raise ValueError(f"device {wanted!r} is ambiguous, it may be {there}")
    raise ValueError(f"no device {wanted!r}; there is {there}")


def _full_name(device: AudioDevice) -> str:
    return f"{device.name}, {device.hostapi}" if device.hostapi else device.name


def _error(name: str, error: Exception) -> SourceError:
    """PortAudio's complaint as ours."""
    code = error.args[1] if len(error.args) > 1 and isinstance(error.args[1], int) else None
    found = SourceError(name, str(error), code)
    found.__cause__ = error
    return found


def _opens_in_alsa(device: AudioDevice) -> bool:
    """Whether ALSA itself opens the device.

    PortAudio keeps the error of a call in a variable that its threads share (PA_ENSURE's, 19.6 and 19.7). While one
    thread hangs in a device that is gone it errs without end, and an open that fails in another may be taken for one
    that worked; PortAudio then aborts the process. So nothing that would fail is tried in that state.
    """
    import ctypes  # some ms, and hardly ever needed

    number = re.search(r"\((hw:\d+,\d+)\)$", device.name)
    name = number.group(1) if number else device.name
    library = ctypes.CDLL("libasound.so.2")
    pcm = ctypes.c_void_p()
    capture, nonblocking = 1, 1
    if library.snd_pcm_open(ctypes.byref(pcm), os.fsencode(name), capture, nonblocking) < 0:
        return False
    library.snd_pcm_close(pcm)
    return True


def _abort(stream: Any, capture: CaptureCallback) -> None:
    """End a stream whose device delivers nothing, or leave it behind.

    Aborting cancels PortAudio's thread where it waits for the device. But when a device is unplugged from ALSA,
    PortAudio 19.6 tries to restart it for ever, with cancelling switched off: then this never returns, unless the
    device comes back. The stream is left to a thread; its capture has been stopped, and stays in memory.
    """

    def end() -> None:
        stream.abort()
        with _lock:
            stream.close()
        _abandoned.pop(id(stream), None)

    if capture.realtime_thread_id:  # erring without end, it must not have a core for itself
        with suppress(OSError):  # it has ended just now
            os.sched_setscheduler(capture.realtime_thread_id, os.SCHED_OTHER, os.sched_param(0))
    thread = threading.Thread(target=end, daemon=True, name="pcmring abort")
    thread.start()
    thread.join(ABORT_S)
    if thread.is_alive():
        logger.warning("PortAudio does not give up a device that is gone: its thread is left behind")


class PortAudioSource(Source):
    """A sound card's input.

    The stream is opened as asked for, or at the device's own rate and channels where it refuses: see
    `samplerate` and `channels`, and `pcmring.devices.ResamplingReader` for a reader at another rate.

    Parameters
    ----------
    device : int or str, optional
        Id or name, as for `AudioDeviceManager.select_device`; the default device if not given. A name is
        looked up at each `open`.
    samplerate, channels : float, int, optional
        Wanted.
    dtype : {"float32", "int16", "int32"}, optional
        Wanted.
    block_frames : int, optional
        Frames of a block at the wanted rate; at another rate as many more or fewer, so that blocks last as
        long. 0 leaves it to PortAudio.
    latency : {"high", "low"} or float, optional
        What the device's buffer is made for, seconds. What is not fetched in that time is lost.
    """

    def __init__(
        self,
        device: int | str | None = None,
        *,
        samplerate: float = 16000,
        channels: int = 1,
        dtype: str = "float32",
        block_frames: int = 512,
        latency: str | float = "high",
    ) -> None:
        if dtype not in ("float32", "int16", "int32"):
            raise ValueError(f"dtype must be float32, int16 or int32, got {dtype!r}")
        if isinstance(latency, str):
            if latency not in ("high", "low"):
                raise ValueError(f"latency must be 'high', 'low' or seconds, got {latency!r}")
        else:
            latency = positive(latency, "latency")
        self._wanted = device
        self._wanted_samplerate = positive(samplerate, "samplerate")
        self._wanted_channels = count(channels, "channels", 1, 64)
        self._wanted_dtype = dtype
        self._block_frames = count(block_frames, "block_frames", 0)
        self._latency = latency
        self._lock = threading.Lock()
        self._device: AudioDevice | None = None
        self._samplerate = 0.0
        self._channels = 0
        self._dtype = np.dtype(dtype)
        self._stream: Any = None
        self._capture: CaptureCallback | None = None
        self._buffer: AudioBuffer | None = None
        self._start_position = 0
        self._start_ns = 0
        self._block_s = 0.0
        self._final: SourceCounters | None = None
        self._final_arrival_ns = 0
        self._finished = False
        self._is_ending = False
        self._error: SourceError | None = None
        self._pid = os.getpid()

    def __del__(self) -> None:
        if getattr(self, "_stream", None) is not None and self._pid == os.getpid() and not sys.is_finalizing():
            warnings.warn(f"{self!r} was not stopped", ResourceWarning, stacklevel=2, source=self)
            self.stop()

    def __repr__(self) -> str:
        return f"<PortAudioSource {self.name}{'' if self._stream is None else ', started'}>"

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self.close()

    # ---- facts ----------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        if self._device is not None:
            return self._device.name
        return "default input" if self._wanted is None else str(self._wanted)

    @property
    def device(self) -> AudioDevice | None:
        """AudioDevice: what was found at `open`, None before."""
        return self._device

    def _need_open(self) -> None:
        if self._device is None:
            raise RuntimeError(f"{self.name} is not open")

    @property
    def samplerate(self) -> float:
        self._need_open()
        return self._samplerate

    @property
    def channels(self) -> int:
        self._need_open()
        return self._channels

    @property
    def dtype(self) -> np.dtype[Any]:
        self._need_open()
        return self._dtype

    @property
    def realtime(self) -> bool:
        """bool: PortAudio's thread was given a real-time priority. False before the first block."""
        capture = self._capture
        return capture is not None and capture.realtime_thread_id != 0

    @property
    def latency(self) -> float:
        """float: seconds from the device to the callback as PortAudio states them; 0.0 while not started."""
        stream = self._stream
        return 0.0 if stream is None else float(stream.latency)

    # ---- life -----------------------------------------------------------------------------------------

    def open(self) -> None:
        sounddevice = load_sounddevice()
        with self._lock:
            if self._device is None:
                device = self._find()
                if _abandoned and device.hostapi == "ALSA" and not _opens_in_alsa(device):
                    raise SourceError(device.name, "ALSA cannot open the device")
                self._samplerate, self._channels, self._dtype = self._negotiate(sounddevice, device)
                self._device = device

    def _find(self) -> AudioDevice:
        try:
            return self._look_up()
        except SourceError:
            if not _was_refreshed:  # a stream of the program's own would end
                raise
        with suppress(RuntimeError):  # a watchdog looked while the device was gone: it may be back
            refresh()
        return self._look_up()

    def _look_up(self) -> AudioDevice:
        devices = inputs()
        if self._wanted is None:
            default = next((device for device in devices if device.is_default), None)
            if default is None:
                raise SourceError("default input", "no device to record from was found")
            return default
        try:
            return match(devices, self._wanted)
        except ValueError as error:
            raise SourceError(str(self._wanted), str(error)) from error

    def _negotiate(self, sounddevice: Any, device: AudioDevice) -> tuple[float, int, np.dtype[Any]]:
        """The first format the device takes, what was wanted before its own."""
        own = device.channels if device.channels <= 64 else 2
        refusals = []
        for samplerate in dict.fromkeys((self._wanted_samplerate, device.samplerate)):
            for channels in dict.fromkeys((min(self._wanted_channels, device.channels), own, 1)):
                for dtype in dict.fromkeys((self._wanted_dtype, "float32", "int16")):
                    refusal = self._refusal(sounddevice, device, samplerate, channels, dtype)
                    if refusal is None:
                        return samplerate, channels, np.dtype(dtype)
                    if refusal.code not in _ANOTHER_FORMAT:
                        raise refusal
                    refusals.append(refusal)
        raise refusals[-1]

    @staticmethod
    def _refusal(
        sounddevice: Any, device: AudioDevice, samplerate: float, channels: int, dtype: str
    ) -> SourceError | None:
        try:
            with _lock:
                sounddevice.check_input_settings(
                    device=device.id, channels=channels, dtype=dtype, samplerate=samplerate
                )
        except sounddevice.PortAudioError as error:
            return _error(device.name, error)
        return None

    def start(self, buffer: AudioBuffer, *, missing_since_ns: int = 0) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(f"{self.name} belongs to the parent process")
        self.open()
        check_format(self, buffer)
        sounddevice = load_sounddevice()
        cffi = load("cffi")
        with self._lock:
            if self._stream is not None:
                if self._is_running(self._stream):
                    raise RuntimeError(f"{self.name} is started already")
                self._end_stream()
            assert self._device is not None
            start_position = buffer.frames_written
            capture = CaptureCallback(buffer, self._dtype, realtime=True, missing_since_ns=missing_since_ns)
            ffi = cffi.FFI()
            stream = None
            try:
                with _lock:
                    stream = sounddevice._StreamBase(
                        kind="input",
                        samplerate=self._samplerate,
                        blocksize=round(self._block_frames * self._samplerate / self._wanted_samplerate),
                        device=self._device.id,
                        channels=self._channels,
                        dtype=self._dtype.name,
                        latency=self._latency,
                        dither_off=True,
                        callback=ffi.cast("void *", capture.address),
                        userdata=ffi.cast("void *", capture.userdata),
                        wrap_callback=None,
                    )
                    live.add(self)
                stream.start()
            except BaseException as error:
                live.discard(self)
                if stream is not None:
                    with _lock:
                        stream.close()
                capture.close()
                if isinstance(error, sounddevice.PortAudioError):
                    raise _error(self.name, error) from error
                raise
            self._stream, self._capture, self._buffer = stream, capture, buffer
            self._start_position = start_position
            self._start_ns = time.monotonic_ns()
            self._block_s = self._block_frames / self._wanted_samplerate
            self._final, self._final_arrival_ns = None, 0
            self._finished, self._is_ending, self._error = False, False, None
        log_start(self, buffer)

    def _end_stream(self) -> None:
        """End stream and capture, keeping what they counted. Holds the lock.

        In an order that takes in the block in which the stop falls, and never lets PortAudio cancel its thread
        while it may be in the ring, or in the system's audio library, whose locks it would take along. So: one
        more block; then the callback refuses, and tells PortAudio that the stream is complete; then its thread
        has ended by itself. A device that delivers nothing calls no callback: only then PortAudio's abort
        cancels the thread, where it waits for the device.
        """
        stream, capture = self._stream, self._capture
        assert capture is not None
        self._note_end()
        self._is_ending = True  # from here on an end is our own doing, even if a Ctrl-C comes in between
        patience_s = 0.25 + 2.0 * max(self._block_s, stream.latency)
        is_silent = time.monotonic_ns() - max(capture.last_call_ns, self._start_ns) > patience_s * 1e9
        deadline = time.monotonic() + (0.0 if is_silent else patience_s)
        callbacks = capture.callbacks
        while capture.callbacks == callbacks and self._is_running(stream) and time.monotonic() < deadline:
            time.sleep(STOP_STEP_S)
        capture.stop()
        while self._is_running(stream) and time.monotonic() < deadline:
            time.sleep(STOP_STEP_S)
        self._final = self._count(capture)
        self._final_arrival_ns = capture.last_call_ns
        if self._is_running(stream):
            _abandoned[id(stream)] = (stream, capture)
            self._forget()
            _abort(stream, capture)
            return
        stream.stop()
        with _lock:
            try:
                stream.close()
            finally:  # after a Ctrl-C, too, PortAudio must not be asked again about what it has freed
                self._forget()

    def _forget(self) -> None:
        assert self._capture is not None
        self._capture.close()
        self._stream = self._capture = self._buffer = None
        live.discard(self)

    def stop(self) -> None:
        if self._pid != os.getpid():
            return  # PortAudio's thread is not in the child of a fork: there is nothing to stop, and it would hang
        with self._lock:
            if self._stream is None:
                return
            self._end_stream()
        logger.info("%s stopped after %d frames", self.name, self.counters.frames)

    def close(self) -> None:
        self.stop()
        if self._pid == os.getpid():
            with self._lock:
                self._device = None

    def wait(self, timeout: float | None = None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.active:
            left = WAIT_STEP_S if deadline is None else min(WAIT_STEP_S, deadline - time.monotonic())
            if left <= 0:
                return False
            time.sleep(left)
        return True

    # ---- what it does -----------------------------------------------------------------------------------

    @staticmethod
    def _is_running(stream: Any) -> bool:
        return bool(stream.active)

    def _note_end(self) -> None:
        """Notice that the stream ended by itself. Holds the lock."""
        if self._stream is None or self._finished or self._is_ending:
            return
        if not self._is_running(self._stream):
            self._finished = True
            buffer = self._buffer
            if buffer is None or not buffer.closed:
                self._error = SourceError(self.name, "the stream ended: the device is gone or failed")
                logger.warning("%s ended by itself", self.name)

    @property
    def active(self) -> bool:
        if self._pid != os.getpid():
            return False
        with self._lock:
            self._note_end()
            if self._stream is None or self._finished:
                return False
            return not self._is_ending or self._is_running(self._stream)

    @property
    def finished(self) -> bool:
        if self._pid == os.getpid():
            with self._lock:
                self._note_end()
        return self._finished

    @property
    def error(self) -> Exception | None:
        return self._error if self.finished else None

    @property
    def last_arrival_ns(self) -> int:
        capture = self._capture
        return self._final_arrival_ns if capture is None else capture.last_call_ns

    def _count(self, capture: CaptureCallback) -> SourceCounters:
        return SourceCounters(
            blocks=capture.callbacks - capture.empty_callbacks,
            frames=capture.buffer.frames_written - self._start_position,
            overflows=capture.overflows,
            underflows=capture.underflows,
            empty=capture.empty_callbacks,
        )

    @property
    def counters(self) -> SourceCounters:
        capture = self._capture
        if capture is not None:
            return self._count(capture)
        return self._final or SourceCounters(0, 0, 0, 0, 0)
