"""Look for names and terms with a beam search: without hot words, and with them.

python examples/hot_words.py model.onnx speech.wav "FIVE,NINE:1.5"

A hot word may have a weight (nats per letter, 0.8 without one). A recording may have hot words of
its own, and those of a stream may change while it runs.
"""

import sys

import ds2deploy


def main(model: str, path: str, phrases: str) -> None:
    """Print the text without and with the hot words, and which of them were found."""
    weights = {}
    for phrase in phrases.split(","):
        text, _, weight = phrase.partition(":")
        weights[text.strip()] = float(weight or 0.8)
    recognizer = ds2deploy.load(model, decoder=ds2deploy.DecoderConfig(beam=64, nbest=3))
    without = recognizer.transcribe(path)
    print(f"without: {without.text}")
    found = recognizer.transcribe(path, hot_words=weights)
    print(f"with:    {found.text}   (found: {', '.join(found.hot_words) or 'none'})")
    for other in found.alternatives:
        print(f"  {other.score:8.2f} {other.confidence:5.2f} {other.text}")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    try:
        main(sys.argv[1], sys.argv[2], sys.argv[3])
    except ds2deploy.Ds2Error as error:
        sys.exit(str(error))
