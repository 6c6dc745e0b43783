"""Real PortAudio streams on machines without a sound card: an ALSA plug-in of our own, and processes that use it.

PortAudio lists devices once, when it is loaded; so each test states its microphones, and runs a function of
`children` in a process of its own with them.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path

from native_support import compiler, python_environment, run, unavailable

HERE = Path(__file__).parent

EXPECTED_COMPLAINT = re.compile(r"src/hostapi/alsa/|^ALSA lib (pulse|pcm_pulse)\.c:")


def need(*packages: str) -> None:
    """Skip the test, or fail where they are required, unless these Python packages are installed."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        unavailable(f"{', '.join(missing)} is not installed")


class VirtualMics:
    """The compiled plug-in. Each `call` has microphones of its own."""

    def __init__(self, folder: Path) -> None:
        need("sounddevice")
        if platform.system() != "Linux":
            unavailable("the virtual microphone is a plug-in of ALSA, which is Linux's")
        if find_library("portaudio") is None:
            unavailable("PortAudio is not installed: apt-get install libportaudio2")
        if not Path("/usr/include/alsa/pcm_external.h").exists():
            unavailable("ALSA's headers are not installed: apt-get install libasound2-dev")
        self._library = folder / "libasound_module_pcm_vmic.so"
        command = [*compiler(), "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-DPIC", "-shared"]
        run([*command, HERE / "vmic.c", "-o", self._library, "-lasound"])

    def config(self, path: Path, mics: dict[str, dict[str, object]]) -> None:
        """Write ALSA's configuration: these microphones and nothing else. One may be "default"."""
        lines = [f'pcm_type.vmic {{ lib "{self._library}" }}']
        if "default" not in mics:
            # PortAudio 19.6 aborts the process where no default is named: one that cannot be opened
            absent = path.with_name("absent")
            absent.write_text("unplugged")
            mics = {**mics, "default": {"control": str(absent)}}
        for name, settings in mics.items():
            entries = " ".join(
                f'{key} "{value}"' if isinstance(value, str) else f"{key} {value}" for key, value in settings.items()
            )
            node = "pcm.!default" if name == "default" else f'pcm."{name}"'
            lines.append(f"{node} {{ type vmic {entries} }}")
        path.write_text("\n".join(lines) + "\n")

    def call(self, function: str, *, mics: dict[str, dict[str, object]], timeout_s: float = 60.0, **arguments: object):
        """Return what `function` of children.py returns, in a process with these microphones."""
        with tempfile.TemporaryDirectory(prefix="pcmring-vmic-") as folder:
            path = Path(folder) / "asound.conf"
            self.config(path, mics)
            return call(function, arguments, timeout_s, ALSA_CONFIG_PATH=str(path))


def call(function: str, arguments: dict[str, object], timeout_s: float = 60.0, **environment: str):
    """Return what `function` of children.py returns, in a process of its own that complains about nothing."""
    program = "import sys, children; children.main(sys.argv[1], sys.argv[2])"
    paths = [str(HERE), str(HERE.parent), *filter(None, [python_environment().get("PYTHONPATH")])]
    environment = python_environment(**environment) | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", "error", "-c", program, function, json.dumps(arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{function}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    # Debian's PortAudio prints each host error it meets, and so does ALSA's plug-in for PulseAudio
    complaints = [line for line in done.stderr.splitlines() if line and not EXPECTED_COMPLAINT.search(line)]
    assert not complaints, f"{function} complained:\n{done.stderr[-2000:]}"
    return json.loads(done.stdout.splitlines()[-1])


@functools.cache
def virtual_mics() -> VirtualMics:
    """Compile once per run, for the fixtures of the test modules; skips where something is missing."""
    folder = Path(tempfile.mkdtemp(prefix="pcmring-vmic-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return VirtualMics(folder)
