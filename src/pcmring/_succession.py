"""What goes on with a recording when its device was lost: the same device, or the default one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pcmring._portaudio import PortAudioSource, inputs
from pcmring._sources import Source, check_format

if TYPE_CHECKING:
    from pcmring._buffer import AudioBuffer
    from pcmring._config import AudioConfig

__all__ = ["Succession"]

#: Attempts to reopen the same device before the default one is taken, where that is allowed: 0.3 s.
DEFAULT_FROM_ATTEMPT = 3


def _names_of(source: Source) -> list[str]:
    """What a device may be called when it comes back: ALSA's number in its name changes if the old one is in use."""
    name = source.name
    model = re.sub(r"\s*\(hw:\d+,\d+\)$", "", name)
    if model in ("", name) or not isinstance(source, PortAudioSource):
        return [name]
    return [name, model] if sum(device.name.startswith(model) for device in inputs()) == 1 else [name]


class Succession:
    """Finds the source that goes on with `source`, in the ring's format.

    Parameters
    ----------
    source : Source
        What the recording began with; open.
    buffer : AudioBuffer
        The ring.
    config : AudioConfig
        The recording's settings.
    allow_default_device : bool
        A lost device may be replaced by the system's default one.
    """

    def __init__(self, source: Source, buffer: AudioBuffer, config: AudioConfig, allow_default_device: bool) -> None:
        self._first = source
        self._buffer = buffer
        self._config = config
        self._names: list[str | None] = [*_names_of(source)]
        self._with_default = [*self._names, None] if allow_default_device else self._names

    def open(self, attempt: int) -> Source:
        """Return the same device, by its name, for ids change; else the default one where that is allowed.

        Raises
        ------
        OSError, ValueError, MissingPackage
            There is none, or it gives another format.
        """
        if not isinstance(self._first, PortAudioSource):
            self._first.open()
            return self._first
        failure: Exception | None = None
        for name in self._names if attempt < DEFAULT_FROM_ATTEMPT else self._with_default:
            source = self._source(name)
            try:
                source.open()
                check_format(source, self._buffer)
            except (OSError, ValueError) as error:
                source.close()
                failure = failure or error
            else:
                return source
        assert failure is not None
        raise failure

    def _source(self, name: str | None) -> PortAudioSource:
        samplerate = self._buffer.samplerate or 0.0
        return PortAudioSource(
            name,
            samplerate=samplerate,
            channels=self._buffer.channels,
            dtype=self._buffer.dtype.name,
            block_frames=round(self._config.block_frames * samplerate / self._config.sample_rate),
            latency=self._config.latency,
        )
