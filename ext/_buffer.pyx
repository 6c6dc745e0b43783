# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""AudioBuffer, Reader and AudioView: argument checks, NumPy in and out, waiting.

Every data move is one call into ring.h. Who owns what: an AudioBuffer owns the memory; calls in progress,
readers, views and captures pin it, and it is unmapped when the buffer is closed and the last pin is gone.
The state a call needs is taken by a claim (claim.h): a second thread is refused, it never waits or races.
"""
cimport cython
cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.long cimport PyLong_CheckExact
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.number cimport PyNumber_Index
from cpython.pycapsule cimport PyCapsule_New
from cpython.ref cimport Py_INCREF
from libc.math cimport INFINITY, isfinite
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from collections import deque
import os
import threading

import numpy as np

from pcmring._records import CAUSES, Block, Gap
from pcmring.errors import BufferClosed, FramesLost

cnp.import_array()


cdef extern from "pcmring/ring.h" nogil:
    uint64_t pcmring_plan(const pcmring_config *config, pcmring_control *plan)
    int pcmring_init(pcmring_ring *ring, void *memory, const pcmring_config *config)
    uint64_t pcmring_slot_of_(const pcmring_ring *ring, uint64_t position)
    uint64_t pcmring_first_whole(const pcmring_ring *ring)
    uint64_t pcmring_lowest_guard(const pcmring_ring *ring)
    uint32_t pcmring_gaps(const pcmring_ring *ring, pcmring_gap *out, uint32_t most)
    uint32_t pcmring_stamps(const pcmring_ring *ring, pcmring_stamp *out, uint32_t most)
    void pcmring_clear(pcmring_ring *ring)
    void pcmring_close(pcmring_ring *ring)
    int pcmring_is_ended(const pcmring_ring *ring)
    int pcmring_add_listener(pcmring_ring *ring, int fd)
    void pcmring_remove_listener(pcmring_ring *ring, int fd)
    int pcmring_arm(pcmring_ring *ring, uint64_t target)
    int pcmring_wait_readable(pcmring_ring *ring, uint64_t target, int64_t deadline_ns, pcmring_a32 *cancel)
    int pcmring_wait_space(pcmring_ring *ring, int64_t deadline_ns)
    void pcmring_reader_open(pcmring_reader *reader, uint64_t position)
    int pcmring_guard_open(pcmring_ring *ring, pcmring_reader *reader, uint64_t position, uint32_t owner_pid)
    void pcmring_guard_close(pcmring_ring *ring, pcmring_reader *reader)
    uint64_t pcmring_available(const pcmring_ring *ring, const pcmring_reader *reader)
    uint64_t pcmring_delivered(const pcmring_reader *reader)
    void pcmring_advance_(pcmring_ring *ring, pcmring_reader *reader, uint64_t position)
    uint64_t pcmring_read(pcmring_ring *ring, pcmring_reader *reader, void *out, uint64_t frames,
                          uint64_t advance, uint64_t *first)

cdef extern from *:
    """
    #include "pcmring/ring.h"
    static inline uint64_t pcmring_peek64(pcmring_a64 *word) { return pcmring_load(word, relaxed); }
    static inline void pcmring_raise_peak(pcmring_ring *r, uint64_t fill)
    {
        uint64_t peak = pcmring_load(&r->control->peak_fill, relaxed);
        while (peak < fill && !pcmring_cas(&r->control->peak_fill, &peak, fill, relaxed)) {
        }
    }
    static inline void pcmring_set32(uint32_t *word) { pcmring_store((pcmring_a32 *)word, 1u, release); }
    static inline int pcmring_is_set32(const uint32_t *word) { return pcmring_load((pcmring_a32 *)word, acquire) != 0; }
    """
    uint64_t pcmring_peek64(pcmring_a64 *word) nogil   # a statistic
    void pcmring_raise_peak(pcmring_ring *r, uint64_t fill) nogil
    void pcmring_set32(uint32_t *word) nogil
    bint pcmring_is_set32(const uint32_t *word) nogil

cdef extern from "claim.h":
    bint pcmring_claim_take(uint32_t *claim)
    bint pcmring_claim_take_soon(uint32_t *claim)
    bint pcmring_claim_take_briefly(uint32_t *claim)
    void pcmring_claim_give(uint32_t *claim)
    void pcmring_claim_fence()
    bint pcmring_gil_claims(const uint32_t *claim, const uint32_t *pins)
    bint pcmring_pin(uint32_t *pins)
    bint pcmring_pin_mapped(uint32_t *pins)
    const uint32_t PCMRING_PINS_LAST
    uint32_t pcmring_pins_now(uint32_t *pins)
    bint pcmring_unpin_from(uint32_t *pins, uint32_t *now)
    void pcmring_pins_close(uint32_t *pins)
    bint pcmring_pins_closed(uint32_t *pins)

cdef extern from "quick.h":
    """
    PCMRING_QUICK(write)
    PCMRING_QUICK(read_into)
    PCMRING_QUICK(reader_read_into)
    """
    void write_install(object type, const char *name)
    void read_into_install(object type, const char *name)
    void reader_read_into_install(object type, const char *name)

cdef extern from "mapping.h" nogil:
    bint PCMRING_CAN_MIRROR
    size_t pcmring_page_bytes()
    void *pcmring_map_plain(size_t bytes)
    void pcmring_unmap_plain(void *base)
    void *pcmring_map_mirrored(size_t bytes, size_t mirror_from)
    void pcmring_unmap_mirrored(void *base, size_t bytes, size_t mirror_from)

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object number, int *overflow) except? -1
    unsigned long PyThread_get_thread_ident()


# Copies of at least this many bytes run without the GIL. Releasing and retaking it costs 60-90 ns alone, and
# under contention milliseconds; holding it costs others the copy: 13 us for this much. (benchmarks/)
cdef enum:
    GIL_BYTES = 256 * 1024

# Rings of at least this many bytes are mirrored: it costs two mappings of the process's 65,530 and rounding up
# to pages, which a small ring does not repay; a copy of this much takes microseconds.
cdef uint64_t MIRROR_BYTES = 64 * 1024

# The main thread looks for signals this often while it waits. A signal interrupts the wait at once, but for one
# that comes between the last look and the sleep; Ctrl-C must act within 100 ms all the same.
cdef int64_t SIGNAL_CHECK_NS = 50_000_000

# Lost ranges remembered per reader; older ones stay in its total.
cdef int LOSS_RANGES = 1024

# From this size on a new ring is compared with the memory there is: see memory_limit_bytes().
cdef uint64_t LARGE_BYTES = 256 * 1024 * 1024

# Grows by one in the child of each fork. A ring belongs to the process that made it: the child may share its
# pages with the parent (mirrored memory) and must neither write nor close there.
cdef unsigned int generation = 1
cdef unsigned long main_thread_ident = threading.main_thread().ident
cdef object process_id = os.getpid()


def _after_fork_in_child():
    global generation, main_thread_ident, process_id
    generation += 1
    main_thread_ident = threading.get_ident()
    process_id = os.getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


# ---- arguments ------------------------------------------------------------------------------------

cdef tuple DTYPES = ("int16", "int32", "float32", "float64")
cdef dict FORMATS = {"int16": PCMRING_INT16, "int32": PCMRING_INT32, "float32": PCMRING_FLOAT32,
                     "float64": PCMRING_FLOAT64}
cdef dict KINDS = {("i", 2): "int16", ("i", 4): "int32", ("f", 2): "float32", ("f", 4): "float32", ("f", 8): "float64"}
cdef dict POLICIES = {"overwrite": PCMRING_OVERWRITE, "drop": PCMRING_DROP, "block": PCMRING_BLOCK}


cdef uint64_t frames_of(object value, str what) except? 18446744073709551615u:
    """A count or position from Python, at the door."""
    cdef object number
    cdef long long frames
    cdef int overflow = 0
    try:
        number = value if PyLong_CheckExact(value) else PyNumber_Index(value)
    except TypeError:
        raise TypeError(f"{what} must be an int, got {value!r}") from None
    frames = PyLong_AsLongLongAndOverflow(number, &overflow)
    if overflow or frames < 0:
        raise ValueError(f"{what} must be 0 to 2**63 - 1, got {number}")
    return <uint64_t>frames


cdef object dtype_of(object dtype):
    """One of the four native dtypes. None is refused: NumPy would take it for float64."""
    cdef object found = None
    if dtype is not None:
        try:
            found = np.dtype(dtype)
        except (TypeError, ValueError, SyntaxError):  # NumPy's own ways to say no
            pass
    if found is None or found.name not in FORMATS or not found.isnative:
        raise TypeError(f"dtype must be one of {', '.join(DTYPES)}, in native byte order, got {dtype!r}")
    return found


cdef double seconds_of(object number) except? -1.0:
    """A number as a float; infinite where it is too large for one."""
    if isinstance(number, (str, bytes, bytearray)) or not hasattr(number, "__float__"):
        raise TypeError
    try:
        return float(number)
    except OverflowError:
        return INFINITY if number > 0 else -INFINITY


cdef uint32_t format_of(object dtype) except 0:
    return FORMATS[dtype.name]


cdef int64_t deadline_of(object timeout) except? -1:
    """0: do not wait; PCMRING_FOREVER; or a moment on pcmring_now_ns()'s clock."""
    cdef double seconds
    if timeout is None:
        return PCMRING_FOREVER
    if PyFloat_CheckExact(timeout):
        seconds = PyFloat_AS_DOUBLE(timeout)
    else:
        try:
            seconds = seconds_of(timeout)
        except TypeError:
            raise TypeError(f"timeout must be seconds or None, got {timeout!r}") from None
    if seconds == 0.0:
        return 0
    if not seconds > 0.0:
        raise ValueError(f"timeout must be 0 or more seconds, or None to wait without limit, got {timeout!r}")
    if seconds > 1e9:
        return PCMRING_FOREVER
    return pcmring_now_ns() + <int64_t>(seconds * 1e9)


cdef uint64_t memory_limit_bytes():
    """Physical memory, or the control group's limit if that is lower; 2**62 where neither can be told."""
    cdef object limit = 1 << 62
    try:
        limit = min(limit, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        pass
    try:
        with open("/sys/fs/cgroup/memory.max") as file:
            limit = min(limit, int(file.read()))
    except (OSError, ValueError):
        pass
    return limit


cdef inline uint32_t plain_format(object data, uint32_t channels) noexcept:
    """The format of an ndarray whose memory can be copied or converted as it lies, 0 for anything else."""
    # casts and no variable: a variable would count references
    if not (cnp.PyArray_CheckExact(data) and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray>data)):
        return 0
    if not (cnp.PyArray_NDIM(<cnp.ndarray>data) == 2 and cnp.PyArray_DIM(<cnp.ndarray>data, 1) == <cnp.npy_intp>channels
            or cnp.PyArray_NDIM(<cnp.ndarray>data) == 1 and channels == 1):
        return 0
    return format_of_typenum(cnp.PyArray_TYPE(<cnp.ndarray>data))


cdef inline uint32_t format_of_typenum(int typenum) noexcept:
    if typenum == cnp.NPY_FLOAT32:
        return PCMRING_FLOAT32
    if typenum == cnp.NPY_INT16:
        return PCMRING_INT16
    if typenum == cnp.NPY_INT32:
        return PCMRING_INT32
    return PCMRING_FLOAT64 if typenum == cnp.NPY_FLOAT64 else 0


cdef cnp.ndarray new_frames(AudioBuffer buffer, uint64_t frames):
    cdef cnp.npy_intp shape[2]
    shape[0] = <cnp.npy_intp>frames
    shape[1] = buffer.channels
    return cnp.PyArray_SimpleNew(2, shape, buffer.typenum)


cdef cnp.ndarray check_out(AudioBuffer buffer, object out):
    """`out` as an array that the ring can fill, or an error."""
    if plain_format(out, buffer.channels) != buffer.format:
        if not isinstance(out, np.ndarray):
            raise TypeError(f"out must be an ndarray of {buffer.dtype}, got {type(out).__name__}")
        plain = np.asarray(out)  # the same memory: a subclass may lie about what it is
        if plain.dtype != buffer.dtype:
            raise TypeError(f"out must have the buffer's dtype {buffer.dtype}, got {plain.dtype}")
        if not (plain.ndim == 2 and plain.shape[1] == buffer.channels or plain.ndim == 1 and buffer.channels == 1):
            raise ValueError(f"out must have shape (frames, {buffer.channels}), got {plain.shape}")
        if not (plain.flags.c_contiguous and plain.flags.aligned):
            raise ValueError("out must be C-contiguous and aligned")
    if not cnp.PyArray_ISWRITEABLE(<cnp.ndarray>out):
        raise ValueError("out must be writable")
    return <cnp.ndarray>out


cdef object note_loss(object losses, uint64_t first, uint64_t last):
    """Append the lost range to `losses`, one entry for adjoining ranges."""
    if losses is None:
        losses = deque(maxlen=LOSS_RANGES)
    if losses and losses[-1][1] == first:
        losses[-1] = (losses[-1][0], last)
    else:
        losses.append((first, last))
    return losses


cdef list copied(object losses):
    """What note_loss() made, as a list."""
    while losses is not None:
        try:
            return list(losses)
        except RuntimeError:  # without the GIL: it grew meanwhile
            pass
    return []


cdef inline bint is_mapped(AudioBuffer buffer, const uint8_t *address) noexcept:
    """Whether it lies in the buffer's own memory."""
    return <size_t>address - <size_t>buffer.base < buffer.mapped_bytes


cdef inline object written_count(AudioBuffer buffer, uint64_t frames):
    if buffer.last_written_count != frames:
        buffer.last_written_int = frames
        buffer.last_written_count = frames
    return buffer.last_written_int


cdef inline object read_count(AudioBuffer buffer, uint64_t frames):
    if buffer.last_read_count != frames:
        buffer.last_read_int = frames
        buffer.last_read_count = frames
    return buffer.last_read_int


cdef class AudioBuffer:
    """A circular buffer of audio frames: one producer, any number of readers, no locks.

    Memory is allocated and touched here, once: nothing allocates afterwards. Positions count the frames ever
    written, from 0; they never wrap and are how history is addressed.

    Parameters
    ----------
    max_samples : int
        Capacity in frames, at least 1.
    channels : int, optional
        1 to 64.
    dtype : dtype, optional
        int16, int32, float32 or float64. Data of another of these types is converted when written: full scale
        is ±1.0, integers saturate, NaN becomes 0 in integers.
    buffer_tracker : object, optional
        Told ``track_buffer(self, nbytes)`` now, and ``untrack_buffer(self)`` when the memory goes.
    samplerate : float, optional
        Hertz. Needed for `time_of` and `position_at`; without it no times are kept.
    policy : {"overwrite", "drop", "block"}, optional
        When the ring is full: the newest audio replaces the oldest; or what guarded readers have not read is kept
        and new audio that does not fit is dropped, counted and listed by `gaps`; or `write` waits for them.
        The buffer's own reader (`read`) is guarded until a `reader` is opened without it having been used.
    storage : None, optional
        Private memory, the only kind there is yet.
    name : str, optional
        For people: it appears in reports.

    Raises
    ------
    ValueError, TypeError
        An argument is out of range, or the ring would not fit the machine's memory. Nothing was allocated.
    MemoryError
        The system refused the memory.

    Notes
    -----
    Threads: one thread at a time may write; a `write` that meets another raises RuntimeError and stores nothing.
    The same holds for `read` and `read_into`, which share the buffer's own reader. Everything else may be called
    by any thread at any time, beside both. This holds with and without the GIL.

    After a fork the child's copy is closed: a ring belongs to the process that made it.
    """

    def __cinit__(self, max_samples, channels=1, dtype=np.float32, buffer_tracker=None, *, samplerate=None,
                  policy="overwrite", storage=None, name=None, _first_position=0):
        cdef pcmring_config config
        cdef pcmring_control plan
        cdef uint64_t frames, channel_count, slots_unit
        cdef size_t page
        memset(&config, 0, sizeof(config))
        memset(&plan, 0, sizeof(plan))

        frames = frames_of(max_samples, "max_samples")
        if frames < 1:
            raise ValueError("max_samples must be at least 1 frame, got 0")
        channel_count = frames_of(channels, "channels")
        if not 1 <= channel_count <= PCMRING_MAX_CHANNELS:
            raise ValueError(f"channels must be 1 to {PCMRING_MAX_CHANNELS}, got {channels}")
        self.dtype = dtype_of(dtype)
        if not isinstance(policy, str) or policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
        policy = str.__str__(policy)
        if samplerate is not None:
            try:
                if isinstance(samplerate, bool):
                    raise TypeError
                config.samplerate = seconds_of(samplerate)
            except TypeError:
                raise TypeError(f"samplerate must be hertz or None, got {samplerate!r}") from None
            if not (isfinite(config.samplerate) and config.samplerate > 0):
                raise ValueError(f"samplerate must be more than 0 hertz, got {samplerate!r}")
            if type(samplerate) is not int:
                samplerate = config.samplerate
        if storage is not None:
            raise ValueError(f"storage must be None (private memory), got {storage!r}")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str or None, got {name!r}")
        if buffer_tracker is not None and not (callable(getattr(buffer_tracker, "track_buffer", None))
                                               and callable(getattr(buffer_tracker, "untrack_buffer", None))):
            raise TypeError("buffer_tracker must have track_buffer(buffer, size_bytes) and untrack_buffer(buffer), "
                            f"got {buffer_tracker!r}")

        config.capacity = frames
        config.channels = <uint32_t>channel_count
        config.format = format_of(self.dtype)
        config.policy = POLICIES[policy]
        config.first_position = frames_of(_first_position, "_first_position")
        self.capacity = frames
        self.channels = config.channels
        self.format = config.format
        self.frame_bytes = config.channels * <uint32_t>self.dtype.itemsize
        self.typenum = self.dtype.num
        self.samplerate = samplerate
        self.policy = policy
        self.blocks_producer = config.policy == PCMRING_BLOCK
        self.quick_frames = 0 if self.blocks_producer else (GIL_BYTES - 1) // self.frame_bytes
        self.name = name
        self.last_written_int = self.last_read_int = 0

        if pcmring_plan(&config, &plan) == 0 or (
            plan.total_bytes > LARGE_BYTES and plan.total_bytes > memory_limit_bytes()
        ):
            raise ValueError(f"max_samples must fit the memory, at most {memory_limit_bytes() // self.frame_bytes} "
                             f"frames of {self.frame_bytes} bytes here, got {max_samples}")
        self.ring = <pcmring_ring *>PyMem_RawCalloc(1, sizeof(pcmring_ring))
        if self.ring == NULL:
            raise MemoryError("no memory for the ring's handle")

        if PCMRING_CAN_MIRROR and frames * self.frame_bytes >= MIRROR_BYTES:
            # the mirrored part is whole pages and whole frames; not worth more than a quarter of slack
            page = pcmring_page_bytes()
            slots_unit = page
            while slots_unit % self.frame_bytes:
                slots_unit += page
            slots_unit //= self.frame_bytes
            config.slots = (frames + slots_unit - 1) // slots_unit * slots_unit
            config.data_align = page
            if config.slots - frames <= frames // 4 and pcmring_plan(&config, &plan):
                with nogil:
                    self.base = <uint8_t *>pcmring_map_mirrored(plan.total_bytes, plan.data_offset)
                self.mirror_from = plan.data_offset
        if self.base == NULL:
            self.mirror_from = config.slots = config.data_align = 0
            pcmring_plan(&config, &plan)
            with nogil:
                self.base = <uint8_t *>pcmring_map_plain(plan.total_bytes)
            if self.base == NULL:
                raise MemoryError(f"no memory for {plan.total_bytes} bytes of ring")
        self.bytes = plan.total_bytes
        self.mapped_bytes = 2 * self.bytes - self.mirror_from if self.mirror_from else self.bytes
        pcmring_init(self.ring, self.base, &config)
        self.generation = generation
        pcmring_reader_open(&self.own, config.first_position)
        self.own.counts_fill = config.policy == PCMRING_OVERWRITE
        if config.policy != PCMRING_OVERWRITE:
            pcmring_guard_open(self.ring, &self.own, config.first_position, process_id)

    def __init__(self, max_samples, channels=1, dtype=np.float32, buffer_tracker=None, *, samplerate=None,
                 policy="overwrite", storage=None, name=None, _first_position=0):
        if buffer_tracker is not None and self.tracker is None:
            buffer_tracker.track_buffer(self, self.nbytes)
            self.tracker = buffer_tracker

    def __dealloc__(self):
        # readers, views and captures hold a reference: nobody can be in here
        if self.base != NULL:
            if self.mirror_from:
                pcmring_unmap_mirrored(self.base, self.bytes, self.mirror_from)
            else:
                pcmring_unmap_plain(self.base)
        PyMem_RawFree(self.ring)

    # ---- life ------------------------------------------------------------------------------------

    cdef int pin(self) except -1:
        if self.generation != generation:
            raise BufferClosed("this buffer belongs to the parent process")
        if not pcmring_pin(&self.pins):
            raise BufferClosed("the buffer is closed")
        return 0

    cdef int pin_mapped(self) except -1:
        """The same for what a closed buffer still tells: as long as a reader or a view keeps its memory."""
        if self.generation != generation:
            raise BufferClosed("this buffer belongs to the parent process")
        if not pcmring_pin_mapped(&self.pins):
            raise BufferClosed("the buffer is closed, and its memory gone")
        return 0

    cdef int unpin(self) except -1:
        cdef uint32_t now = pcmring_pins_now(&self.pins)
        while True:
            if now == PCMRING_PINS_LAST:  # before the memory goes: who is refused it reads this instead
                self.final_written = pcmring_frames_written(self.ring)
            if pcmring_unpin_from(&self.pins, &now):
                break
        if now == PCMRING_PINS_LAST:
            self.release_memory()
        return 0

    cdef int release_memory(self) except -1:
        """Give the memory back. Only whoever took the last pin off a closed buffer comes here."""
        cdef uint8_t *base = self.base
        cdef object tracker = self.tracker
        self.base = NULL
        self.tracker = None
        with nogil:
            if self.mirror_from:
                pcmring_unmap_mirrored(base, self.bytes, self.mirror_from)
            else:
                pcmring_unmap_plain(base)
        if tracker is not None:
            tracker.untrack_buffer(self)
        return 0

    def close(self):
        """End the buffer: no more writes, every wait wakes, the memory is given back.

        Readers opened by `reader` can still read what was stored, views stay valid, and `gaps`, `time_of`,
        `position_at`, `oldest` and `statistics` still tell: the memory goes with the last reader or view.
        Idempotent; any thread.
        """
        if self.generation != generation or not pcmring_pin(&self.pins):
            return
        try:
            with nogil:
                pcmring_close(self.ring)
            pcmring_pins_close(&self.pins)
        finally:
            self.unpin()

    def cleanup(self):
        """The same as `close`."""
        self.close()

    @property
    def closed(self):
        """bool: `close` was called, or this is the child of a fork."""
        return self.generation != generation or pcmring_pins_closed(&self.pins)

    def __enter__(self):
        self.pin()
        self.unpin()
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __repr__(self):
        return (f"<AudioBuffer{'' if self.name is None else ' ' + repr(self.name)} {self.capacity} x {self.channels} "
                f"{self.dtype} {self.policy}{', closed' if self.closed else ''}>")

    cdef bint is_foreign(self) noexcept:
        return self.generation != generation

    cdef pcmring_ring *acquire_producer(self) except NULL:
        if self.generation != generation:  # before the claim: a thread of the parent may hold it for ever
            raise BufferClosed("this buffer belongs to the parent process")
        if not pcmring_claim_take(&self.producer):
            raise RuntimeError("one producer at a time: a write or a capture is using this buffer")
        try:
            self.pin()
        except BaseException:
            pcmring_claim_give(&self.producer)
            raise
        return self.ring

    cdef int release_producer(self) except -1:
        pcmring_claim_give(&self.producer)
        return self.unpin()

    # ---- facts -----------------------------------------------------------------------------------

    @property
    def max_samples(self):
        """int: the capacity in frames."""
        return self.capacity

    @property
    def nbytes(self):
        """int: bytes of audio held at most."""
        return self.capacity * self.frame_bytes

    @property
    def mirrored(self):
        """bool: views never copy, also across the end of memory."""
        return self.mirror_from != 0

    @property
    def frames_written(self):
        """int: position of the next frame to be written; frames ever stored."""
        cdef uint64_t written
        if not pcmring_pin_mapped(&self.pins):
            return self.final_written
        written = pcmring_frames_written(self.ring)
        self.unpin()
        return written

    @property
    def samples_written(self):
        """int: the same as `frames_written`."""
        return self.frames_written

    @property
    def oldest(self):
        """int: position of the oldest frame still held."""
        cdef uint64_t oldest
        self.pin_mapped()
        oldest = pcmring_oldest(self.ring)
        self.unpin()
        return oldest

    cdef uint64_t fill_of(self) noexcept:
        cdef uint64_t lowest = PCMRING_NEVER
        cdef pcmring_reader slowest = self.own
        if self.ring.policy != PCMRING_OVERWRITE:
            lowest = pcmring_lowest_guard(self.ring)
        if lowest != PCMRING_NEVER:
            slowest.position = lowest
        return pcmring_available(self.ring, &slowest)

    @property
    def fill(self):
        """int: frames held that wait to be read.

        By the slowest guarded reader if there is one, else by the buffer's own reader. Under "drop" and "block"
        ``capacity - fill`` is what a write can take.
        """
        cdef uint64_t fill
        self.pin()
        fill = self.fill_of()
        self.unpin()
        return fill

    def get_fill_level(self):
        """Return `fill` as a share of the capacity, 0.0 to 1.0."""
        return <double>self.fill / <double>self.capacity

    # ---- writing ---------------------------------------------------------------------------------

    @cython.binding(False)
    def write(self, data, timeout=None):
        """Store a block of frames behind the newest.

        Beside any number of readers, which it neither waits for nor slows (but see "block"). Allocates nothing
        when `data` is a C-contiguous array of the buffer's dtype.

        Parameters
        ----------
        data : array_like, shape (frames, channels) or (frames,) for mono
            int16, int32, float16, float32 or float64, any strides and byte order. Of a block longer than the
            capacity the last frames stay, the others count as overwritten.
        timeout : float, optional
            Seconds to wait for space under "block"; None waits without limit, 0.0 not at all.

        Returns
        -------
        int
            Frames accepted. All of them under "overwrite"; under "drop" the rest is lost and in the ledger; under
            "block" the rest is still the caller's.

        Raises
        ------
        ValueError, TypeError
            Wrong shape, channels, dtype or timeout. Nothing was stored.
        BufferClosed
            The buffer is closed, or was closed during the wait before a frame was accepted.
        RuntimeError
            Another thread or a capture is writing. Nothing was stored.
        """
        cdef const uint8_t *src
        cdef uint32_t src_format
        cdef uint64_t frames, accepted
        cdef int64_t deadline_ns = PCMRING_FOREVER
        cdef int wake
        if timeout is not None:  # first: a __float__ may do anything, also reshape `data`
            deadline_ns = deadline_of(timeout)
        src_format = plain_format(data, self.channels)
        if src_format == 0:
            data, src_format = self.as_block(data)
        src = <const uint8_t *>cnp.PyArray_DATA(<cnp.ndarray>data)
        frames = <uint64_t>cnp.PyArray_DIM(<cnp.ndarray>data, 0)
        self.acquire_producer()
        try:
            if is_mapped(self, src):  # a view of this ring: it would move under us
                data = data.copy()
                src = <const uint8_t *>cnp.PyArray_DATA(<cnp.ndarray>data)
            if frames * self.frame_bytes < GIL_BYTES:
                accepted = pcmring_write(self.ring, src, src_format, frames, NULL, &wake)
                if wake:
                    with nogil:  # the woken thread will want the GIL
                        pcmring_wake(self.ring)
            else:
                with nogil:
                    accepted = pcmring_write(self.ring, src, src_format, frames, NULL, &wake)
                    if wake:
                        pcmring_wake(self.ring)
            if accepted < frames and self.blocks_producer:
                src += accepted * (self.channels * <uint64_t>cnp.PyArray_ITEMSIZE(<cnp.ndarray>data))
                accepted += self.write_rest(src, src_format, frames - accepted, deadline_ns)
                if accepted == 0 and pcmring_is_closed(self.ring):
                    raise BufferClosed("the buffer was closed while the write waited")
            return written_count(self, accepted)
        finally:
            self.release_producer()

    cdef int wake_readers(self) except -1:
        """Wake them without the GIL, which they will want."""
        self.acquire_producer()
        try:
            with nogil:
                pcmring_wake(self.ring)
        finally:
            self.release_producer()
        return 0

    cdef tuple as_block(self, object data):
        """`data` as (array, format): C-contiguous, native, one of the four formats, the right shape."""
        cdef object block = np.asarray(data)
        cdef object kind = KINDS.get((block.dtype.kind, block.dtype.itemsize))
        if kind is None:
            raise TypeError(f"data must be {', '.join(DTYPES)} or float16, got {block.dtype}")
        if not (block.ndim == 2 and block.shape[1] == self.channels or block.ndim == 1 and self.channels == 1):
            raise ValueError(f"data must have shape (frames, {self.channels})"
                             f"{' or (frames,)' if self.channels == 1 else ''}, got {block.shape}")
        return np.require(block, kind, ("C_CONTIGUOUS", "ALIGNED", "ENSUREARRAY")), FORMATS[kind]

    cdef uint64_t write_rest(self, const uint8_t *src, uint32_t src_format, uint64_t frames,
                             int64_t deadline_ns) except? 18446744073709551615u:
        """Policy block: store what did not fit, as space comes, until the deadline or the buffer's end."""
        cdef uint64_t done = 0, now
        cdef uint64_t src_frame_bytes = <uint64_t>self.channels * (2 if src_format == PCMRING_INT16 else
                                                                    8 if src_format == PCMRING_FLOAT64 else 4)
        cdef bint is_main = PyThread_get_thread_ident() == main_thread_ident
        cdef int64_t until_ns
        cdef int result, wake = 0
        while done < frames:
            until_ns = deadline_ns
            if is_main:
                PyErr_CheckSignals()
                until_ns = min(deadline_ns, pcmring_now_ns() + SIGNAL_CHECK_NS)
            with nogil:
                result = pcmring_wait_space(self.ring, until_ns)
                if result == PCMRING_READY:
                    now = pcmring_write(self.ring, src + done * src_frame_bytes, src_format, frames - done, NULL, &wake)
                    done += now
                    if wake:
                        pcmring_wake(self.ring)
            if result == PCMRING_CLOSED or (result == PCMRING_TIMED_OUT and until_ns == deadline_ns):
                break
        return done

    def mark_gap(self, frames, cause, exact=True):
        """Enter into the ledger that `frames` frames are missing before the next one to be written.

        For producers that know it: a device that was reopened, a pause. Counts as a write: one producer at a time.

        Parameters
        ----------
        frames : int
            How many are missing.
        cause : {"device_overflow", "dropped", "reopened", "paused"}
        exact : bool, optional
            False when the number is an estimate.
        """
        cdef uint64_t missing = frames_of(frames, "frames")
        if cause not in CAUSES:
            raise ValueError(f"cause must be one of {', '.join(CAUSES)}, got {cause!r}")
        self.acquire_producer()
        try:
            pcmring_add_gap(self.ring, missing, <uint32_t>CAUSES.index(cause), 1 if exact else 0)
        finally:
            self.release_producer()

    def clear(self):
        """Forget every frame stored so far.

        Positions go on. A reader that had not read the frames counts them as lost. Any thread, beside the
        producer.
        """
        self.pin()
        try:
            pcmring_raise_peak(self.ring, self.fill_of())
            with nogil:
                pcmring_clear(self.ring)
        finally:
            self.unpin()

    # ---- reading: the buffer's own reader ----------------------------------------------------------

    cdef int sleep_until(self, uint64_t target, int64_t deadline_ns, uint32_t *cancel) except -1:
        """Wait without the GIL until `target` frames were written; enum pcmring_wait."""
        cdef bint is_main = PyThread_get_thread_ident() == main_thread_ident
        cdef int64_t until_ns
        cdef int result
        while True:
            until_ns = deadline_ns
            if is_main:
                PyErr_CheckSignals()
                until_ns = min(deadline_ns, pcmring_now_ns() + SIGNAL_CHECK_NS)
            with nogil:
                result = pcmring_wait_readable(self.ring, target, until_ns, <pcmring_a32 *>cancel)
            if result == PCMRING_READY or result == PCMRING_CLOSED:
                return result
            if result == PCMRING_TIMED_OUT and until_ns == deadline_ns:
                return result

    cdef int await_frames(self, pcmring_reader *reader, uint64_t frames, int64_t deadline_ns,
                          uint32_t *cancel) except -1:
        """Wait until `reader` has `frames` frames (at most the capacity) to read; enum pcmring_wait."""
        cdef uint64_t target
        cdef int result
        while True:
            target = max(reader.position, pcmring_oldest(self.ring)) + min(frames, self.capacity)
            if pcmring_frames_written(self.ring) >= target:
                return PCMRING_READY
            if deadline_ns == 0:
                return PCMRING_TIMED_OUT
            result = self.sleep_until(target, deadline_ns, cancel)
            if result != PCMRING_READY:
                return result
            # look again: clear() may have taken frames away meanwhile

    cdef uint64_t take(self, pcmring_reader *reader, void *out, uint64_t frames, uint64_t advance,
                       uint64_t *first) noexcept:
        cdef uint64_t got
        if frames * self.frame_bytes < GIL_BYTES:
            got = pcmring_read(self.ring, reader, out, frames, advance, first)
        else:
            with nogil:
                got = pcmring_read(self.ring, reader, out, frames, advance, first)
        return got

    def read(self, num_samples, timeout=0.0):
        """Take the oldest unread frames, in order.

        The buffer's own reader starts at position 0 and belongs to one thread at a time; for more consumers
        open one `reader` each.

        Parameters
        ----------
        num_samples : int
            Frames wanted.
        timeout : float or None, optional
            Seconds to wait until they are there: 0.0 takes what there is, None waits without limit. Waits for at
            most `capacity` frames.

        Returns
        -------
        ndarray, shape (n, channels), n <= num_samples
            A copy, of the buffer's dtype.

        Raises
        ------
        BufferClosed, RuntimeError
            The buffer is closed; another thread is in `read` or `read_into`.
        """
        cdef uint64_t frames = frames_of(num_samples, "num_samples")
        cdef int64_t deadline_ns = deadline_of(timeout)
        cdef uint64_t before, first = 0, got
        cdef cnp.ndarray out
        if self.generation != generation:  # before the claim, as in acquire_producer()
            raise BufferClosed("this buffer belongs to the parent process")
        if not pcmring_claim_take_soon(&self.own_busy):
            raise RuntimeError("another thread is reading through this buffer; open a reader() for each")
        try:
            self.pin()
            try:
                self.await_frames(&self.own, frames, deadline_ns, NULL)
                frames = min(frames, pcmring_available(self.ring, &self.own))
                out = new_frames(self, frames)
                if not self.own.counts_fill:
                    pcmring_raise_peak(self.ring, self.fill_of())
                before = self.own.position
                got = self.take(&self.own, cnp.PyArray_DATA(out), frames, PCMRING_NEVER, &first)
                if first != before:
                    self.own_losses = note_loss(self.own_losses, before, first)
                return out if got == frames else out[:got]
            finally:
                self.unpin()
        finally:
            pcmring_claim_give(&self.own_busy)

    @cython.binding(False)
    def read_into(self, out, timeout=0.0):
        """Take the oldest unread frames into `out`, allocating nothing.

        Parameters
        ----------
        out : ndarray of the buffer's dtype, shape (frames, channels) or (frames,) for mono
            C-contiguous and writable. Its first frames are filled.
        timeout : float or None, optional
            As for `read`.

        Returns
        -------
        int
            Frames read.
        """
        cdef int64_t deadline_ns = deadline_of(timeout)  # first: a __float__ may do anything, also reshape `out`
        cdef cnp.ndarray into = check_out(self, out)
        cdef uint64_t frames = <uint64_t>cnp.PyArray_DIM(into, 0)
        cdef uint64_t before, first = 0, got
        if self.generation != generation:  # before the claim, as in acquire_producer()
            raise BufferClosed("this buffer belongs to the parent process")
        if not pcmring_claim_take_soon(&self.own_busy):
            raise RuntimeError("another thread is reading through this buffer; open a reader() for each")
        try:
            self.pin()
            try:
                if deadline_ns:
                    self.await_frames(&self.own, frames, deadline_ns, NULL)
                if not self.own.counts_fill:
                    pcmring_raise_peak(self.ring, self.fill_of())
                before = self.own.position
                got = self.take(&self.own, cnp.PyArray_DATA(into), frames, PCMRING_NEVER, &first)
                if first != before:
                    self.own_losses = note_loss(self.own_losses, before, first)
                return read_count(self, got)
            finally:
                self.unpin()
        finally:
            pcmring_claim_give(&self.own_busy)

    # ---- reading: history ----------------------------------------------------------------------------

    def get_latest(self, num_samples, out=None):
        """Copy the newest frames without consuming them.

        Any thread, beside the producer; a frame overwritten meanwhile is never returned.

        Parameters
        ----------
        num_samples : int
            Frames wanted; all that are held if there are fewer.
        out : ndarray of the buffer's dtype, shape (num_samples, channels), optional
            Filled instead of a new array; C-contiguous and writable.

        Returns
        -------
        ndarray, shape (n, channels), n <= num_samples
            The newest n frames, oldest first: a new array, or (the first n frames of) `out`.
        """
        cdef uint64_t frames = frames_of(num_samples, "num_samples")
        cdef uint64_t start = 0, got
        cdef cnp.ndarray into = None
        cdef void *data
        if out is not None:
            into = check_out(self, out)
            if <uint64_t>cnp.PyArray_DIM(into, 0) != frames:
                raise ValueError(f"out must have {frames} frames, got {cnp.PyArray_DIM(into, 0)}")
        self.pin()
        try:
            frames = min(frames, pcmring_frames_written(self.ring) - pcmring_oldest(self.ring))
            if into is None:
                into = new_frames(self, frames)
            data = cnp.PyArray_DATA(into)
            if frames * self.frame_bytes < GIL_BYTES:
                got = pcmring_latest(self.ring, data, frames, &start)
            else:
                with nogil:
                    got = pcmring_latest(self.ring, data, frames, &start)
        finally:
            self.unpin()
        return into if got == <uint64_t>cnp.PyArray_DIM(into, 0) else into[:got]

    def read_range(self, start, stop, out=None):
        """Copy the frames at positions `start` to `stop`, half open, without consuming them.

        Parameters
        ----------
        start, stop : int
            ``0 <= start <= stop <= frames_written``.
        out : ndarray of the buffer's dtype, shape (stop - start, channels), optional
            Filled instead of a new array; C-contiguous and writable.

        Returns
        -------
        ndarray, shape (stop - start, channels)

        Raises
        ------
        FramesLost
            Frames of the range are no longer held; it says which. `out` may have been written to.
        ValueError
            The range is reversed or reaches beyond `frames_written`.
        """
        cdef uint64_t first = frames_of(start, "start"), last = frames_of(stop, "stop")
        cdef uint64_t torn
        cdef cnp.ndarray into = None
        cdef void *data
        if first > last:
            raise ValueError(f"start must not exceed stop, got {first} and {last}")
        if out is not None:
            into = check_out(self, out)
            if <uint64_t>cnp.PyArray_DIM(into, 0) != last - first:
                raise ValueError(f"out must have {last - first} frames, got {cnp.PyArray_DIM(into, 0)}")
        self.pin()
        try:
            check_held(self, first, last)
            if into is None:
                into = new_frames(self, last - first)
            data = cnp.PyArray_DATA(into)
            if (last - first) * self.frame_bytes < GIL_BYTES:
                torn = pcmring_copy_range(self.ring, data, first, last - first)
            else:
                with nogil:
                    torn = pcmring_copy_range(self.ring, data, first, last - first)
            if torn:
                raise FramesLost(first, last, first + torn)
        finally:
            self.unpin()
        return into

    def view(self, start, stop):
        """Look at the frames at positions `start` to `stop`, half open, without copying them.

        Returns
        -------
        AudioView
            Check its `intact` after use: the producer goes on, and may overwrite what is looked at.

        Raises
        ------
        FramesLost, ValueError
            As for `read_range`.
        """
        cdef uint64_t first = frames_of(start, "start"), last = frames_of(stop, "stop")
        if first > last:
            raise ValueError(f"start must not exceed stop, got {first} and {last}")
        self.pin()
        try:
            check_held(self, first, last)
            return make_view(self, first, last)
        finally:
            self.unpin()

    @cython.binding(False)
    def latest_view(self, num_samples):
        """Look at the newest `num_samples` frames, or all that are held, without copying them.

        Returns
        -------
        AudioView
            Check its `intact` after use: the producer goes on, and may overwrite what is looked at.
        """
        cdef uint64_t frames = frames_of(num_samples, "num_samples")
        cdef uint64_t written, held
        self.pin()
        try:
            written = pcmring_frames_written(self.ring)
            held = written - min(written, pcmring_oldest(self.ring))
            frames = min(frames, held)
            while True:
                try:
                    return make_view(self, written - frames, written)
                except FramesLost:  # it had to be copied, and was overtaken: what is newest now?
                    written = pcmring_frames_written(self.ring)
                    frames = min(frames, written - min(written, pcmring_oldest(self.ring)))
        finally:
            self.unpin()

    def reader(self, start="now", *, guard=False, name=None):
        """Open a reader with a position of its own.

        Parameters
        ----------
        start : {"now", "oldest"} or int, optional
            The next frame to come; the oldest held; or a position up to `frames_written` (frames before
            `oldest` then count as lost).
        guard : bool, optional
            Policies "drop" and "block" keep what this reader has not read.
        name : str, optional
            For people: it appears in reports.

        Returns
        -------
        Reader
        """
        cdef Reader reader
        cdef uint64_t position = 0
        cdef bint is_now = False
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str or None, got {name!r}")
        if guard and self.policy == "overwrite":
            raise ValueError("guard=True needs policy 'drop' or 'block', this buffer's is 'overwrite'")
        if isinstance(start, str) and start not in ("now", "oldest"):
            raise ValueError(f"start must be 'now', 'oldest' or a position, got {start!r}")
        self.pin()
        try:
            if isinstance(start, str):
                is_now = start == "now"
                position = pcmring_frames_written(self.ring) if is_now else pcmring_oldest(self.ring)
            else:
                position = frames_of(start, "start")
                if position > pcmring_frames_written(self.ring):
                    raise ValueError(f"start must be 0 to frames_written, {pcmring_frames_written(self.ring)}, "
                                     f"got {position}")
            pcmring_raise_peak(self.ring, self.fill_of())  # it may be another reader's from now on
            # the buffer's own reader was guarded for want of another; unused, it must not hold up the producer
            if (self.own.guard != NULL and self.own.position == self.own.start
                    and pcmring_claim_take_briefly(&self.own_busy)):
                if self.own.position == self.own.start:
                    pcmring_guard_close(self.ring, &self.own)
                pcmring_claim_give(&self.own_busy)
            reader = Reader.__new__(Reader, self)
            if not guard:
                pcmring_reader_open(&reader.state, position)
            elif pcmring_guard_open(self.ring, &reader.state, PCMRING_NEVER if is_now else position, process_id):
                raise ValueError(f"at most {PCMRING_GUARD_SLOTS} guarded readers at a time")
            reader.name = name
            return reader
        finally:
            self.unpin()

    # ---- accounting ----------------------------------------------------------------------------------

    def losses(self):
        """Return the frames the buffer's own reader lost, as a list of ``(first, last)``, half open."""
        return copied(self.own_losses)

    def gaps(self):
        """Return the frames that never reached the ring, oldest first.

        Returns
        -------
        list of Gap
            The newest entries of the ledger; it keeps at most 256. `statistics` has the totals.
        """
        cdef pcmring_gap[256] found
        cdef uint32_t n, i
        self.pin_mapped()
        try:
            n = pcmring_gaps(self.ring, found, PCMRING_MAX_GAPS)
        finally:
            self.unpin()
        return [Gap(found[i].position, found[i].frames, CAUSES[found[i].cause], found[i].exact != 0) for i in range(n)]

    def _stamps(self):
        """The time stamps kept, oldest first: list of (position, frames, adc_s, mono_ns)."""
        cdef pcmring_stamp[256] found
        cdef uint32_t n, i
        self.pin_mapped()
        try:
            n = pcmring_stamps(self.ring, found, PCMRING_MAX_STAMPS)
        finally:
            self.unpin()
        return [(found[i].position, found[i].frames, found[i].adc_s, found[i].mono_ns) for i in range(n)]

    def time_of(self, position):
        """Return when a frame was captured.

        A line is fitted through the time stamps the blocks left, between the gaps; it smooths jitter and follows
        the device's drift.

        Parameters
        ----------
        position : int
            Any position, also of frames no longer held or still to come.

        Returns
        -------
        StreamTime
            Seconds; its `clock` says on which clock.

        Raises
        ------
        ValueError
            The buffer has no samplerate.
        LookupError
            No block has been written yet.
        """
        from pcmring._timeline import Timeline
        return Timeline(self).time_of(frames_of(position, "position"))

    def position_at(self, time):
        """Return the position of the frame captured at `time`.

        Parameters
        ----------
        time : StreamTime or float
            Seconds on the clock that `time_of` reports.

        Returns
        -------
        int

        Raises
        ------
        ValueError
            The buffer has no samplerate, or `time` is of another clock or not finite.
        LookupError
            No block has been written yet.
        """
        from pcmring._timeline import Timeline
        return Timeline(self).position_at(time)

    def statistics(self):
        """Return the buffer's counters at this moment, as a `BufferStatistics`."""
        from pcmring._statistics import BufferStatistics
        cdef pcmring_control *control
        cdef uint64_t fill
        cdef int i
        self.pin_mapped()
        try:
            control = self.ring.control
            fill = self.fill_of()
            return BufferStatistics(
                capacity=self.capacity,
                channels=self.channels,
                dtype=self.dtype.name,
                samplerate=self.samplerate,
                policy=self.policy,
                mirrored=self.mirror_from != 0,
                nbytes=self.nbytes,
                memory_bytes=self.bytes,
                frames_written=pcmring_frames_written(self.ring),
                oldest=pcmring_oldest(self.ring),
                fill=fill,
                peak_fill=max(fill, pcmring_peek64(&control.peak_fill)),
                blocks=pcmring_peek64(&control.blocks),
                min_block=pcmring_peek64(&control.min_block),
                max_block=pcmring_peek64(&control.max_block),
                frames_lost={CAUSES[i]: pcmring_peek64(&control.lost[i]) for i in range(PCMRING_CAUSES)},
                gaps=pcmring_gaps_made(self.ring),
                frames_delivered=pcmring_delivered(&self.own),
                frames_overrun=self.own.lost,
            )
        finally:
            self.unpin()

    # ---- for _aio.py: event loops that sleep on this ring -----------------------------------------------

    def _arm(self, position):
        """Ask that listeners be woken at `position` frames; True if there is nothing to wait for."""
        cdef bint is_there = True
        if self.generation == generation and pcmring_pin(&self.pins):
            is_there = pcmring_arm(self.ring, position)
            self.unpin()
        return is_there

    def _add_listener(self, int fd):
        if pcmring_add_listener(self.ring, fd):
            raise RuntimeError(f"at most {PCMRING_MAX_LISTENERS} event loops can wait for one buffer")

    def _remove_listener(self, int fd):
        with nogil:
            pcmring_remove_listener(self.ring, fd)


cdef int check_held(AudioBuffer buffer, uint64_t first, uint64_t last) except -1:
    cdef uint64_t written = pcmring_frames_written(buffer.ring), oldest = pcmring_oldest(buffer.ring)
    if last > written:
        raise ValueError(f"stop must not exceed frames_written, {written}, got {last}")
    if first < oldest and first < last:
        raise FramesLost(first, last, oldest)
    return 0


@cython.no_gc_clear
@cython.freelist(16)
cdef class AudioView:
    """Frames of a ring, looked at where they lie.

    The producer goes on: use the array, then check `intact`. The memory stays mapped while the view, or an
    array made from it, lives. A context manager; leaving it only ends the use of `array`.

    Attributes
    ----------
    start, stop : int
        The positions looked at, half open.
    copied : bool
        The frames were copied after all, because they lie across the end of a ring that is not mirrored.
    """

    cdef AudioBuffer buffer
    cdef readonly uint64_t start
    cdef readonly uint64_t stop
    cdef void *data
    cdef object copy
    cdef bint released

    def __init__(self):
        raise TypeError("views come from AudioBuffer.view and latest_view")

    def __dealloc__(self):
        if self.buffer is not None:
            self.buffer.unpin()

    @property
    def array(self):
        """ndarray, shape (stop - start, channels), read-only."""
        cdef cnp.npy_intp shape[2]
        cdef cnp.ndarray array
        if self.released or self.buffer is None:
            raise BufferClosed("the view was left")
        if self.copy is not None:
            return self.copy
        shape[0] = <cnp.npy_intp>(self.stop - self.start)
        shape[1] = self.buffer.channels
        array = cnp.PyArray_SimpleNewFromData(2, shape, self.buffer.typenum, self.data)
        cnp.PyArray_CLEARFLAGS(array, cnp.NPY_ARRAY_WRITEABLE)
        cnp.set_array_base(array, self)
        return array

    @property
    def copied(self):
        return self.copy is not None

    @property
    def intact(self):
        """bool: the producer had not begun to overwrite these frames. False means: what was read is worthless."""
        return self.copy is not None or self.start == self.stop or pcmring_first_whole(self.buffer.ring) <= self.start

    def __len__(self):
        return self.stop - self.start

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.released = True

    def __repr__(self):
        return f"<AudioView of frames {self.start} to {self.stop}{', copied' if self.copied else ''}>"


cdef AudioView make_view(AudioBuffer buffer, uint64_t first, uint64_t last):
    """A view of frames that were held a moment ago. The caller pins."""
    cdef AudioView view = AudioView.__new__(AudioView)
    cdef uint64_t index = pcmring_slot_of_(buffer.ring, first), torn
    cdef cnp.ndarray copy
    view.start = first
    view.stop = last
    if buffer.mirror_from == 0 and index + (last - first) > buffer.ring.slots:
        copy = new_frames(buffer, last - first)
        torn = pcmring_copy_range(buffer.ring, cnp.PyArray_DATA(copy), first, last - first)
        if torn:
            raise FramesLost(first, last, first + torn)
        cnp.PyArray_CLEARFLAGS(copy, cnp.NPY_ARRAY_WRITEABLE)
        view.copy = copy
    view.data = buffer.ring.data + index * buffer.frame_bytes
    pcmring_pin_mapped(&buffer.pins)  # closed meanwhile, perhaps: the caller's pin keeps the memory
    view.buffer = buffer
    return view


cdef inline object reader_count(Reader reader, uint64_t frames):
    if reader.last_int is None or reader.last_count != frames:
        reader.last_int = frames
        reader.last_count = frames
    return reader.last_int


@cython.no_gc_clear
cdef class Reader:
    """One consumer's position in an AudioBuffer.

    Belongs to one thread, or one task, at a time: a call that meets another raises RuntimeError. Always,
    ``position - start == delivered + lost``.

    A closed buffer can be read to its end through its readers; then they raise `BufferClosed`.
    """

    cdef pcmring_reader state
    cdef uint32_t busy        # claim
    cdef uint32_t is_closed   # set by any thread
    cdef uint32_t unpinned    # claim of the one who gives the pin back
    cdef AudioBuffer buffer
    cdef uint32_t wait_ended  # like is_closed, but passing: ends Blocks._wait
    cdef uint64_t handed      # position after the newest frame handed out: windows overlap
    cdef object seen_losses   # deque of (first, last), or None while nothing was lost
    cdef uint64_t last_count
    cdef object last_int
    cdef public object _listener
    cdef readonly object name
    cdef object __weakref__

    def __cinit__(self, buffer=None):
        if not isinstance(buffer, AudioBuffer):
            raise TypeError("readers come from AudioBuffer.reader")
        (<AudioBuffer>buffer).pin()
        self.buffer = buffer

    def __init__(self, buffer):
        raise TypeError("readers come from AudioBuffer.reader")

    def __dealloc__(self):
        if self.buffer is not None:  # a closed buffer's pin was refused
            self.give_back()

    cdef int give_back(self) except -1:
        """End the guard and the pin, once."""
        if pcmring_claim_take(&self.unpinned):
            if self.buffer.generation == generation:
                if self.state.guard != NULL:
                    pcmring_raise_peak(self.buffer.ring, self.buffer.fill_of())
                pcmring_guard_close(self.buffer.ring, &self.state)
            self.buffer.unpin()
        return 0

    cdef int note(self, uint64_t before, uint64_t first, uint64_t got) except -1:
        """After a read that went from `before` to `first`: frames an earlier window held are not lost."""
        cdef uint64_t gone_from
        if first != before:
            gone_from = min(max(before, self.handed), first)
            self.state.lost -= gone_from - before
            if gone_from != first:
                self.seen_losses = note_loss(self.seen_losses, gone_from, first)
        if first + got > self.handed:
            self.handed = first + got
        return 0

    cdef int begin(self) except -1:
        if self.buffer.generation != generation:
            raise BufferClosed("this reader belongs to the parent process")
        if pcmring_is_set32(&self.is_closed):  # first: who closed it keeps the claim
            raise BufferClosed("the reader is closed")
        if not pcmring_claim_take(&self.busy):
            if pcmring_is_set32(&self.is_closed):  # closed this moment
                raise BufferClosed("the reader is closed")
            raise RuntimeError("another thread is using this reader; open a reader() for each")
        if pcmring_is_set32(&self.is_closed):
            self.end()
            raise BufferClosed("the reader is closed")
        return 0

    cdef int end(self) except -1:
        pcmring_claim_give(&self.busy)
        pcmring_claim_fence()  # partner of the one in close(): either we meet that it is closed, or it a free claim
        if pcmring_is_set32(&self.is_closed) and pcmring_claim_take(&self.busy):
            self.give_back()  # closed while we were in here; the claim is kept: nobody comes in again
        return 0

    def close(self):
        """End the reader: a wait in it wakes at once, its guard ends. Idempotent; any thread."""
        cdef object listener
        if self.buffer.generation != generation:
            return
        pcmring_set32(&self.is_closed)
        pcmring_set32(&self.wait_ended)
        pcmring_claim_fence()
        if pcmring_claim_take(&self.busy):
            self.give_back()
        elif pcmring_pin_mapped(&self.buffer.pins):  # somebody is in a call, and may be asleep
            with nogil:
                pcmring_wake(self.buffer.ring)
            self.buffer.unpin()
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.release()

    @property
    def closed(self):
        """bool: `close` was called, or this is the child of a fork."""
        return pcmring_is_set32(&self.is_closed) or self.buffer.generation != generation

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __repr__(self):
        return (f"<Reader{'' if self.name is None else ' ' + repr(self.name)} at {self.state.position}, "
                f"{self.state.lost} frames lost{', closed' if self.closed else ''}>")

    @property
    def start(self):
        """int: the position it was opened at."""
        return self.state.start

    @property
    def position(self):
        """int: the next frame it reads."""
        return self.state.position

    @property
    def delivered(self):
        """int: frames it was given. Overlapping windows count each frame once."""
        return pcmring_delivered(&self.state)

    @property
    def lost(self):
        """int: frames that were gone before it read them."""
        return self.state.lost

    @property
    def guard(self):
        """bool: "drop" and "block" keep what it has not read."""
        return self.state.guard != NULL

    @property
    def available(self):
        """int: frames a read would find now; 0 when closed."""
        cdef pcmring_reader now = self.state  # first: a read in another thread only moves it on
        cdef uint64_t available = 0
        if not self.closed and pcmring_pin_mapped(&self.buffer.pins):
            available = pcmring_available(self.buffer.ring, &now)
            self.buffer.unpin()
        return available

    def losses(self):
        """Return the frames it lost, as a list of ``(first, last)``, half open; the newest 1,024 ranges."""
        return copied(self.seen_losses)

    cdef int check_ended(self, uint64_t wanted, uint64_t got) except -1:
        if got == 0 and wanted and pcmring_is_ended(self.buffer.ring):
            if pcmring_available(self.buffer.ring, &self.state) == 0:
                raise BufferClosed("the buffer is closed and read to its end")
        return 0

    def read(self, num_samples, timeout=0.0):
        """Take the oldest unread frames, in order.

        Parameters
        ----------
        num_samples : int
            Frames wanted.
        timeout : float or None, optional
            Seconds to wait until they are there: 0.0 takes what there is, None waits without limit. Waits for at
            most `capacity` frames. Closing the buffer or the reader ends the wait.

        Returns
        -------
        ndarray, shape (n, channels), n <= num_samples
            A copy, of the buffer's dtype.

        Raises
        ------
        BufferClosed, RuntimeError
            The reader is closed, or the buffer is and was read to its end; another thread is in a call.
        """
        cdef AudioBuffer buffer = self.buffer
        cdef uint64_t frames = frames_of(num_samples, "num_samples")
        cdef int64_t deadline_ns = deadline_of(timeout)
        cdef uint64_t before, first = 0, got, wanted = frames
        cdef cnp.ndarray out
        self.begin()
        try:
            buffer.await_frames(&self.state, frames, deadline_ns, &self.is_closed)
            frames = min(frames, pcmring_available(buffer.ring, &self.state))
            out = new_frames(buffer, frames)
            before = self.state.position
            got = buffer.take(&self.state, cnp.PyArray_DATA(out), frames, PCMRING_NEVER, &first)
            self.note(before, first, got)
            self.check_ended(wanted, got)
            return out if got == frames else out[:got]
        finally:
            self.end()

    @cython.binding(False)
    def read_into(self, out, timeout=0.0):
        """Take the oldest unread frames into `out`, allocating nothing.

        Parameters
        ----------
        out : ndarray of the buffer's dtype, shape (frames, channels) or (frames,) for mono
            C-contiguous and writable. Its first frames are filled.
        timeout : float or None, optional
            As for `read`.

        Returns
        -------
        int
            Frames read.
        """
        cdef AudioBuffer buffer = self.buffer
        cdef int64_t deadline_ns = deadline_of(timeout)  # first: a __float__ may do anything, also reshape `out`
        cdef cnp.ndarray into = check_out(buffer, out)
        cdef uint64_t frames = <uint64_t>cnp.PyArray_DIM(into, 0)
        cdef uint64_t before, first = 0, got
        self.begin()
        try:
            if deadline_ns:
                buffer.await_frames(&self.state, frames, deadline_ns, &self.is_closed)
            before = self.state.position
            got = buffer.take(&self.state, cnp.PyArray_DATA(into), frames, PCMRING_NEVER, &first)
            self.note(before, first, got)
            self.check_ended(frames, got)
            return reader_count(self, got)
        finally:
            self.end()

    def blocks(self, n, hop=None, timeout=None):
        """Iterate over windows of `n` frames, with ``for`` or ``async for``.

        Each is a `Block` with its own array. The iteration ends when the reader is closed, or the buffer is and
        was read to its end; the last window may then be shorter. Where frames were lost the next window starts
        after them.

        Parameters
        ----------
        n : int
            Frames in a window, 1 to `capacity`.
        hop : int, optional
            Frames from one window to the next, 1 to `n`; `n` if not given.
        timeout : float or None, optional
            Seconds to wait for a window. When they are over TimeoutError is raised; nothing is lost, and the
            iteration can go on.

        Returns
        -------
        Blocks
        """
        cdef Blocks blocks
        cdef uint64_t frames = frames_of(n, "n")
        cdef uint64_t step = frames if hop is None else frames_of(hop, "hop")
        if not 1 <= frames <= self.buffer.capacity:
            raise ValueError(f"n must be 1 to the capacity, {self.buffer.capacity} frames, got {n}")
        if not 1 <= step <= frames:
            raise ValueError(f"hop must be 1 to n, {n} frames, got {hop}")
        deadline_of(timeout)
        if self.closed:
            raise BufferClosed("the reader is closed")
        blocks = Blocks.__new__(Blocks, self)
        blocks.frames = frames
        blocks.hop = step
        blocks.timeout = timeout
        blocks.lost_before = self.state.lost
        return blocks


cdef class Blocks:
    """Windows of a reader's frames: an iterator and an asynchronous iterator."""

    cdef readonly Reader reader
    cdef uint64_t frames
    cdef uint64_t hop
    cdef readonly object timeout
    cdef uint64_t end          # position after the newest frame handed out
    cdef uint64_t target       # frames_written at which the next window will be there
    cdef uint64_t lost_before  # reader.lost when the last window was handed out
    cdef bint is_over

    def __cinit__(self, reader=None):
        if not isinstance(reader, Reader):
            raise TypeError("windows come from Reader.blocks")
        self.reader = reader
        self.frames = self.hop = 1

    def __init__(self, reader):
        raise TypeError("windows come from Reader.blocks")

    cdef object next_block(self):
        """The next Block, or None if it is not there yet; sets is_over at the end. The reader is ours."""
        cdef Reader reader = self.reader
        cdef AudioBuffer buffer = reader.buffer
        # before looking for frames: those that came before the end are then seen
        cdef bint at_end = pcmring_is_ended(buffer.ring)
        cdef uint64_t before, first = 0, got, frames, available
        cdef cnp.ndarray out
        while True:
            available = pcmring_available(buffer.ring, &reader.state)
            frames = self.frames
            if available < frames:
                if not at_end:
                    # not from `available`: frames may have come since it was asked
                    self.target = max(reader.state.position, pcmring_oldest(buffer.ring)) + frames
                    return None
                frames = available
                if frames == 0 or pcmring_frames_written(buffer.ring) <= self.end:
                    self.is_over = True
                    return None
            out = new_frames(buffer, frames)
            before = reader.state.position
            got = buffer.take(&reader.state, cnp.PyArray_DATA(out), frames, 0, &first)
            reader.note(before, first, got if got == frames else 0)
            if got < frames:  # overtaken while copying: the window starts anew after the loss
                continue
            pcmring_advance_(buffer.ring, &reader.state, first + min(self.hop, frames))
            self.end = first + frames
            lost = reader.state.lost - self.lost_before
            self.lost_before = reader.state.lost
            return Block(first, frames, out, lost)

    def _poll(self):
        """The next Block; None if it is not there yet; False at the end. For _aio.py."""
        cdef object block
        if self.is_over or self.reader.closed:
            return False
        try:
            self.reader.begin()
        except BufferClosed:  # this moment
            return False
        try:
            block = self.next_block()
        finally:
            self.reader.end()
        return False if self.is_over else block

    @property
    def _target(self):
        """frames_written at which the next window will be there, as of the last _poll. For _aio.py."""
        return self.target

    def _wait(self, seconds):
        """Sleep in this thread until the next window may be there. For _aio.py, in an executor's thread."""
        cdef int64_t deadline_ns = deadline_of(seconds)
        if not self.reader.closed:
            self.reader.begin()
            try:
                self.reader.buffer.await_frames(&self.reader.state, self.frames, deadline_ns, &self.reader.wait_ended)
            finally:
                self.reader.end()

    def _end_wait(self):
        """Make `_wait` return, now or when it begins, until `_may_wait`."""
        pcmring_set32(&self.reader.wait_ended)
        if pcmring_pin_mapped(&self.reader.buffer.pins):
            with nogil:
                pcmring_wake(self.reader.buffer.ring)
            self.reader.buffer.unpin()

    def _may_wait(self):
        if not self.reader.closed:
            self.reader.wait_ended = 0

    @property
    def _buffer(self):
        return self.reader.buffer

    def __iter__(self):
        return self

    def __next__(self):
        cdef Reader reader = self.reader
        cdef int64_t deadline_ns
        cdef object block = None
        cdef int result
        if self.is_over or reader.closed:
            raise StopIteration
        deadline_ns = deadline_of(self.timeout)
        try:
            reader.begin()
        except BufferClosed:  # this moment
            raise StopIteration from None
        try:
            while True:
                block = self.next_block()
                if block is not None:
                    return block
                if self.is_over or pcmring_is_set32(&reader.is_closed):
                    break
                result = reader.buffer.await_frames(&reader.state, self.frames, deadline_ns, &reader.is_closed)
                if result == PCMRING_TIMED_OUT:
                    raise TimeoutError(f"no window of {self.frames} frames within {self.timeout} s")
        finally:
            reader.end()
        raise StopIteration

    def __aiter__(self):
        return self

    def __anext__(self):
        from pcmring._aio import next_block
        return next_block(self)


# ---- the table of api.h ----------------------------------------------------------------------------

cdef extern from "pcmring/api.h":
    ctypedef struct pcmring_api:
        uint32_t version
        uint32_t bytes
        pcmring_ring *(*acquire_producer)(object) except NULL
        int (*release_producer)(object) except -1
        uint64_t (*write)(pcmring_ring *, const void *, uint32_t, uint64_t) noexcept nogil
        uint64_t (*frames_written)(const pcmring_ring *) noexcept nogil
        uint64_t (*latest)(const pcmring_ring *, void *, uint64_t, uint64_t *) noexcept nogil
    const uint32_t PCMRING_API_VERSION


# ---- what a method does at once, under the GIL: NotImplemented if that is not all there is to it ------------------

cdef object write_at_once "write_at_once" (object ring, object data):
    cdef AudioBuffer self = <AudioBuffer>ring
    cdef uint32_t src_format = plain_format(data, self.channels)
    cdef const uint8_t *src
    cdef uint64_t frames, accepted
    cdef int wake
    if src_format == 0 or not pcmring_gil_claims(&self.producer, &self.pins) or self.generation != generation:
        return NotImplemented
    src = <const uint8_t *>cnp.PyArray_DATA(<cnp.ndarray>data)
    frames = <uint64_t>cnp.PyArray_DIM(<cnp.ndarray>data, 0)
    if frames > self.quick_frames or is_mapped(self, src):
        return NotImplemented
    accepted = pcmring_write(self.ring, src, src_format, frames, NULL, &wake)
    if wake:
        self.wake_readers()
    return written_count(self, accepted)


cdef object read_into_at_once "read_into_at_once" (object ring, object out):
    cdef AudioBuffer self = <AudioBuffer>ring
    cdef uint64_t frames, before, first = 0, got
    if (plain_format(out, self.channels) != self.format or not cnp.PyArray_ISWRITEABLE(<cnp.ndarray>out)
            or not pcmring_gil_claims(&self.own_busy, &self.pins) or self.generation != generation
            or not self.own.counts_fill):
        return NotImplemented
    frames = <uint64_t>cnp.PyArray_DIM(<cnp.ndarray>out, 0)
    if frames * self.frame_bytes >= GIL_BYTES:
        return NotImplemented
    before = self.own.position
    got = pcmring_read(self.ring, &self.own, cnp.PyArray_DATA(<cnp.ndarray>out), frames, PCMRING_NEVER, &first)
    if first != before:
        self.own_losses = note_loss(self.own_losses, before, first)
    return read_count(self, got)


cdef object reader_read_into_at_once "reader_read_into_at_once" (object reader, object out):
    cdef Reader self = <Reader>reader
    cdef AudioBuffer buffer = self.buffer
    cdef uint64_t frames, before, first = 0, got
    if (plain_format(out, buffer.channels) != buffer.format or not cnp.PyArray_ISWRITEABLE(<cnp.ndarray>out)
            or not pcmring_gil_claims(&self.busy, &buffer.pins)  # who closes a reader keeps its claim
            or buffer.generation != generation):
        return NotImplemented
    frames = <uint64_t>cnp.PyArray_DIM(<cnp.ndarray>out, 0)
    if frames * buffer.frame_bytes >= GIL_BYTES:
        return NotImplemented
    before = self.state.position
    got = pcmring_read(buffer.ring, &self.state, cnp.PyArray_DATA(<cnp.ndarray>out), frames, PCMRING_NEVER, &first)
    self.note(before, first, got)
    return reader_count(self, got)


write_install(AudioBuffer, b"write")
read_into_install(AudioBuffer, b"read_into")
reader_read_into_install(Reader, b"read_into")


cdef AudioBuffer a_buffer(object buffer):
    if not isinstance(buffer, AudioBuffer):
        raise TypeError(f"an AudioBuffer is needed, got {type(buffer).__name__}")
    return <AudioBuffer>buffer


cdef pcmring_ring *api_acquire_producer(object buffer) except NULL:
    return a_buffer(buffer).acquire_producer()


cdef int api_release_producer(object buffer) except -1:
    return a_buffer(buffer).release_producer()


cdef uint64_t api_write(pcmring_ring *ring, const void *frames, uint32_t format, uint64_t count) noexcept nogil:
    cdef int wake = 0
    cdef uint64_t accepted = pcmring_write(ring, frames, format, count, NULL, &wake)
    if wake:
        pcmring_wake(ring)
    return accepted


cdef uint64_t api_frames_written(const pcmring_ring *ring) noexcept nogil:
    return pcmring_frames_written(ring)


cdef uint64_t api_latest(const pcmring_ring *ring, void *out, uint64_t frames, uint64_t *start) noexcept nogil:
    return pcmring_latest(ring, out, frames, start)


cdef pcmring_api api_table
api_table.version = PCMRING_API_VERSION
api_table.bytes = sizeof(pcmring_api)
api_table.acquire_producer = api_acquire_producer
api_table.release_producer = api_release_producer
api_table.write = api_write
api_table.frames_written = api_frames_written
api_table.latest = api_latest
_api = PyCapsule_New(&api_table, "pcmring._buffer._api", NULL)
