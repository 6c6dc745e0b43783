"""Anything at all as an argument of every public call: taken, or refused with a promised error and nothing changed."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pcmring
from faults.account import require
from faults.campaign import TESTS, Try, case
from faults.python_rude import own_folders
from microphones import Devices, Microphone
from native_support import python_environment
from pcmring import AudioBuffer, BufferClosed, CaptureCallback
from test_bad_input import make, state

#: What a refusal may be. FramesLost is a LookupError, BufferClosed a ValueError.
PROMISED = (TypeError, ValueError, LookupError, OverflowError, MemoryError)


class Mine(Exception):
    """A hostile object's own: passed on, never swallowed."""


class Hostile:
    """Answers every protocol with something random, or raises, or closes what it is given to."""

    def __init__(self, seed: int, victim: Any = None) -> None:
        self._own, self._victim = random.Random(seed), victim

    def _answer(self, *_: Any, **__: Any) -> Any:
        choice = self._own.randrange(9)
        if choice == 0:
            raise Mine
        if choice == 1 and self._victim is not None:
            self._victim.close()
        if choice == 2 and self._victim is not None:
            with suppress(*PROMISED, RuntimeError):
                self._victim.read(3)
        return (3, -1, 2**64, 0.5, "3", None, np.zeros(4, np.float32), np.zeros((2, 2)), float("nan"))[choice]

    __index__ = __int__ = __float__ = __len__ = __array__ = __iter__ = __getitem__ = __eq__ = __bool__ = _answer  # type: ignore[assignment]
    __fspath__ = __str__ = __hash__ = __buffer__ = __array_interface__ = __lt__ = __call__ = _answer  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "<Hostile>"

    def __del__(self) -> None:
        with suppress(Exception):
            self._answer()


_plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 30),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=5),
    st.binary(max_size=20),
    st.sampled_from(["now", "oldest", "overwrite", "drop", "block", "int16", "float32", "paused", "dropped", "tone"]),
    st.sampled_from(
        [object(), int, np.dtype("f4"), np.float32, ..., NotImplemented, memoryview(b"12345678"), range(5)]
    ),
)
_arrays = st.builds(
    lambda dtype, shape, step: np.zeros(shape, dtype)[..., ::step] if shape else np.zeros(shape, dtype),
    st.sampled_from(["f4", "f8", "i2", "i4", ">f4", ">i2", "i1", "u2", "i8", "c8", "?", "O", "M8[s]", "V3", "S2"]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=12),
    st.sampled_from([1, 2, -1]),
)
values = st.one_of(_plain, _arrays, st.lists(_plain, max_size=4), st.integers(0, 2**32).map(Hostile))
argument_lists = st.lists(values, max_size=4)
keywords = st.dictionaries(
    st.sampled_from(["timeout", "out", "guard", "name", "hop", "exact", "dtype", "channels", "policy", "samplerate"]),
    values,
    max_size=2,
)
READ_ONLY = (
    "buffer.get_latest",
    "buffer.read_range",
    "buffer.view",
    "buffer.latest_view",
    "buffer.losses",
    "buffer.gaps",
    "buffer.time_of",
    "buffer.position_at",
    "buffer.statistics",
    "reader.losses",
    "reader.blocks",
)
WAITS = ("buffer.read", "buffer.read_into", "buffer.write", "reader.read", "reader.read_into")
RING_CALLS = (
    *("buffer.reader", "buffer.mark_gap", "buffer.clear", "buffer.get_fill_level", "buffer.__enter__"),
    *(*WAITS, *READ_ONLY),
)
#: Of the rest: methods of what was made.
NAMES: dict[str, tuple[str, ...]] = {
    "AudioBuffer": ("clear", "gaps", "losses", "statistics", "get_fill_level"),
    "AudioBufferTracker": ("track_buffer", "untrack_buffer", "get_buffer_info", "get_total_buffer_memory"),
    "AudioConfig": (),
    "AudioDeviceManager": (),
    "CaptureCallback": (),
    "FileSource": (),
    "GeneratorSource": (),
    "MemoryMonitor": ("add_cleanup_callback", "remove_cleanup_callback", "stop_monitoring", "get_statistics"),
    "ResamplingReader": (),
    "ResourceManager": ("add_weak_ref", "add_cleanup_callback", "remove_temp_file", "get_resource_info"),
    "W4LMemoryManager": ("set_model",),
}


def _call(function: Callable[..., Any], arguments: list[Any], options: dict[str, Any]) -> bool:
    """Whether it was taken."""
    try:
        function(*arguments, **options)
    except (*PROMISED, Mine, RuntimeError):
        return False
    return True


def _soon(arguments: list[Any], options: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The same with a wait that ends, where it is one that has a meaning."""

    def brief(timeout: Any) -> Any:
        return 0.001 if timeout is None or isinstance(timeout, (int, float)) else timeout

    if len(arguments) > 1:
        return [arguments[0], brief(arguments[1]), *arguments[2:]], options
    return arguments, options | {"timeout": brief(options.get("timeout", 0.0))}


def calls_of_a_ring(policy: str, capacity: int, calls: list[tuple[str, list[Any], dict[str, Any]]]) -> None:
    """What was refused, or only looks, has changed nothing; afterwards the ring still works."""
    buffer = make(policy, capacity)
    things = SimpleNamespace(buffer=buffer, reader=buffer.reader("oldest"))
    for name, arguments, options in calls:
        hostile = [value for value in [*arguments, *options.values()] if isinstance(value, Hostile)]
        for value in hostile:
            value._victim = buffer
        before = state(buffer), repr(things.reader)
        if name in WAITS:
            arguments, options = _soon(arguments, options)
        taken = _call(attrgetter(name)(things), arguments, options)
        if buffer.closed:  # by an argument
            return
        if (not taken or name in READ_ONLY) and not hostile:
            require((state(buffer), repr(things.reader)) == before, f"{name}(*{arguments}, **{options}) changed it")
    with suppress(BufferClosed):
        buffer.write(np.zeros(1, np.float32), 0.0)  # no claim was left behind
        buffer.read(1)


def calls_of_the_rest(
    name: str, arguments: list[Any], options: dict[str, Any], calls: list[tuple[int, list[Any]]]
) -> None:
    if name == "AudioBuffer":  # not those that a machine could just give
        arguments = [7 if isinstance(value, int) and 2**16 < value < 2**45 else value for value in arguments]
    made: list[Any] = []
    methods = NAMES[name]
    _call(lambda *a, **k: made.append(getattr(pcmring, name)(*a, **k)), arguments, options)
    if not made and methods:
        _call(lambda: made.append(getattr(pcmring, name)(*[9] * (name == "AudioBuffer"))), [], {})
    for thing in made:
        for method, more in calls if methods else ():
            _call(getattr(thing, methods[method % len(methods)]), more, {})
        repr(thing)


#: Of each of the two what it is called with.
CHECKS: tuple[tuple[Callable[..., None], tuple[st.SearchStrategy[Any], ...]], ...] = (
    (
        calls_of_a_ring,
        (
            st.sampled_from(["overwrite", "drop", "block"]),
            st.sampled_from([10, 20_000]),
            st.lists(st.tuples(st.sampled_from(RING_CALLS), argument_lists, keywords), min_size=1, max_size=6),
        ),
    ),
    (
        calls_of_the_rest,
        (
            st.sampled_from(sorted(NAMES)),
            argument_lists,
            keywords,
            st.lists(st.tuples(st.integers(0, 9), argument_lists), max_size=3),
        ),
    ),
)


def _fuzz(attempt: Try, function: Callable[..., None], examples: int, *strategies: st.SearchStrategy[Any]) -> None:
    test = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))(
        given(*strategies)(function)
    )
    hypothesis.seed(attempt.random.randrange(2**32))(test)()
    attempt.counts["examples"] += examples


@case(short=3, long=300, limit_s=1800)
def calls_of_a_ring_one_after_the_other(attempt: Try) -> None:
    check, strategies = CHECKS[0]
    _fuzz(attempt, check, attempt.by_form(100, 800, 10_000), *strategies)


@case(short=2, long=300, limit_s=1800)
def every_constructor_and_method_of_the_rest(attempt: Try) -> None:
    """Managers, monitor, tracker, resources, settings. What they may do by contract with the system they may do."""
    own_folders(attempt.folder)
    warnings.simplefilter("ignore")
    check, strategies = CHECKS[1]
    _fuzz(attempt, check, attempt.by_form(50, 500, 5_000), *strategies)


@case(tiny=0, short=0, long=1, limit_s=7200)
def guided_by_coverage(attempt: Try) -> None:
    """faults/guided.py, for an hour."""
    if find_spec("atheris") is None:
        pytest.skip("atheris is not installed")
    command = [sys.executable, "-m", "faults.guided", "--seconds", "3600", str(attempt.folder)]
    done = subprocess.run(command, cwd=TESTS, env=python_environment(), capture_output=True, text=True)
    require(done.returncode == 0, done.stderr[-4000:])
    attempt.counts["examples"] += int(re.findall(r"^Done (\d+)", done.stderr, re.M)[-1])


@case(short=2, long=200, limit_s=300)
def every_setting_of_a_manager_that_records(attempt: Try) -> None:
    """It records on, whatever it is asked or told."""
    own_folders(attempt.folder)
    examples = attempt.by_form(30, 300, 3_000)
    names = (
        "get_latest_audio",
        "set_buffer_size",
        "reader",
        "wait_ready",
        "_audio_callback",
        "save_as",
        "release_audio_file",
    )
    with pcmring.FileBasedAudioManager(Devices(Microphone)) as manager:
        require(manager.start_recording() and manager.wait_ready(30.0), manager.last_error)

        def check(name: str, arguments: list[Any], attribute: str, value: Any) -> None:
            _call(getattr(manager, name), arguments, {})
            with suppress(*PROMISED, AttributeError, Mine):
                setattr(manager, attribute, value if not callable(value) else None)
            require(manager.is_recording, name, arguments, "ended the recording")

        attributes = st.sampled_from(
            ["on_audio_data", "on_stream_error", "allow_default_device", "buffer_size_seconds"]
        )
        _fuzz(attempt, check, examples, st.sampled_from(names), argument_lists, attributes, values)
        written = manager.buffer.frames_written
        manager.stop_recording()
        require(manager.buffer.frames_written >= written > 0, "nothing was recorded")


@case(short=3, long=300)
def use_after_close_from_other_threads(attempt: Try) -> None:
    """Every call on what another thread has closed, or closes now."""
    own = attempt.random
    for _ in range(attempt.by_form(10, 100, 1_000)):
        buffer = AudioBuffer(
            own.choice([50, 20_000]), samplerate=16_000, policy=own.choice(["overwrite", "drop", "block"])
        )
        buffer.write(np.zeros(40, np.float32))
        reader, view, capture = buffer.reader("oldest"), buffer.latest_view(10), CaptureCallback(buffer)
        things = [buffer, reader, view, capture, reader.blocks(5, timeout=0.0)]
        closer = threading.Thread(target=own.choice([buffer.close, reader.close, capture.close]))
        closer.start()
        for _ in range(30):
            thing = own.choice(things)
            name = own.choice([name for name in dir(thing) if not name.startswith("_")])
            with suppress(*PROMISED, RuntimeError):
                attribute = getattr(thing, name)
                if callable(attribute):
                    arguments = [own.choice([0, 1, 5, None, np.zeros(3, np.float32)]) for _ in range(own.randint(0, 2))]
                    options: dict[str, Any] = {}
                    if name in ("read", "read_into", "write"):
                        arguments, options = _soon(arguments, options)
                    attribute(*arguments, **options)
                attempt.counts["calls"] += 1
        closer.join()
        capture.close()
        buffer.close()
