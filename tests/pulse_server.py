"""A PulseAudio server of the tests' own, for what only a server shows: it is killed, hangs, loses its microphone.

The microphone is a named pipe, into which a thread writes the virtual microphone's ramp at the pace of the clock:
the frame at clock index k is k + 1, whether or not anybody fetched it.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from native_support import clean_environment

RATE = 16_000
BLOCK_FRAMES = 160
DEADLINE_S = 30.0

#: What the pipe holds: a device's buffer of 256 ms. Linux would make it a second.
PIPE_BYTES = 16_384


def client_environment(folder: Path) -> dict[str, str]:
    """The environment in which ALSA's only device is the server of this folder. Nothing outside of it is touched."""
    (folder / "asound.conf").write_text(f'pcm.!default {{ type pulse server "unix:{folder}/socket" }}\n')
    (folder / "client.conf").write_text("autospawn = no\nenable-shm = no\n")
    return {
        "ALSA_CONFIG_PATH": f"{folder}/asound.conf",
        "HOME": str(folder),
        "XDG_RUNTIME_DIR": str(folder),
        "PULSE_RUNTIME_PATH": str(folder),
        "PULSE_COOKIE": f"{folder}/cookie",
        "PULSE_CLIENTCONFIG": f"{folder}/client.conf",
        "PULSE_SERVER": f"unix:{folder}/socket",
    }


class PulseServer:
    """A running server, in an environment of `client_environment`. It ends with the process that made it."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._pipe = self._folder / "microphone"
        self._socket = self._folder / "socket"
        self._microphone = f"module-pipe-source source_name=microphone file={self._pipe} rate={RATE} channels=1"
        self._microphone += " format=float32le"
        self._is_over = threading.Event()
        self._speaker = threading.Thread(target=self._speak, daemon=True)
        self.start()
        self._speaker.start()
        atexit.register(self._end)  # before anybody loads PortAudio: so it ends after PortAudio

    def start(self) -> None:
        """Return when it listens."""
        for left in (self._pipe, self._socket):
            left.unlink(missing_ok=True)
        command = ["setpriv", "--pdeathsig", "KILL"]  # also when this process is killed
        command += ["pulseaudio", "-n", "--daemonize=no", "--use-pid-file=no", "--exit-idle-time=-1"]
        command += ["--realtime=no", "--high-priority=no", "--disable-shm=yes", f"--log-target=file:{self._folder}/log"]
        command += ["-L", self._microphone, "-L", f"module-native-protocol-unix socket={self._socket} auth-anonymous=1"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=clean_environment())
        deadline = time.monotonic() + DEADLINE_S
        with socket.socket(socket.AF_UNIX) as client:
            while client.connect_ex(str(self._socket)):
                log = self._folder / "log"
                assert self._process.poll() is None, log.read_text() if log.exists() else "no log"
                assert time.monotonic() < deadline, "the server does not listen"
                time.sleep(0.01)

    def lose(self, how: str) -> None:
        """The server is "killed", or "hangs", or its microphone is "removed" or "suspended"."""
        if how == "killed":
            self._process.kill()
            self._process.wait()
        elif how == "hangs":
            self._process.send_signal(signal.SIGSTOP)
        elif how == "removed":
            self.control("unload-module", "module-pipe-source")
        else:
            self.control("suspend-source", "microphone", "1")

    def give_back(self, how: str) -> None:
        """The opposite of `lose`."""
        if how == "killed":
            self.start()
        elif how == "hangs":
            self._process.send_signal(signal.SIGCONT)
        elif how == "removed":
            self.control("load-module", *self._microphone.split())
        else:
            self.control("suspend-source", "microphone", "0")

    def control(self, *words: str) -> str:
        """What pactl prints."""
        return subprocess.run(["pactl", *words], check=True, capture_output=True, text=True, timeout=DEADLINE_S).stdout

    def _end(self) -> None:
        self._is_over.set()
        self._speaker.join()
        self._process.kill()
        self._process.wait()

    def _speak(self) -> None:
        begin, spoken, pipe = time.monotonic(), 0, -1
        while not self._is_over.wait(BLOCK_FRAMES / RATE):
            while spoken + BLOCK_FRAMES <= (time.monotonic() - begin) * RATE:
                ramp = np.arange(spoken + 1, spoken + BLOCK_FRAMES + 1, dtype=np.float32) / 2**23
                spoken += BLOCK_FRAMES
                try:
                    if pipe < 0:  # there is nobody to hear it until the server has made it
                        pipe = os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK)
                        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
                    with suppress(BlockingIOError):  # not fetched in time: lost
                        os.write(pipe, ramp.astype("<f4").tobytes())
                except OSError:
                    if pipe >= 0:
                        os.close(pipe)
                    pipe = -1
        if pipe >= 0:
            os.close(pipe)
