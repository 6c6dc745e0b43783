"""What a speech model leaves of the memory, and what audio may have of it.

A model's memory is known by measuring it round a load (`W4LMemoryManager.loading`). Until then a table of first guesses
has to do, each with its source. Audio gets `min(configured, 25 % of what is left)`; the model's memory is added to the
monitor's limit, and so never makes audio pay.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from pcmring._late import MissingPackage
from pcmring._memory import MB, machine_memory, rss_bytes
from pcmring._monitor import DEFAULT_MEMORY_LIMIT_MB, MemoryMonitor, positive
from pcmring.memory_manager import DEFAULT_BUFFER_MEMORY_LIMIT_MB

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["MODEL_GUESSES", "ModelGuess", "ModelMemoryWarning", "W4LMemoryManager"]

logger = logging.getLogger(__name__)

#: Of what is left in the machine or cgroup, what audio may have.
AUDIO_SHARE = 0.25
#: What resident memory moves by itself; the smallest model takes a hundred times that.
NOTICEABLE_MB = 1
#: As `pcmring.MIN_BUFFER_SIZE_SECONDS` and `MAX_BUFFER_SIZE_SECONDS`; this room knows no buffers.
_SECONDS = (1.0, 30.0)


class ModelMemoryWarning(UserWarning):
    """A model needs more memory than there is."""


class ModelGuess(NamedTuple):
    """How much memory a model may take, before anyone measured it here."""

    memory_mb: float
    source: str


_SEED = "W4L's memory_management.md, unmeasured there"
_CPP = "whisper.cpp README, table of memory usage, 16-bit weights"
_FASTER = "faster-whisper README (2023), 13 min of speech on a CPU, whole process"
_CUDA = "faster-whisper issue 1030, largest CPU memory of a run on CUDA, whole process"
_RUN = "measured with faster-whisper 1.2.1, tiny.en and base.en on a CPU, whole process"
_WEIGHTS = "weights at 2 bytes (from the number of parameters) and 600 MB of work, as medium needs in whisper.cpp"

#: First guesses. The int8 ones include the interpreter and libraries, so they are too high rather than too low.
MODEL_GUESSES: dict[str, ModelGuess] = {
    "tiny": ModelGuess(150, _SEED),
    "base": ModelGuess(250, _SEED),
    "small": ModelGuess(500, _SEED),
    "medium": ModelGuess(1500, _SEED),
    "large": ModelGuess(2500, _SEED),
    "large-v2": ModelGuess(3900, _CPP),
    "large-v3": ModelGuess(3900, f"{_CPP}; the same size as large"),
    "turbo": ModelGuess(2150, f"809 M parameters: {_WEIGHTS}"),
    "distil-large-v3": ModelGuess(2050, f"756 M parameters: {_WEIGHTS}"),
    "tiny-int8": ModelGuess(280, _RUN),
    "base-int8": ModelGuess(368, _RUN),
    "small-int8": ModelGuess(995, _FASTER),
    "medium-int8": ModelGuess(1370, "769 M parameters at 1 byte and the 600 MB of work of whisper.cpp's medium"),
    "large-v2-int8": ModelGuess(3117, "faster-whisper README (2023), CPU memory of a run on CUDA, whole process"),
    "large-v3-int8": ModelGuess(2261, _CUDA),
    "turbo-int8": ModelGuess(1526, _CUDA),
    "distil-large-v3-int8": ModelGuess(1468, _CUDA),
}


class W4LMemoryManager:
    """Knows what the speech model takes, and sets the monitor's limit and the audio's share by it.

    May be called from any thread; `set_model` and `loading` should be called by the one that loads models.

    Parameters
    ----------
    memory_monitor : MemoryMonitor, optional
        The one to use; else the first `set_model` makes one. Its limit becomes the model's memory and 512 MB; its
        callbacks stay.
    buffer_memory_limit_mb : float
        What audio may take at most.

    Attributes
    ----------
    model_name : str or None
        The model set last.
    model_memory_mb : float
        What it takes: measured, or else the first guess; 0 before `set_model`.
    measured : bool
        Whether `model_memory_mb` was measured.
    memory_monitor : MemoryMonitor or None

    Raises
    ------
    TypeError, ValueError
        An argument is not legal.
    """

    def __init__(
        self,
        memory_monitor: MemoryMonitor | None = None,
        *,
        buffer_memory_limit_mb: float = DEFAULT_BUFFER_MEMORY_LIMIT_MB,
    ) -> None:
        if memory_monitor is not None and not isinstance(memory_monitor, MemoryMonitor):
            raise TypeError(f"memory_monitor must be a MemoryMonitor or None, got {memory_monitor!r}")
        self._buffer_limit = positive(buffer_memory_limit_mb, "buffer_memory_limit_mb", "MB")
        self._measured: dict[str, float] = {}
        self._resident = False  # the model set last is in memory
        self._loading = threading.RLock()  # two loads at a time could not be told apart
        self.model_name: str | None = None
        self.model_memory_mb: float = 0
        self.memory_monitor = memory_monitor
        if memory_monitor is not None:
            memory_monitor.add_source("model", self._model_bytes)

    def _model_bytes(self) -> int:
        return int(self.model_memory_mb * MB) if self._resident else 0

    @property
    def measured(self) -> bool:
        """Whether `model_memory_mb` was measured in this process."""
        return self.model_name in self._measured

    @staticmethod
    def _known(model_name: str) -> str:
        if model_name in MODEL_GUESSES:
            return model_name
        if not isinstance(model_name, str):
            raise TypeError(f"model_name must be a str, got {model_name!r}")
        raise ValueError(f"model_name must be one of {', '.join(map(repr, MODEL_GUESSES))}, got {model_name!r}")

    def set_model(self, model_name: str) -> None:
        """Plan for a model: its memory, the monitor's limit, and whether it fits.

        Loads nothing. The limit of the monitor becomes the model's memory and 512 MB. The monitor stays the
        same, with those who registered, when the model changes.

        Parameters
        ----------
        model_name : str
            A key of `MODEL_GUESSES`.

        Raises
        ------
        ValueError
            The name is unknown; the message lists the known ones.

        Warns
        -----
        ModelMemoryWarning
            The machine, or the cgroup, has less memory than the model needs, or less is left now.
        """
        self._set(model_name, stacklevel=4)

    def _set(self, model_name: str, stacklevel: int) -> None:
        name = self._known(model_name)
        if name != self.model_name:
            self._resident = False
        self.model_name = name
        self._plan(name)
        self._warn_if_too_large(stacklevel)

    def _plan(self, name: str) -> None:
        self.model_memory_mb = self._measured.get(name, MODEL_GUESSES[name].memory_mb)
        limit = self.model_memory_mb + DEFAULT_MEMORY_LIMIT_MB
        if self.memory_monitor is None:
            self.memory_monitor = MemoryMonitor(max_memory_mb=limit)
            self.memory_monitor.add_source("model", self._model_bytes)
        else:
            self.memory_monitor.max_memory_mb = limit

    def _warn_if_too_large(self, stacklevel: int) -> None:
        if self._resident:
            return  # it did fit
        try:
            machine = machine_memory()
        except (MissingPackage, OSError) as failure:
            logger.warning("whether model %r fits is not known: %s", self.model_name, failure)
            return
        needed = f"model {self.model_name!r} needs about {self.model_memory_mb:.0f} MB"
        if self.model_memory_mb * MB > machine.total:
            message = f"{needed}; this machine or its cgroup has {machine.total / MB:.0f} MB: it cannot be loaded"
        elif self.model_memory_mb * MB > machine.left:
            message = f"{needed}; {machine.left / MB:.0f} MB are left of {machine.total / MB:.0f} MB"
        else:
            return
        warnings.warn(message, ModelMemoryWarning, stacklevel=stacklevel)

    @contextmanager
    def loading(self, model_name: str) -> Iterator[None]:
        """Measure how much memory the block takes, and take that for the model's from then on.

        Put the load, and a first transcription if the library loads lazily, into the block. The model is set,
        as by `set_model`. No automatic cleanup runs meanwhile: it is the model's memory that grows.

        Parameters
        ----------
        model_name : str
            A key of `MODEL_GUESSES`.

        Raises
        ------
        ValueError
            The name is unknown.
        MemoryUnreadable, MissingPackage
            Memory cannot be read.

        Warns
        -----
        ModelMemoryWarning
            As `set_model`.

        Notes
        -----
        The difference of resident memory; what other threads take meanwhile is in it, and a model loaded before that
        is freed inside is taken off. Where it is below 1 MB no model was loaded, and the guess stays; so it does if
        the block raises.
        """
        with self._loading:
            self._set(model_name, stacklevel=5)  # contextlib stands between
            monitor = self.memory_monitor
            assert monitor is not None  # set_model made one
            with monitor.hold():
                before = rss_bytes()
                yield
                grown = (rss_bytes() - before) / MB
                self._resident = True
                if grown >= NOTICEABLE_MB:
                    self._measured[model_name] = grown
                    logger.info("model %r takes %.0f MB", model_name, grown)
                else:
                    logger.warning(
                        "loading model %r took no memory that shows: %.0f MB stays a guess",
                        model_name,
                        self.model_memory_mb,
                    )
                self._plan(model_name)

    def get_audio_budget(self) -> int:
        """Return the bytes that audio buffers may take: 25 % of what the model leaves, or what was configured if less.

        What is left is counted in the machine, or in the cgroup where that is less. A model that is set but not loaded
        yet is taken off.

        Raises
        ------
        MemoryUnreadable, MissingPackage
            Memory cannot be read.
        """
        left = machine_memory().left
        if not self._resident:
            left -= int(self.model_memory_mb * MB)
        return min(int(self._buffer_limit * MB), max(0, int(left * AUDIO_SHARE)))

    def get_optimal_buffer_seconds(
        self, sample_rate: float = 16000, channels: int = 1, dtype: npt.DTypeLike = "float32"
    ) -> float:
        """Return how long an audio buffer may be: what the budget holds, from 1 to 30 s.

        Parameters
        ----------
        sample_rate : float
            Hertz.
        channels : int
        dtype : dtype-like
            Of one sample.

        Returns
        -------
        float
            Seconds. 1.0 even where the budget holds less.

        Raises
        ------
        TypeError, ValueError
            An argument is not legal.
        MemoryUnreadable, MissingPackage
            Memory cannot be read.
        """
        import numpy as np

        bytes_per_second = (
            positive(sample_rate, "sample_rate", "hertz")
            * positive(channels, "channels", "channels")
            * np.dtype(dtype).itemsize
        )
        shortest, longest = _SECONDS
        return float(min(longest, max(shortest, self.get_audio_budget() / bytes_per_second)))

    def get_statistics(self) -> dict[str, Any]:
        """Return what is known of the model and left for audio.

        Returns
        -------
        dict
            ``model_name``, ``model_memory_mb``, ``measured``, ``source`` (of the number), ``resident``,
            ``memory_limit_mb`` (the monitor's, None before `set_model`) and ``audio_budget_bytes``.
        """
        name = self.model_name
        guess = MODEL_GUESSES.get(name or "")
        return {
            "model_name": name,
            "model_memory_mb": self.model_memory_mb,
            "measured": self.measured,
            "source": "measured round its load" if self.measured else guess and guess.source,
            "resident": self._resident,
            "memory_limit_mb": None if self.memory_monitor is None else self.memory_monitor.max_memory_mb,
            "audio_budget_bytes": self.get_audio_budget(),
        }
