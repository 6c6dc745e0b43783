/* Calls a PaStreamCallback as PortAudio does: by address, from C. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

typedef struct {
    double adc_s, now_s, dac_s;
} Times;
typedef int Callback(const void *, void *, unsigned long, const Times *, unsigned long, void *);

/* call(address, userdata, frames, calls): the same block of silence, so often, 10 ms of 16 kHz apart. */
static PyObject *call(PyObject *module_, PyObject *args)
{
    static float silence[65536];
    unsigned long long address, userdata;
    unsigned long frames, calls;
    Times times = {1.0, 1.01, 0.0};
    (void)module_;
    if (!PyArg_ParseTuple(args, "KKkk", &address, &userdata, &frames, &calls))
        return NULL;
    if (frames > sizeof silence / sizeof *silence) {
        PyErr_SetString(PyExc_ValueError, "too many frames");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    for (unsigned long at = 0; at < calls; at++) {
        times.adc_s += (double)frames / 16000.0;
        times.now_s = times.adc_s + 0.01;
        ((Callback *)(uintptr_t)address)(silence, NULL, frames, &times, 0, (void *)(uintptr_t)userdata);
    }
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"call", call, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "callback_driver", NULL, -1, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_callback_driver(void)
{
    return PyModule_Create(&module);
}
