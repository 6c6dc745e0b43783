"""Sound files that can be read while they are written: every flush leaves a valid one.

A WAV is written here and not by libsndfile, which writes sizes when it closes a file, and whose header that can grow
past 4 GiB is one that many programs (Python's `wave` before 3.12) do not read: a plain header with room for 64-bit
sizes, as EBU Tech 3306 has it, becomes RF64 in place. A FLAC is encoded by libsndfile, in blocks of 4,096 frames; its
length is written into its header after each.
"""

from __future__ import annotations

import os
import struct
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np

from pcmring._late import load

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FORMATS", "WAV_SAMPLES", "Encoder", "check_format", "make_encoder", "repair", "wav_header"]

#: File formats and encodings, by soundfile's names; the first encoding is the default.
FORMATS = {"WAV": ("PCM_16", "PCM_24", "FLOAT"), "FLAC": ("PCM_16", "PCM_24")}

#: Format tag and bits per sample.
WAV_SAMPLES = {"PCM_16": (1, 16), "PCM_24": (1, 24), "FLOAT": (3, 32)}
_LONGEST_WAV_HEADER = 92
_OUR_WAVS = ((b"RIFF", b"WAVEJUNK", b"fmt "), (b"RF64", b"WAVEds64", b"fmt "))
#: Where STREAMINFO tells a FLAC's length: the lower 36 bits of the 8 bytes from 18.
_FLAC_FRAMES = (1 << 36) - 1


def check_format(format: str, subtype: str | None) -> str:
    """The encoding, the format's default if none is given, or ValueError."""
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(map(repr, FORMATS))}, got {format!r}")
    if subtype is None:
        return FORMATS[format][0]
    if subtype not in FORMATS[format]:
        raise ValueError(f"subtype of {format} must be one of {', '.join(map(repr, FORMATS[format]))}, got {subtype!r}")
    return subtype


def _to_integers(block: NDArray[np.float32], bits: int) -> NDArray[Any]:
    """Full scale ±1.0 as integers, rounded and saturated; 24 bits are the upper ones of 32. NaN is 0."""
    full = 2.0 ** (bits - 1)
    scaled = np.rint(np.nan_to_num(block, posinf=1.0, neginf=-1.0) * np.float32(full)).clip(-full, full - 1.0)
    integers: NDArray[Any] = scaled.astype(np.int16) if bits == 16 else scaled.astype(np.int32) << 8
    return integers


def _write(file: IO[bytes], data: bytes) -> None:
    """All of `data`; an unbuffered write may take less."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _overwrite(file: IO[bytes], at: int, data: bytes) -> None:
    end = file.tell()
    file.seek(at)
    try:
        _write(file, data)
    finally:
        file.seek(end)


class Encoder(Protocol):
    """A sound file being written. `frames` are those in it that its header tells of."""

    frames: int

    def append(self, block: NDArray[np.float32]) -> None: ...

    def flush(self) -> None:
        """Make the header tell of all that is in the file."""

    def finish(self) -> None:
        """Make the file whole; after a failure too, with what is in it."""


def wav_header(samplerate: int, channels: int, subtype: str, frames: int) -> bytes:
    tag, bits = WAV_SAMPLES[subtype]
    align = channels * bits // 8
    size = frames * align
    middle = struct.pack("<4sIHHIIHH", b"fmt ", 16, tag, channels, samplerate, samplerate * align, align, bits)
    if tag != 1:
        middle += struct.pack("<4sII", b"fact", 4, min(frames, 0xFFFFFFFF))
    riff_size = 4 + 36 + len(middle) + 8 + size + size % 2
    if riff_size <= 0xFFFFFFFF:
        begin = struct.pack("<4sI4s4sI28x", b"RIFF", riff_size, b"WAVE", b"JUNK", 28)
    else:
        begin = struct.pack("<4sI4s4sI", b"RF64", 0xFFFFFFFF, b"WAVE", b"ds64", 28)
        begin += struct.pack("<QQQI", riff_size, size, frames, 0)
        size = 0xFFFFFFFF
    return begin + middle + struct.pack("<4sI", b"data", size)


class WavEncoder:
    def __init__(self, file: IO[bytes], samplerate: int, channels: int, subtype: str) -> None:
        self._file = file
        self._format = samplerate, channels, subtype
        self._bits = WAV_SAMPLES[subtype][1]
        self._align = channels * self._bits // 8
        self.frames = 0
        header = wav_header(*self._format, 0)
        self._begin = len(header)
        if file.seek(0, os.SEEK_END) < self._begin:
            file.seek(0)
            _write(file, header)

    def append(self, block: NDArray[np.float32]) -> None:
        if self._bits == 32:
            data = block.astype("<f4").tobytes()
        elif self._bits == 16:
            data = _to_integers(block, 16).astype("<i2").tobytes()
        else:
            data = _to_integers(block, 24).astype("<i4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
        _write(self._file, data)

    def flush(self) -> None:
        frames = (self._file.seek(0, os.SEEK_END) - self._begin) // self._align
        _overwrite(self._file, 0, wav_header(*self._format, frames))
        self.frames = frames

    def finish(self) -> None:
        self.flush()
        end = self._begin + self.frames * self._align
        self._file.truncate(end)  # a failed write may have left a part of a frame
        if end % 2:
            self._file.seek(end)
            _write(self._file, b"\0")


class FlacEncoder:
    """What libsndfile encodes goes through this object into the file: libsndfile cannot pass an OSError on.

    It makes one write of each block, longer than the file was, and writes into its header at the end. So a write that
    failed looks to it like one that worked, and after it nothing is written that would make the file longer.
    """

    def __init__(self, file: IO[bytes], samplerate: int, channels: int, subtype: str) -> None:
        self._file = file
        self._bits = 16 if subtype == "PCM_16" else 24
        self._error: OSError | None = None
        self._end = self._blocks = self._taken = self.frames = 0
        self._encoder = load("soundfile").SoundFile(self, "w", samplerate, channels, subtype, format="FLAC")

    def append(self, block: NDArray[np.float32]) -> None:
        samples = _to_integers(block, self._bits)
        if self._taken == 0:
            self._encoder.write(samples[:1])  # the header comes with the first frame
            self._raise()
            self._read_header()
            samples = samples[1:]
        self._encoder.write(samples)
        self._raise()
        self._taken += len(block)

    def _read_header(self) -> None:
        self._file.seek(0)
        header = self._file.read(26)
        self._file.seek(self._end)
        self._blocks = 0
        self._block_frames = int.from_bytes(header[8:10], "big")
        self._format = int.from_bytes(header[18:26], "big") & ~_FLAC_FRAMES  # rate, channels, bits

    def flush(self) -> None:
        if self._taken:
            self._tell(self._blocks * self._block_frames)

    def finish(self) -> None:
        self._encoder.close()
        if self._error is None:
            self.frames = self._taken
            return
        self._file.truncate(self._end if self._taken else 0)
        self.flush()
        raise self._error

    def _tell(self, frames: int) -> None:
        _overwrite(self._file, 18, (self._format | frames).to_bytes(8, "big"))
        self.frames = frames

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    # what libsndfile calls

    def write(self, data: bytes) -> int:
        try:
            is_longer = self._file.tell() + len(data) > self._end
            if self._error is None or not is_longer:
                _write(self._file, data)
                if is_longer:
                    self._end = self._file.tell()
                    self._blocks += 1
        except OSError as error:
            self._error = self._error or error
        return len(data)

    def read(self, size: int) -> bytes:
        return self._file.read(size)

    def seek(self, offset: int, whence: int) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def make_encoder(file: IO[bytes], format: str, samplerate: int, channels: int, subtype: str) -> Encoder:
    """Return what writes a sound file of this format into `file`, which is empty."""
    return (WavEncoder if format == "WAV" else FlacEncoder)(file, samplerate, channels, subtype)


def repair(path: str | os.PathLike[str]) -> int | None:
    """Make a recording that was cut short whole: its header then tells of every frame in the file.

    Without it a reader gets all up to the last flush. A FLAC needs no repair, and other files are left alone.

    Returns
    -------
    int or None
        Its frames, None if it is not one that was made here.

    Raises
    ------
    OSError
        The file is not there, or cannot be written to.
    """
    with open(path, "r+b", buffering=0) as file:
        header = file.read(_LONGEST_WAV_HEADER)
        if header[:4] == b"fLaC":
            return int.from_bytes(header[18:26], "big") & _FLAC_FRAMES
        if len(header) >= 80 and (header[:4], header[8:16], header[48:52]) in _OUR_WAVS:
            tag, channels, samplerate, _, _, bits = struct.unpack_from("<HHIIHH", header, 56)
            subtype = next((name for name, sample in WAV_SAMPLES.items() if sample == (tag, bits)), None)
            if subtype is not None and channels:
                wav = WavEncoder(file, samplerate, channels, subtype)
                wav.finish()
                return wav.frames
    return None
