"""What benchmarks share: the machine's line, threads that keep the GIL busy, and the tests' virtual microphones."""

from __future__ import annotations

import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def machine(*packages: str) -> str:
    """Return machine and versions in one line."""
    found = []
    for package in ("pcmring", "numpy", *packages):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} without metadata")
    return (
        f"{', '.join(found)}, Python {platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )


@contextmanager
def busy_threads(count: int) -> Iterator[None]:
    """Have Python threads around that never wait."""
    is_over = threading.Event()

    def work() -> None:
        while not is_over.is_set():
            sum(range(1000))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def use_virtual_microphones(folder: Path, mics: dict[str, dict[str, object]]) -> None:
    """Have this process and its children see these microphones alone; end the program where they cannot be built.

    Needs a checkout: the microphone belongs to the tests. To be called before sounddevice is imported.
    """
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    try:
        import pytest

        from virtual_mic import virtual_mics
    except ImportError as error:
        sys.exit(f"no virtual microphone: {error} (needs a checkout of the repository, and pytest)")
    try:
        microphones = virtual_mics()
    except pytest.skip.Exception as reason:
        sys.exit(f"no virtual microphone: {reason}")
    path = folder / "asound.conf"
    microphones.config(path, mics)
    os.environ["ALSA_CONFIG_PATH"] = str(path)
