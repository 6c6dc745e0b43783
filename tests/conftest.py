"""Hypothesis profiles, and threads that cannot fail in silence or hang a run."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# CI draws the same examples each time, a developer new ones. Never a deadline: the machine may be busy.
_common: dict[str, Any] = {
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow],
}
settings.register_profile("ci", derandomize=True, database=None, **_common)
settings.register_profile("dev", **_common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


class Crew:
    """Threads of one test: what goes wrong in one fails the test, and so does one that does not end."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []

    def start(self, work: Callable[..., object], *arguments: object) -> threading.Thread:
        def run() -> None:
            try:
                work(*arguments)
            except BaseException as failure:  # whatever it was, join() raises it
                self._failures.append(failure)

        # a daemon: one that hangs must not keep the interpreter from ending
        thread = threading.Thread(target=run, daemon=True, name=getattr(work, "__name__", None))
        self._threads.append(thread)
        thread.start()
        return thread

    def join(self, limit_s: float = 60.0) -> None:
        """Wait for all; raise the first failure, or say where a thread hangs."""
        deadline = time.monotonic() + limit_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        hanging = [thread for thread in self._threads if thread.is_alive()]
        failures, self._threads, self._failures = self._failures, [], []
        if failures:
            raise failures[0]
        if hanging:
            frames = sys._current_frames()
            where = [
                f"{thread.name}:\n" + "".join(traceback.format_stack(frames[thread.ident or 0]))
                for thread in hanging
                if thread.ident in frames
            ]
            pytest.fail(f"{len(hanging)} threads hang after {limit_s} s\n" + "\n".join(where))

    @staticmethod
    def wait_until_asleep(thread: threading.Thread, limit_s: float = 3.0) -> None:
        """Return when `thread` sleeps in the system, and not for want of the GIL.

        Makes a test sharp, never right: the assertions must also hold for a thread that is not there yet.
        """
        status = Path(f"/proc/self/task/{thread.native_id}/status")
        deadline = time.monotonic() + limit_s
        before, calm = "", 0
        while calm < 5 and thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)  # gives the GIL away: who waits for it takes it, and counts a switch
            try:
                lines = status.read_text().splitlines()
            except OSError:  # not Linux, or just ended
                calm += 1
                continue
            now = "".join(line for line in lines if line.startswith(("State", "voluntary")))
            calm = calm + 1 if now == before and "S (sleeping)" in now else 0
            before = now


@pytest.fixture
def crew() -> Iterator[Crew]:
    """Threads that are joined, and whose failures are raised, when the test ends."""
    crew = Crew()
    yield crew
    crew.join(10.0)
