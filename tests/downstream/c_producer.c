/* A downstream C extension module: the same as cython_producer.pyx by pcmring/api.h alone. Also compiles as C++. */
#include "pcmring/api.h"

#include "frames.h"

#define BLOCK_SAMPLES 4096

typedef struct Order {
    struct pcmring_ring *ring;
    uint64_t frames, block, accepted;
    uint32_t channels;
} Order;

typedef struct Producer {
    PyObject_HEAD
    PyObject *buffer;
    struct pcmring_ring *ring;
    uint32_t channels;
} Producer;

static const pcmring_api *api;

static void *write_frames(void *argument)
{
    Order *order = (Order *)argument;
    int32_t block[BLOCK_SAMPLES];
    uint64_t done, n;
    for (done = 0; done < order->frames; done += n) {
        n = order->frames - done < order->block ? order->frames - done : order->block;
        fill_frames(block, api->frames_written(order->ring), n, order->channels);
        order->accepted += api->write(order->ring, block, PCMRING_API_INT32, n);
    }
    return NULL;
}

static PyObject *Producer_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    PyObject *buffer, *channels;
    Producer *self;
    (void)keywords;
    if (!PyArg_ParseTuple(arguments, "O", &buffer))
        return NULL;
    self = (Producer *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->ring = api->acquire_producer(buffer);
    if (!self->ring) {
        Py_DECREF(self);
        return NULL;
    }
    Py_INCREF(buffer);
    self->buffer = buffer;
    channels = PyObject_GetAttrString(buffer, "channels");
    if (channels) {
        self->channels = (uint32_t)PyLong_AsUnsignedLong(channels);
        Py_DECREF(channels);
    }
    if (PyErr_Occurred()) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static PyObject *Producer_release(Producer *self, PyObject *none)
{
    (void)none;
    if (self->ring) {
        self->ring = NULL;
        if (api->release_producer(self->buffer) < 0)
            return NULL;
    }
    Py_RETURN_NONE;
}

static void Producer_dealloc(Producer *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->ring && api->release_producer(self->buffer) < 0)
        PyErr_WriteUnraisable((PyObject *)self);
    Py_XDECREF(self->buffer);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyObject *Producer_write(Producer *self, PyObject *arguments)
{
    unsigned long long frames, block;
    int foreign = 0, error = 0;
    Order order;
    if (!PyArg_ParseTuple(arguments, "KK|p", &frames, &block, &foreign))
        return NULL;
    if (!self->ring || block * self->channels > BLOCK_SAMPLES) {
        PyErr_SetString(PyExc_RuntimeError, "released, or too long a block");
        return NULL;
    }
    order.ring = self->ring;
    order.frames = frames;
    order.block = block;
    order.accepted = 0;
    order.channels = self->channels;
    Py_BEGIN_ALLOW_THREADS
    if (foreign)
        error = in_foreign_thread(write_frames, &order);
    else
        write_frames(&order);
    Py_END_ALLOW_THREADS
    if (error) {
        PyErr_SetString(PyExc_OSError, "pthread_create");
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(order.accepted);
}

static PyObject *Producer_latest(Producer *self, PyObject *none)
{
    int32_t frame[64];
    uint64_t start = 0, got;
    (void)none;
    Py_BEGIN_ALLOW_THREADS
    got = api->latest(self->ring, frame, 1, &start);
    Py_END_ALLOW_THREADS
    if (got)
        return Py_BuildValue("Ki", (unsigned long long)start, (int)frame[0]);
    return Py_BuildValue("KO", (unsigned long long)start, Py_None);
}

static PyMethodDef methods[] = {
    {"write", (PyCFunction)(void (*)(void))Producer_write, METH_VARARGS, NULL},
    {"latest", (PyCFunction)(void (*)(void))Producer_latest, METH_NOARGS, NULL},
    {"release", (PyCFunction)(void (*)(void))Producer_release, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, (void *)Producer_new},
    {Py_tp_dealloc, (void *)Producer_dealloc},
    {Py_tp_methods, (void *)methods},
    {0, NULL},
};

static PyType_Spec spec = {"c_producer.Producer", (int)sizeof(Producer), 0, Py_TPFLAGS_DEFAULT, slots};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "c_producer", NULL, -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_c_producer(void)
{
    PyObject *made, *type;
    api = pcmring_import_api();
    if (!api)
        return NULL;
    made = PyModule_Create(&module);
    type = made ? PyType_FromSpec(&spec) : NULL;
    if (!type || PyModule_AddObject(made, "Producer", type) < 0) {
        Py_XDECREF(type);
        Py_XDECREF(made);
        return NULL;
    }
#ifdef Py_GIL_DISABLED
    PyUnstable_Module_SetGIL(made, Py_MOD_GIL_NOT_USED);
#endif
    return made;
}
