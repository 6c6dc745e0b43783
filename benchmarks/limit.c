/* The physical limit: what a C method must do at least to move a block between an ndarray and a ring in memory.
 * One producer, one thread, no checks but the array's type, nothing published, nobody woken. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#include <numpy/arrayobject.h>
#include <string.h>

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

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "limit", NULL, -1, NULL, NULL, NULL, NULL, NULL};

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
