"""`MemoryMonitor`: notices when this process uses too much memory, and asks those who registered to give some back.

Who owns what. A monitor owns its callbacks (`_callbacks`), its history, and at most one thread. The thread holds the
monitor weakly, so a forgotten monitor goes away and its thread with it. The thread sleeps on a queue of its own, whose
`put` a finalizer may call at any moment.

What is guaranteed. Over the limit is an edge: however often one asks, a cleanup runs once when the limit is crossed,
and again only after usage fell below `REARM_SHARE` of it, or after `BUFFER_CLEANUP_INTERVAL_SECONDS`. One cleanup at a
time; one asked for by a callback of a cleanup does nothing. The lock that sees to that is the only one held while
foreign code runs, and only `cleanup(force=True)` waits for it.

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
from typing import TYPE_CHECKING, Any, NamedTuple

from pcmring._callbacks import Callback, Callbacks
from pcmring._late import MissingPackage
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
    "positive",
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
#: For how long the cgroup's limit is remembered: reading it takes some 0.1 to 0.4 ms, reading the usage 0.03.
CGROUP_SECONDS = 1.0
#: Samples kept: a day at the default interval, some 0.5 MB.
HISTORY_LENGTH = 2880
#: Who is asked first. What costs nothing to give back comes before what may be wanted again.
STAGES = ("pools", "buffers", "files")
#: What is told apart in a sample, besides all the rest.
KINDS = ("tracked", "pooled", "model")

#: Open leases by id, of all monitors: the garbage collector stops the whole process, not one monitor's part.
_streams: dict[int, None] = {}
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
    """Says that a stream runs: while it is open, no automatic cleanup of any monitor collects garbage.

    Collecting holds the GIL (131 ms were measured with 1.4 million objects), and a stream's readers wait for it. Ends
    by `close`, by ``with``, or when forgotten. The managers have one while they record.
    """

    __slots__ = ("__weakref__", "_end")

    def __init__(self) -> None:
        _streams[id(self)] = None
        # not __del__: at the end of the interpreter this module may be gone before the lease is
        self._end = weakref.finalize(self, _streams.pop, id(self), None)
        self._end.atexit = False

    def close(self) -> None:
        """End it; again does nothing. Any thread, any moment."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def positive(value: float, name: str, unit: str) -> float:
    """`value` as a finite float above 0.

    Raises
    ------
    TypeError, ValueError
        It is none; the message names `name` and `unit`.
    """
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError
        number = float(value)
    except (TypeError, OverflowError):
        raise TypeError(f"{name} must be a number of {unit} above 0, got {value!r}") from None
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"{name} must be a finite number of {unit} above 0, got {value!r}")
    return number


def _watch(monitor: weakref.ref[MemoryMonitor], ended: queue.SimpleQueue[None], interval: float) -> None:
    """What a monitor's thread does until `ended` holds something."""
    while True:
        alive = monitor()
        if alive is None:
            return
        with suppress(MemoryUnreadable):  # logged by the reading, and counted; the next one may work
            alive.cleanup()
            alive.sample()
        del alive  # sleeping, one must not keep it alive
        try:
            ended.get(timeout=interval)
        except queue.Empty:
            continue
        return


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
    MissingPackage without it.

    ``with monitor:`` monitors inside the block.
    """

    _read_usage: Callable[[], int] = staticmethod(rss_bytes)
    _root = "/"

    def __init__(self, max_memory_mb: float = DEFAULT_MEMORY_LIMIT_MB) -> None:
        self.max_memory_mb = max_memory_mb
        self._cgroup_limit = (-math.inf, math.inf)  # when it was read (time.monotonic), bytes
        self._callbacks = Callbacks(STAGES)
        self._sources = {kind: Callbacks() for kind in KINDS}
        self._history: deque[MemorySample] = deque(maxlen=HISTORY_LENGTH)
        self._is_armed = True
        self._acted_at = -math.inf  # time.monotonic
        self._holds: set[object] = set()
        self._peak = 0  # bytes
        self._failed_readings = 0
        self._reading_fails = False
        self._cleanups = 0
        self._failed_callbacks = 0
        self._freed = 0  # bytes
        self._last_cleanup: dict[str, Any] | None = None
        self._interval = float(MEMORY_CHECK_INTERVAL_SECONDS)
        self._make_locks()
        _monitors.add(self)

    def _make_locks(self) -> None:
        # Re-entrant, for a finalizer that the garbage collector runs inside may ask for the same again.
        self._starting = threading.RLock()
        self._cleaning = threading.RLock()
        self._cleaner: int | None = None  # the thread inside `cleanup`
        self._thread: threading.Thread | None = None
        self._end: weakref.finalize[Any, Any] | None = None  # tells the thread to end, once

    # ---- reading ------------------------------------------------------------------------------------------------

    @property
    def max_memory_mb(self) -> float:
        """The limit that was asked for, in MB. May be set at any time."""
        return self._max_memory_mb

    @max_memory_mb.setter
    def max_memory_mb(self, value: float) -> None:
        self._max_memory_mb = positive(value, "max_memory_mb", "MB")

    def get_memory_limit(self) -> float:
        """Return the limit that holds, in MB: `max_memory_mb`, or 90 % of the cgroup's limit where that is less."""
        return self._limit() / MB

    def _limit(self) -> int:
        read_at, limit = self._cgroup_limit
        now = time.monotonic()
        if now - read_at > CGROUP_SECONDS:
            cgroup = cgroup_memory(self._root)
            limit = math.inf if cgroup is None else cgroup.limit * CGROUP_SHARE
            self._cgroup_limit = (now, limit)
        return int(min(self._max_memory_mb * MB, limit))

    def _usage(self) -> int:
        try:
            usage = self._read_usage()
        except MemoryUnreadable as failure:
            self._failed_readings += 1
            if not self._reading_fails:
                self._reading_fails = True
                logger.warning("memory cannot be read, and is not watched until it can: %s", failure)
            raise
        self._reading_fails = False
        self._peak = max(self._peak, usage)
        return usage

    def _usage_if_readable(self) -> int | None:
        try:
            return self._usage()
        except (MemoryUnreadable, MissingPackage):
            return None

    def get_memory_usage(self) -> float:
        """Return the resident memory of this process in MB.

        Raises
        ------
        MemoryUnreadable
            The system did not tell. An OSError. Never a made-up number: 0.0 would read as "not high".
        MissingPackage
            psutil is not installed.
        """
        return self._usage() / MB

    def is_memory_high(self) -> bool:
        """Return whether usage is above the limit, now.

        A reading, without consequences: a level. `cleanup` is what acts, on the edge.

        Raises
        ------
        MemoryUnreadable, MissingPackage
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
            forgotten. Everything else (functions, lambdas, partials, callable objects) is held until it is removed.
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
        return sum(sources.remove(read_bytes) for sources in self._sources.values()) > 0  # any() stops at the first

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Inside the block, no cleanup runs that was not forced: usage is expected to rise."""
        token = object()
        try:
            self._holds.add(token)
            yield
        finally:
            self._holds.discard(token)

    # ---- cleaning up --------------------------------------------------------------------------------------------

    def _is_due(self, usage: int) -> bool:
        limit = self._limit()
        self._is_armed = self._is_armed or usage < limit * REARM_SHARE
        if usage <= limit or self._holds:
            return False
        return self._is_armed or time.monotonic() - self._acted_at >= BUFFER_CLEANUP_INTERVAL_SECONDS

    def cleanup(self, force: bool = False) -> int | None:
        """Have memory given back: every callback by stage, then gc, then the C library's free heap.

        Not forced, it acts on the edge: when usage has passed the limit since the last cleanup, and again only after
        it fell below 90 % of the limit, or after 60 s. It may be called as often as one likes; mostly it costs one
        reading. Garbage is not collected while a stream runs (`StreamLease`).

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
        MemoryUnreadable, MissingPackage
            Not forced, and memory cannot be read.

        Notes
        -----
        A callback that raises is logged, with its traceback, and the others are still called. Only KeyboardInterrupt,
        SystemExit and the like end the call.
        """
        thread = threading.get_ident()
        if self._cleaner == thread:
            return 0
        try:
            if not self._cleaning.acquire(blocking=force):
                return 0
            self._cleaner = thread
            return self._clean(force) if force or self._is_due(self._usage()) else 0
        finally:
            if self._cleaner == thread:
                self._cleaner = None
            try:  # noqa: SIM105 - one call more, and a Ctrl-C could come before the release
                self._cleaning.release()
            except RuntimeError:
                pass  # another thread's

    def _clean(self, force: bool) -> int | None:
        self._is_armed, self._acted_at = False, time.monotonic()
        before = self._usage_if_readable()
        failures = self._callbacks.call(logger, "cleanup callback")
        has_collected = force or not _streams
        if has_collected:
            gc.collect()
        malloc_trim()
        after = self._usage_if_readable()
        freed = None if before is None or after is None else max(0, before - after)
        now = time.monotonic()
        self._last_cleanup = {
            "time": time.time(),
            "seconds": now - self._acted_at,
            "forced": force,
            "collected_garbage": has_collected,
            "freed_bytes": freed,
            "failed_callbacks": failures,
        }
        self._is_armed = after is not None and after < self._limit() * REARM_SHARE
        self._acted_at = now
        self._cleanups += 1
        self._failed_callbacks += failures
        self._freed += freed or 0
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

        Started again, the thread before ends, and one with the new interval begins. It ends with `stop_monitoring`,
        with the monitor, and with the interpreter.

        Parameters
        ----------
        interval_seconds : float
            Above 0.

        Raises
        ------
        TypeError, ValueError
            `interval_seconds` is no finite number above 0.
        MemoryUnreadable, MissingPackage
            Memory cannot be read; nothing was started.
        """
        interval = positive(interval_seconds, "interval_seconds", "seconds")
        if interval > threading.TIMEOUT_MAX:
            raise ValueError(f"interval_seconds must be at most {threading.TIMEOUT_MAX:.0f}, got {interval_seconds!r}")
        usage = self._usage()
        with self._starting:
            self.stop_monitoring()
            ended: queue.SimpleQueue[None] = queue.SimpleQueue()
            thread = threading.Thread(
                target=_watch, args=(weakref.ref(self), ended, interval), name="pcmring-memory-monitor", daemon=True
            )
            # Also at the interpreter's exit: a daemon thread would be frozen in whatever it was doing.
            self._end = weakref.finalize(self, ended.put, None)
            self._thread, self._interval = thread, interval
            thread.start()
        logger.info(
            "watching memory every %g s, limit %.0f MB, now %.1f MB", interval, self.get_memory_limit(), usage / MB
        )

    def stop_monitoring(self) -> None:
        """Stop; again does nothing. Returns at once, also from inside a callback.

        A thread that is inside a callback is not waited for; it ends with the cleanup it is in.
        """
        thread, end = self._thread, self._end
        if end is not None:
            end()
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            thread.join(timeout=0.04)  # a sleeping one takes well under 1 ms

    @property
    def monitoring(self) -> bool:
        """Whether the thread is there."""
        return self._thread is not None and self._thread.is_alive()

    def sample(self) -> MemorySample:
        """Read the memory by kind now, and add it to the history.

        Raises
        ------
        MemoryUnreadable, MissingPackage
            As `get_memory_usage`.
        """
        rss = self._usage()
        parts = {
            kind: sum(self._size(kind, source) for source in sources.live()) for kind, sources in self._sources.items()
        }
        sample = MemorySample(time.time(), rss, **parts, other=max(0, rss - sum(parts.values())), limit=self._limit())
        self._history.append(sample)
        return sample

    @staticmethod
    def _size(kind: str, source: Callback) -> int:
        function = source.get()
        try:
            size = 0 if function is None else operator.index(function())
        except Exception:  # not our code: as a cleanup callback, but not with every sample
            if not source.failed:
                logger.exception("source of %s memory %r failed", kind, function)
            source.failed = True
            return 0
        source.failed = False
        return size

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
            (bool), ``interval_seconds``, ``failed_readings``, ``cleanups``, ``failed_callbacks``, ``freed_mb``
            (measured, of all cleanups), ``cleanup_callbacks`` (those that are alive), ``streams`` (open leases of
            this process), and ``last_cleanup``: None or a dict of ``time`` (seconds since the epoch), ``seconds``,
            ``forced``, ``collected_garbage``, ``freed_bytes`` (None if not measured) and ``failed_callbacks``.
        """
        usage = self._usage_if_readable()
        limit = self._limit()
        return {
            "memory_usage_mb": None if usage is None else usage / MB,
            "is_high": None if usage is None else usage > limit,
            "memory_limit_mb": limit / MB,
            "max_memory_mb": self._max_memory_mb,
            "peak_memory_mb": self._peak / MB,
            "monitoring": self.monitoring,
            "interval_seconds": self._interval,
            "failed_readings": self._failed_readings,
            "cleanups": self._cleanups,
            "failed_callbacks": self._failed_callbacks,
            "freed_mb": self._freed / MB,
            "cleanup_callbacks": len(self._callbacks.live()),
            "streams": len(_streams),
            "last_cleanup": self._last_cleanup,
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
        monitor._make_locks()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
