"""Does the millionth second of audio cost what the first did?"""

from __future__ import annotations

from itertools import repeat

import numpy as np
from harness import Calls, Effort, Round, race

from pcmring import AudioBuffer

RATE = 16_000
AGE_S = 1_000_000  # 11.6 days


class Fresh:
    name, kind = "the first second", "before"
    is_old = False


class Old:
    name, kind = "the millionth second", "pcmring"
    is_old = True


CALLS = (
    "write", "write, read_into", "write, Reader.read_into", "write, get_latest of 1 s", "write, latest_view of 1 s",
)  # fmt: skip


@race([Fresh, Old], CALLS, goal="1 x the first second")
def bench_drift(contender: type[Fresh | Old], case: str, effort: Effort) -> Round:
    """10 ms at a time in a ring of 30 s that a million seconds went through before: really, in blocks of 65,536 frames.
    The ring has a samplerate, so it keeps time stamps; one reader has kept up, another never read. Does not show what
    a device does in eleven days.
    """
    ring = AudioBuffer(30 * RATE, samplerate=RATE)
    reader, _sleeper = ring.reader(), ring.reader()
    big, into = np.zeros(65_536, np.float32), np.zeros(65_536, np.float32)
    for _ in repeat(None, effort.count(AGE_S, 1000) * RATE // len(big) if contender.is_old else 40):
        ring.write(big)
        reader.read_into(into)
        ring.read_into(into)
    block, out = np.linspace(-1, 1, 160, dtype=np.float32), np.zeros(160, np.float32)
    second = np.zeros((RATE, 1), np.float32)
    ring.write(block)
    reader.read_into(out)
    assert np.array_equal(out, block)
    assert ring.frames_written == reader.position >= (effort.count(AGE_S, 1000) - 5) * RATE * contender.is_old
    write = ring.write
    then = {
        "write, read_into": (ring.read_into, out),
        "write, Reader.read_into": (reader.read_into, out),
        "write, get_latest of 1 s": (lambda _: ring.get_latest(RATE, second), None),
        "write, latest_view of 1 s": (ring.latest_view, RATE),
    }.get(case)
    if then is None:
        return Calls(write, (block,), effort)
    call, argument = then

    def both(block: np.ndarray) -> None:
        write(block)
        call(argument)

    return Calls(both, (block,), effort)
