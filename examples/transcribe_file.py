"""Transcribe recordings, and print each word with its time and confidence.

python examples/transcribe_file.py model.onnx a.wav b.flac
"""

import sys

import ds2deploy


def main(model: str, paths: list[str]) -> None:
    """Print the text of each recording, and its words."""
    with ds2deploy.load(model) as recognizer:
        for path in paths:
            transcript = recognizer.transcribe(path)
            print(f"{path}: {transcript.text}")
            for word in transcript.words:
                print(f"  {word.start:6.2f} {word.end:6.2f} {word.confidence:5.2f} {word.text}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        main(sys.argv[1], sys.argv[2:])
    except ds2deploy.Ds2Error as error:  # one line that names the file and the remedy
        sys.exit(str(error))
