"""`MemoryMonitor`: notices when this process uses too much memory, and asks those who registered to give some back.

Who owns what. A monitor owns its callbacks (`_callbacks`), its history, and at most one thread, through a `_Watch`.
The thread owns the watch and holds the monitor weakly, so a forgotten monitor goes away and its thread with it. The
thread sleeps on a queue whose `put` is one uninterruptible operation: it may be called from a finalizer.

What is guaranteed. Over the limit is an edge: however often one asks, a cleanup runs once when the limit is crossed,
and again only after usage fell below `REARM_SHARE` of it, or after `PAUSE_SECONDS`. One cleanup at a time; a cleanup
asked for by a callback of a cleanup does nothing. No lock is held while foreign code runs except the one that keeps
cleanups apart, which only `cleanup(force=True)` waits for. No lock is needed by anything a finalizer may call.

What it knows. Bytes and callables. No audio, no files.
"""

from __future__ import annotations

import gc
import logging
import math
import operator
import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from pcmring._callbacks import Callback, Callbacks, name_of
from pcmring._memory import MB, MemoryUnreadable, cgroup_memory, malloc_trim, rss_bytes

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "BUFFER_CLEANUP_INTERVAL_SECONDS",
    "DEFAULT_MEMORY_LIMIT_MB",
    "MEMORY_CHECK_INTERVAL_SECONDS",
    "MemoryMonitor",
    "MemorySample",
    "StreamLease",
]

logger = logging.getLogger(__name__)

#: W4L's numbers.
DEFAULT_MEMORY_LIMIT_MB = 512
MEMORY_CHECK_INTERVAL_SECONDS = 30
#: Also the pause after which a cleanup runs again though usage never fell.
BUFFER_CLEANUP_INTERVAL_SECONDS = 60

#: Usage must fall below this share of the limit before the next crossing counts. Not tuned: wide enough that the
#: allocator's noise (some MB) does not cross both at limits of a few hundred MB.
REARM_SHARE = 0.9
#: Of the cgroup's limit. At the limit itself the kernel kills, so one has to act before; the rest is not tuned.
CGROUP_SHARE = 0.9
#: For how long the cgroup's limit is remembered: reading it takes some 0.4 ms, reading the usage 0.01.
CGROUP_SECONDS = 1.0
#: Samples kept: a day at the default interval, some 0.5 MB.
HISTORY_LENGTH = 2880
#: Who is asked first. What costs nothing to give back comes before what may be wanted again.
STAGES = ("pools", "buffers", "files")
#: What is told apart in a sample, besides all the rest.
KINDS = ("tracked", "pooled", "model")

#: Leases of running streams, of all monitors: the garbage collector stops the whole process, not one monitor's part.
_streams: dict[int, None] = {}
_lease_numbers = count()
_monitors: weakref.WeakSet[MemoryMonitor] = weakref.WeakSet()


class MemorySample(NamedTuple):
    """Memory in use at one moment, by kind. All bytes."""

    time: float  #: seconds since the epoch
    rss: int  #: resident memory of the process
    tracked: int  #: audio buffers
    pooled: int  #: idle blocks kept for reuse
    model: int  #: speech models
    other: int  #: the rest of rss; 0 where the kinds sum up to more, as memory nobody touched is not resident
    limit: int


class StreamLease:
    """While it is open, no automatic cleanup collects garbage. Ends by `close`, by ``with``, or when forgotten."""

    __slots__ = ("__weakref__", "_number")

    def __init__(self) -> None:
        self._number = next(_lease_numbers)
        _streams[self._number] = None

    def close(self) -> None:
        """End it; again does nothing. Any thread, any moment."""
        _streams.pop(self._number, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class _Watch:
    """One monitor's thread, and what it sleeps on."""

    def __init__(self, monitor: MemoryMonitor) -> None:
        self.pid = os.getpid()
        self.lock = threading.RLock()  # around `thread`; re-entrant, for a finalizer may run inside
        self.thread: threading.Thread | None = None
        self.interval = float(MEMORY_CHECK_INTERVAL_SECONDS)
        self._orders: queue.SimpleQueue[float | None] = queue.SimpleQueue()  # an interval, or None: end
        self._monitor = weakref.ref(monitor)

    def start(self, interval: float) -> bool:
        """Return whether there is a new thread; else the one there is takes the interval."""
        with self.lock:
            self.interval = interval
            self._orders.put(interval)
            if self.thread is not None:
                return False
            thread = threading.Thread(target=self._run, name="pcmring-memory-monitor", daemon=True)
            thread.start()  # it waits for the lock
            self.thread = thread  # only now: a stop, which takes no lock, may join what it sees here
            return True

    def end(self) -> None:
        """Order the end. No lock: the garbage collector may call it anywhere."""
        self._orders.put(None)

    def _stopped(self, order: float | None) -> bool:
        """Obey `order` and all that came after; True if the last one was to end: there is no thread from now on."""
        with self.lock:
            interval = order
            with suppress(queue.Empty):
                while True:
                    interval = self._orders.get_nowait()
            if interval is None:
                self.thread = None  # under the lock: a start from now on makes a new thread, one before was obeyed
                return True
            self.interval = interval
            return False

    def _run(self) -> None:
        order = self._orders.get()
        while not self._stopped(order):
            monitor = self._monitor()
            if monitor is not None:
                monitor._check()
                del monitor  # sleeping, one must not keep it alive
            try:
                order = self._orders.get(timeout=self.interval)
            except queue.Empty:
                order = self.interval


def _positive(value: float, name: str, unit: str) -> float:
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError
        number = float(value)
    except (TypeError, OverflowError):
        raise TypeError(f"{name} must be a number of {unit} above 0, got {value!r}") from None
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"{name} must be a finite number of {unit} above 0, got {value!r}")
    return number


class MemoryMonitor:
    """Watches this process's memory, and has it cleaned up when it passes a limit.

    All methods may be called from any thread. In a forked child the monitor is there, but its thread is not.

    Parameters
    ----------
    max_memory_mb : float
        The limit of resident memory, in MB of 1024 × 1024 bytes. A cgroup's limit holds where 90 % of it is less.

    Raises
    ------
    TypeError, ValueError
        `max_memory_mb` is no finite number above 0.

    Notes
    -----
    Reading memory needs psutil (``pip install 'pcmring[monitor]'``); the first call that reads raises
    ModuleNotFoundError without it.

    ``with monitor:`` monitors inside the block.
    """

    def __init__(
        self,
        max_memory_mb: float = DEFAULT_MEMORY_LIMIT_MB,
        *,
        _read_usage: Callable[[], int] = rss_bytes,
        _proc: str = "/proc",
    ) -> None:
        self._max_memory_mb = _positive(max_memory_mb, "max_memory_mb", "MB")
        self._read_usage = _read_usage
        self._proc = _proc
        self._cgroup_limit = (-math.inf, math.inf)  # when it was read (time.monotonic), bytes
        self._callbacks = Callbacks(STAGES)
        self._sources: dict[str, Callbacks] = {kind: Callbacks() for kind in KINDS}
        self._history: deque[MemorySample] = deque(maxlen=HISTORY_LENGTH)
        self._armed = True
        self._acted_at = -math.inf  # time.monotonic
        self._holds: dict[int, None] = {}
        self._peak = 0  # bytes
        self._samples = 0
        self._failed_readings = 0
        self._reading_fails = False
        self._cleanups = 0
        self._failures = 0  # of cleanup callbacks
        self._freed = 0  # bytes
        self._last_cleanup: dict[str, Any] | None = None
        self._make_locks()
        _monitors.add(self)

    def _make_locks(self) -> None:
        # Re-entrant, for a finalizer that the garbage collector runs inside may ask for a cleanup.
        self._edge = threading.RLock()  # around the decision to clean up, nothing else
        self._cleaning = threading.RLock()
        self._cleaner: int | None = None  # the thread inside `cleanup`
        self._watch = _Watch(self)
        # Also at the interpreter's exit: a daemon thread would be frozen in whatever it was doing.
        self._end_watch = weakref.finalize(self, self._watch.end)

    # ---- reading ------------------------------------------------------------------------------------------------

    @property
    def max_memory_mb(self) -> float:
        """The limit that was asked for, in MB. May be set at any time."""
        return self._max_memory_mb

    @max_memory_mb.setter
    def max_memory_mb(self, value: float) -> None:
        self._max_memory_mb = _positive(value, "max_memory_mb", "MB")

    def get_memory_limit(self) -> float:
        """Return the limit that holds, in MB: `max_memory_mb`, or 90 % of the cgroup's limit where that is less."""
        return self._limit() / MB

    def _limit(self) -> int:
        read_at, limit = self._cgroup_limit
        now = time.monotonic()
        if now - read_at > CGROUP_SECONDS:
            cgroup = cgroup_memory(self._proc)
            limit = math.inf if cgroup is None else cgroup.limit * CGROUP_SHARE
            self._cgroup_limit = (now, limit)
        return int(min(self._max_memory_mb * MB, limit))

    def _usage(self) -> int:
        try:
            usage = self._read_usage()
        except OSError as failure:
            self._failed_readings += 1
            if not self._reading_fails:
                self._reading_fails = True
                logger.warning("memory cannot be read, and is not watched until it can: %s", failure)
            if isinstance(failure, MemoryUnreadable):
                raise
            raise MemoryUnreadable(*failure.args) from failure
        self._reading_fails = False
        self._peak = max(self._peak, usage)
        return usage

    def get_memory_usage(self) -> float:
        """Return the resident memory of this process in MB.

        Raises
        ------
        MemoryUnreadable
            The system did not tell. An OSError. Never a made-up number: 0.0 would read as "not high".
        ModuleNotFoundError
            psutil is not installed.
        """
        return self._usage() / MB

    def is_memory_high(self) -> bool:
        """Return whether usage is above the limit, now.

        A reading, without consequences: a level. `cleanup` is what acts, on the edge.

        Raises
        ------
        MemoryUnreadable, ModuleNotFoundError
            As `get_memory_usage`.
        """
        return self._usage() > self._limit()

    # ---- who is asked -------------------------------------------------------------------------------------------

    def add_cleanup_callback(self, callback: Callable[[], Any], stage: str = "buffers") -> None:
        """Have `callback` called by every cleanup.

        Parameters
        ----------
        callback : callable
            Called without arguments, in the thread that cleans up; what it returns is ignored. Registered twice, it
            is called once. A bound method is held weakly: it keeps no owner alive, and once the owner is dead it is
            forgotten. So do not hand over a method of an object that nobody else holds. Everything else (functions,
            lambdas, partials, callable objects) is held until it is removed.
        stage : {"pools", "buffers", "files"}
            Its turn: idle blocks of pools first, then buffers, then files. Within a stage the order is that of
            registration.

        Raises
        ------
        TypeError
            `callback` cannot be called.
        ValueError
            There is no such stage.
        """
        self._callbacks.add(callback, stage)

    def remove_cleanup_callback(self, callback: Callable[[], Any]) -> bool:
        """Stop calling `callback`; return whether it was registered. A cleanup under way may still call it."""
        return self._callbacks.remove(callback)

    def add_source(self, kind: str, read_bytes: Callable[[], int]) -> None:
        """Have a part of the memory shown by kind in the samples.

        Parameters
        ----------
        kind : {"tracked", "pooled", "model"}
            What it is. Several sources of a kind add up.
        read_bytes : callable
            Returns bytes, quickly; called with each sample. Held as a cleanup callback is: bound methods weakly. One
            that raises counts as 0, and is logged when it begins to.

        Raises
        ------
        TypeError, ValueError
            `read_bytes` cannot be called, or there is no such kind.
        """
        if kind not in self._sources:
            raise ValueError(f"kind must be one of {', '.join(map(repr, self._sources))}, got {kind!r}")
        self._sources[kind].add(read_bytes)

    def remove_source(self, read_bytes: Callable[[], int]) -> bool:
        """Stop asking `read_bytes`; return whether it was registered."""
        return sum(sources.remove(read_bytes) for sources in self._sources.values()) > 0  # any() would stop at one

    def streaming(self) -> StreamLease:
        """Say that a stream runs, for as long as the result is open.

        No automatic cleanup of any monitor collects garbage meanwhile: that holds the GIL (131 ms were measured with
        1.4 million objects), and a stream's readers wait for it. Use with ``with``, or keep it and `close` it.

        Returns
        -------
        StreamLease
        """
        return StreamLease()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Inside the block, no cleanup runs that was not forced: usage is expected to rise."""
        number = next(_lease_numbers)
        self._holds[number] = None
        try:
            yield
        finally:
            self._holds.pop(number, None)

    # ---- cleaning up --------------------------------------------------------------------------------------------

    def _crossed(self, usage: int) -> bool:
        """Whether to act on this reading; the state is then that one has acted."""
        limit = self._limit()
        now = time.monotonic()
        with self._edge:
            if usage < limit * REARM_SHARE:
                self._armed = True
            if usage <= limit or self._holds:
                return False
            if not self._armed and now - self._acted_at < BUFFER_CLEANUP_INTERVAL_SECONDS:
                return False
            self._armed = False
            self._acted_at = now
            return True

    def cleanup(self, force: bool = False) -> int | None:
        """Have memory given back: every callback by stage, then gc, then the C library's free heap.

        Not forced, it acts on the edge: when usage has passed the limit since the last cleanup, and again only after
        it fell below 90 % of the limit, or after 60 s. It may be called as often as one likes; mostly it costs one
        reading. Garbage is not collected while a stream runs (`streaming`).

        Forced, it acts whatever the usage, and collects garbage in any case. It waits for a cleanup that another
        thread is running. Called by a callback of a cleanup, either form does nothing.

        Parameters
        ----------
        force : bool
            Act though the limit was not crossed.

        Returns
        -------
        int or None
            By how many bytes resident memory fell, measured, 0 if it did not; what other threads allocated or freed
            meanwhile is in it. None: it could not be measured.

        Raises
        ------
        MemoryUnreadable, ModuleNotFoundError
            Not forced, and memory cannot be read.

        Notes
        -----
        A callback that raises is logged once, with its traceback, and the others are still called. Only
        KeyboardInterrupt, SystemExit and the like end the call.
        """
        thread = threading.get_ident()
        if self._cleaner == thread:
            return 0
        if not force and not self._crossed(self._usage()):
            return 0
        if not self._cleaning.acquire(blocking=force):
            return 0  # another thread does it right now
        try:
            self._cleaner = thread
            return self._clean(force)
        finally:
            self._cleaner = None
            self._cleaning.release()

    def _measure(self) -> int | None:
        try:
            return self._usage()
        except (MemoryUnreadable, ModuleNotFoundError):
            return None  # the first was logged; without psutil nothing is watched, but what was asked for is done

    def _clean(self, force: bool) -> int | None:
        began = time.monotonic()
        before = self._measure()
        failures = 0
        for callback in self._callbacks.live():
            outcome, _ = callback.call(logger, "cleanup callback")
            failures += outcome == "raised"
        collected = force or not _streams
        if collected:
            gc.collect()
        trimmed = malloc_trim()
        after = self._measure()
        freed = None if before is None or after is None else max(0, before - after)
        now = time.monotonic()
        with self._edge:
            self._acted_at = now
            self._armed = after is not None and after < self._limit() * REARM_SHARE
        self._cleanups += 1
        self._failures += failures
        self._freed += freed or 0
        self._last_cleanup = {
            "time": time.time(),
            "seconds": now - began,
            "forced": force,
            "collected_garbage": collected,
            "trimmed_heap": trimmed,
            "freed_bytes": freed,
            "failures": failures,
        }
        logger.info(
            "cleanup: %s MB before, %s MB freed, %d callbacks failed",
            "?" if before is None else f"{before / MB:.1f}",
            "?" if freed is None else f"{freed / MB:.1f}",
            failures,
        )
        return freed

    # ---- monitoring ---------------------------------------------------------------------------------------------

    def start_monitoring(self, interval_seconds: float = MEMORY_CHECK_INTERVAL_SECONDS) -> None:
        """Take a sample, and clean up where that is due, now and every `interval_seconds`, in a thread.

        There is one thread, however often this is called: started again, it goes on with the new interval. It ends
        with `stop_monitoring`, with the monitor, and with the interpreter.

        Parameters
        ----------
        interval_seconds : float
            Above 0.

        Raises
        ------
        TypeError, ValueError
            `interval_seconds` is no finite number above 0.
        MemoryUnreadable, ModuleNotFoundError
            Memory cannot be read; nothing was started.
        """
        interval = _positive(interval_seconds, "interval_seconds", "seconds")
        if interval > threading.TIMEOUT_MAX:
            raise ValueError(f"interval_seconds must be at most {threading.TIMEOUT_MAX:.0f}, got {interval_seconds!r}")
        self._usage()
        if self._watch.start(interval):
            logger.info(
                "watching memory every %g s, limit %.0f MB, now %.1f MB",
                interval,
                self.get_memory_limit(),
                self._peak / MB,
            )

    def stop_monitoring(self) -> None:
        """Stop; again does nothing. Returns at once, also from inside a callback.

        A thread that is inside a callback is not waited for. It does nothing more once the callback returns.
        """
        watch = self._watch
        thread = watch.thread
        if thread is None:
            return
        watch.end()
        if thread is not threading.current_thread():
            thread.join(timeout=0.04)  # a sleeping one takes well under 1 ms
        logger.info("memory is no longer watched")

    @property
    def monitoring(self) -> bool:
        """Whether the thread is there."""
        thread = self._watch.thread
        return thread is not None and thread.is_alive()

    def _check(self) -> None:
        """What the thread does, once an interval."""
        try:
            self.cleanup()
            self.sample()
        except MemoryUnreadable:
            pass  # logged by the reading, and counted; the next one may work

    def sample(self) -> MemorySample:
        """Read the memory by kind now, and add it to the history.

        Raises
        ------
        MemoryUnreadable, ModuleNotFoundError
            As `get_memory_usage`.
        """
        rss = self._usage()
        parts = dict.fromkeys(KINDS, 0)
        for kind, sources in self._sources.items():
            for source in sources.live():
                outcome, size = source.call(logger, f"source of {kind} memory", repeat=False)
                if outcome == "returned":
                    parts[kind] += self._checked(size, source, kind)
        sample = MemorySample(time.time(), rss, **parts, other=max(0, rss - sum(parts.values())), limit=self._limit())
        self._history.append(sample)
        self._samples += 1
        return sample

    @staticmethod
    def _checked(size: object, source: Callback, kind: str) -> int:
        try:
            number = operator.index(size)  # type: ignore[arg-type]
        except TypeError:
            number = -1
        if number >= 0:
            source.warned = False
            return number
        if not source.warned:
            source.warned = True
            what = name_of(source.get())
            logger.warning("source of %s memory %s must return bytes, an int from 0 up, not %r", kind, what, size)
        return 0

    def get_history(self) -> list[MemorySample]:
        """Return the samples of the last day at most, the oldest first: what a timeline shows."""
        return list(self._history.copy())

    def get_statistics(self) -> dict[str, Any]:
        """Return what was seen and done so far.

        Returns
        -------
        dict
            ``memory_usage_mb`` (float, None if unreadable), ``is_high`` (likewise), ``memory_limit_mb`` (the limit
            that holds), ``max_memory_mb`` (the one asked for), ``peak_memory_mb`` (of all readings), ``monitoring``
            (bool), ``interval_seconds`` (float), ``samples`` (ever taken), ``failed_readings``, ``cleanups``,
            ``failed_callbacks``, ``freed_bytes`` (measured, of all cleanups), ``freed_mb``, ``cleanup_callbacks``
            (those that are alive), ``streams`` (open leases of this process), and ``last_cleanup``: None or a dict of
            ``time`` (seconds since the epoch), ``seconds``, ``forced``, ``collected_garbage``, ``trimmed_heap``,
            ``freed_bytes`` (None if not measured) and ``failures``.
        """
        usage = self._measure()
        limit = self._limit()
        last = self._last_cleanup
        return {
            "memory_usage_mb": None if usage is None else usage / MB,
            "is_high": None if usage is None else usage > limit,
            "memory_limit_mb": limit / MB,
            "max_memory_mb": self._max_memory_mb,
            "peak_memory_mb": self._peak / MB,
            "monitoring": self.monitoring,
            "interval_seconds": self._watch.interval,
            "samples": self._samples,
            "failed_readings": self._failed_readings,
            "cleanups": self._cleanups,
            "failed_callbacks": self._failures,
            "freed_bytes": self._freed,
            "freed_mb": self._freed / MB,
            "cleanup_callbacks": len(self._callbacks),
            "streams": len(_streams),
            "last_cleanup": None if last is None else dict(last),
        }

    def __enter__(self) -> Self:
        if not self.monitoring:
            self.start_monitoring()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_monitoring()

    def __repr__(self) -> str:
        return f"<MemoryMonitor max_memory_mb={self._max_memory_mb:g} monitoring={self.monitoring}>"


def _after_fork() -> None:
    """In the child there are no threads and no streams, and a lock may be held by a thread that is not there."""
    _streams.clear()
    for monitor in list(_monitors):
        monitor._end_watch.detach()
        monitor._make_locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
