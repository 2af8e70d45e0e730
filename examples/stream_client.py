"""Send a recording to `ds2deploy serve` in real time, and print the text as it arrives.

python examples/stream_client.py ws://127.0.0.1:8000/stream speech.wav
"""

import asyncio
import json
import sys

import soundfile
from websockets.asyncio.client import ClientConnection, connect


async def send(socket: ClientConnection, pcm: bytes, rate: int) -> None:
    """Send 16-bit PCM in pieces of 0.1 s, in real time."""
    size = 2 * (rate // 10)
    for start in range(0, len(pcm), size):
        await socket.send(pcm[start : start + size])
        await asyncio.sleep(0.1)
    await socket.send(json.dumps({"end": True}))


async def main(url: str, path: str) -> None:
    """Print each update, and finally the transcript."""
    samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    async with connect(url) as socket:
        await socket.send(json.dumps({"sample_rate": rate}))
        sending = asyncio.create_task(send(socket, samples[:, 0].tobytes(), rate))
        async for message in socket:
            found = json.loads(message)
            if "error" in found:
                sending.cancel()
                sys.exit(f"{found['error']['code']}: {found['error']['message']}")
            if "final" in found:
                print(found["text"])
            elif "committed" in found:
                print(f"... {found['committed']} {found['tail']}", file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
