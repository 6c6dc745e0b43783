/* The memory of a private ring: one block, zeroed, every page touched before anyone writes audio to it.
 *
 * Mirrored (Linux): the frames are mapped twice in a row, so that any window of them, also one across the end,
 * is one contiguous stretch of addresses. Costs two mappings and no second copy in memory. */
#ifndef PCMRING_MAPPING_H
#define PCMRING_MAPPING_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#include <malloc.h>
#else
#include <sys/mman.h>
#include <unistd.h>
#endif
#if defined(__linux__)
#include <fcntl.h>
#include <sys/syscall.h>
#define PCMRING_CAN_MIRROR 1
#else
#define PCMRING_CAN_MIRROR 0
#endif

static inline size_t pcmring_page_bytes(void)
{
#if defined(_WIN32)
    return 65536;
#else
    return (size_t)sysconf(_SC_PAGESIZE);
#endif
}

static inline void *pcmring_map_plain(size_t bytes)
{
    const size_t rounded = (bytes + 63) / 64 * 64;
    void *base;
#if defined(_WIN32)
    base = _aligned_malloc(rounded, 64);
#else
    if (posix_memalign(&base, 64, rounded) != 0)
        base = NULL;
#endif
    if (base)
        memset(base, 0, rounded); /* touches every page: no fault later, in the audio thread */
    return base;
}

static inline void pcmring_unmap_plain(void *base)
{
#if defined(_WIN32)
    _aligned_free(base);
#else
    free(base);
#endif
}

#if PCMRING_CAN_MIRROR
/* `bytes` of memory whose part from `mirror_from` on (both whole pages) is mapped once more behind it. */
static inline void *pcmring_map_mirrored(size_t bytes, size_t mirror_from)
{
    const size_t twice = bytes + (bytes - mirror_from);
    uint8_t *base = (uint8_t *)MAP_FAILED;
    const int fd = (int)syscall(SYS_memfd_create, "pcmring", 1u /* MFD_CLOEXEC */);
    if (fd < 0)
        return NULL;
    /* fallocate: too little memory is an error here instead of a SIGBUS at the first touch */
    if (fallocate(fd, 0, 0, (off_t)bytes) == 0)
        base = (uint8_t *)mmap(NULL, twice, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base != MAP_FAILED) {
        const int prot = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_FIXED | MAP_POPULATE;
        if (mmap(base, bytes, prot, flags, fd, 0) == MAP_FAILED ||
            mmap(base + bytes, bytes - mirror_from, prot, flags, fd, (off_t)mirror_from) == MAP_FAILED) {
            munmap(base, twice);
            base = (uint8_t *)MAP_FAILED;
        }
    }
    close(fd); /* the mappings keep the memory */
    if (base == MAP_FAILED)
        return NULL;
    memset(base, 0, bytes); /* MAP_POPULATE only reads: the first write to a page is slow, too */
    return base;
}

static inline void pcmring_unmap_mirrored(void *base, size_t bytes, size_t mirror_from)
{
    munmap(base, bytes + (bytes - mirror_from));
}
#else
static inline void *pcmring_map_mirrored(size_t bytes, size_t mirror_from)
{
    (void)bytes, (void)mirror_from;
    return NULL;
}
static inline void pcmring_unmap_mirrored(void *base, size_t bytes, size_t mirror_from)
{
    (void)base, (void)bytes, (void)mirror_from;
}
#endif

#endif
