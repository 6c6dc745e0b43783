"""Send a microphone to websocket_server.py, print its captions: python websocket_client.py ws://HOST:PORT [DEVICE]."""

import asyncio
import sys

import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from pcmring import AudioConfig, AudioDeviceManager, StreamingAudioManager


async def print_captions(socket: ClientConnection) -> None:
    async for text in socket:
        print(text, flush=True)


async def main(url: str, device: str | None = None) -> None:
    with StreamingAudioManager(AudioDeviceManager(AudioConfig(device=device))) as manager:
        async with connect(url) as socket:
            if not manager.start_recording():
                sys.exit(str(manager.last_error))
            printing = asyncio.create_task(print_captions(socket))
            async for block in manager.reader(0).blocks(1600):  # the event loop is free while it waits
                await socket.send(np.clip(block.array * 32768, -32768, 32767).astype("<i2").tobytes())
            await socket.send(b"")  # no more audio
            await printing  # until the server has sent the last words


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
