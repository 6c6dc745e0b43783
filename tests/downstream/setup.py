"""How a program of others builds against pcmring: its headers, its .pxd, and nothing else of it."""

from Cython.Build import cythonize
from setuptools import Extension, setup

import pcmring

include_dirs = [pcmring.get_include()]
setup(
    name="pcmring-downstream",
    version="0",
    py_modules=[],
    ext_modules=[
        *cythonize(
            [Extension("cython_producer", ["cython_producer.pyx"], include_dirs=include_dirs)],
            compiler_directives={"language_level": 3, "freethreading_compatible": True},
        ),
        Extension("c_producer", ["c_producer.c"], include_dirs=include_dirs),
    ],
)
