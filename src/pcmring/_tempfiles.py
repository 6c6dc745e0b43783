"""Temporary files: which are ours, who holds each, and how one is deleted without deleting anything else.

Who owns what. A `TempFile` is one file that was handed to us or made by us. Its state only moves forward: "recording",
"finished", "released", then gone. It may be deleted when it is released, or finished with its owner dead; never before,
and only by the process that registered it. Both conditions stay true once they are, so no lock has to span the
decision and the deletion.

Files we make lie in one folder per user, 0700 and ours; whoever could play tricks there could as well be us. Every
operation goes through the folder's descriptor and follows no symbolic link. Files from elsewhere were handed over by
path: what is deleted there is the regular file of ours that was handed over, by device and inode, through its folder's
descriptor. A symbolic link, another's file or another file under the same name stays. (Between that look and the
unlink, whoever may write to such a folder can put another file in place, and loses that one: an unlink follows no
link.)

What is on disk. Beside each file we make lies a note ``.NAME.json`` with its owner's pid and that process's start time
(a pid alone is used again). The note comes before the file and goes after it, and is replaced whole. The owner also
keeps a lock on the file while it lives: the kernel drops it however the process ends, and it holds between containers
that share a folder and see each other's pids differently. An owner is dead when both say so. Who finds such a
file takes the lock before anything else, so of two programs that start at the same time one gets it.

A file without a note, or with a note that says something else, is not ours to delete.

Not run: Windows, which has neither descriptors of folders nor these locks. There the same calls work by path, and an
owner is judged by psutil.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import stat
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["RECORDING_MAX_AGE_SECONDS", "TempFile", "TempFileStore", "default_folder"]

logger = logging.getLogger(__name__)

#: What nobody fetched in this time is deleted by `recover`. A month: longer than a holiday. Not measured.
RECORDING_MAX_AGE_SECONDS = 30 * 24 * 3600
#: A file up to this size is empty: a WAV header without one sample.
EMPTY_BYTES = 44

#: A half-written note that is older was left by a crash. An hour is long for a file of 300 bytes.
STALE_NOTE_SECONDS = 3600
#: Bytes of a name of ours: a note's is 15 longer, and most file systems end at 255.
LONGEST_NAME = 240

STATES = ("recording", "finished", "released")

_HALF_NOTE = re.compile(r"\..+\.json\.[0-9a-f]{8}", re.DOTALL)

_BY_DESCRIPTOR = os.open in os.supports_dir_fd and os.unlink in os.supports_dir_fd and os.stat in os.supports_dir_fd
_OPEN = (
    getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
)

_files: weakref.WeakSet[TempFile] = weakref.WeakSet()


def default_folder() -> Path:
    """Return where temporary recordings of this user lie.

    ``$PCMRING_TEMP`` if set; else ``pcmring/recordings`` in the platform's folder for an application's state. Not a
    folder in memory and not one that a reboot empties, such as ``/tmp`` or ``$XDG_RUNTIME_DIR``: there would be
    nothing to recover. Where there is no home, ``pcmring-UID`` in the folder for temporary files.
    """
    chosen = os.environ.get("PCMRING_TEMP")
    if chosen:
        return Path(chosen)
    try:
        home = Path.home()
    except RuntimeError:
        home = Path("/nonexistent")
    if sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    else:
        state = os.environ.get("XDG_STATE_HOME", "")
        base = Path(state) if os.path.isabs(state) else home / ".local" / "state"
    if not home.is_dir() or not os.access(home, os.W_OK | os.X_OK):
        user = os.geteuid() if hasattr(os, "geteuid") else "user"
        return Path(tempfile.gettempdir()) / f"pcmring-{user}"
    return base / "pcmring" / "recordings"


# ---- processes -------------------------------------------------------------------------------------------------------


def process_start(pid: int) -> str | None:
    """What tells a process from a later one of the same pid; "" if there is no such process, None if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        with open(f"/proc/{pid}/stat", "rb") as file:
            # the name in parentheses may hold anything, parentheses too; then state is field 3, start time field 22
            fields = file.read().rpartition(b")")[2].split()
    except FileNotFoundError:
        if os.path.exists("/proc/self/stat"):
            return ""
    except ProcessLookupError:  # ended while it was read
        return ""
    except OSError:
        return None
    else:
        return "" if fields[0] in (b"Z", b"X") else f"{boot}:{fields[19].decode()}"
    try:
        import psutil
    except ImportError:
        return None
    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""
    except psutil.Error:
        return None


def process_is_dead(pid: int, start: str | None) -> bool:
    """Whether the process that had `pid` and `start` has certainly ended."""
    now = process_start(pid)
    return now is not None and start is not None and now != start


# ---- one file --------------------------------------------------------------------------------------------------------


class _Folder:
    """Operations on the names of one folder, through its descriptor where the system can."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd: int | None = None
        if _BY_DESCRIPTOR:
            # The path was resolved when the folder was chosen: a link at its end was put there since.
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def at(self, name: str) -> str:
        return os.path.join(self.path, name) if self.fd is None else name

    def open(self, name: str, flags: int, mode: int = 0o600) -> int:
        return os.open(self.at(name), flags | _OPEN, mode, dir_fd=self.fd)

    def stat(self, name: str) -> os.stat_result | None:
        """The name's own facts, not those of what a link leads to; None if it is not there."""
        try:
            return os.stat(self.at(name), dir_fd=self.fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def unlink(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self.at(name), dir_fd=self.fd)

    def replace(self, old: str, new: str) -> None:
        os.replace(self.at(old), self.at(new), src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def names(self) -> list[str]:
        return os.listdir(self.path if self.fd is None else self.fd)

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


def _open_for_writing(identity: tuple[int, int], own_fd: int | None) -> bool:
    """Whether this process has the file open for writing: then it is being recorded, whatever anyone declared.

    Linux only; elsewhere False. `own_fd` does not count.
    """
    with suppress(OSError):
        for fd in os.listdir("/proc/self/fd"):
            if fd == str(own_fd):
                continue
            with suppress(OSError):  # closed meanwhile, listdir's own for one
                facts = os.stat(f"/proc/self/fd/{fd}")
                if (facts.st_dev, facts.st_ino) == identity:
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
        lives. "released": the next cleanup deletes it. "gone": deleted, moved, or out of our care.
    created : float
        Seconds since the epoch: when it was registered first.
    recovered : bool
        It was left behind by a process that died.
    """

    def __init__(self, path: str, owner: object, state: str, note: str | None = None) -> None:
        self.path = path
        self.state = state
        self.created = time.time()
        self.recovered = False
        self.pid = os.getpid()
        self._folder_path, self._name = os.path.split(path)
        self._note = note  # its name, if we made the file
        self._lock_fd: int | None = None
        self._identity: tuple[int, int] | None = None  # device, inode
        self._user = os.geteuid() if hasattr(os, "geteuid") else 0
        self._owner_process: tuple[int, str | None] | None = None
        self._owner: weakref.ref[Any] | None = None
        if type(owner) is int:
            start = process_start(owner)
            if owner <= 0 or start == "":
                raise ValueError(f"owner must be a weakly referenceable object or the pid of a process, got {owner!r}")
            self._owner_process = (owner, start)
        elif owner is not None:
            try:
                self._owner = weakref.ref(owner)
            except TypeError:
                raise TypeError(
                    f"owner must be a weakly referenceable object or the pid of a process, got {owner!r}"
                ) from None
        _files.add(self)

    @property
    def size_bytes(self) -> int:
        """Its size now; 0 if it is not there."""
        try:
            return os.lstat(self.path).st_size
        except OSError:
            return 0

    @property
    def owner_alive(self) -> bool:
        """Whether who holds it is there. Without an owner, this process holds it."""
        if self._owner is not None:
            return self._owner() is not None
        return self._owner_process is None or not process_is_dead(*self._owner_process)

    @property
    def deletable(self) -> bool:
        """Whether nobody holds it. Once True, always True."""
        return self.pid == os.getpid() and (
            self.state == "released" or (self.state == "finished" and not self.owner_alive)
        )

    def finish(self) -> None:
        """Say that it is whole: nobody writes to it any more. Kept until released, or until the owner dies."""
        if self.state == "recording":
            self.state = "finished"
            self._write_note()

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
            self._write_note()

    def open(self, mode: str = "r+b") -> IO[Any]:
        """Open the file that was registered, and never another that a link put in its place.

        Parameters
        ----------
        mode : {"rb", "r+b"}

        Raises
        ------
        ValueError
            Another mode.
        OSError
            The file is gone, or another one stands there.
        """
        if mode not in ("rb", "r+b"):
            raise ValueError(f"mode must be 'rb' or 'r+b', got {mode!r}")
        folder = _Folder(self._folder_path)
        try:
            fd = folder.open(self._name, os.O_RDONLY if mode == "rb" else os.O_RDWR)
        finally:
            folder.close()
        facts = os.fstat(fd)
        if self._identity is not None and (facts.st_dev, facts.st_ino) != self._identity:
            os.close(fd)
            raise OSError(f"{self.path!r} is not the file that was registered")
        return os.fdopen(fd, mode)

    def forget(self) -> None:
        """Take it out of our care; the file stays where it is, if it is there."""
        if self.pid == os.getpid() and self.state != "gone":
            self.state = "gone"
            self._drop_note()
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
        if not self.deletable:
            return False
        try:
            folder = _Folder(self._folder_path)
        except (FileNotFoundError, NotADirectoryError):
            self.forget()
            return False
        try:
            facts = folder.stat(self._name)
            if facts is None:
                self.forget()
                return False
            identity = (facts.st_dev, facts.st_ino)
            if (
                not stat.S_ISREG(facts.st_mode)
                or identity != (self._identity or identity)
                or (hasattr(os, "geteuid") and facts.st_uid != self._user)
            ):
                logger.warning(
                    "%r is not the file that was registered: left alone, and no longer looked after", self.path
                )
                self.forget()
                return False
            if _open_for_writing(identity, self._lock_fd):
                return False
            folder.unlink(self._name)
        finally:
            folder.close()
        self.forget()
        return True

    # ---- what is on disk ----------------------------------------------------------------------------------------

    def _identify(self) -> None:
        """Remember which file it is, if it is there.

        Raises
        ------
        ValueError
            It is no regular file.
        """
        try:
            facts = os.lstat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError(f"path must name a regular file, not a folder, link or device; got {self.path!r}")
        self._identity = (facts.st_dev, facts.st_ino)
        self._user = facts.st_uid

    def _content(self) -> dict[str, Any]:
        return {
            "version": 1,
            "file": self._name,
            "pid": self.pid,
            "start": process_start(self.pid),
            "state": self.state,
            "created": self.created,
            "identity": self._identity,
            "recovered": self.recovered,
        }

    def _write_note(self, folder: _Folder | None = None) -> None:
        """Write the state down, whole or not at all.

        With a `folder`, a failure is the caller's; else the older note stays, which says less but nothing wrong.
        """
        if self._note is None or self.pid != os.getpid():
            return
        own = folder is None
        temporary = f"{self._note}.{secrets.token_hex(4)}"
        try:
            folder = folder or _Folder(self._folder_path)
            try:
                fd = folder.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                try:
                    with os.fdopen(fd, "w", encoding="ascii") as file:
                        json.dump(self._content(), file)
                    folder.replace(temporary, self._note)
                except BaseException:
                    folder.unlink(temporary)
                    raise
            finally:
                if own:
                    folder.close()
        except OSError as failure:
            if not own:
                raise
            logger.warning("the state of %r could not be written down: %s", self.path, failure)

    def _drop_note(self) -> None:
        if self._note is not None:
            try:
                folder = _Folder(self._folder_path)
                try:
                    folder.unlink(self._note)
                finally:
                    folder.close()
            except OSError as failure:
                if not isinstance(failure, FileNotFoundError):
                    logger.warning("the note on %r could not be deleted: %s", self.path, failure)

    def _lock(self, folder: _Folder) -> bool:
        """Lock the file for this process; False if another holds the lock. True where there are no locks."""
        fd = folder.open(self._name, os.O_RDWR)  # NFS locks only what is open for writing
        if fcntl is not None:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return False
            except OSError as failure:  # a file system without locks: the pid and its start time must do
                logger.debug("no lock on %r: %s", self.path, failure)
        self._lock_fd = fd
        return True

    def _unlock(self) -> None:
        fd, self._lock_fd = self._lock_fd, None
        if fd is not None:
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_lock_fd", None) is not None:
            self._unlock()

    def __repr__(self) -> str:
        return f"<TempFile {self.path!r} {self.state}>"


def _after_fork() -> None:
    """A child looks after nothing of its parent's, and keeps no lock of his alive.

    Closing a copy of the descriptor leaves the parent's lock in place.
    """
    for file in list(_files):
        file._unlock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# ---- all files of one manager ----------------------------------------------------------------------------------------


class TempFileStore:
    """The temporary files of one `ResourceManager`.

    Parameters
    ----------
    folder : path-like or None
        Where files are made; None is `default_folder`. Made when it is first needed.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self._chosen = None if folder is None else os.fspath(folder)
        self._files: dict[str, TempFile] = {}

    @staticmethod
    def _absolute(path: str | bytes | os.PathLike[Any]) -> str:
        """The path as a key: its folder resolved, its last name not followed."""
        text = os.fsdecode(path)
        folder, name = os.path.split(text)
        if name in ("", os.curdir, os.pardir) or "\0" in text:
            raise ValueError(f"path must name a file, got {path!r}")
        return os.path.join(os.path.realpath(folder or os.curdir), name)

    @property
    def folder(self) -> str:
        """Where files are made, and recovered from."""
        return os.path.abspath(self._chosen if self._chosen is not None else default_folder())

    @contextmanager
    def _own_folder(self) -> Iterator[_Folder]:
        """The folder, made if need be, and proven to be ours alone."""
        path = self.folder
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        if os.path.islink(path):
            raise PermissionError(f"{path!r} is a symbolic link; temporary files need a folder of this user's own")
        folder = _Folder(path)
        try:
            if hasattr(os, "geteuid"):
                facts = os.stat(path if folder.fd is None else folder.fd)
                if facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
                    raise PermissionError(
                        f"temporary files need a folder of this user's own with mode 0700; {path!r} belongs to user "
                        f"{facts.st_uid} and has mode {stat.S_IMODE(facts.st_mode):04o}"
                    )
            yield folder
        finally:
            folder.close()

    def files(self) -> list[TempFile]:
        """Those in our care, in the order they came. A forked child has none of its parent's."""
        return [file for file in self._files.copy().values() if file.pid == os.getpid() and file.state != "gone"]

    def add(self, path: str | bytes | os.PathLike[Any], owner: object = None, state: str | None = None) -> TempFile:
        bare = owner is None and state is None
        if state is None:
            state = "released" if owner is None else "finished"
        if state not in STATES:
            raise ValueError(f"state must be one of {', '.join(map(repr, STATES))}, got {state!r}")
        absolute = self._absolute(path)
        known = self._files.get(absolute)
        if known is not None and known.pid == os.getpid() and known.state != "gone":
            if bare:  # says nothing new: it must not undo what was said before
                return known
            if known._note is not None:
                raise ValueError(f"{absolute!r} was made by create_temp_file: use its TempFile")
        file = TempFile(absolute, owner, state)
        file._identify()
        self._files[absolute] = file
        return file

    def remove(self, path: str | bytes | os.PathLike[Any]) -> bool:
        file = self._files.pop(self._absolute(path), None)
        if file is None or file.pid != os.getpid() or file.state == "gone":
            return False
        file.forget()
        return True

    def create(self, prefix: str, suffix: str, owner: object, state: str) -> TempFile:
        if state not in STATES[:2]:
            raise ValueError(f"state must be 'recording' or 'finished', got {state!r}")
        for name, part in (("prefix", prefix), ("suffix", suffix)):
            if not isinstance(part, str):
                raise TypeError(f"{name} must be a str, got {part!r}")
            if "\0" in part or any(separator in part for separator in (os.sep, os.altsep or os.sep)):
                raise ValueError(f"{name} must be a part of a file's name, without {os.sep!r} or NUL; got {part!r}")
        name = f"{prefix}{secrets.token_hex(8)}{suffix}"
        if name.startswith("."):
            raise ValueError(f"prefix must not begin with a dot, got {prefix!r}")
        if len(os.fsencode(name)) > LONGEST_NAME:
            raise ValueError(
                f"prefix and suffix must be at most {LONGEST_NAME - 16} bytes together, got {prefix + suffix!r}"
            )
        with self._own_folder() as folder:
            file = TempFile(os.path.join(os.path.realpath(folder.path), name), owner, state, f".{name}.json")
            try:
                file._write_note(folder)
                fd = folder.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
                try:
                    facts = os.fstat(fd)
                finally:
                    os.close(fd)
                file._identity = (facts.st_dev, facts.st_ino)
                file._lock(folder)
                file._write_note(folder)
            except BaseException:
                if file._identity is not None:
                    folder.unlink(name)
                file.forget()
                raise
        self._files[file.path] = file
        return file

    def clean(self) -> int:
        """Delete what nobody holds; return how many files were deleted."""
        deleted = 0
        for file in self.files():
            if file.deletable:
                try:
                    deleted += file.delete()
                except OSError as failure:
                    logger.warning("%r could not be deleted, and will be tried again: %s", file.path, failure)
            elif file.state != "recording" and not os.path.lexists(file.path):
                file.forget()
        for path, file in self._files.copy().items():
            if file.state == "gone" and self._files.get(path) is file:
                self._files.pop(path, None)
        return deleted

    # ---- after a crash ------------------------------------------------------------------------------------------

    def recover(self, max_age_seconds: float, empty_bytes: int) -> list[TempFile]:
        found = []
        with self._own_folder() as folder:
            for note in sorted(folder.names()):
                if _HALF_NOTE.fullmatch(note):
                    facts = folder.stat(note)
                    if facts is not None and time.time() - facts.st_mtime > STALE_NOTE_SECONDS:
                        folder.unlink(note)
                elif note.startswith(".") and note.endswith(".json"):
                    try:
                        file = self._adopt(folder, note, max_age_seconds, empty_bytes)
                    except FileNotFoundError:  # another program was faster
                        continue
                    except OSError as failure:
                        logger.warning("%r in %r could not be looked into: %s", note, folder.path, failure)
                        continue
                    if file is not None:
                        self._files[file.path] = file
                        found.append(file)
        return sorted(found, key=lambda file: file.created)

    @staticmethod
    def _read_note(folder: _Folder, note: str) -> dict[str, Any] | None:
        """What a note says, or None if it is not one of ours that names the file it belongs to."""
        try:
            fd = folder.open(note, os.O_RDONLY)
        except FileNotFoundError:  # done with meanwhile
            return None
        with os.fdopen(fd, "rb") as file:
            text = file.read(65536)
        try:
            said = json.loads(text)
            file_name, pid, start, state = said["file"], said["pid"], said["start"], said["state"]
            created, identity = float(said["created"]), said["identity"]
            well = (
                said["version"] == 1
                and note == f".{file_name}.json"
                and os.path.basename(file_name) == file_name
                and type(pid) is int
                and (start is None or isinstance(start, str))
                and state in STATES
                and (identity is None or (len(identity) == 2 and all(type(part) is int for part in identity)))
            )
        except (ValueError, TypeError, KeyError, RecursionError):
            well = False
        if not well:
            logger.warning("%r in %r is not a note of this version: left alone, with its file", note, folder.path)
            return None
        return {**said, "created": created, "identity": None if identity is None else tuple(identity)}

    def _adopt(self, folder: _Folder, note: str, max_age_seconds: float, empty_bytes: int) -> TempFile | None:
        """Take over the file of `note` if its owner is dead; delete it where that is right."""
        said = self._read_note(folder, note)
        if said is None or not process_is_dead(said["pid"], said["start"]):
            return None
        facts = folder.stat(said["file"])
        if facts is None:  # the owner died between the note and the file, or between the deletions
            folder.unlink(note)
            return None
        identity = (facts.st_dev, facts.st_ino)
        # Without an identity the owner died right after making the file, which is then empty.
        known = said["identity"] == identity or (said["identity"] is None and facts.st_size == 0)
        if not stat.S_ISREG(facts.st_mode) or not known:
            logger.warning("%r in %r is not the file its note tells of: left alone", said["file"], folder.path)
            return None
        file = TempFile(os.path.join(os.path.realpath(folder.path), said["file"]), None, "finished", note)
        file.created = said["created"]
        file.recovered = True
        file._identity = identity
        if not file._lock(folder):
            return None  # its owner lives where we cannot see it, or another program is recovering it
        again = self._read_note(folder, note)
        if again is None or (again["pid"], again["start"]) != (said["pid"], said["start"]):
            file._unlock()  # another program was faster
            return None
        file._write_note(folder)
        facts = folder.stat(said["file"]) or facts
        age = time.time() - facts.st_mtime
        if said["state"] == "released" or facts.st_size <= empty_bytes or age > max_age_seconds:
            file.state = "released"
            if file.delete():
                logger.info(
                    "%r deleted: %s, %d bytes, %.0f s old, its process is dead",
                    file.path,
                    said["state"],
                    facts.st_size,
                    age,
                )
            return None
        return file
