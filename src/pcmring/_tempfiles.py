"""Temporary files: which are ours, who holds each, and how one is deleted without deleting anything else.

Who owns what. A `TempFile` is one file that was made by us or handed to us. Its state only moves forward: "recording",
"finished", "released", then "gone". It may be deleted when it is released, or finished with its owner dead, and only
by the process that registered it. Once that is true it stays true, so no lock spans the decision and the deletion.

Files we make lie in one folder of this user's own, 0700; whoever could play tricks there could as well be us. The
process that made one keeps a lock on it (flock), which the kernel drops however the process ends. So a file of ours
that nobody locks was left behind. That needs no pid, which is used again, and holds between containers that share the
folder; the pid in the name is for people.

Deleting goes through the folder's descriptor and follows no link. What is deleted is the regular file that was
registered, by device and inode. A link, another's file or another file under the same name stays. (Between that look
and the unlink, whoever may write to a folder that is not ours can put another file in place, and loses that one: an
unlink follows no link.)

POSIX only: Windows has neither descriptors of folders nor these locks.
"""

from __future__ import annotations

import io
import logging
import os
import re
import secrets
import stat
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

if sys.platform != "win32":
    import fcntl

__all__ = ["RECORDING_MAX_AGE_SECONDS", "TempFile", "absolute", "clean", "create", "recover"]

logger = logging.getLogger(__name__)

#: What nobody fetched in this time is deleted by `recover`. A month: longer than a holiday. Not measured.
RECORDING_MAX_AGE_SECONDS = 30 * 24 * 3600
#: A file up to this size is empty: a WAV header without one sample.
EMPTY_BYTES = 44
STATES = ("recording", "finished", "released")

_OURS = re.compile(r"recording-\d+-[0-9a-f]{16}(\.[A-Za-z0-9]+)?")
#: Files that are locked. A forked child closes its copies, so that it does not keep its parent's locks alive.
_locks: set[io.FileIO] = set()


def _need_posix() -> None:
    if sys.platform == "win32":
        raise NotImplementedError("looking after temporary files needs a POSIX system")


def _open_folder(path: str) -> int:
    # The path was resolved when it was registered: a link at its end was put there since.
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _open_here(folder_fd: int, name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder_fd)


def _identity(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_dev, facts.st_ino


def _is_open_for_writing(identity: tuple[int, int], own_fd: int | None) -> bool:
    """Whether this process has the file open for writing: then it is being recorded, whatever anyone declared.

    Linux only; elsewhere False. `own_fd` does not count.
    """
    with suppress(OSError):
        for fd in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # closed meanwhile, listdir's own for one
                if int(fd) != own_fd and _identity(os.stat(f"/proc/self/fd/{fd}")) == identity:
                    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
                        flags = next(line for line in file if line.startswith("flags:"))
                    if int(flags.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY:
                        return True
    return False


class TempFile:
    """One temporary file in the care of a `ResourceManager`.

    Attributes
    ----------
    path : str
        Absolute.
    state : {"recording", "finished", "released", "gone"}
        "recording": somebody writes to it; it is never deleted. "finished": it is whole, and kept while its owner
        lives. "released": the next cleanup deletes it. "gone": deleted, or out of our care.
    modified : float
        Seconds since the epoch: its last change when it came into our care, 0 if there was no file yet.
    recovered : bool
        It was left behind by a process that died.
    """

    def __init__(
        self, path: str, owner: object, state: str, lock: io.FileIO | None = None, *, recovered: bool = False
    ) -> None:
        _need_posix()
        self.path = path
        self.state = state
        self.recovered = recovered
        self._pid = os.getpid()
        self._lock: io.FileIO | None = None  # it owns the descriptor: whatever comes between, that is closed once
        self._deleting = threading.RLock()  # never waited for
        self._owner: weakref.ref[Any] | None = None
        if owner is not None:
            try:
                self._owner = weakref.ref(owner)
            except TypeError:
                raise TypeError(f"owner must be weakly referenceable, got {owner!r}") from None
        self._identity: tuple[int, int] | None = None  # None: there is no such file yet
        self.modified = 0.0
        with suppress(FileNotFoundError, NotADirectoryError):
            # what we hold is the file, whatever its name leads to by now
            facts = os.lstat(path) if lock is None else os.fstat(lock.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise ValueError(f"path must name a regular file, not a folder, link or device; got {path!r}")
            self._identity = _identity(facts)
            self.modified = facts.st_mtime
        if lock is not None:
            _locks.add(lock)
            self._lock = lock

    @property
    def size_bytes(self) -> int:
        """Its size now; 0 if it is not there."""
        try:
            return os.lstat(self.path).st_size
        except OSError:
            return 0

    @property
    def is_ours(self) -> bool:
        """Whether it is in this process's care: a forked child has none of its parent's."""
        return self._pid == os.getpid() and self.state != "gone"

    @property
    def is_locked(self) -> bool:
        """Whether it lies in our folder, made there or recovered."""
        return self._lock is not None

    @property
    def is_deletable(self) -> bool:
        """Whether nobody holds it. Once True, always True."""
        has_dead_owner = self._owner is not None and self._owner() is None
        return self.is_ours and (self.state == "released" or (self.state == "finished" and has_dead_owner))

    def finish(self) -> None:
        """Say that it is whole: nobody writes to it any more. Kept until released, or until the owner dies."""
        if self.state == "recording":
            self.state = "finished"

    def release(self) -> None:
        """Say that nobody needs it; the next cleanup deletes it. Again does nothing.

        Raises
        ------
        RuntimeError
            It is being recorded.
        """
        if self.state == "recording":
            raise RuntimeError(f"{self.path!r} is being recorded: finish() it before release()")
        if self.state == "finished":
            self.state = "released"

    def forget(self) -> None:
        """Take it out of our care; the file stays where it is, if it is there."""
        self.state = "gone"
        self._unlock()

    def delete(self) -> bool:
        """Delete it if nobody holds it and it is still the file that was registered.

        Returns
        -------
        bool
            Whether a file was deleted. What is gone, or has become another file, is out of our care afterwards.

        Raises
        ------
        OSError
            The system refused; it stays in our care, and may be tried again.
        """
        try:
            # False: another thread does it right now
            return self._deleting.acquire(blocking=False) and self.is_deletable and self._delete()
        finally:
            try:  # noqa: SIM105 - one call more, and a Ctrl-C could come before the release
                self._deleting.release()
            except RuntimeError:
                pass  # the other thread's

    def _delete(self) -> bool:
        folder, name = os.path.split(self.path)
        try:
            folder_fd = _open_folder(folder)
        except (FileNotFoundError, NotADirectoryError):
            self.forget()
            return False
        try:
            facts = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
            is_same = _identity(facts) == self._identity if self._identity else facts.st_uid == os.geteuid()
            if not (is_same and stat.S_ISREG(facts.st_mode)):
                logger.warning("%r is not the file that was registered: left alone, no longer looked after", self.path)
                self.forget()
                return False
            lock, own_fd = self._lock, None
            with suppress(ValueError):  # given up meanwhile, by another thread
                own_fd = None if lock is None else lock.fileno()
            if _is_open_for_writing(_identity(facts), own_fd):
                return False
            os.unlink(name, dir_fd=folder_fd)
        except FileNotFoundError:
            self.forget()
            return False
        finally:
            os.close(folder_fd)
        self.forget()
        return True

    def _unlock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()
            _locks.discard(lock)

    def __del__(self) -> None:
        if getattr(self, "_lock", None) is not None:
            self._unlock()

    def __repr__(self) -> str:
        return f"<TempFile {self.path!r} {self.state}>"


def absolute(path: str | bytes | os.PathLike[Any]) -> str:
    """The path of a file, its folder resolved, its last name not followed.

    Raises
    ------
    ValueError
        It names no file.
    """
    text = os.fsdecode(path)
    folder, name = os.path.split(text)
    if name in ("", os.curdir, os.pardir) or "\0" in text:
        raise ValueError(f"path must name a file, got {path!r}")
    return os.path.join(os.path.realpath(folder or os.curdir), name)


@contextmanager
def _own_folder(path: str) -> Iterator[int]:
    """A descriptor of the folder, made if need be, and proven to be this user's alone."""
    _need_posix()
    os.makedirs(path, mode=0o700, exist_ok=True)
    fd = _open_folder(path)
    try:
        facts = os.fstat(fd)
        if facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
            raise PermissionError(
                f"temporary files need a folder of this user's own with mode 0700; {path!r} belongs to user "
                f"{facts.st_uid} and has mode {stat.S_IMODE(facts.st_mode):04o}"
            )
        yield fd
    finally:
        os.close(fd)


def create(folder: str, suffix: str, owner: object) -> TempFile:
    """Make an empty file in `folder`, mode 0600, locked by this process, in state "recording"."""
    folder = os.path.realpath(folder)
    with _own_folder(folder) as folder_fd:
        while True:
            name = f"recording-{os.getpid()}-{secrets.token_hex(8)}{suffix}"
            if not _OURS.fullmatch(name):
                raise ValueError(f"suffix must be a dot, then letters and digits, got {suffix!r}")
            lock = io.FileIO(name, "x+", opener=partial(os.open, mode=0o600, dir_fd=folder_fd))
            try:
                with suppress(OSError):  # a file system without locks: then nobody can recover it
                    fcntl.flock(lock, fcntl.LOCK_EX)  # waits no longer than a `recover` looks at the file
                if os.fstat(lock.fileno()).st_nlink:
                    return TempFile(os.path.join(folder, name), owner, "recording", lock)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder_fd)
                lock.close()
                raise
            lock.close()  # a `recover` was between, and deleted it as empty and left behind


def recover(folder: str, max_age_s: float) -> list[TempFile]:
    """Return the files of dead programs, the oldest first; delete those that are empty or older than stated."""
    folder = os.path.realpath(folder)
    with _own_folder(folder) as folder_fd:
        names = filter(_OURS.fullmatch, os.listdir(folder_fd))
        found = [file for name in names if (file := _adopt(folder, folder_fd, name, max_age_s)) is not None]
    return sorted(found, key=lambda file: file.modified)


def _adopt(folder: str, folder_fd: int, name: str, max_age_s: float) -> TempFile | None:
    """Take over a file whose program is dead, and return it; delete it where that is right."""
    try:
        lock = io.FileIO(name, "r+", opener=partial(_open_here, folder_fd))
        file = None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            facts = os.fstat(lock.fileno())
            here = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
            if not stat.S_ISREG(facts.st_mode) or _identity(here) != _identity(facts):
                return None
            age_s = time.time() - facts.st_mtime
            if facts.st_size > EMPTY_BYTES and age_s <= max_age_s:
                file = TempFile(os.path.join(folder, name), None, "finished", lock, recovered=True)
                return file
            os.unlink(name, dir_fd=folder_fd)
            logger.info("%r deleted: %d bytes, %.0f s old, its program is dead", name, facts.st_size, age_s)
        finally:
            if file is None:
                lock.close()
    except (BlockingIOError, FileNotFoundError):
        pass  # its program lives, or another one is recovering it, or was faster
    except OSError as failure:
        logger.warning("whether %r in %r was left behind is not known: %s", name, folder, failure)
    return None


def clean(files: dict[TempFile, None]) -> int:
    """Delete what nobody holds, and forget what is gone; return how many files were deleted."""
    deleted = 0
    for file in files.copy():  # atomic, as every other operation on it is
        try:
            deleted += file.delete()
        except OSError as failure:
            logger.warning("%r could not be deleted, and will be tried again: %s", file.path, failure)
        if file.state == "finished" and not os.path.lexists(file.path):
            file.forget()
        if file.state == "gone":
            files.pop(file, None)
    return deleted


def _after_fork() -> None:
    for lock in _locks:
        with suppress(OSError):
            lock.close()
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
