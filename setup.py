"""Build the compiled modules of pcmring; the static facts stand in pyproject.toml.

PCMRING_BUILD chooses the kind of build; CONTRIBUTING.md says what each is for.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# gnu11 and not c11: the mappings need MAP_ANONYMOUS, memfd_create and syscall. A wheel runs on
# every processor of its platform, so no -march=native; a NaN comes out as it went in, so no
# -ffast-math, but only the two parts of it that change no value: errno and the floating-point
# exception flags, which nobody reads here and which would keep the conversion loops scalar.
# Hidden symbols: only PyInit_* is for others, who reach the rest by cimport.
GNU = ["-std=gnu11", "-Wall", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]
MSVC = ["/std:c11", "/experimental:c11atomics"]

# Python's own flags come first, so each kind states its optimisation, takes back _FORTIFY_SOURCE
# where it would hide an error from a sanitizer, and NDEBUG where assertions are wanted.
CHECKED = ["-g", "-fno-omit-frame-pointer", "-U_FORTIFY_SOURCE", "-UNDEBUG"]
COVERAGE = ["--coverage", "-fprofile-update=atomic"]  # atomic: threads count the same lines
ASAN = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
TSAN = ["-fsanitize=thread"]
COMPILE = {
    "release": [*GNU, "-O3"],
    "debug": [*GNU, "-O0", *CHECKED, "-Wextra", "-Wno-unused-parameter"],
    "coverage": [*GNU, "-O0", "-g", "-U_FORTIFY_SOURCE", *COVERAGE],
    "asan": [*GNU, "-O1", *CHECKED, *ASAN],
    "tsan": [*GNU, "-O1", *CHECKED, *TSAN],
}
COMPILE_MSVC = {"release": [*MSVC, "/O2"], "debug": [*MSVC, "/Od", "/Zi", "/UNDEBUG"]}
LINK = {"coverage": ["--coverage"], "asan": ASAN, "tsan": TSAN}
MACROS = {
    # sys.monitoring does not reach code that runs without the GIL; the older tracer does.
    "coverage": [("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")],
    # A memcpy of frames that the producer may be overwriting is a race by the letter of C11.
    "tsan": [("PCMRING_ATOMIC_COPY", "1")],
}
# The oldest numpy admitted at run time is 1.26, whose C-API is that of 1.25.
NUMPY = [
    ("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"),
    ("NPY_TARGET_VERSION", "NPY_1_25_API_VERSION"),
]


class BuildExt(build_ext):
    """What needs the compiler's type, Cython or numpy: all that an sdist does without."""

    def build_extensions(self) -> None:
        """Translate to C one after the other, then compile side by side."""
        import numpy
        from Cython.Build import cythonize

        kind = os.environ.get("PCMRING_BUILD") or "release"
        compiler = self.compiler.compiler_type
        flags = COMPILE_MSVC if compiler == "msvc" else COMPILE
        if kind not in flags:
            sys.exit(f"PCMRING_BUILD={kind!r}: legal for a {compiler} compiler: {', '.join(flags)}")
        # A build in place must not mix kinds: objects and generated C differ.
        stamp = Path("build/pcmring-kind.txt")
        if not stamp.exists() or stamp.read_text() != kind:
            self.force = True
            stamp.unlink(missing_ok=True)
        for extension in self.extensions:
            extension.include_dirs += [numpy.get_include(), "src/pcmring/include", "ext"]
            extension.define_macros += NUMPY + MACROS.get(kind, [])
            extension.extra_compile_args += flags[kind]
            extension.extra_link_args += LINK.get(kind, [])
        directives = {
            "language_level": "3",
            "freethreading_compatible": True,
            "linetrace": kind == "coverage",
        }
        # No build_dir: coverage looks for the generated C beside its .pyx.
        generated = cythonize(self.extensions, include_path=["src"], compiler_directives=directives, force=self.force)
        sources = {translated.name: translated.sources for translated in generated}
        for extension in self.extensions:
            extension.sources = sources[extension.name]
        self.parallel = self.parallel or True
        super().build_extensions()
        stamp.parent.mkdir(exist_ok=True)
        stamp.write_text(kind)


headers = [str(header) for at in ("src", "ext") for header in Path(at).rglob("*.h")]
setup(
    ext_modules=[
        Extension(f"pcmring.{name}", [f"ext/{name}.pyx"], depends=["setup.py", *headers])
        for name in ("_buffer", "_tracker", "_capture")
    ],
    cmdclass={"build_ext": BuildExt},
)
