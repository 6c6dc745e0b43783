/* Callgrind's switches, for the Python program that it counts. Needs valgrind's headers. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <valgrind/callgrind.h>

static PyObject *start(PyObject *module_, PyObject *unused)
{
    (void)module_;
    (void)unused;
    CALLGRIND_START_INSTRUMENTATION;
    Py_RETURN_NONE;
}

static PyObject *zero(PyObject *module_, PyObject *unused)
{
    (void)module_;
    (void)unused;
    CALLGRIND_ZERO_STATS;
    Py_RETURN_NONE;
}

/* dump(name): write what was counted since zero() to a file that bears the name. */
static PyObject *dump(PyObject *module_, PyObject *name)
{
    const char *text = PyUnicode_AsUTF8(name);
    (void)module_;
    if (!text)
        return NULL;
    CALLGRIND_DUMP_STATS_AT(text);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"start", start, METH_NOARGS, NULL},
    {"zero", zero, METH_NOARGS, NULL},
    {"dump", dump, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "callgrind", NULL, -1, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_callgrind(void)
{
    return PyModule_Create(&module);
}
