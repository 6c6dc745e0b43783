/* LD_PRELOADed: counts what the calling thread asks of the allocator and of syscall().
 *
 * Thread-local plain counters, so that counting changes nothing that it counts. glibc only: the real functions
 * are reached by their internal names, without dlsym(), which itself allocates. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <stddef.h>
#include <stdint.h>
#include <stdarg.h>
#include <dlfcn.h>
#include <sys/syscall.h>

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
void __libc_free(void *);

enum { MALLOC, CALLOC, REALLOC, MEMALIGN, FREE, FUTEX, OTHER_SYSCALLS, KINDS };

/* initial-exec: the dynamic model would allocate on a thread's first access */
static __thread int64_t counts[KINDS] __attribute__((tls_model("initial-exec")));

void preload_counts(int64_t *out)
{
    for (int i = 0; i < KINDS; i++)
        out[i] = counts[i];
}

void *malloc(size_t size)
{
    counts[MALLOC]++;
    return __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    counts[CALLOC]++;
    return __libc_calloc(n, size);
}

void *realloc(void *old, size_t size)
{
    counts[REALLOC]++;
    return __libc_realloc(old, size);
}

void *memalign(size_t align, size_t size)
{
    counts[MEMALIGN]++;
    return __libc_memalign(align, size);
}

void *aligned_alloc(size_t align, size_t size) { return memalign(align, size); }

int posix_memalign(void **out, size_t align, size_t size)
{
    void *found = memalign(align, size);
    if (!found)
        return ENOMEM;
    *out = found;
    return 0;
}

void free(void *old)
{
    if (old)
        counts[FREE]++;
    __libc_free(old);
}

long syscall(long number, ...)
{
    static long (*real)(long, ...);
    long a[6];
    va_list arguments;
    va_start(arguments, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(arguments, long);
    va_end(arguments);
    counts[number == SYS_futex ? FUTEX : OTHER_SYSCALLS]++;
    if (!real)
        real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
