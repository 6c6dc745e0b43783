# cython: language_level=3
"""The cimport surface: write into, or read from, an AudioBuffer without the GIL.

    from pcmring._buffer cimport AudioBuffer, pcmring_ring, pcmring_write, pcmring_wake

    cdef pcmring_ring *ring = buffer.acquire_producer()   # with the GIL; one producer at a time
    with nogil:
        pcmring_write(ring, data, PCMRING_FLOAT32, frames, NULL, &wake)
        if wake:
            pcmring_wake(ring)
    buffer.release_producer()

Compile with ``include_dirs=[pcmring.get_include()]``.
"""
cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "pcmring/ring.h" nogil:
    ctypedef unsigned int pcmring_a32    # opaque: only ring.h's functions may touch one
    ctypedef unsigned long long pcmring_a64

    const uint64_t PCMRING_NEVER
    const int64_t PCMRING_FOREVER
    const uint32_t PCMRING_MAX_CHANNELS
    const uint32_t PCMRING_GUARD_SLOTS
    const uint32_t PCMRING_MAX_GAPS
    const uint32_t PCMRING_MAX_STAMPS
    const uint32_t PCMRING_MAX_LISTENERS

    enum:
        PCMRING_INT16
        PCMRING_INT32
        PCMRING_FLOAT32
        PCMRING_FLOAT64
    enum:
        PCMRING_OVERWRITE
        PCMRING_DROP
        PCMRING_BLOCK
    enum:
        PCMRING_DEVICE_OVERFLOW
        PCMRING_DROPPED
        PCMRING_REOPENED
        PCMRING_PAUSED
        PCMRING_CAUSES
    enum:
        PCMRING_READY
        PCMRING_TIMED_OUT
        PCMRING_CLOSED
        PCMRING_INTERRUPTED

    ctypedef struct pcmring_guard:
        pass
    ctypedef struct pcmring_control:
        uint64_t capacity
        uint64_t slots
        uint64_t total_bytes
        uint64_t data_offset
        uint32_t gap_slots
        uint32_t stamp_slots
        pcmring_a64 committed
        pcmring_a64 blocks
        pcmring_a64 min_block
        pcmring_a64 max_block
        pcmring_a64 peak_fill
        pcmring_a64 floor
        pcmring_a64 *lost
    ctypedef struct pcmring_ring:
        pcmring_control *control
        uint8_t *data
        uint64_t capacity
        uint64_t slots
        uint32_t channels
        uint32_t format
        uint32_t frame_bytes
        uint32_t policy
    ctypedef struct pcmring_config:
        uint64_t capacity
        uint64_t slots
        uint64_t data_align
        uint64_t first_position
        double samplerate
        uint32_t channels
        uint32_t format
        uint32_t policy
        uint32_t shared
    ctypedef struct pcmring_reader:
        pcmring_guard *guard
        uint64_t start
        uint64_t position
        uint64_t lost
        uint64_t peak
        uint32_t counts_fill
    ctypedef struct pcmring_gap:
        uint64_t position
        uint64_t frames
        uint32_t cause
        uint32_t exact
    ctypedef struct pcmring_stamp:
        uint64_t position
        uint64_t frames
        double adc_s
        int64_t mono_ns
    ctypedef struct pcmring_when:
        double adc_s
        int64_t mono_ns

    int64_t pcmring_now_ns()
    uint64_t pcmring_write(pcmring_ring *ring, const void *src, uint32_t src_format, uint64_t frames,
                           const pcmring_when *when, int *wake)
    void pcmring_wake(pcmring_ring *ring)
    void pcmring_add_gap(pcmring_ring *ring, uint64_t frames, uint32_t cause, uint32_t exact)
    uint64_t pcmring_frames_written(const pcmring_ring *ring)
    uint64_t pcmring_gaps_made(const pcmring_ring *ring)
    uint64_t pcmring_oldest(const pcmring_ring *ring)
    uint64_t pcmring_latest(const pcmring_ring *ring, void *out, uint64_t frames, uint64_t *start)
    uint64_t pcmring_copy_range(const pcmring_ring *ring, void *out, uint64_t start, uint64_t frames)
    int pcmring_is_closed(const pcmring_ring *ring)


cdef class AudioBuffer:
    # What stays true after close().
    cdef readonly uint64_t capacity    # frames
    cdef readonly uint32_t channels
    cdef readonly object dtype
    cdef readonly object samplerate    # hertz or None
    cdef readonly object name
    cdef readonly str policy
    cdef uint32_t format               # PCMRING_INT16 ...
    cdef uint32_t frame_bytes
    cdef int typenum                   # NumPy's number of dtype
    cdef int blocks_producer           # policy is "block"
    cdef uint32_t quick_frames         # a write of so many neither waits nor needs to give up the GIL
    cdef uint64_t final_written        # frames_written when the memory went

    # The ring and its memory.
    cdef pcmring_ring *ring            # NULL once the memory is gone
    cdef uint8_t *base                 # the memory: control block, tables, frames
    cdef size_t bytes                  # of it, each byte counted once
    cdef size_t mirror_from            # offset of the part mapped twice; 0: not mirrored
    cdef size_t mapped_bytes           # of addresses
    cdef uint32_t pins                 # calls, readers and views that need the memory; claim.h
    cdef uint32_t producer             # claim of the one who writes
    cdef unsigned int generation       # of the process that made it

    # The buffer's own reader.
    cdef pcmring_reader own
    cdef uint32_t own_busy             # claim on it
    cdef object own_losses             # deque of (first, last), or None while nothing was lost

    cdef uint64_t last_written_count   # a steady stream of equal blocks makes no new int
    cdef object last_written_int
    cdef uint64_t last_read_count
    cdef object last_read_int
    cdef object tracker
    cdef object __weakref__

    # Become the one producer: Python's write() is refused until release_producer(). Needs the GIL. The
    # ring stays valid in between even if somebody closes the buffer.
    @cython.final
    cdef pcmring_ring *acquire_producer(self) except NULL
    @cython.final
    cdef int release_producer(self) except -1

    # The rest is this library's own business.
    @cython.final
    cdef bint is_foreign(self) noexcept  # made by the parent of this process
    @cython.final
    cdef int wake_readers(self) except -1
    @cython.final
    cdef int pin(self) except -1
    @cython.final
    cdef int pin_mapped(self) except -1
    @cython.final
    cdef int unpin(self) except -1
    @cython.final
    cdef int release_memory(self) except -1
    @cython.final
    cdef tuple as_block(self, object data)
    @cython.final
    cdef uint64_t write_rest(self, const uint8_t *src, uint32_t src_format, uint64_t frames,
                             int64_t deadline_ns) except? 18446744073709551615u
    @cython.final
    cdef int sleep_until(self, uint64_t target, int64_t deadline_ns, uint32_t *cancel) except -1
    @cython.final
    cdef int await_frames(self, pcmring_reader *reader, uint64_t frames, int64_t deadline_ns,
                          uint32_t *cancel) except -1
    @cython.final
    cdef uint64_t take(self, pcmring_reader *reader, void *out, uint64_t frames, uint64_t advance,
                       uint64_t *first) noexcept
    @cython.final
    cdef uint64_t fill_of(self) noexcept


# One of the four dtypes, or a TypeError that names them; and ring.h's number for it.
cdef object dtype_of(object dtype)
cdef uint32_t format_of(object dtype) except 0
