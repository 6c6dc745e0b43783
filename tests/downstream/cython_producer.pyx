"""A downstream Cython module: the producer of somebody's AudioBuffer, writing without the GIL."""
cimport pcmring._buffer
from libc.stdint cimport int32_t, uint32_t, uint64_t
from pcmring._buffer cimport (
    PCMRING_INT32,
    AudioBuffer,
    pcmring_frames_written,
    pcmring_latest,
    pcmring_ring,
    pcmring_wake,
    pcmring_write,
)

cdef extern from "frames.h" nogil:
    void fill_frames(int32_t *out, uint64_t position, uint64_t frames, uint32_t channels)
    int in_foreign_thread(void *(*work)(void *) noexcept nogil, void *argument)

cdef enum:
    BLOCK_SAMPLES = 4096

ctypedef struct Order:
    pcmring_ring *ring
    uint64_t frames
    uint64_t block
    uint64_t accepted


cdef void *write_frames(void *argument) noexcept nogil:
    cdef Order *order = <Order *>argument
    cdef int32_t[BLOCK_SAMPLES] block
    cdef uint64_t done = 0, n
    cdef int wake = 0
    while done < order.frames:
        n = min(order.block, order.frames - done)
        fill_frames(block, pcmring_frames_written(order.ring), n, order.ring.channels)
        order.accepted += pcmring_write(order.ring, block, PCMRING_INT32, n, NULL, &wake)
        if wake:
            pcmring_wake(order.ring)
        done += n
    return NULL


cdef class Producer:
    """Becomes the producer of `buffer` until release()."""

    cdef readonly AudioBuffer buffer
    cdef pcmring_ring *ring

    def __cinit__(self, pcmring._buffer.AudioBuffer buffer not None):
        self.ring = buffer.acquire_producer()
        self.buffer = buffer

    def write(self, uint64_t frames, uint64_t block, bint foreign=False):
        """Write this many frames in a C loop, here or in a foreign thread; returns the frames accepted."""
        cdef Order order
        cdef int error = 0
        if self.ring == NULL:
            raise RuntimeError("released")
        if block * self.ring.channels > BLOCK_SAMPLES:
            raise ValueError("block")
        order.ring, order.frames, order.block, order.accepted = self.ring, frames, block, 0
        with nogil:
            if foreign:
                error = in_foreign_thread(write_frames, &order)
            else:
                write_frames(&order)
        if error:
            raise OSError(error, "pthread_create")
        return order.accepted

    def latest(self):
        """(position, first sample) of the newest frame, by C; (position, None) if there is none."""
        cdef int32_t[64] frame
        cdef uint64_t start = 0, got
        with nogil:
            got = pcmring_latest(self.ring, frame, 1, &start)
        return start, frame[0] if got else None

    def release(self):
        if self.ring != NULL:
            self.ring = NULL
            self.buffer.release_producer()
