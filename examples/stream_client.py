"""Send a recording to `ds2deploy serve` in real time, and print the text as it arrives.

python examples/stream_client.py ws://127.0.0.1:8000/stream speech.wav

The server's key, if it has one, is read from the environment variable DS2DEPLOY_API_KEY, or from
--api-key, which other users of the machine can read in the list of processes.
"""

import argparse
import asyncio
import json
import os
import sys

import soundfile
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, InvalidURI

REMEDIES = {
    401: "set DS2DEPLOY_API_KEY to the server's key",
    403: "use the server's own host in the address",
    404: "check the path of the address, such as /stream",
}
"""Remedies of a refused connection, by its HTTP status."""


async def send(socket: ClientConnection, pcm: bytes, rate: int) -> None:
    """Send 16-bit PCM in pieces of 0.1 s, in real time."""
    size = 2 * (rate // 10)
    for start in range(0, len(pcm), size):
        await socket.send(pcm[start : start + size])
        await asyncio.sleep(0.1)
    await socket.send(json.dumps({"end": True}))


async def transcribe(url: str, path: str, key: str | None) -> None:
    """Print each update, and finally the transcript."""
    samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with connect(url, additional_headers=headers) as socket:
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


def main() -> None:
    """Read the arguments, and report a refused connection in one line."""
    parser = argparse.ArgumentParser(description="Send a recording to ds2deploy serve.")
    parser.add_argument("url", help="address of the server, such as ws://127.0.0.1:8000/stream")
    parser.add_argument("path", help="recording; its first channel is sent")
    parser.add_argument(
        "--api-key", metavar="KEY", default=os.environ.get("DS2DEPLOY_API_KEY"),
        help="key of the server; default: the environment variable DS2DEPLOY_API_KEY",
    )  # fmt: skip
    chosen = parser.parse_args()
    try:
        asyncio.run(transcribe(chosen.url, chosen.path, chosen.api_key))
    except InvalidStatus as error:
        status = error.response.status_code
        remedy = REMEDIES.get(status, "try again later")
        sys.exit(f"{chosen.url}: the server refused with HTTP status {status}; {remedy}")
    except InvalidURI as error:
        sys.exit(f"{error}; expected an address such as ws://127.0.0.1:8000/stream")
    except soundfile.LibsndfileError as error:
        sys.exit(f"{chosen.path}: cannot be read ({error.error_string}); give a WAV or FLAC file")
    except OSError as error:
        sys.exit(f"{chosen.url}: {error}; start the server: ds2deploy serve MODEL")


if __name__ == "__main__":
    main()
