"""`ResourceManager`: temporary files, objects watched until they die, and callbacks, cleaned up in one place.

It deletes what was handed to it or made by it, once nobody holds that, and nothing else: see `_tempfiles`. It never
cleans up a monitor it was given; the monitor calls it.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any

from pcmring._callbacks import Callback, Callbacks
from pcmring._monitor import MemoryMonitor
from pcmring._tempfiles import EMPTY_BYTES, RECORDING_MAX_AGE_SECONDS, TempFile, TempFileStore

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ResourceManager"]

logger = logging.getLogger(__name__)


def _watch(obj: object, watched: dict[int, weakref.finalize[Any, Any]], number: int, callback: Callback | None) -> None:
    """Count `obj` in `watched` until it dies. Nothing here leads to the manager, or to `obj`."""

    def died() -> None:
        watched.pop(number, None)
        if callback is not None:
            callback.call(logger, "callback for a dead object")

    finalizer = weakref.finalize(obj, died)
    finalizer.atexit = False  # an object that outlives the program has not died
    watched[number] = finalizer


class ResourceManager:
    """Looks after temporary files, watches objects, and calls back when there is cleaning up to do.

    All methods may be called from any thread, and from several processes that share a folder. A forked child
    looks after nothing of its parent's.

    Parameters
    ----------
    monitor : MemoryMonitor, optional
        Has `cleanup` called by its cleanups, after pools and buffers. Holds the manager weakly.
    directory : path-like, optional
        The folder for `create_temp_file` and `recover`: this user's own, mode 0700, made when first needed. The
        default is ``$PCMRING_TEMP``, else ``pcmring/recordings`` under ``$XDG_STATE_HOME`` (``~/.local/state``) or what
        corresponds to it on other platforms.

    Raises
    ------
    TypeError
        `monitor` is no MemoryMonitor.

    Notes
    -----
    When the manager goes away, forgotten or by ``with``, it deletes of its files what nobody holds, and leaves the
    rest; what it made and nobody released, the next program finds with `recover`.
    """

    def __init__(
        self, monitor: MemoryMonitor | None = None, *, directory: str | os.PathLike[str] | None = None
    ) -> None:
        if monitor is not None and not isinstance(monitor, MemoryMonitor):
            raise TypeError(f"monitor must be a MemoryMonitor or None, got {monitor!r}")
        self.monitor = monitor
        self._files = TempFileStore(directory)
        self._callbacks = Callbacks()
        self._watched: dict[int, weakref.finalize[Any, Any]] = {}
        self._numbers = count()
        if monitor is not None:
            monitor.add_cleanup_callback(self.cleanup, stage="files")
        self._last = weakref.finalize(self, self._files.clean)

    # ---- temporary files ----------------------------------------------------------------------------------------

    def add_temp_file(
        self, path: str | bytes | os.PathLike[Any], owner: object = None, state: str | None = None
    ) -> TempFile:
        """Look after a temporary file that somebody else made or will make.

        With the path alone, nobody holds it and the next cleanup deletes it, unless this process still has it open
        for writing. A file that is known stays as it is.

        Parameters
        ----------
        path : path-like
            A regular file, or nothing yet. Its folder's links are resolved now.
        owner : object or int, optional
            Who holds it: an object, weakly, or the pid of a process. A finished file is kept while its owner lives.
        state : {"recording", "finished", "released"}, optional
            "released" without owner, "finished" with one. In state "recording" or "finished" without an owner, this
            process holds it, until it is released.

        Returns
        -------
        TempFile
            By which its owner says that it is finished, and released.

        Raises
        ------
        ValueError
            `path` names a folder, a link or a device; `state` is unknown; `owner` is no living process's pid.
        TypeError
            `path` is no path, or `owner` cannot be weakly referenced.

        Notes
        -----
        What is deleted is the file that was registered (device, inode, user), or if there was none yet, a regular file
        of this user; never what a symbolic link leads to. If another file stands there, it is left alone and a warning
        is logged.
        """
        return self._files.add(path, owner, state)

    def remove_temp_file(self, path: str | bytes | os.PathLike[Any]) -> bool:
        """Stop looking after a file, and leave it where it is.

        Returns
        -------
        bool
            Whether it was looked after.
        """
        return self._files.remove(path)

    def create_temp_file(
        self, suffix: str = ".wav", prefix: str = "recording-", owner: object = None, state: str = "recording"
    ) -> TempFile:
        """Make an empty file, mode 0600, in a folder of this user's own, and look after it.

        It is written down who made it, so after a crash the next program finds it with `recover`.

        Parameters
        ----------
        suffix, prefix : str
            Of its name; between them stand 16 random characters. Anything but separators and NUL.
        owner : object or int, optional
            Who holds it, as in `add_temp_file`. None: this process, until it is released.
        state : {"recording", "finished"}

        Returns
        -------
        TempFile
            Write to its `path`, or to its `open()`.

        Raises
        ------
        PermissionError
            The folder is not this user's own, or others may enter it.
        OSError
            The disk is full, or the file cannot be made for another reason. Nothing is left behind.
        ValueError, TypeError
            `suffix`, `prefix`, `state` or `owner` is not legal.
        """
        return self._files.create(prefix, suffix, owner, state)

    def get_temp_files(self) -> list[TempFile]:
        """Return the files looked after, in the order they came."""
        return self._files.files()

    def recover(
        self, max_age_seconds: float = RECORDING_MAX_AGE_SECONDS, empty_bytes: int = EMPTY_BYTES
    ) -> list[TempFile]:
        """Return the recordings that programs left behind when they died, the oldest first.

        Each is looked after from now on, as finished and held by this process: `TempFile.release` it, or
        `remove_temp_file` it when it has been moved. Of programs that call this at the same time, one gets it. If
        this one dies too, the next will find it.

        Deletes the files of dead programs that are empty, were released, or are older than stated. Touches nothing
        of a living program, and nothing whose owner is not written down.

        Parameters
        ----------
        max_age_seconds : float
            Older ones (by their last change) are deleted. The default is 30 days; ``inf`` keeps all.
        empty_bytes : int
            A file up to this size is empty. The default is a WAV header without a sample.

        Raises
        ------
        PermissionError
            As `create_temp_file`.

        Notes
        -----
        Elsewhere than on Linux, whether a program is dead is known with psutil only; without it none is.
        """
        return self._files.recover(max_age_seconds, empty_bytes)

    # ---- objects ------------------------------------------------------------------------------------------------

    def add_weak_ref(self, obj: object, callback: Callable[[], Any] | None = None) -> None:
        """Watch `obj` until it dies: count it in `get_resource_info`, then call `callback`.

        Parameters
        ----------
        obj : object
            Anything that can be weakly referenced; known by identity, never compared, never kept alive.
        callback : callable, optional
            Called once, without arguments, when `obj` is dead: to give back what belonged to it. In whatever thread
            dropped it, so it should be short. It must not refer to `obj`. A bound method is held weakly. If it
            raises, that is logged. Not called for what is alive when the program ends, nor after `close`.

        Raises
        ------
        TypeError
            `obj` cannot be weakly referenced, or `callback` cannot be called.
        """
        held = None if callback is None else Callback(callback)
        try:
            _watch(obj, self._watched, next(self._numbers), held)
        except TypeError:
            raise TypeError(f"obj must be weakly referenceable, got an object of type {type(obj).__name__}") from None

    # ---- cleaning up --------------------------------------------------------------------------------------------

    def add_cleanup_callback(self, callback: Callable[[], Any]) -> None:
        """Have `callback` called, without arguments, by every `cleanup`.

        Registered twice, it is called once. A bound method is held weakly, everything else until it is removed.

        Raises
        ------
        TypeError
            `callback` cannot be called.
        """
        self._callbacks.add(callback)

    def remove_cleanup_callback(self, callback: Callable[[], Any]) -> bool:
        """Stop calling `callback`; return whether it was registered."""
        return self._callbacks.remove(callback)

    def cleanup(self) -> int:
        """Call every callback, then delete the files nobody holds.

        Never touches a file being recorded, or a finished one whose owner lives and has not released it. A file that
        is gone already is no longer listed. One that cannot be deleted is logged, and tried again the next time.

        Returns
        -------
        int
            How many files were deleted.

        Notes
        -----
        A callback that raises is logged once, with its traceback, and the others are still called.
        """
        for callback in self._callbacks.live():
            callback.call(logger, "cleanup callback")
        return self._files.clean()

    def close(self) -> None:
        """Clean up and let go of everything; again does nothing. Callbacks are called one last time."""
        if self._last.detach() is None:
            return
        if self.monitor is not None:
            self.monitor.remove_cleanup_callback(self.cleanup)
        try:
            self.cleanup()
        finally:
            for finalizer in self._watched.copy().values():
                finalizer.detach()
            self._watched.clear()

    def get_resource_info(self) -> dict[str, Any]:
        """Return what is looked after now.

        Returns
        -------
        dict
            W4L's keys: ``temp_files_count``, ``weak_refs_count`` (watched objects that are alive),
            ``cleanup_callbacks_count`` (those that are alive), ``memory_usage_mb`` and ``memory_limit_mb`` (None
            without a monitor, the first also if memory cannot be read). Further ``temp_files_recording``,
            ``temp_files_finished``, ``temp_files_released`` (counts) and ``temp_files_bytes`` (their size on disk).
        """
        files = self._files.files()
        statistics = {} if self.monitor is None else self.monitor.get_statistics()
        return {
            "temp_files_count": len(files),
            "weak_refs_count": len(self._watched),
            "cleanup_callbacks_count": len(self._callbacks),
            "memory_usage_mb": statistics.get("memory_usage_mb"),
            "memory_limit_mb": statistics.get("memory_limit_mb"),
            "temp_files_recording": sum(file.state == "recording" for file in files),
            "temp_files_finished": sum(file.state == "finished" for file in files),
            "temp_files_released": sum(file.state == "released" for file in files),
            "temp_files_bytes": sum(file.size_bytes for file in files),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ResourceManager temp_files={len(self._files.files())} watched={len(self._watched)}>"
