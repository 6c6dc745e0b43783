"""The import path `audio.buffer_manager`, with the names of `pcmring.buffer_manager`."""

from pcmring.buffer_manager import *  # noqa: F403
from pcmring.buffer_manager import __all__ as __all__
