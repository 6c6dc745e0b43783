from __future__ import annotations

import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from pcmring._late import MissingPackage
from pcmring.pipeline import ModelError, PocketsphinxTranscriber, Transcript, WhisperTranscriber
from speech_clips import TEXTS, clip, tiny_en, word_error_rate, words

#: What an engine's own dependencies warn of is not ours.
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::UserWarning")

RATE = 16000
SHORT = "sense_and_sensibility_0930.flac"


@pytest.fixture(scope="module")
def whisper() -> WhisperTranscriber:
    return WhisperTranscriber(tiny_en(), cpu_threads=2)


@pytest.fixture(scope="module")
def sphinx() -> PocketsphinxTranscriber:
    pytest.importorskip("pocketsphinx")
    return PocketsphinxTranscriber()


def test_whisper_hears_the_words_and_where_they_are(whisper):
    audio = clip(SHORT)
    transcript = whisper.transcribe(audio)
    assert words(transcript.text) == words(TEXTS[SHORT])
    assert words(" ".join(word.text for word in transcript.words)) == words(TEXTS[SHORT])
    edges = [edge for word in transcript.words for edge in (word.start, word.stop)]
    assert edges == sorted(edges)
    assert 0 <= edges[0] < edges[-1] <= len(audio)


def test_whisper_has_few_word_errors_over_all_clips(whisper):
    found = " ".join(whisper.transcribe(clip(name)).text for name in TEXTS)
    assert word_error_rate(" ".join(TEXTS.values()), found) < 0.1


def test_whisper_hears_the_same_again_whatever_was_between(whisper):
    before = whisper.transcribe(clip(SHORT))
    whisper.transcribe(clip("sense_and_sensibility_0870.flac"))
    assert whisper.transcribe(clip(SHORT)) == before


def test_a_draft_of_whisper_is_text_only(whisper):
    transcript = whisper.transcribe(clip(SHORT), is_draft=True)
    assert word_error_rate(TEXTS[SHORT], transcript.text) < 0.3
    assert transcript.words == ()


def test_whisper_hears_nothing_in_silence_and_noise(whisper):
    noise = np.random.default_rng(1).normal(0, 0.01, 2 * RATE).astype(np.float32)
    assert whisper.transcribe(noise) == Transcript("")
    assert whisper.transcribe(np.zeros(RATE, np.float32)) == Transcript("")
    assert whisper.transcribe(np.zeros(0, np.float32)) == Transcript("")


def test_whisper_takes_its_longest_audio_and_refuses_more(whisper):
    audio = np.zeros(30 * RATE, np.float32)
    whole = np.concatenate([clip(name) for name in TEXTS])
    audio[: len(whole)] = whole
    found = whisper.transcribe(audio[: int(whisper.max_audio_s * RATE)])
    assert word_error_rate(" ".join(TEXTS.values()), found.text) < 0.1
    with pytest.raises(ValueError, match=r"audio must be at most 29\.5 s, got 30 s"):
        whisper.transcribe(audio)


def test_several_threads_share_one_model(whisper, crew):
    expected = {name: whisper.transcribe(clip(name)) for name in list(TEXTS)[1:3]}
    together = threading.Barrier(2)

    def hear(name: str) -> None:
        together.wait(30)
        assert whisper.transcribe(clip(name)) == expected[name]

    for name in expected:
        crew.start(hear, name)
    crew.join()


@pytest.mark.parametrize("name", ["model.bin", "config.json", "tokenizer.json", "vocabulary.txt"])
def test_an_incomplete_whisper_folder_is_refused_by_what_it_lacks(tmp_path, name):
    folder = copied_model(tmp_path)
    (folder / name).unlink()
    with pytest.raises(ModelError, match=rf"is no CTranslate2 Whisper model: it has no {name.removesuffix('txt')}"):
        WhisperTranscriber(folder)


@pytest.mark.parametrize("name", ["model.bin", "config.json", "tokenizer.json"])
def test_a_truncated_whisper_file_is_refused(tmp_path, name):
    folder = copied_model(tmp_path)
    content = (folder / name).resolve().read_bytes()
    (folder / name).unlink()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="cannot be loaded"):
        WhisperTranscriber(folder)


def copied_model(folder: Path) -> Path:
    """The model under another folder, its files linked: it has 75 MB."""
    for file in tiny_en().iterdir():
        (folder / file.name).symlink_to(file)
    return folder


def test_a_whisper_model_that_does_not_exist_is_refused_with_the_names_there_are():
    pytest.importorskip("faster_whisper")
    with pytest.raises(ModelError, match=r"no folder '\./models/tny', and no Whisper model of that name: tiny\.en"):
        WhisperTranscriber("./models/tny")


def test_a_language_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="language must be one that the model knows, en, got 'klingon'"):
        WhisperTranscriber(tiny_en(), language="klingon")


def test_pocketsphinx_hears_most_words_and_where_they_are(sphinx):
    audio = clip(SHORT)
    transcript = sphinx.transcribe(audio)
    assert word_error_rate(TEXTS[SHORT], transcript.text) < 0.5
    assert transcript.text == " ".join(word.text for word in transcript.words)
    edges = [edge for word in transcript.words for edge in (word.start, word.stop)]
    assert edges == sorted(edges)
    assert 0 <= edges[0] < edges[-1] <= len(audio)


def test_pocketsphinx_hears_nothing_where_no_audio_is(sphinx):
    assert sphinx.transcribe(np.zeros(0, np.float32)) == Transcript("")


def test_pocketsphinx_with_a_grammar_is_exact(tmp_path):
    pytest.importorskip("pocketsphinx")
    grammar = tmp_path / "grammar.gram"
    grammar.write_text(
        "#JSGF V1.0;\ngrammar sentences;\npublic <sentence> = "
        "he might even have been made amiable himself | he was not an ill disposed young man;\n"
    )
    assert PocketsphinxTranscriber(grammar).transcribe(clip(SHORT)).text == TEXTS[SHORT]


@pytest.mark.parametrize("content", ["#JSGF V1.0; grammar broken; public <x> = ( yes", "no grammar at all"])
def test_a_broken_grammar_is_refused(tmp_path, content):
    pytest.importorskip("pocketsphinx")
    grammar = tmp_path / "grammar.gram"
    grammar.write_text(content)
    with pytest.raises(ModelError, match=r"cannot use the grammar '.*grammar\.gram'"):
        PocketsphinxTranscriber(grammar)


def test_a_missing_grammar_is_refused(tmp_path):
    pytest.importorskip("pocketsphinx")
    with pytest.raises(ModelError, match="there is no grammar file"):
        PocketsphinxTranscriber(tmp_path / "none.gram")


@pytest.mark.parametrize(
    ("module", "make", "install"),
    [
        ("faster_whisper", lambda: WhisperTranscriber("tiny.en"), "faster-whisper or pip install 'pcmring[whisper]'"),
        ("pocketsphinx", PocketsphinxTranscriber, "pocketsphinx or pip install 'pcmring[pocketsphinx]'"),
    ],
)
def test_a_missing_engine_says_what_to_install(monkeypatch, module, make, install):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackage) as failure:
        make()
    assert str(failure.value).endswith(f"pip install {install}")


def test_a_model_folder_is_found_by_a_plain_copy_too(tmp_path):
    """Symbolic links are what the Hugging Face cache has; a copy is what people have."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_en(), folder)
    assert words(WhisperTranscriber(str(folder)).transcribe(clip(SHORT)).text) == words(TEXTS[SHORT])
