"""``python -m pcmring.cli`` is the command ``pcmring``."""

from pcmring.cli import main

if __name__ == "__main__":
    main()
