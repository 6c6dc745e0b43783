/* pcmring/api.h: write into an AudioBuffer from a C or C++ extension module, without the GIL.
 *
 *     const pcmring_api *api = pcmring_import_api();          // once, with the GIL; NULL: exception set
 *     pcmring_ring *ring = api->acquire_producer(buffer);     // with the GIL; NULL: exception set
 *     api->write(ring, frames, PCMRING_API_FLOAT32, count);   // any one thread, no GIL, wait-free
 *     api->release_producer(buffer);                          // with the GIL
 *
 * The functions live in pcmring's own module: a program built against one release runs with later ones. Between
 * acquire and release hold a reference to `buffer`. */
#ifndef PCMRING_API_H
#define PCMRING_API_H

#include <Python.h>
#include <stdint.h>

#define PCMRING_API_VERSION 1u

#define PCMRING_API_INT16 1u
#define PCMRING_API_INT32 2u
#define PCMRING_API_FLOAT32 3u
#define PCMRING_API_FLOAT64 4u

struct pcmring_ring;

typedef struct pcmring_api {
    uint32_t version; /* PCMRING_API_VERSION; changes only when a program must be changed */
    uint32_t bytes;   /* of this table; later releases append to it */
    /* Become the buffer's one producer. GIL. NULL with an exception: closed, or somebody else is. */
    struct pcmring_ring *(*acquire_producer)(PyObject *buffer);
    /* Stop being it. GIL. -1 with an exception. */
    int (*release_producer)(PyObject *buffer);
    /* Store interleaved frames of `format` with the ring's channels and wake who waits. Returns the frames
     * accepted, as pcmring_write() does. No GIL, wait-free. */
    uint64_t (*write)(struct pcmring_ring *ring, const void *frames, uint32_t format, uint64_t count);
    /* Position of the next frame. No GIL, any thread. */
    uint64_t (*frames_written)(const struct pcmring_ring *ring);
    /* Copy the newest frames; `*start` is the first one's position. No GIL, any thread. */
    uint64_t (*latest)(const struct pcmring_ring *ring, void *out, uint64_t frames, uint64_t *start);
} pcmring_api;

static inline const pcmring_api *pcmring_import_api(void)
{
    const pcmring_api *api = (const pcmring_api *)PyCapsule_Import("pcmring._buffer._api", 0);
    if (api && (api->version != PCMRING_API_VERSION || api->bytes < sizeof *api)) {
        PyErr_SetString(PyExc_ImportError, "the installed pcmring is older than the one this module was built for");
        return NULL;
    }
    return api;
}

#endif
