"""`ResourceManager`: temporary files, objects watched until they die, and callbacks, cleaned up in one place.

It deletes what was handed to it or made by it, once nobody holds that, and nothing else: see `_tempfiles`. It never
cleans up a monitor it was given; the monitor calls it.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any

from pcmring import _tempfiles
from pcmring._callbacks import Callback, Callbacks
from pcmring._late import load
from pcmring._monitor import MemoryMonitor
from pcmring._tempfiles import RECORDING_MAX_AGE_SECONDS, TempFile

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
        default is ``recordings`` in the platform's folder for a program's state (``~/.local/state/pcmring``), which
        outlives a reboot.

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
        self._directory = None if directory is None else os.path.abspath(directory)
        self._files: dict[TempFile, None] = {}
        self._callbacks = Callbacks()
        self._watched: dict[int, weakref.finalize[Any, Any]] = {}
        self._numbers = count()
        if monitor is not None:
            monitor.add_cleanup_callback(self.cleanup, stage="files")
        self._last = weakref.finalize(self, _tempfiles.clean, self._files)

    # ---- temporary files ----------------------------------------------------------------------------------------

    @property
    def directory(self) -> str:
        """Where `create_temp_file` makes files, and `recover` looks for them.

        Raises
        ------
        MissingPackage
            None was chosen, and platformdirs, which knows the platform's, is not installed.
        """
        if self._directory is None:
            state = load("platformdirs").user_state_dir("pcmring", appauthor=False)
            self._directory = os.path.join(state, "recordings")
        return self._directory

    def _find(self, path: str) -> TempFile | None:
        return next((file for file in self.get_temp_files() if file.path == path), None)

    def add_temp_file(
        self, path: str | bytes | os.PathLike[Any], owner: object = None, state: str | None = None
    ) -> TempFile:
        """Look after a temporary file that somebody else made or will make.

        With the path alone, nobody holds it and the next cleanup deletes it, unless this process still has it open
        for writing (known on Linux only). A file that is known stays as it is.

        Parameters
        ----------
        path : path-like
            A regular file, or nothing yet. Its folder's links are resolved now.
        owner : object, optional
            Who holds it, weakly. A finished file is kept while its owner lives.
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
            `path` names a folder, a link or a device; `state` is unknown; the file was made by `create_temp_file`.
        TypeError
            `path` is no path, or `owner` cannot be weakly referenced.

        Notes
        -----
        What is deleted is the file that was registered (device, inode), or if there was none yet, a regular file of
        this user; never what a symbolic link leads to. If another file stands there, it is left alone and a warning
        is logged.
        """
        absolute = _tempfiles.absolute(path)
        known = self._find(absolute)
        if known is not None and owner is None and state is None:
            return known  # it says nothing new, and must not undo what was said before
        if known is not None and known.is_locked:
            raise ValueError(f"{absolute!r} was made by create_temp_file: use its TempFile")
        state = state or ("released" if owner is None else "finished")
        if state not in _tempfiles.STATES:
            raise ValueError(f"state must be one of {', '.join(map(repr, _tempfiles.STATES))}, got {state!r}")
        file = TempFile(absolute, owner, state)
        if known is not None:
            known.forget()
        self._files[file] = None
        return file

    def remove_temp_file(self, path: str | bytes | os.PathLike[Any]) -> bool:
        """Stop looking after a file, and leave it where it is.

        One made by `create_temp_file` should have been moved out of its folder before: what is left there without
        anybody's care is found by `recover`.

        Returns
        -------
        bool
            Whether it was looked after.
        """
        file = self._find(_tempfiles.absolute(path))
        if file is None:
            return False
        file.forget()
        self._files.pop(file, None)
        return True

    def create_temp_file(self, suffix: str = ".wav", owner: object = None) -> TempFile:
        """Make an empty file, mode 0600, in a folder of this user's own, and look after it in state "recording".

        It is locked as long as this process and the `TempFile` live, so after a crash the next program finds it with
        `recover`.

        Parameters
        ----------
        suffix : str
            A dot, letters and digits: the last part of its name.
        owner : object, optional
            Who holds it, weakly. None: this process, until it is released.

        Returns
        -------
        TempFile
            Write to its `path`.

        Raises
        ------
        PermissionError
            The folder is not this user's own, or others may enter it.
        OSError
            The disk is full, or the file cannot be made for another reason. Nothing is left behind.
        ValueError, TypeError
            `suffix` or `owner` is not legal.
        MissingPackage
            As `directory`.
        """
        file = _tempfiles.create(self.directory, suffix, owner)
        self._files[file] = None
        return file

    def get_temp_files(self) -> list[TempFile]:
        """Return the files looked after, in the order they came. A forked child has none of its parent's."""
        return [file for file in self._files.copy() if file.is_ours]

    def recover(self, max_age_seconds: float = RECORDING_MAX_AGE_SECONDS) -> list[TempFile]:
        """Return the recordings that programs left behind when they died, the oldest first.

        Each is looked after from now on, as finished and held by this process: `TempFile.release` it, or move it and
        `remove_temp_file` it. Of programs that call this at the same time, one gets it. If this one dies too, the
        next will find it.

        Deletes the files of dead programs that are empty (no more than a WAV header) or older than stated. Touches
        nothing of a living program, and nothing that `create_temp_file` did not make.

        Parameters
        ----------
        max_age_seconds : float
            Older ones (by their last change) are deleted. The default is 30 days; ``inf`` keeps all.

        Raises
        ------
        PermissionError, MissingPackage
            As `create_temp_file`.

        Notes
        -----
        Where the file system has no locks (flock), nothing is known of a program's death, and nothing is touched.
        """
        found = _tempfiles.recover(self.directory, max_age_seconds)
        self._files.update(dict.fromkeys(found))
        return found

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
        self._callbacks.call(logger, "cleanup callback")
        return _tempfiles.clean(self._files)

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
        files = self.get_temp_files()
        statistics = {} if self.monitor is None else self.monitor.get_statistics()
        states = Counter(file.state for file in files)
        return {
            "temp_files_count": len(files),
            "weak_refs_count": len(self._watched),
            "cleanup_callbacks_count": len(self._callbacks.live()),
            "memory_usage_mb": statistics.get("memory_usage_mb"),
            "memory_limit_mb": statistics.get("memory_limit_mb"),
            "temp_files_recording": states["recording"],
            "temp_files_finished": states["finished"],
            "temp_files_released": states["released"],
            "temp_files_bytes": sum(file.size_bytes for file in files),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ResourceManager temp_files={len(self.get_temp_files())} watched={len(self._watched)}>"
