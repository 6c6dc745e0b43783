"""What the tests of PortAudio do in processes of their own. Each function's result goes back as JSON.

Audio of the virtual microphone is judged here: the ramp's value at each frame (see vmic.c).
"""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

#: Long enough for any step on a crowded machine.
DEADLINE_S = 30.0


#: Device buffer while the GIL is held, in seconds (PortAudio makes 256 ms of it): shorter than the holds, so that a
#: callback which needs the GIL loses frames; long enough for the stalls of a crowded machine, which hit any thread.
LATENCY_S = 0.2

#: What was logged as a warning or worse.
LOG: list[str] = []


class _Log(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        LOG.append(record.getMessage())


def main(function: str, arguments: str) -> None:
    logging.getLogger("pcmring").addHandler(_Log(logging.WARNING))
    print(json.dumps(globals()[function](**json.loads(arguments))))


def values_of(audio: np.ndarray) -> np.ndarray:
    """The ramp's values in the first channel; int16's low bits are unwrapped."""
    if audio.dtype == np.int16:
        low = audio[:, 0].astype(np.int64) & 0xFFFF
        return low + 65536 * np.concatenate(([0], np.cumsum(np.diff(low) < 0)))
    return np.rint(audio[:, 0].astype(np.float64) * 2**23).astype(np.int64)


def jumps(audio: np.ndarray) -> list[tuple[int, int]]:
    """(index, frames missing before it) wherever the ramp does not go on."""
    steps = np.diff(values_of(audio))
    return [(int(at) + 1, int(steps[at]) - 1) for at in np.flatnonzero(steps != 1)]


def until(condition) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def resources() -> dict[str, int]:
    """Threads, descriptors and mappings of this process as the system counts them."""
    return {
        "threads": len(os.listdir("/proc/self/task")),
        "fds": len(os.listdir("/proc/self/fd")),
        "mappings": Path("/proc/self/maps").read_bytes().count(b"\n"),
    }


def opened(*, latency: float | str = 1.0, **settings: Any):
    """An open source. Its device buffer outlasts the stalls of a crowded machine."""
    from pcmring.devices import PortAudioSource

    source = PortAudioSource(latency=latency, **settings)
    source.open()
    return source


def ring_for(source, seconds: float = 30.0):
    from pcmring import AudioBuffer

    return AudioBuffer(int(source.samplerate * seconds), source.channels, source.dtype, samplerate=source.samplerate)


# ---- capture ----------------------------------------------------------------------------------------------


def capture(frames: int, device: str | None = None, **settings: Any) -> dict[str, Any]:
    """Record so many frames and say how they look."""
    with opened(device=device, **settings) as source, ring_for(source) as buffer:
        before = time.monotonic_ns()
        source.start(buffer)
        running = source.active, source.finished
        audio = buffer.read(frames, timeout=DEADLINE_S)
        arrival_ns = source.last_arrival_ns
        source.stop()
        written = buffer.frames_written
        counters = source.counters
        again = buffer.write(np.zeros((1, source.channels), source.dtype))  # the producer's place is free
        values = values_of(audio)
        return {
            "device": source.device.name,
            "frames": len(audio),
            "dtype": audio.dtype.name,
            "samplerate": source.samplerate,
            "channels": source.channels,
            "first": int(values[0]),
            "jumps": jumps(audio),
            "channel_steps": sorted(
                {
                    int(s)
                    for s in np.unique(
                        np.diff(np.rint(audio.astype(np.float64) * (2**23 if audio.dtype.kind == "f" else 1)), axis=1)
                    )
                }
            ),
            "running": running,
            "after": [source.active, source.finished, source.error],
            "arrival_ok": before < arrival_ns <= time.monotonic_ns() and source.last_arrival_ns >= arrival_ns,
            "counters": dataclasses.asdict(counters),
            "counted": counters.frames == written and again == 1,
            "largest_block": buffer.statistics().max_block,
            "gaps": [gap._asdict() for gap in buffer.gaps()],
        }


def _give_up_priorities() -> None:
    """From now on this thread may not choose a real-time priority, whoever runs it."""
    import ctypes
    import resource

    cap_sys_nice = 1 << 23
    resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    sets[0] &= ~cap_sys_nice
    assert libc.capset(header, sets) == 0


def _may_be_realtime() -> bool:
    """Whether the system lets a thread of this process have a real-time priority."""
    allowed: list[bool] = []

    def attempt() -> None:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        except PermissionError:
            return
        allowed.append(True)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return bool(allowed)


def priorities(privileged: bool) -> dict[str, Any]:
    """Record, and say with which priority."""
    if not privileged:
        _give_up_priorities()
    with opened() as source, ring_for(source) as buffer:
        before = source.realtime
        source.start(buffer)
        audio = buffer.read(4800, timeout=DEADLINE_S)
        thread_id = source._capture.realtime_thread_id
        return {
            "jumps": jumps(audio),
            "before": before,
            "realtime": source.realtime,
            "allowed": _may_be_realtime(),
            "fifo": thread_id != 0 and os.sched_getscheduler(thread_id) == os.SCHED_FIFO | os.SCHED_RESET_ON_FORK,
            "main_is_realtime": os.sched_getscheduler(0) != os.SCHED_OTHER,
        }


def infile_capture(path: str, frames: int) -> dict[str, Any]:
    audio = np.fromfile(path, np.int16)
    found = {}
    for dtype in ("int16", "float32"):
        with opened(dtype=dtype, block_frames=160) as source, ring_for(source) as buffer:
            source.start(buffer)
            got = buffer.read(frames, timeout=DEADLINE_S)[:, 0]
            source.stop()
            wanted = np.resize(audio, frames)
            found[dtype] = bool(np.array_equal(got, wanted if dtype == "int16" else wanted / np.float32(32768)))
    return found


def capture_while_the_gil_is_held(hold_s: float, times: int) -> dict[str, Any]:
    """PyDLL calls keep the GIL: usleep in libc stands for a C extension that computes."""
    import ctypes

    libc = ctypes.PyDLL(None)
    with opened(block_frames=1024, latency=LATENCY_S) as source, ring_for(source) as buffer:
        source.start(buffer)
        until(lambda: buffer.frames_written > 0)
        during = []
        for _ in range(times):
            before = buffer.frames_written
            libc.usleep(int(hold_s * 1e6))
            during.append(buffer.frames_written - before)
        source.stop()
        audio = buffer.read(buffer.frames_written)
        return {
            "during": during,
            "first": int(values_of(audio)[0]),
            "jumps": jumps(audio),
            "gaps": len(buffer.gaps()),
            "overflows": source.counters.overflows,
        }


def capture_with_a_python_callback(hold_s: float, times: int) -> dict[str, Any]:
    """What W4L does, under the same conditions: the measure of the test above."""
    import ctypes
    import queue

    import sounddevice

    # sounddevice sets the shape of arrays, which NumPy 2.5 complains about
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="sounddevice")
    libc = ctypes.PyDLL(None)
    blocks: queue.Queue[np.ndarray] = queue.Queue()

    def callback(data, frames, when, status) -> None:
        blocks.put(data.copy())

    with sounddevice.InputStream(
        samplerate=16000, channels=1, dtype="float32", blocksize=1024, latency=LATENCY_S, callback=callback
    ):
        blocks.get(timeout=DEADLINE_S)
        for _ in range(times):
            libc.usleep(int(hold_s * 1e6))
        blocks.get(timeout=DEADLINE_S)
        until(lambda: not blocks.empty())
    audio = np.concatenate(list(blocks.queue))
    return {"frames": len(audio), "missing": sum(missing for _, missing in jumps(audio))}


def overflow() -> dict[str, Any]:
    """The device's buffer runs over once, in real time; what does the ledger say?"""
    with opened(block_frames=256, dtype="int16", latency="high") as source, ring_for(source) as buffer:
        source.start(buffer)
        until(lambda: source.counters.overflows > 0)
        until(lambda: buffer.frames_written > buffer.gaps()[0].position + 2048)
        source.stop()
        return {
            "jumps": jumps(buffer.read(buffer.frames_written)),
            "gaps": [gap._asdict() for gap in buffer.gaps()],
            "counters": dataclasses.asdict(source.counters),
            "lost": buffer.statistics().frames_lost["device_overflow"],
        }


def times_of_frames() -> dict[str, Any]:
    """Capture times against the device's true ones: frame k was captured k / rate after the first start."""
    with opened(block_frames=256, latency="high") as source, ring_for(source) as buffer:
        before = time.monotonic()
        source.start(buffer)
        after = time.monotonic()
        buffer.read(16000, timeout=DEADLINE_S)
        source.stop()
        start = buffer.time_of(0)
        return {
            "clock": start.clock,
            "early": before - start,
            "late": start - after,
            "span": buffer.time_of(16000) - start,
        }


# ---- life -------------------------------------------------------------------------------------------------


def cycles(count: int) -> dict[str, Any]:
    """Start and stop again and again, with new sources and with the same; count what stays."""
    from pcmring import AudioBuffer

    source = opened(block_frames=128)

    def cycle(source) -> None:
        with AudioBuffer(16000, 1, "float32", samplerate=16000) as buffer:
            source.start(buffer)
            assert buffer.read(1, timeout=DEADLINE_S).shape == (1, 1)
            source.stop()

    def round_of(count: int) -> None:
        for _ in range(count // 2):
            cycle(source)
            with opened(block_frames=128) as another:
                cycle(another)

    round_of(10)
    gc.collect()
    before = resources()
    round_of(count)
    gc.collect()
    after = resources()
    source.close()
    return {"before": before, "after": after}


def misuse() -> dict[str, Any]:
    """Wrong moments and arguments, one after the other, on one source."""
    from pcmring import AudioBuffer, BufferClosed

    found = {}

    def trial(name: str, call) -> None:
        try:
            call()
        except (ValueError, RuntimeError, OSError) as error:
            found[name] = f"{type(error).__name__}: {error}"
        else:
            found[name] = None

    with opened() as source:
        trial("channels", lambda: source.start(AudioBuffer(1000, 2, samplerate=16000)))
        trial("samplerate", lambda: source.start(AudioBuffer(1000, 1, samplerate=8000)))
        closed = AudioBuffer(1000, samplerate=16000)
        closed.close()
        trial("closed", lambda: source.start(closed))
        assert issubclass(BufferClosed, ValueError)
        with AudioBuffer(16000, 1, samplerate=16000) as buffer:
            source.start(buffer)
            trial("twice", lambda: source.start(buffer))
            trial("writer", lambda: buffer.write(np.zeros(1)))
            with opened() as other:
                trial("two producers", lambda: other.start(buffer))
            source.stop()
            source.stop()
            trial("again", lambda: source.start(buffer))
            buffer.read(16000, timeout=DEADLINE_S)
            source.close()
            source.close()
            trial("not open", lambda: source.samplerate)
            trial("reopened", lambda: source.start(buffer))
            source.stop()
        with AudioBuffer(1000, 1, "int16") as any_rate:
            trial("converted", lambda: source.start(any_rate))
            any_rate.read(100, timeout=DEADLINE_S)
    return found


def stop_interrupted_in_close() -> dict[str, Any]:
    """A Ctrl-C between PortAudio's return and sounddevice's next step; then a second stop, and another start."""
    with opened() as source, ring_for(source) as buffer:
        source.start(buffer)
        until(lambda: buffer.frames_written > 0)
        stream = source._stream
        close = stream.close

        def interrupted() -> None:
            close()
            raise KeyboardInterrupt

        stream.close = interrupted
        try:
            source.stop()
            was_raised = False
        except KeyboardInterrupt:
            was_raised = True
        frames, counted = buffer.frames_written, source.counters.frames
        source.stop()
        buffer.write(np.zeros((1, source.channels), source.dtype))
        source.start(buffer)
        until(lambda: buffer.frames_written > frames + 1)
        source.stop()
        return {"was_raised": was_raised, "frames": frames, "counted": counted}


def buffer_closed_first() -> list[Any]:
    with opened(block_frames=128) as source:
        buffer = ring_for(source)
        source.start(buffer)
        buffer.read(1, timeout=DEADLINE_S)
        buffer.close()
        ended = source.wait(DEADLINE_S)
        return [ended, source.active, source.finished, source.error]


def stop_from_many_threads() -> list[Any]:
    with opened(block_frames=128) as source, ring_for(source) as buffer:
        source.start(buffer)
        barrier = threading.Barrier(4)
        after = []

        def work() -> None:
            barrier.wait()
            source.stop()
            after.append(buffer.frames_written)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        buffer.write(np.zeros((1, 1), np.float32))
        return [len(set(after)), buffer.frames_written - after[0]]


def forgotten() -> list[str]:
    """A source dropped while it runs says so, and PortAudio is stopped."""
    import warnings

    source = opened(block_frames=128)
    buffer = ring_for(source)
    source.start(buffer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del source
        gc.collect()
    buffer.write(np.zeros((1, 1), np.float32))
    return [w.category.__name__ for w in caught]


def exit_while_streaming() -> list[Any]:
    """Another process that ends in the middle of a capture, without a word."""
    program = (
        "import children as c; source = c.opened(block_frames=128); ring = c.ring_for(source); "
        "source.start(ring); ring.read(256, timeout=30); kept = [source, ring]"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "faulthandler", "-c", program],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    return [done.returncode, done.stdout, done.stderr]


def fork_while_streaming() -> dict[str, Any]:
    """The child has the objects, but no stream; the parent goes on."""
    with opened(block_frames=128) as source, ring_for(source) as buffer:
        source.start(buffer)
        buffer.read(256, timeout=DEADLINE_S)
        # the capture's state is copied too: not in the middle of a callback
        last = source.last_arrival_ns
        until(lambda: source.last_arrival_ns != last)
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            facts = [source.active]
            source.stop()
            try:
                source.start(buffer)
            except RuntimeError as error:
                facts.append(str(error))
            os.write(write_end, json.dumps(facts).encode())
            os._exit(0)
        os.close(write_end)
        with open(read_end, "rb") as answer:
            facts = json.loads(answer.read())
        os.waitpid(child, 0)
        before = buffer.frames_written
        until(lambda: buffer.frames_written > before + 1000)
        source.stop()
        return {"child": facts, "jumps": jumps(buffer.get_latest(buffer.frames_written))}


def died(control: str) -> dict[str, Any]:
    """The device fails, and comes back."""
    from pcmring._portaudio import refresh
    from pcmring.devices import PortAudioSource

    with opened(device="mic", block_frames=128) as source, ring_for(source) as buffer:
        source.start(buffer)
        buffer.read(1000, timeout=DEADLINE_S)
        found: dict[str, Any] = {"refresh": _complaint(refresh)}
        Path(control).write_text("dead")
        found["ended"] = source.wait(DEADLINE_S)
        found["state"] = [source.active, source.finished, type(source.error).__name__]
        source.stop()
        found["stopped"] = [source.active, source.finished, str(source.error)]
        written = buffer.frames_written
        found["kept"] = jumps(buffer.get_latest(written))
        found["log"] = LOG
        source.close()
        refresh()
        found["gone"] = _complaint(PortAudioSource("mic").open)
        Path(control).unlink()
        refresh()
        source.start(buffer)
        found["back"] = [source.active, source.finished, source.error]
        until(lambda: buffer.frames_written > written)
        source.stop()
    return found


def stops_delivering(control: str, how: str, comes_back: bool) -> dict[str, Any]:
    """A device that delivers nothing more while PortAudio says that all is well: only the arrivals tell."""
    with opened(block_frames=128, latency="high") as source, ring_for(source) as buffer:
        source.start(buffer)
        buffer.read(1000, timeout=DEADLINE_S)
        Path(control).write_text(how)
        until(lambda: time.monotonic_ns() - source.last_arrival_ns > 300_000_000)
        found: dict[str, Any] = {"state": [source.active, source.finished]}
        thread_id = source._capture.realtime_thread_id
        begin = time.monotonic()
        source.stop()
        found["stop_s"] = time.monotonic() - begin
        found["log"] = LOG
        left_behind = Path(f"/proc/self/task/{thread_id}").exists()
        found["hogs_a_core"] = left_behind and os.sched_getscheduler(thread_id) != os.SCHED_OTHER
        buffer.write(np.zeros((1, 1), np.float32))
        if not comes_back:
            from pcmring._portaudio import refresh

            found["refresh"] = _complaint(refresh)
            return found
        Path(control).unlink()
        written = buffer.frames_written
        source.start(buffer)
        until(lambda: buffer.frames_written > written)
        source.stop()
        return found


# ---- choosing ---------------------------------------------------------------------------------------------


def choose(wanted: list[Any]) -> dict[str, Any]:
    from pcmring.devices import AudioDeviceManager

    manager = AudioDeviceManager()
    found: dict[str, Any] = {
        "devices": [dataclasses.asdict(device) for device in manager.get_available_devices()],
        "current": manager.get_current_device() and manager.get_current_device().name,
    }
    found["chosen"] = [_chosen(manager, text) for text in wanted]
    return found


def _chosen(manager, text: Any) -> list[Any]:
    try:
        device = manager.select_device(text)
    except (ValueError, TypeError, OSError, ImportError) as error:
        return [type(error).__name__, str(error)]
    return [device and device.name, manager.config.device, manager.get_current_device() == device]


def record(device: Any, frames: int, **config: Any) -> dict[str, Any]:
    """From the choice of a device to 16 kHz mono: the way of a manager."""
    from pcmring import AudioBuffer
    from pcmring.devices import AudioConfig, AudioDeviceManager, ResamplingReader

    manager = AudioDeviceManager(AudioConfig(**config))
    manager.select_device(device)
    with manager.create_source() as source:
        buffer = AudioBuffer(int(source.samplerate * 5), source.channels, source.dtype, samplerate=source.samplerate)
        with buffer, ResamplingReader(buffer, manager.config.sample_rate, manager.config.channels) as reader:
            source.start(buffer)
            audio = reader.read(frames, timeout=DEADLINE_S)
            source.stop()
            return {
                "kind": type(source).__name__,
                "native": [source.samplerate, source.channels, source.dtype.name],
                "shape": audio.shape,
                "dtype": audio.dtype.name,
                "name": source.name,
                "largest_block": buffer.statistics().max_block,
            }


def _hide(packages: list[str]) -> None:
    """From now on these are not installed."""

    class Blocker:
        @staticmethod
        def find_spec(name: str, path=None, target=None):
            if name.partition(".")[0] in packages:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Blocker)


def missing(block: list[str], library: bool = False) -> dict[str, Any]:
    """A machine without packages, or without PortAudio: what works, and what the errors say."""
    import ctypes.util

    if library:  # what sounddevice asks, and gets no answer
        ctypes.util.find_library = lambda name: None

    _hide(block)
    import pcmring.devices as devices
    from pcmring import AudioBuffer

    manager = devices.AudioDeviceManager()
    found: dict[str, Any] = {"devices": [d.name for d in manager.get_available_devices()]}
    manager.get_available_devices()
    found["warnings"] = LOG
    found["current"] = manager.get_current_device()
    found["open"] = _complaint(lambda: manager.create_source().open())
    found["select"] = _complaint(lambda: manager.select_device("USB"))
    found["id"] = _complaint(lambda: manager.select_device(0))
    found["file"] = _complaint(lambda: devices.FileSource("x.wav").open())
    found["save"] = _complaint(lambda: devices.AudioConfig().save())
    found["resample"] = _complaint(lambda: devices.ResamplingReader(AudioBuffer(100, samplerate=48000), 16000))
    manager.select_device("tone")
    with manager.create_source() as source, AudioBuffer(16000, samplerate=16000) as buffer:
        source.start(buffer)
        found["tone"] = len(buffer.read(1000, timeout=DEADLINE_S))
        source.stop()
    return found


def _complaint(call) -> list[str] | None:
    try:
        call()
    except (ImportError, ValueError, RuntimeError, OSError) as error:
        return [type(error).__name__, str(error)]
    return None


# ---- managers ---------------------------------------------------------------------------------------------


def manager_without_packages(block: list[str]) -> list[str] | None:
    _hide(block)
    from pcmring.buffer_manager import StreamingAudioManager
    from pcmring.devices import AudioDeviceManager

    return _complaint(StreamingAudioManager(AudioDeviceManager()).start_recording)


def _manager(**config: Any):
    from pcmring.buffer_manager import StreamingAudioManager
    from pcmring.devices import AudioConfig, AudioDeviceManager

    return StreamingAudioManager(AudioDeviceManager(AudioConfig(**config)))


def manager_forks() -> dict[str, Any]:
    """The child of a fork records nothing of its parent's, and may record on its own."""
    with _manager(device="tone") as manager:
        manager.on_audio_data = len
        manager.start_recording()
        manager.wait_ready(DEADLINE_S)
        read_end, write_end = os.pipe()
        end_lock = manager._session._end_lock
        end_lock.acquire()  # as by a thread that ends the recording just now, which the child has not
        child = os.fork()
        if child == 0:
            signal.alarm(int(DEADLINE_S))
            facts = [manager.is_recording, len(manager.get_latest_audio())]
            manager.stop_recording()
            facts += [manager.start_recording(), manager.wait_ready(DEADLINE_S)]
            manager.cleanup()
            os.write(write_end, json.dumps(facts).encode())
            os._exit(0)
        end_lock.release()
        os.close(write_end)
        with open(read_end, "rb") as answer:
            facts = json.loads(answer.read())
        os.waitpid(child, 0)
        before = manager.buffer.frames_written
        until(lambda: manager.buffer.frames_written > before + 1000)
        return {"child": facts, "state": manager.state}


def manager_exits(device: str | None) -> list[Any]:
    """A program that ends in the middle of a recording, without a word."""
    program = (
        "import children as c\n"
        f"manager = c._manager(device={device!r})\n"
        "manager.on_audio_data = len\n"
        "manager.on_stream_error = print\n"
        "assert manager.start_recording() and manager.wait_ready(30)\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", program],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    return [done.returncode, done.stdout, [line for line in done.stderr.splitlines() if "src/hostapi" not in line]]


def manager_records(frames: int) -> dict[str, Any]:
    got: list[np.ndarray] = []
    with _manager(latency=1.0) as manager:
        manager.on_audio_data = got.append
        manager.start_recording()
        ready = manager.wait_ready(DEADLINE_S)
        until(lambda: manager.get_buffer_info()["frames_written"] >= frames)
        manager.stop_recording()
        audio, info = manager.get_latest_audio(30), manager.get_buffer_info()
    delivered = np.concatenate(got)
    return {
        "first": int(values_of(audio)[0]),
        "jumps": jumps(audio),
        "callback_jumps": jumps(delivered),
        "frames": len(audio),
        "callback_frames": len(delivered),
        "written": info["frames_written"],
        "ready": ready,
        "device": info["device"],
    }


def manager_overflows() -> dict[str, Any]:
    errors: list[Exception] = []
    with _manager(block_frames=256) as manager:
        manager.on_stream_error = errors.append
        manager.start_recording()
        until(lambda: manager.get_buffer_info()["overflows"])
        info = manager.get_buffer_info()
    return {
        "overflows": info["overflows"],
        "frames_lost": info["frames_lost"]["device_overflow"],
        "state": info["state"],
        "errors": list(map(str, errors)),
    }


def manager_recovers(control: str, how: str, device: str) -> dict[str, Any]:
    """The device goes, is noticed, comes back."""
    errors: list[float] = []
    recovered: list[float] = []
    with _manager(device=device, block_frames=128) as manager:
        manager.on_stream_error = lambda error: errors.append(time.monotonic())
        manager.on_stream_recovered = lambda: recovered.append(time.monotonic())
        manager.start_recording()
        manager.wait_ready(DEADLINE_S)
        reader = manager.reader(0)
        reader.read(1000, timeout=DEADLINE_S)
        gone = time.monotonic()
        Path(control).write_text(how)
        until(lambda: errors)
        before = manager.buffer.frames_written
        Path(control).unlink()
        until(lambda: recovered)
        until(lambda: manager.buffer.frames_written > before + 2000)
        (gap,) = manager._session.buffer.gaps()
        gap_by_the_stamps_s = manager.buffer.time_of(gap.position) - manager.buffer.time_of(gap.position - 1)
        manager.stop_recording()
        audio = manager.get_latest_audio(30)
        return {
            "noticed_s": errors[0] - gone,
            "errors": len(errors),
            "recovered": len(recovered),
            "first": int(values_of(audio)[0]),
            "jumps_at": [at for at, _ in jumps(audio)],
            "cause": gap.cause,
            "gap_at": gap.position,
            "gap_s": gap.frames / 16000,
            "gap_by_the_stamps_s": gap_by_the_stamps_s,
        }


def _watchdogs() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name in ("pcmring watchdog", "pcmring abort")]


def manager_stops_without_device(control: str) -> dict[str, Any]:
    """Unplugged, PortAudio itself does not come back any more."""
    from pcmring._sources import live

    with _manager(device="mic", block_frames=128) as manager:
        manager.start_recording()
        manager.wait_ready(DEADLINE_S)
        Path(control).write_text("unplugged")
        until(lambda: manager.state == "recovering")
        begin = time.monotonic()
        manager.stop_recording()
        found: dict[str, Any] = {"stop_s": time.monotonic() - begin}
        found["written"] = manager.get_buffer_info()["frames_written"]
        Path(control).unlink()
        until(lambda: not _watchdogs())  # from here on nobody is left to open it
        found["capturing"] = list(map(repr, live))
        found["written_after"] = manager.get_buffer_info()["frames_written"]
        found["again"] = manager.start_recording() and manager.wait_ready(DEADLINE_S)
        return found


def manager_falls_back(control: str, allowed: bool) -> dict[str, Any]:
    attempts: list[str] = []

    class Attempts(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "to reopen" in record.getMessage():
                attempts.append(record.getMessage())

    logging.getLogger("pcmring").addHandler(Attempts())
    logging.getLogger("pcmring").setLevel(logging.DEBUG)
    with _manager(device="mic", block_frames=128) as manager:
        manager.allow_default_device = allowed
        recovered: list[int] = []
        manager.on_stream_recovered = lambda: recovered.append(1)
        manager.start_recording()
        manager.wait_ready(DEADLINE_S)
        Path(control).write_text("dead")
        until(lambda: manager.state == "recovering")
        if allowed:
            until(lambda: recovered)
        else:
            until(lambda: len(attempts) == 5)  # the default one would have been taken by the fourth
        info = manager.get_buffer_info()
        return {"device": info["device"], "state": info["state"]}


def manager_is_stopped_by_a_signal(stop_s: float) -> dict[str, Any]:
    """SIGSTOP, as a debugger or a laptop's lid does."""
    errors: list[Exception] = []
    with _manager() as manager:
        manager.on_stream_error = errors.append
        manager.start_recording()
        manager.wait_ready(DEADLINE_S)
        waker = subprocess.Popen(
            [sys.executable, "-c", f"import os, time; time.sleep({stop_s}); os.kill({os.getpid()}, 18)"]
        )
        os.kill(os.getpid(), 19)
        waker.wait()
        before = manager.buffer.frames_written
        until(lambda: manager.buffer.frames_written > before + 18_000 or errors)
        return {"errors": list(map(str, errors)), "state": manager.state}


# ---- managers, on a PulseAudio server of the folder (see pulse_server.py) ------------------------------------


def pulse_recovers(folder: str, how: str) -> dict[str, Any]:
    """Something of the server is lost, is noticed, comes back."""
    from pulse_server import RATE, PulseServer

    server = PulseServer(folder)
    errors: list[list[Any]] = []
    recovered: list[int] = []
    with _manager(block_frames=128) as manager:
        manager.on_stream_error = lambda error: errors.append([time.monotonic(), manager.state, str(error)])
        manager.on_stream_recovered = lambda: recovered.append(1)
        manager.start_recording()
        manager.wait_ready(DEADLINE_S)
        reader = manager.reader(0)
        delivered = len(reader.read(RATE // 2, timeout=DEADLINE_S))
        gone = time.monotonic()
        server.lose(how)
        until(lambda: errors)
        before = manager.get_latest_audio(30)
        server.give_back(how)
        until(lambda: recovered)
        found: dict[str, Any] = {"away_s": time.monotonic() - gone}
        written = manager.buffer.frames_written
        until(lambda: manager.buffer.frames_written >= written + RATE // 2)
        gaps = manager._session.buffer.gaps()
        manager.stop_recording()
        audio = manager.get_latest_audio(30)
        while len(rest := reader.read(RATE, timeout=DEADLINE_S)):
            delivered += len(rest)
            if reader.position == len(audio):
                break
        return found | {
            "noticed_s": errors[0][0] - gone,
            "errors": [error[1:] for error in errors],
            "recovered": len(recovered),
            "kept": len(before) >= RATE // 2 and bool(np.array_equal(audio[: len(before)], before)),
            "jumps": jumps(audio),
            "gaps": [[gap.position, gap.frames, gap.cause] for gap in gaps],
            "written": manager.get_buffer_info()["frames_written"],
            "captured": len(audio),
            "read_to": reader.position,
            "delivered_and_lost": delivered + reader.lost,
            "log": LOG,
        }


def pulse_stops(folder: str, how: str) -> dict[str, Any]:
    """A recording is stopped while something of the server is lost, which then comes back."""
    from pulse_server import PulseServer

    server = PulseServer(folder)
    errors: list[Exception] = []
    with _manager(block_frames=128) as manager:
        manager.on_stream_error = errors.append
        manager.start_recording()
        manager.wait_ready(DEADLINE_S)
        until(lambda: manager.buffer.frames_written > 1000)
        server.lose(how)
        until(lambda: manager.state == "recovering" and (how != "hangs" or LOG[-1].endswith("left behind")))
        begin = time.monotonic()
        manager.stop_recording()
        found: dict[str, Any] = {"stop_s": time.monotonic() - begin, "state": manager.state, "errors": len(errors)}
        begin = time.monotonic()
        manager.stop_recording()
        found["stop_again_s"] = time.monotonic() - begin
        audio = manager.get_latest_audio(30)
        server.give_back(how)
        until(lambda: not _watchdogs())  # from here on nobody is left to open it
        found["streams"] = server.control("list", "short", "source-outputs")
        found["kept"] = len(audio) > 1000 and not jumps(audio) and len(manager.get_latest_audio(30)) == len(audio)
        found["again"] = manager.start_recording() and manager.wait_ready(DEADLINE_S)
        return found


def pulse_hangs_at_the_end(folder: str, lost_before: bool) -> list[str]:
    """The program ends while its server hangs: in the stream that was lost by that, or in looking for another."""
    from pulse_server import PulseServer

    server = PulseServer(folder)
    with _manager(block_frames=128) as manager:
        manager.start_recording()
        manager.wait_ready(DEADLINE_S)
        if lost_before:
            server.lose("removed")
            until(lambda: manager.state == "recovering")
        server.lose("hangs")
        reopening = manager._session._source_lock
        while reopening.acquire(timeout=1.5):
            reopening.release()
            time.sleep(0.01)
    return LOG


def pulse_is_not_there(folder: str) -> dict[str, Any]:
    """No server runs; then one does."""
    errors: list[Exception] = []
    with _manager() as manager:
        manager.on_stream_error = errors.append
        found: dict[str, Any] = {"started": manager.start_recording(), "errors": list(map(str, errors)), "log": LOG}
        found["state"] = [manager.is_recording, str(manager.last_error), _watchdogs()]
        from pulse_server import PulseServer

        PulseServer(folder)
        manager.device_manager.get_available_devices(refresh_devices=True)
        found["again"] = manager.start_recording() and manager.wait_ready(DEADLINE_S)
        return found


def manager_is_interrupted(work: str, every: int) -> dict[str, Any]:
    """A Ctrl-C at every n-th moment of a start or a stop; then a stop ends it and the next recording works."""
    from ctrl_c import CtrlC

    warnings.simplefilter("ignore", ResourceWarning)  # a result that is lost on the way
    threads = threading.active_count()
    with _manager(device="mic") as manager:
        moment = 0
        while True:
            if work == "stop_recording":
                assert manager.start_recording()
                assert manager.wait_ready(DEADLINE_S)
            with CtrlC(moment) as ctrl_c:
                getattr(manager, work)()
            manager.stop_recording()
            assert not manager.is_recording
            until(lambda: threading.active_count() <= threads)
            if not ctrl_c.has_come:
                break
            moment += every
        assert manager.start_recording()
        assert manager.wait_ready(DEADLINE_S)
        return {"moments": moment, "log": LOG, "state": manager.state}
