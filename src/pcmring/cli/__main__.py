"""``python -m pcmring.cli`` is the command ``pcmring``."""

from pcmring.cli import main

main()
