/* The physical limits. Ring: what a C method must do at least to move a block between an ndarray and a ring in memory;
 * one thread, no checks but the array's type, nothing published, nobody woken. nothing: an empty call. stream and
 * wake_pair: two C threads that move blocks through a ring, or wake each other by a futex, without Python. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#include <numpy/arrayobject.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

typedef struct {
    PyObject_HEAD
    char *data;
    size_t bytes, write_at, read_at;
} Ring;

static PyObject *ring_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    Ring *self;
    Py_ssize_t frames;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "n", &frames) || !(self = (Ring *)type->tp_alloc(type, 0)))
        return NULL;
    self->bytes = (size_t)frames * sizeof(float);
    self->data = (char *)PyMem_RawMalloc(self->bytes);
    memset(self->data, 0, self->bytes);
    return (PyObject *)self;
}

static void ring_dealloc(PyObject *self)
{
    PyMem_RawFree(((Ring *)self)->data);
    Py_TYPE(self)->tp_free(self);
}

static PyObject *ring_write(PyObject *self_, PyObject *block)
{
    Ring *self = (Ring *)self_;
    size_t bytes, to_end;
    if (!PyArray_CheckExact(block))
        return NULL;
    bytes = (size_t)PyArray_NBYTES((PyArrayObject *)block);
    to_end = self->bytes - self->write_at;
    if (bytes <= to_end) {
        memcpy(self->data + self->write_at, PyArray_DATA((PyArrayObject *)block), bytes);
    } else {
        memcpy(self->data + self->write_at, PyArray_DATA((PyArrayObject *)block), to_end);
        memcpy(self->data, PyArray_BYTES((PyArrayObject *)block) + to_end, bytes - to_end);
    }
    self->write_at += bytes;
    if (self->write_at >= self->bytes)
        self->write_at -= self->bytes;
    Py_RETURN_NONE;
}

static PyObject *ring_read_into(PyObject *self_, PyObject *block)
{
    Ring *self = (Ring *)self_;
    size_t bytes, to_end;
    if (!PyArray_CheckExact(block))
        return NULL;
    bytes = (size_t)PyArray_NBYTES((PyArrayObject *)block);
    to_end = self->bytes - self->read_at;
    if (bytes <= to_end) {
        memcpy(PyArray_DATA((PyArrayObject *)block), self->data + self->read_at, bytes);
    } else {
        memcpy(PyArray_DATA((PyArrayObject *)block), self->data + self->read_at, to_end);
        memcpy(PyArray_BYTES((PyArrayObject *)block) + to_end, self->data, bytes - to_end);
    }
    self->read_at += bytes;
    if (self->read_at >= self->bytes)
        self->read_at -= self->bytes;
    Py_RETURN_NONE;
}

static PyObject *ring_rewind(PyObject *self_, PyObject *unused)
{
    (void)unused;
    ((Ring *)self_)->write_at = ((Ring *)self_)->read_at = 0;
    Py_RETURN_NONE;
}

/* An ndarray over the ring's memory that keeps the ring alive. */
static PyObject *ring_view(PyObject *self_, PyObject *frames)
{
    Ring *self = (Ring *)self_;
    npy_intp shape[2] = {(npy_intp)PyLong_AsSsize_t(frames), 1};
    PyObject *view = PyArray_SimpleNewFromData(2, shape, NPY_FLOAT32, self->data);
    Py_INCREF(self_);
    PyArray_SetBaseObject((PyArrayObject *)view, self_);
    return view;
}

static PyMethodDef ring_methods[] = {
    {"write", ring_write, METH_O, NULL},
    {"read_into", ring_read_into, METH_O, NULL},
    {"rewind", ring_rewind, METH_NOARGS, NULL},
    {"view", ring_view, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject RingType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "limit.Ring",
    .tp_basicsize = sizeof(Ring),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = ring_new,
    .tp_dealloc = ring_dealloc,
    .tp_methods = ring_methods,
};


static PyObject *nothing(PyObject *module_, PyObject *argument)
{
    (void)module_;
    (void)argument;
    Py_RETURN_NONE;
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- blocks from one thread to another ---- */

enum { SLOTS = 409 };

typedef struct {
    float *data;
    size_t frames;
    uint64_t blocks;
    int has_failed;
    _Alignas(64) _Atomic uint64_t written;
    _Alignas(64) _Atomic uint64_t read;
} Stream;

static void *stream_reader(void *stream_)
{
    Stream *s = stream_;
    float *out = malloc(s->frames * sizeof(float));
    for (uint64_t at = 0; at < s->blocks; at++) {
        while (atomic_load_explicit(&s->written, memory_order_acquire) == at)
            sched_yield();
        memcpy(out, s->data + at % SLOTS * s->frames, s->frames * sizeof(float));
        s->has_failed |= out[0] != (float)(at & 0xFFFF) || out[s->frames - 1] != out[0];
        atomic_store_explicit(&s->read, at + 1, memory_order_release);
    }
    free(out);
    return NULL;
}

/* stream(blocks, frames): seconds a block, each read from a ring and checked by another thread. */
static PyObject *stream(PyObject *module_, PyObject *args)
{
    Stream s = {0};
    Py_ssize_t blocks, frames;
    pthread_t reader;
    int64_t begin, end;
    float *block;
    (void)module_;
    if (!PyArg_ParseTuple(args, "nn", &blocks, &frames))
        return NULL;
    s.blocks = (uint64_t)blocks;
    s.frames = (size_t)frames;
    s.data = calloc(SLOTS * s.frames, sizeof(float));
    block = malloc(s.frames * sizeof(float));
    Py_BEGIN_ALLOW_THREADS
    begin = now_ns();
    pthread_create(&reader, NULL, stream_reader, &s);
    for (uint64_t at = 0; at < s.blocks; at++) {
        block[0] = block[s.frames - 1] = (float)(at & 0xFFFF);
        while (at - atomic_load_explicit(&s.read, memory_order_acquire) == SLOTS)
            sched_yield();
        memcpy(s.data + at % SLOTS * s.frames, block, s.frames * sizeof(float));
        atomic_store_explicit(&s.written, at + 1, memory_order_release);
    }
    pthread_join(reader, NULL);
    end = now_ns();
    Py_END_ALLOW_THREADS
    free(s.data);
    free(block);
    if (s.has_failed) {
        PyErr_SetString(PyExc_AssertionError, "the limit's reader got other blocks than were written");
        return NULL;
    }
    return PyFloat_FromDouble((double)(end - begin) * 1e-9 / (double)blocks);
}

/* ---- waking ---- */

#ifdef __linux__
typedef struct {
    _Atomic uint32_t word;
    _Atomic int64_t written_ns;
    uint32_t count;
    double *latency_s;
} Pair;

static void *pair_reader(void *pair_)
{
    Pair *p = pair_;
    for (uint32_t at = 0; at < p->count; at++) {
        while (atomic_load(&p->word) == at)
            syscall(SYS_futex, &p->word, FUTEX_WAIT_PRIVATE, at, NULL, NULL, 0);
        p->latency_s[at] = (double)(now_ns() - atomic_load(&p->written_ns)) * 1e-9;
    }
    return NULL;
}
#endif

/* wake_pair(count, pause_ns): list of the seconds from a write to its reader being awake. */
static PyObject *wake_pair(PyObject *module_, PyObject *args)
{
#ifdef __linux__
    Pair p = {0};
    unsigned int count;
    long long pause_ns;
    pthread_t reader;
    PyObject *found;
    (void)module_;
    if (!PyArg_ParseTuple(args, "IL", &count, &pause_ns))
        return NULL;
    p.count = count;
    p.latency_s = calloc(count, sizeof(double));
    Py_BEGIN_ALLOW_THREADS
    pthread_create(&reader, NULL, pair_reader, &p);
    for (uint32_t at = 0; at < p.count; at++) {
        struct timespec pause = {pause_ns / 1000000000, pause_ns % 1000000000};
        nanosleep(&pause, NULL);
        atomic_store(&p.written_ns, now_ns());
        atomic_store(&p.word, at + 1);
        syscall(SYS_futex, &p.word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
    pthread_join(reader, NULL);
    Py_END_ALLOW_THREADS
    found = PyList_New((Py_ssize_t)count);
    for (uint32_t at = 0; at < count; at++)
        PyList_SET_ITEM(found, at, PyFloat_FromDouble(p.latency_s[at]));
    free(p.latency_s);
    return found;
#else
    (void)module_;
    (void)args;
    PyErr_SetString(PyExc_OSError, "a futex is Linux's");
    return NULL;
#endif
}

static PyMethodDef functions[] = {
    {"nothing", nothing, METH_O, NULL},
    {"stream", stream, METH_VARARGS, NULL},
    {"wake_pair", wake_pair, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "limit", NULL, -1, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_limit(void)
{
    PyObject *m;
    import_array();
    if (PyType_Ready(&RingType) < 0 || !(m = PyModule_Create(&module)))
        return NULL;
    Py_INCREF(&RingType);
    PyModule_AddObject(m, "Ring", (PyObject *)&RingType);
    return m;
}
