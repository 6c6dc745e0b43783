"""AudioBufferTracker: bytes of live buffers, by identity, weakly, each call O(1).

A weak reference's callback runs before its object's memory is freed, so while an entry stands nobody else can have
its object's address: the address is the key. Both tables and the total change together, inside critical sections of
the tracker that hold nothing but operations on dicts of ints: no foreign code, no collection, no object's death. With
the GIL such a section is atomic by itself; what leaves the tables dies after it.
"""
cimport cython
from cpython.object cimport PyObject
from cpython.weakref cimport PyWeakref_NewRef

import operator
import types
import weakref

cdef extern from "Python.h":
    object PyLong_FromVoidPtr(void *pointer)


cdef class _Entry:
    cdef object reference  # weak, to the tracked object
    cdef object on_evict   # callable, WeakMethod of one, or None
    cdef Py_ssize_t size   # bytes
    cdef bint is_asked     # its on_evict is running, in whatever thread


cdef class _Forget:
    """The callback of all weak references of one tracker, which it must not keep alive."""

    cdef object tracker  # weak

    def __call__(self, reference):
        cdef AudioBufferTracker tracker = self.tracker()
        if tracker is not None:
            tracker.forget_reference(reference)


cdef class AudioBufferTracker:
    """Count the bytes of the buffers that are alive.

    Holds its objects weakly and by identity: one that dies leaves the count by itself, at once; arrays, also equal
    ones, and unhashable objects are welcome.

    Parameters
    ----------
    monitor : object, optional
        Its ``add_cleanup_callback`` is given a method that calls `evict`, and its ``add_source``, if it has one,
        `get_total_buffer_memory` as "tracked". The monitor should hold both weakly, as `MemoryMonitor` does.

    Notes
    -----
    Threads: every method may run beside every other, with and without the GIL. Tracking and untracking take the same
    time with ten live buffers as with a hundred thousand.
    """

    cdef dict entries       # id of the object: _Entry, in the order they were first tracked
    cdef dict keys          # id of the weak reference: id of the object
    cdef Py_ssize_t total   # bytes
    cdef _Forget forget
    cdef object __weakref__

    def __cinit__(self, monitor=None):
        self.entries = {}
        self.keys = {}
        self.forget = _Forget.__new__(_Forget)
        self.forget.tracker = weakref.ref(self)

    def __init__(self, monitor=None):
        if monitor is not None:
            if not callable(getattr(monitor, "add_cleanup_callback", None)):
                raise TypeError(f"monitor must have add_cleanup_callback(callback), got {monitor!r}")
            monitor.add_cleanup_callback(self._cleanup_buffers)
            if hasattr(monitor, "add_source"):
                monitor.add_source("tracked", self.get_total_buffer_memory)

    def track_buffer(self, obj, size_bytes, on_evict=None):
        """Count `obj` with `size_bytes`, or change what it was counted with.

        Parameters
        ----------
        obj : object
            Anything that can be weakly referenced.
        size_bytes : int
            0 or more.
        on_evict : callable, optional
            Called as ``on_evict(obj)`` when `evict` asks for memory; it should give some back and then untrack or
            re-track `obj`. A bound method is held weakly.

        Raises
        ------
        TypeError, ValueError
            An argument is of the wrong kind. Nothing has changed.
        """
        cdef _Entry entry, known
        cdef object key, old_on_evict, reference_key
        cdef Py_ssize_t size
        if isinstance(size_bytes, bool):
            raise TypeError(f"size_bytes must be an int, got {size_bytes!r}")
        try:
            size_bytes = operator.index(size_bytes)
        except TypeError:
            raise TypeError(f"size_bytes must be an int, got {size_bytes!r}") from None
        if not 0 <= size_bytes < 1 << 62:
            raise ValueError(f"size_bytes must be 0 to 2**62 - 1 bytes, got {size_bytes}")
        size = size_bytes
        if on_evict is not None:
            if not callable(on_evict):
                raise TypeError(f"on_evict must be callable or None, got {on_evict!r}")
            if isinstance(on_evict, types.MethodType):
                on_evict = weakref.WeakMethod(on_evict)
        entry = _Entry.__new__(_Entry)
        try:
            entry.reference = PyWeakref_NewRef(obj, self.forget)
        except TypeError:
            raise TypeError(f"a {type(obj).__name__} cannot be tracked: it cannot be weakly referenced") from None
        entry.on_evict = on_evict
        entry.size = size
        key = PyLong_FromVoidPtr(<void *>obj)
        reference_key = PyLong_FromVoidPtr(<void *>entry.reference)
        with cython.critical_section(self):
            known = self.entries.get(key)
            if known is None:
                self.entries[key] = entry
                self.keys[reference_key] = key
                self.total += size
            else:
                self.total += size - known.size
                known.size = size
                old_on_evict = known.on_evict
                known.on_evict = on_evict

    def untrack_buffer(self, obj):
        """Stop counting `obj`.

        Returns
        -------
        bool
            Whether it was counted.
        """
        cdef _Entry entry
        cdef object key = PyLong_FromVoidPtr(<void *>obj), reference_key
        with cython.critical_section(self):
            entry = self.entries.pop(key, None)
            if entry is not None:
                reference_key = PyLong_FromVoidPtr(<void *>entry.reference)
                self.keys.pop(reference_key, None)
                self.total -= entry.size
        return entry is not None

    cdef int forget_reference(self, object reference) except -1:
        cdef _Entry entry = None
        cdef object reference_key = PyLong_FromVoidPtr(<void *>reference), key
        with cython.critical_section(self):
            key = self.keys.pop(reference_key, None)
            if key is not None:
                entry = self.entries.pop(key)
                self.total -= entry.size
        return 0

    def get_total_buffer_memory(self):
        """Return the bytes of the live buffers tracked, as an int."""
        return self.total

    def get_buffer_info(self):
        """Return the count as a dict.

        Returns
        -------
        dict
            ``buffer_count``, ``total_memory_bytes``, ``total_memory_mb`` (1 MB is 1024 * 1024 bytes) and
            ``average_buffer_size_kb`` (1 KB is 1024 bytes; 0.0 without buffers).
        """
        cdef Py_ssize_t count, total
        with cython.critical_section(self):
            count = len(self.entries)
            total = self.total
        return {
            "buffer_count": count,
            "total_memory_mb": <double>total / (1024 * 1024),
            "total_memory_bytes": total,
            "average_buffer_size_kb": <double>total / count / 1024 if count else 0.0,
        }

    def evict(self, wanted_bytes=None):
        """Ask the owners to give memory back, those tracked longest first, until enough was given.

        Every owner that has an `on_evict` is asked at most once, and not while it is being asked already; one that raises is logged, the others are still
        asked. Nothing is dropped from the count but what its owner untracks, shrinks or lets die.

        Parameters
        ----------
        wanted_bytes : int, optional
            Stop when this much less is counted; ask everyone if not given.

        Returns
        -------
        int
            Bytes by which the count fell, 0 if it rose.
        """
        cdef Py_ssize_t before = self.total
        cdef _Entry entry
        cdef list entries
        if wanted_bytes is not None:
            try:
                wanted_bytes = operator.index(wanted_bytes)
            except TypeError:
                raise TypeError(f"wanted_bytes must be an int or None, got {wanted_bytes!r}") from None
            if wanted_bytes < 0:
                raise ValueError(f"wanted_bytes must be 0 or more bytes, got {wanted_bytes}")
        with cython.critical_section(self):
            entries = list(self.entries.values())
        for entry in entries:
            if wanted_bytes is not None and before - self.total >= wanted_bytes:
                break
            on_evict = entry.on_evict
            if isinstance(on_evict, weakref.WeakMethod):
                on_evict = on_evict()
            obj = entry.reference()
            if on_evict is None or obj is None or entry.is_asked:
                continue
            entry.is_asked = True
            try:
                on_evict(obj)
            except Exception:
                import logging  # 5 ms that an import of ours should not cost

                logging.getLogger(__name__).exception("on_evict of a %s of %d bytes failed", type(obj).__name__, entry.size)
            finally:
                entry.is_asked = False
                del obj
        return max(0, before - self.total)

    def _cleanup_buffers(self):
        """Ask every owner: what a monitor's cleanup calls."""
        return self.evict()
