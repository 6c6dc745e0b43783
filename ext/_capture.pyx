"""The capture callback: PortAudio's real-time thread writes into an AudioBuffer without Python.

The function is capture.h's; this module gives out its address and its userdata. Links no PortAudio.
"""
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t

import warnings

from pcmring._buffer cimport AudioBuffer, dtype_of, format_of, pcmring_a64, pcmring_ring
from pcmring.errors import BufferClosed


cdef extern from "pcmring/capture.h" nogil:
    ctypedef struct pcmring_pa_times:
        pass
    ctypedef struct pcmring_capture:
        pcmring_ring *ring
        uint32_t format
        uint32_t realtime
        int64_t missing_since_ns
        pcmring_a64 callbacks
        pcmring_a64 overflows
        pcmring_a64 underflows
        pcmring_a64 empty
        pcmring_a64 last_call_ns
        pcmring_a64 thread_id
    int pcmring_capture_callback(const void *input, void *output, unsigned long frames,
                                 const pcmring_pa_times *times, unsigned long flags, void *userdata)
    void pcmring_capture_stop(pcmring_capture *capture)

cdef extern from *:
    """
    static inline uint64_t pcmring_capture_peek(pcmring_a64 *word) { return pcmring_load(word, relaxed); }
    """
    uint64_t pcmring_capture_peek(pcmring_a64 *word) nogil

cdef extern from "claim.h":
    bint pcmring_claim_take(uint32_t *claim)


cdef class CaptureCallback:
    """A PaStreamCallback that writes what PortAudio captures into `buffer`.

    Hand `address` and `userdata` to a stream of the buffer's channels and samplerate, and keep this object until
    the stream is closed. Until then the callback is the buffer's producer: other writes are refused.

    The callback calls no Python, allocates nothing and takes no lock. A block that carries PortAudio's overflow
    flag leaves a "device_overflow" gap before it, its length estimated from the device's clock, or from the
    arrival times where the host gives none.

    Parameters
    ----------
    buffer : AudioBuffer
        Where the frames go.
    dtype : dtype, optional
        What the stream delivers: int16, int32, float32 or float64. The buffer's dtype if not given; else the
        callback converts.
    realtime : bool, optional
        The first call gives its thread the lowest real-time priority, on Linux and if the system allows that
        (RLIMIT_RTPRIO). For threads that do nothing else than call this.
    missing_since_ns : int, optional
        `time.monotonic_ns` of the last frame of the stream that this one goes on with. What is missing until the
        first block is entered into the ledger as "reopened", by the arrival times.

    Raises
    ------
    RuntimeError
        Somebody else is writing to the buffer.
    BufferClosed
        The buffer is closed.
    """

    cdef pcmring_capture *capture
    cdef readonly AudioBuffer buffer
    cdef readonly object dtype
    cdef bint is_attached   # it became the producer
    cdef uint32_t detached  # claim of the one who gives the producer's place back

    def __cinit__(self, AudioBuffer buffer not None, dtype=None, *, bint realtime=False,
                  int64_t missing_since_ns=0):
        self.dtype = buffer.dtype if dtype is None else dtype_of(dtype)
        self.capture = <pcmring_capture *>PyMem_RawCalloc(1, sizeof(pcmring_capture))
        if self.capture == NULL:
            raise MemoryError("no memory for the capture's state")
        self.capture.format = format_of(self.dtype)
        self.capture.ring = buffer.acquire_producer()
        self.capture.realtime = realtime
        self.capture.missing_since_ns = missing_since_ns
        self.buffer = buffer
        self.is_attached = True

    def __dealloc__(self):
        PyMem_RawFree(self.capture)

    def __del__(self):
        if not self.closed:
            try:
                warnings.warn("a CaptureCallback was not closed", ResourceWarning, source=self)
            finally:
                self.close()

    def stop(self):
        """Refuse further blocks: when this returns the callback no longer touches the buffer.

        The next call tells PortAudio that the stream is complete. Idempotent; any thread.
        """
        if not self.closed and not self.buffer.is_foreign():  # a child's copy of `busy` never falls
            with nogil:
                pcmring_capture_stop(self.capture)

    def close(self):
        """Stop, and let others write to the buffer. Idempotent. Close the stream before dropping this object."""
        self.stop()
        if self.is_attached and pcmring_claim_take(&self.detached) and not self.buffer.is_foreign():
            self.buffer.release_producer()

    def __enter__(self):
        if self.closed:
            raise BufferClosed("the capture is closed")
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __repr__(self):
        return f"<CaptureCallback of {self.dtype} into {self.buffer!r}{', closed' if self.closed else ''}>"

    @property
    def closed(self):
        """bool: `close` was called."""
        return not self.is_attached or self.detached != 0

    @property
    def address(self):
        """int: address of the C function, a PaStreamCallback."""
        return <uintptr_t>&pcmring_capture_callback

    @property
    def userdata(self):
        """int: address of its userdata."""
        return <uintptr_t>self.capture

    @property
    def callbacks(self):
        """int: calls so far."""
        return pcmring_capture_peek(&self.capture.callbacks)

    @property
    def overflows(self):
        """int: calls that said frames had been lost before."""
        return pcmring_capture_peek(&self.capture.overflows)

    @property
    def underflows(self):
        """int: calls that said the device had been late."""
        return pcmring_capture_peek(&self.capture.underflows)

    @property
    def empty_callbacks(self):
        """int: calls that brought no frames."""
        return pcmring_capture_peek(&self.capture.empty)

    @property
    def last_call_ns(self):
        """int: `time.monotonic_ns` at the last call, 0 before the first: how a silent device is noticed."""
        return pcmring_capture_peek(&self.capture.last_call_ns)

    @property
    def realtime_thread_id(self):
        """int: the system's, of the thread that got a real-time priority here; 0 if none did."""
        return pcmring_capture_peek(&self.capture.thread_id)
