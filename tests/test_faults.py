"""The fault campaign runs: a little of each chapter, and its accounts see what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from faults import campaign
from faults.account import ReaderAccount, check_ledger, settle
from faults.campaign import CHAPTERS, TESTS, Case, Try, run_chapter, run_tries
from faults.positions import Unaccounted, frames, serials
from native_support import python_environment
from pcmring import AudioBuffer, Gap
from virtual_mic import need

need("psutil", "soundfile")

#: Chapters that compile nothing, and do not measure memory.
SANITIZED = ("devices", "input_fuzz", "misuse")
DTYPES = ["int16", "int32", "float32", "float64"]


# ---- the signal and the accounts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [0, 65_000, 2**23 - 50, 2**31 - 50, 2**32 - 50])
def test_every_frame_tells_its_serial(dtype, first):
    np.testing.assert_array_equal(serials(frames(first, 100, 3, dtype), first), np.arange(first, first + 100))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_frame_that_is_torn_or_there_twice_is_seen(dtype):
    audio = frames(1000, 100, 2, dtype)
    torn = audio.copy()
    torn[50, 1] = audio[51, 1]
    for wrong in (torn, np.repeat(audio, 2, axis=0)):
        with pytest.raises(Unaccounted):
            serials(wrong, 1000)


def _dropping() -> tuple[AudioBuffer, ReaderAccount]:
    """A ring that took 100 of 150 frames, then 100 more."""
    buffer = AudioBuffer(100, dtype="int32", policy="drop")
    account = ReaderAccount(buffer.reader(guard=True))
    for first, count in ((0, 150), (150, 100)):
        buffer.write(frames(first, count))
        account.add(account.reader.read(100))
    return buffer, account


def test_the_books_balance_when_all_is_told():
    buffer, account = _dropping()
    counts: Counter[str] = Counter()
    settle(buffer, 250, [account], counts)
    assert counts == {"offered": 250, "missing": 50, "delivered": 200, "lost": 0}
    assert account.runs == [(0, 0, 100), (100, 150, 100)]


@pytest.mark.parametrize(
    "gaps",
    [
        [],
        [Gap(100, 49, "dropped", True)],
        [Gap(99, 50, "dropped", True)],
        [Gap(101, 50, "dropped", True)],
        [Gap(100, 50, "dropped", True), Gap(150, 1, "dropped", True)],
        [Gap(0, 50, "dropped", True)],
    ],
)
def test_a_ledger_that_is_wrong_by_one_frame_is_seen(gaps):
    _, account = _dropping()
    with pytest.raises(Unaccounted):
        check_ledger(account.runs, gaps, sum(gap.frames for gap in gaps))


def test_a_frame_that_nobody_tells_of_is_seen():
    buffer, account = _dropping()
    with pytest.raises(Unaccounted, match="251 offered"):
        settle(buffer, 251, [account], {})
    account.delivered -= 1
    with pytest.raises(Unaccounted, match="199 delivered"):
        account.settle()


def test_a_reader_that_lies_about_its_losses_is_seen():
    with AudioBuffer(100, dtype="int32") as buffer:
        account = ReaderAccount(buffer.reader())
        buffer.write(frames(0, 150))
        account.add(account.reader.read(100))
        account.settle()
        account._lost_ranges = [(0, 49)]
        with pytest.raises(Unaccounted, match="missing are"):
            account.settle()


# ---- the campaign ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chapter",
    [chapter if chapter in SANITIZED else pytest.param(chapter, marks=pytest.mark.native) for chapter in CHAPTERS],
)
def test_a_little_of_the_campaign(chapter):
    command = [sys.executable, "-m", "faults", "--tiny", "--seed", "1", "--only", chapter]
    done = subprocess.run(command, cwd=TESTS, env=python_environment(), capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "tries" in done.stdout


def _lose_a_frame(attempt: Try) -> None:
    attempt.counts["offered"] += 5
    raise Unaccounted("one frame is missing")


def _case(known: str = "") -> Case:
    return Case("of this test", _lose_a_frame, {"tiny": 3, "short": 0, "long": 0}, 30.0, None, known)


def test_a_try_that_fails_is_told_with_what_it_counted(capsys, monkeypatch):
    monkeypatch.setitem(campaign._cases, "load", [_case()])
    run_tries("load", "of this test", "tiny", 1, 2, 4, 60.0)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["try"], line["counts"]) for line in lines] == [(2, {"offered": 5}), (3, {"offered": 5})]
    assert all("one frame is missing" in line["failure"] for line in lines)


def test_no_try_begins_when_the_time_is_over(capsys, monkeypatch):
    monkeypatch.setitem(campaign._cases, "load", [_case()])
    run_tries("load", "of this test", "tiny", 1, 0, 3, -1.0)
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize("known", ["", "a known fault"])
def test_a_case_whose_process_dies_is_told_with_the_words_to_run_it_again(capsys, monkeypatch, known):
    monkeypatch.setitem(campaign._cases, "load", [_case(known)])  # no child knows this case: each one dies
    (outcome,) = run_chapter("load", "tiny", seed=1)
    printed = capsys.readouterr().out
    assert (outcome.tried, [number for number, _ in outcome.failures]) == (3, [0, 1, 2])
    assert outcome.is_bad == (known == "")
    assert "--only load --case 'of this test' --try 2" in printed
    assert ("known, not mended: of this test: a known fault" in printed) == bool(known)


@pytest.mark.parametrize("words", ["not enough values to unpack", "other words"])
def test_only_a_death_with_the_words_that_are_excused_is_no_failure(capsys, monkeypatch, words):
    monkeypatch.setitem(campaign._cases, "load", [replace(_case(), excused=words)])  # each child dies, as above
    (outcome,) = run_chapter("load", "tiny", seed=1)
    is_excused = words.startswith("not enough")
    assert outcome.is_bad != is_excused
    assert outcome.tried == 3
    assert ("3 ended by a fault of Python's" in capsys.readouterr().out) == is_excused


def test_a_chapter_that_is_not_there_is_refused():
    command = [sys.executable, "-m", "faults", "--only", "moon"]
    done = subprocess.run(command, cwd=TESTS, env=python_environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert "got moon" in done.stderr
