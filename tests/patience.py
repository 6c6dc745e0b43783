"""Waiting for what happens in another thread or process."""

from __future__ import annotations

import time
from collections.abc import Callable

DEADLINE_S = 30.0


def until(condition: Callable[[], object], limit_s: float = DEADLINE_S) -> None:
    """Return when `condition` is true, or fail."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)
