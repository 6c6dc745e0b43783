/* LD_PRELOADed: the n-th allocation, mapping or write to a file fails, comes up short or stalls.
 *
 * glibc only: the allocator's real functions are reached by their internal names, without dlsym(), which itself
 * allocates. Whom it concerns: 0 every thread, 1 the one that armed it, 2 all others. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);

enum { ALLOCATE, MAP, WRITE, KINDS };

static struct {
    atomic_long left;  /* calls until it happens; 0: not armed */
    atomic_int always; /* and ever after */
    int error;         /* 0: a write takes half */
    int whom;
    long stall_ms;
    pid_t armed_by;
    atomic_long seen, failed;
} kinds[KINDS];

static __thread pid_t me __attribute__((tls_model("initial-exec")));

static pid_t thread_id(void)
{
    if (!me)
        me = (pid_t)syscall(SYS_gettid);
    return me;
}

void faults_disarm(int kind) { atomic_store(&kinds[kind].left, 0); }

void faults_arm(int kind, long n, int always, int error, int whom, long stall_ms)
{
    faults_disarm(kind);
    kinds[kind].error = error, kinds[kind].whom = whom, kinds[kind].stall_ms = stall_ms;
    kinds[kind].armed_by = thread_id();
    atomic_store(&kinds[kind].always, always);
    atomic_store(&kinds[kind].seen, 0);
    atomic_store(&kinds[kind].failed, 0);
    atomic_store(&kinds[kind].left, n);
}

long faults_seen(int kind) { return atomic_load(&kinds[kind].seen); }
long faults_failed(int kind) { return atomic_load(&kinds[kind].failed); }

static int fails(int kind)
{
    if (atomic_load_explicit(&kinds[kind].left, memory_order_relaxed) <= 0)
        return 0;
    if (kinds[kind].whom && (kinds[kind].whom == 1) != (kinds[kind].armed_by == thread_id()))
        return 0;
    atomic_fetch_add(&kinds[kind].seen, 1);
    if (atomic_load(&kinds[kind].left) > 1) {
        atomic_fetch_sub(&kinds[kind].left, 1);
        return 0;
    }
    if (!atomic_load(&kinds[kind].always))
        atomic_store(&kinds[kind].left, 0);
    atomic_fetch_add(&kinds[kind].failed, 1);
    if (kinds[kind].stall_ms) {
        const struct timespec nap = {kinds[kind].stall_ms / 1000, kinds[kind].stall_ms % 1000 * 1000000};
        nanosleep(&nap, NULL);
        return 0;
    }
    errno = kinds[kind].error;
    return 1;
}

void *malloc(size_t size) { return fails(ALLOCATE) ? NULL : __libc_malloc(size); }
void *calloc(size_t n, size_t size) { return fails(ALLOCATE) ? NULL : __libc_calloc(n, size); }
void *realloc(void *old, size_t size) { return fails(ALLOCATE) ? NULL : __libc_realloc(old, size); }
void *memalign(size_t align, size_t size) { return fails(ALLOCATE) ? NULL : __libc_memalign(align, size); }
void *aligned_alloc(size_t align, size_t size) { return memalign(align, size); }

int posix_memalign(void **out, size_t align, size_t size)
{
    void *found = memalign(align, size);
    if (!found)
        return ENOMEM;
    *out = found;
    return 0;
}

void *mmap(void *at, size_t size, int prot, int flags, int fd, off_t offset)
{
    return fails(MAP) ? MAP_FAILED : (void *)syscall(SYS_mmap, at, size, prot, flags, fd, offset);
}
void *mmap64(void *at, size_t size, int prot, int flags, int fd, off_t offset)
{
    return mmap(at, size, prot, flags, fd, offset);
}
int fallocate(int fd, int mode, off_t offset, off_t size)
{
    return fails(MAP) ? -1 : (int)syscall(SYS_fallocate, fd, mode, offset, size);
}
int fallocate64(int fd, int mode, off_t offset, off_t size) { return fallocate(fd, mode, offset, size); }

static int file_fails(int fd)
{
    struct stat facts;
    const int before = errno;
    if (atomic_load_explicit(&kinds[WRITE].left, memory_order_relaxed) <= 0)
        return 0;
    if (syscall(SYS_fstat, fd, &facts) != 0 || !S_ISREG(facts.st_mode)) {
        errno = before;
        return 0;
    }
    return fails(WRITE);
}

ssize_t write(int fd, const void *data, size_t size)
{
    if (file_fails(fd)) {
        if (kinds[WRITE].error)
            return -1;
        size = (size + 1) / 2;
    }
    return syscall(SYS_write, fd, data, size);
}
int ftruncate(int fd, off_t size)
{
    return file_fails(fd) && kinds[WRITE].error ? -1 : (int)syscall(SYS_ftruncate, fd, size);
}
int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }
int fsync(int fd) { return file_fails(fd) && kinds[WRITE].error ? -1 : (int)syscall(SYS_fsync, fd); }
