"""Recognise many live streams with one model, in batches.

python examples/many_streams.py model.streaming.waveform.onnx a.wav b.wav c.wav

Each recording is a caller with a thread of its own, who speaks in pieces of a random size.
"""

import random
import sys
import threading

import numpy as np
import soundfile

import ds2deploy


def speak(call: ds2deploy.PooledStream, samples: np.ndarray, number: int) -> None:
    """Send a caller's audio in pieces, and end the stream."""
    chance, start = random.Random(number), 0
    while start < len(samples):
        size = chance.randint(100, 8000)
        try:
            call.accept(samples[start : start + size])
            start += size
        except ds2deploy.BackPressureError:  # nothing was taken: send it again
            threading.Event().wait(0.05)
    call.finish()


def main(model: str, paths: list[str]) -> None:
    """Print the text of each caller when it is complete."""
    recognizer = ds2deploy.load(model)
    with recognizer.pool(streams=len(paths)) as pool:
        left = len(paths)
        for number, path in enumerate(paths):
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
            call = pool.open(rate, name=path)
            threading.Thread(target=speak, args=(call, samples, number), daemon=True).start()
        while left and pool.wait():
            for stream, _ in pool.tick():
                if stream.transcript is not None:
                    left -= 1
                    print(f"{stream.name}: {stream.transcript.text}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        main(sys.argv[1], sys.argv[2:])
    except ds2deploy.Ds2Error as error:
        sys.exit(str(error))
