/* The commonest call of a method, one positional argument, past the parsing of arguments, which costs more than the copy
 * of a block. Cython has no such methods: the entry of the compiled one is replaced when the module is loaded. */
#ifndef PCMRING_QUICK_H
#define PCMRING_QUICK_H

#include <Python.h>

typedef PyObject *(*pcmring_method)(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names);

/* The method's definition, if it is called as this file expects, else NULL. */
static PyMethodDef *pcmring_definition(PyObject *type, const char *name)
{
    PyObject *method = PyObject_GetAttrString(type, name);
    PyMethodDef *found = NULL;
    if (method != NULL && Py_IS_TYPE(method, &PyMethodDescr_Type))
        found = ((PyMethodDescrObject *)method)->d_method;
    Py_XDECREF(method);
    PyErr_Clear();
    return found != NULL && found->ml_flags == (METH_FASTCALL | METH_KEYWORDS) ? found : NULL;
}

/* Defines WHAT_install(type, name). WHAT_at_once(self, argument) does what can be done at once; where it returns
 * Py_NotImplemented the method is called. Without a GIL nothing is done at once: there the method stays as it is. */
#ifdef Py_GIL_DISABLED
#define PCMRING_QUICK(WHAT) \
    static void WHAT##_install(PyObject *type, const char *name) { (void)pcmring_definition(type, name); }
#else
#define PCMRING_QUICK(WHAT)                                                                                              \
    static PyObject *WHAT##_at_once(PyObject *self, PyObject *argument);                                                 \
    static pcmring_method WHAT##_method;                                                                                 \
    static PyObject *WHAT##_entry(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *names)         \
    {                                                                                                                    \
        if (count == 1 && names == NULL) {                                                                               \
            PyObject *result = WHAT##_at_once(self, arguments[0]);                                                       \
            if (result != Py_NotImplemented)                                                                             \
                return result;                                                                                           \
            Py_DECREF(result);                                                                                           \
        }                                                                                                                \
        return WHAT##_method(self, arguments, count, names);                                                             \
    }                                                                                                                    \
    static void WHAT##_install(PyObject *type, const char *name)                                                         \
    {                                                                                                                    \
        PyMethodDef *definition = pcmring_definition(type, name);                                                        \
        if (definition == NULL || definition->ml_meth == (PyCFunction)(void (*)(void))WHAT##_entry)                      \
            return; /* replaced by an import that failed later on */                                                     \
        WHAT##_method = (pcmring_method)(void (*)(void))definition->ml_meth;                                             \
        definition->ml_meth = (PyCFunction)(void (*)(void))WHAT##_entry;                                                 \
    }
#endif

#endif
