"""What to record from, and with which settings.

A source is chosen by `AudioDeviceManager.select_device`: a sound card, a sound file played at real-time pace, or
a generated signal. All follow one protocol (`Source`), and files and generators need no PortAudio.
"""

from __future__ import annotations

import logging
import os
import threading

from pcmring._config import MAX_BUFFER_SIZE_SECONDS, MIN_BUFFER_SIZE_SECONDS, AudioConfig
from pcmring._late import MissingPackage
from pcmring._portaudio import AudioDevice, PortAudioSource, inputs, match, refresh
from pcmring._resample import ResamplingReader
from pcmring._sources import GENERATORS, FileSource, GeneratorSource, Source, SourceCounters, SourceError

__all__ = [
    "MAX_BUFFER_SIZE_SECONDS",
    "MIN_BUFFER_SIZE_SECONDS",
    "AudioConfig",
    "AudioDevice",
    "AudioDeviceManager",
    "FileSource",
    "GeneratorSource",
    "MissingPackage",
    "PortAudioSource",
    "ResamplingReader",
    "Source",
    "SourceCounters",
    "SourceError",
]

logger = logging.getLogger(__name__)


class AudioDeviceManager:
    """Lists what can be recorded from, picks one, and makes its source.

    Parameters
    ----------
    config : AudioConfig, optional
        Used and changed, not copied. The defaults if not given; ``AudioConfig.load()`` gives the saved ones.

    Notes
    -----
    Any thread may call anything here. Nothing is opened before a source is.
    """

    def __init__(self, config: AudioConfig | None = None) -> None:
        if config is not None and not isinstance(config, AudioConfig):
            raise TypeError(f"config must be an AudioConfig or None, got {config!r}")
        self.config = AudioConfig() if config is None else config
        self._lock = threading.Lock()
        self._has_warned = False

    def __repr__(self) -> str:
        return f"<AudioDeviceManager of {'the default device' if self.config.device is None else self.config.device!r}>"

    def get_available_devices(self, *, refresh_devices: bool = False) -> list[AudioDevice]:
        """Return what can be recorded from: sound cards, then generators.

        Without sounddevice or PortAudio only the generators; a warning in the log says what to install.

        Parameters
        ----------
        refresh_devices : bool, optional
            Look for devices anew; ids may change. PortAudio cannot do that while a stream is open.

        Raises
        ------
        RuntimeError
            `refresh_devices` while a source captures from a sound card.
        """
        try:
            if refresh_devices:
                refresh()
            devices = inputs()
        except MissingPackage as error:
            devices = []
            with self._lock:
                if not self._has_warned:
                    self._has_warned = True
                    logger.warning("no sound card can be used: %s", error)
        return devices + [self._generator(kind) for kind in GENERATORS]

    def _generator(self, kind: str) -> AudioDevice:
        return AudioDevice(kind, kind, "", self.config.channels, float(self.config.sample_rate), False, "generator")

    def get_current_device(self) -> AudioDevice | None:
        """Return what a source made now would record from, None if it is not there (any more)."""
        device = self.config.device
        try:
            if device is None:
                return next((found for found in self.get_available_devices() if found.is_default), None)
            return self._find(device)
        except (ValueError, OSError, ImportError):
            return None

    def select_device(self, device: int | str | os.PathLike[str] | None) -> AudioDevice | None:
        """Record from `device` from the next start on, and return what it is.

        Parameters
        ----------
        device : None, int, str or path-like
            None: the default device. Or an id; "tone", "noise", "silence"; a device's name, exact or, if only
            one has it, a part of it, letter case aside; a sound file's path. Tried in this order.

        Returns
        -------
        AudioDevice
            None if the default device was asked for and there is none.

        Raises
        ------
        ValueError
            There is no such device, or the text fits several; it lists what there is. Nothing was changed.
        SourceError
            It is a file, but not a sound file.
        MissingPackage
            An id was given, or it is a sound file, and the package for it is not installed.
        """
        if device is None:
            self.config.device = None
            return self.get_current_device()
        found = self._find(device)
        if isinstance(device, int) or found.kind != "device":
            self.config.device = found.id
        else:  # the whole name: a part of it may fit several devices tomorrow
            namesakes = [other for other in inputs() if other.name == found.name]
            self.config.device = found.name if len(namesakes) == 1 else f"{found.name}, {found.hostapi}"
        return found

    def _find(self, device: int | str | os.PathLike[str]) -> AudioDevice:
        if isinstance(device, int):
            return match(inputs(), device)
        text = os.fspath(device)
        if text in GENERATORS:
            return self._generator(text)
        devices: list[AudioDevice] = []
        problem = ""
        if isinstance(device, str):
            try:
                devices = inputs()
            except MissingPackage as error:
                problem = f"; {error}"
            exact = [found for found in devices if found.name == text]
            if exact:
                return match(exact, text)
        if os.path.isfile(text):
            with FileSource(text) as file:
                return AudioDevice(text, os.path.basename(text), "", file.channels, file.samplerate, False, "file")
        try:
            return match(devices, text)
        except ValueError as error:
            raise ValueError(f"{error}; {', '.join(GENERATORS)}; nor is there a file {text!r}{problem}") from None

    def create_source(self) -> Source:
        """Return a source for the current settings, not yet open.

        It delivers in the format of the device or file; a generator in that of the settings. `ResamplingReader`
        reads at the settings' rate and channels whatever it is.

        Returns
        -------
        Source
        """
        config = self.config
        device = config.device
        block_frames = config.block_frames or 512
        if isinstance(device, str):
            if device in GENERATORS:
                return GeneratorSource(
                    device, samplerate=config.sample_rate, channels=config.channels, block_frames=block_frames
                )
            if os.path.isfile(device) and not self._is_device_name(device):
                return FileSource(device, block_frames=block_frames)
        return PortAudioSource(
            device,
            samplerate=config.sample_rate,
            channels=config.channels,
            block_frames=config.block_frames,
            latency=config.latency,
        )

    @staticmethod
    def _is_device_name(text: str) -> bool:
        try:
            return any(found.name == text for found in inputs())
        except MissingPackage:
            return False
