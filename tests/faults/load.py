"""Many buffers, many readers, and readers that do not behave."""

from __future__ import annotations

import random
import threading
import time
from contextlib import ExitStack, suppress

from conftest import Crew
from faults.account import ReaderAccount, require, settle
from faults.campaign import Try, case
from faults.positions import frames
from native_support import Foreign
from pcmring import AudioBuffer, BufferClosed, CaptureCallback

RATE = 16_000
BLOCK = 160
LIMIT_S = 600.0


def read_all(account: ReaderAccount, most: int, pause_s: float = 0.0) -> None:
    """To the end of the buffer."""
    with suppress(BufferClosed):
        while True:
            account.add(account.reader.read(most, timeout=LIMIT_S))
            time.sleep(pause_s)


def _captures(attempt: Try, buffers: int) -> None:
    """C threads that call the capture callback every 10 ms, one per buffer; each buffer has a reader that waits."""
    seconds = attempt.by_form(0.5, 5.0, 600.0)
    foreign, crew = Foreign(attempt.folder), Crew()
    audio = frames(0, round(seconds * RATE), dtype="int32")
    with ExitStack() as stack:
        rings = [stack.enter_context(AudioBuffer(5 * RATE, dtype="int32", samplerate=RATE)) for _ in range(buffers)]
        accounts = [ReaderAccount(ring.reader()) for ring in rings]
        for account in accounts:
            crew.start(read_all, account, BLOCK * attempt.random.randint(1, 50))
        captures = [stack.enter_context(CaptureCallback(ring)) for ring in rings]
        streams = [stack.enter_context(foreign.start(capture, audio, BLOCK, BLOCK / RATE)) for capture in captures]
        for stream, capture, ring in zip(streams, captures, rings, strict=True):
            require(stream.join() == 0, "the callback ended its stream")
            capture.close()
            ring.close()
        crew.join(LIMIT_S)
        for ring, account in zip(rings, accounts, strict=True):
            settle(ring, len(audio), [account], attempt.counts)
            require(account.delivered == len(audio), account.reader, "lost frames at real-time pace")


@case(short=1, long=5, limit_s=900)
def one_capture_at_real_time_pace(attempt: Try) -> None:
    _captures(attempt, 1)


@case(tiny=0, short=1, long=5, limit_s=900)
def captures_64_at_real_time_pace(attempt: Try) -> None:
    _captures(attempt, 64)


@case(short=1, long=5, limit_s=900)
def buffers_500_at_real_time_pace(attempt: Try) -> None:
    """One Python thread writes 50,000 blocks a second, four read."""
    ticks = attempt.by_form(20, 500, 60_000)
    buffers = [AudioBuffer(2 * RATE, dtype="int32", samplerate=RATE) for _ in range(500)]
    accounts = [ReaderAccount(buffer.reader()) for buffer in buffers]
    is_over = threading.Event()

    def write() -> None:
        begin = time.monotonic()
        for tick in range(ticks):
            is_over.wait(max(0.0, begin + tick * BLOCK / RATE - time.monotonic()))
            block = frames(tick * BLOCK, BLOCK)
            for buffer in buffers:
                buffer.write(block)
        is_over.set()

    def read(mine: list[ReaderAccount]) -> None:
        is_last = False
        while not is_last:
            is_last = is_over.wait(0.2)
            for account in mine:
                account.add(account.reader.read(2 * RATE))

    crew = Crew()
    for begin in range(4):
        crew.start(read, accounts[begin::4])
    crew.start(write)
    crew.join(LIMIT_S)
    for buffer, account in zip(buffers, accounts, strict=True):
        settle(buffer, ticks * BLOCK, [account], attempt.counts)
        require(account.delivered + account.reader.lost == ticks * BLOCK, account.reader, "did not come to the end")
        buffer.close()


def _misbehave(account: ReaderAccount, kind: str, own: random.Random, capacity: int) -> None:
    """A reader that is greedy, sips, sleeps, or dies on the way."""
    with suppress(BufferClosed):
        while True:
            account.add(account.reader.read(own.randint(1, capacity if kind == "greedy" else 500), timeout=LIMIT_S))
            if kind == "sleeps":
                time.sleep(own.random() * 0.05)
            if kind == "dies" and own.random() < 0.02:
                if own.random() < 0.5:
                    account.reader.close()  # else it is just left, with its position
                return


@case(short=3, long=60, limit_s=900)
def one_writer_and_32_readers(attempt: Try) -> None:
    """Under any policy; some readers guarded; the ring far smaller than the stream."""
    own = attempt.random
    policy = ("overwrite", "drop", "block")[attempt.number % 3]
    capacity, channels = own.choice([997, 8_000, 40_009]), own.choice([1, 2, 5])
    total = attempt.by_form(10_000, 3_000_000, 200_000_000)
    buffer = AudioBuffer(capacity, channels, "int32", policy=policy)
    kinds = ["greedy", "sips", "sleeps", "dies", "never reads"]
    accounts, crew = [], Crew()
    for number in range(32):
        kind = kinds[number % 5]
        # under "block" one that does not read stops everything, as it should
        may_guard = kind in ("greedy", "sips") or (policy == "drop" and kind != "never reads")
        account = ReaderAccount(buffer.reader(guard=policy != "overwrite" and may_guard and own.random() < 0.5))
        accounts.append(account)
        if kind != "never reads":
            crew.start(_misbehave, account, kind, random.Random(own.random()), capacity)

    def write(own: random.Random) -> None:
        serial = 0
        try:
            while serial < total:
                block = min(
                    own.randint(1, capacity * 3 // 2) if own.random() < 0.9 else own.randint(1, 3), total - serial
                )
                accepted = buffer.write(frames(serial, block, channels), timeout=LIMIT_S)
                require(policy == "drop" or accepted == block, "a write took", accepted, "of", block)
                serial += block
        finally:
            keep.append(buffer.latest_view(1))  # the books stay readable
            buffer.close()

    keep: list[object] = []
    crew.start(write, random.Random(own.random()))
    crew.join(LIMIT_S)
    settle(buffer, total, accounts, attempt.counts)
    for account in accounts:
        if account.reader.guard and not account.reader.closed:
            require(account.reader.lost == 0, "a guarded reader lost frames:", account.reader)


@case(short=1, long=4, limit_s=3600)
def unpaced_from_end_to_end(attempt: Try) -> None:
    """As fast as it goes through one ring; in the long form 10**10 frames."""
    total = attempt.by_form(10**6, 10**8, 25 * 10**8)
    block = 30_000
    buffer = AudioBuffer(90_000, dtype="int32", policy="block")
    account, crew = ReaderAccount(buffer.reader(guard=True)), Crew()
    keep = []

    def write() -> None:
        for serial in range(0, total, block):
            buffer.write(frames(serial, min(block, total - serial)), timeout=LIMIT_S)
        keep.append(buffer.latest_view(1))
        buffer.close()

    crew.start(read_all, account, block)
    crew.start(write)
    crew.join(3 * LIMIT_S)
    settle(buffer, total, [account], attempt.counts)
    require(account.delivered == total, account.reader)
