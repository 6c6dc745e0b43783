"""The import path `audio.memory_manager`, with the names of `pcmring.memory_manager`."""

from pcmring.memory_manager import *  # noqa: F403
from pcmring.memory_manager import __all__ as __all__
