"""Recognise speech while it is spoken, from a microphone or from a file in real time.

python examples/stream_microphone.py model.streaming.waveform.onnx --microphone
python examples/stream_microphone.py model.streaming.waveform.onnx speech.wav --speed 1

The microphone needs the package sounddevice: pip install sounddevice
"""

import argparse
import queue
import sys
import time
from collections.abc import Iterator

import numpy as np
import soundfile

import ds2deploy

RATE = 16_000
PIECE_S = 0.1


def microphone() -> Iterator[np.ndarray]:
    """Yield float32 samples from the default microphone until Ctrl-C."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: it does not find PortAudio
        sys.exit(f"no microphone: {error}; pip install sounddevice, and install PortAudio")
    pieces: queue.Queue[np.ndarray] = queue.Queue()
    size = int(PIECE_S * RATE)
    with sounddevice.InputStream(
        RATE, size, channels=1, callback=lambda samples, *_: pieces.put(samples[:, 0].copy())
    ):
        while True:
            yield pieces.get()


def recording(path: str, speed: float) -> tuple[int, Iterator[np.ndarray]]:
    """Return the sample rate of a file, and its samples as if somebody spoke them."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    size = int(PIECE_S * rate)

    def pieces() -> Iterator[np.ndarray]:
        for start in range(0, len(samples), size):
            time.sleep(PIECE_S / speed)
            yield samples[start : start + size]

    return rate, pieces()


def main() -> None:
    """Print the words that are certain, and, in brackets, those that may still change."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("audio", nargs="?", help="recording, instead of a microphone")
    parser.add_argument("--microphone", action="store_true")
    parser.add_argument("--speed", type=float, default=1.0, help="times real time")
    options = parser.parse_args()
    if options.microphone == (options.audio is not None):
        parser.error("give a recording or --microphone")
    rate, pieces = (RATE, microphone())
    if options.audio:
        rate, pieces = recording(options.audio, options.speed)
    recognizer = ds2deploy.load(options.model)
    with recognizer.stream(rate) as stream:
        try:
            for piece in pieces:
                update = stream.accept(piece)
                if update.words or update.tail:
                    print(f"{update.stable} [{update.tail}]", file=sys.stderr)
        except KeyboardInterrupt:
            pass
        print(stream.finish().text)


if __name__ == "__main__":
    try:
        main()
    except (ds2deploy.Ds2Error, soundfile.LibsndfileError) as error:
        sys.exit(str(error))
