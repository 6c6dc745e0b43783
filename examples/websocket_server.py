"""Caption the audio of WebSocket clients, 16 kHz, 16 bits, mono: python websocket_server.py MODEL [PORT]."""

import asyncio
import sys

import numpy as np
from websockets.asyncio.server import ServerConnection, serve

from pcmring import AudioBuffer, ResamplingReader
from pcmring.pipeline import Captioner, WhisperTranscriber


async def receive(socket: ServerConnection, ring: AudioBuffer) -> None:
    with ring:  # closed at the end; the captions end when all of it was read
        async for message in socket:
            if not message:
                break
            ring.write(np.frombuffer(message, "<i2"))


async def main(model: str, port: str = "8765") -> None:
    whisper = WhisperTranscriber(model)  # one for all clients

    async def answer(socket: ServerConnection) -> None:
        ring = AudioBuffer(60 * 16000, dtype=np.int16, samplerate=16000)
        with Captioner(ResamplingReader(ring), whisper) as captions:
            receiving = asyncio.create_task(receive(socket, ring))
            async for caption in captions:
                if caption.is_final:
                    await socket.send(caption.text)
            await receiving

    async with serve(answer, "localhost", int(port)) as server:
        print("listening at port", server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
