"""Run a streaming waveform artifact without ds2deploy: numpy and ONNX Runtime alone.

python examples/onnx_alone.py model.streaming.waveform.onnx speech.wav

The artifact is whole: the features are in the graph, labels and block size in its metadata. The
WAV file has 16-bit samples of one channel, at the model's sample rate.
"""

import json
import sys
import wave

import numpy as np
import onnxruntime


def recognize(model: str, samples: np.ndarray) -> str:
    """Feed samples, (samples,) float32 in [-1, 1], block by block; return the text."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map["ds2deploy"])
    labels, delay = facts["labels"], facts["blocks"]["output_delay"]
    sizes = {tensor.name: tensor.shape[1:] for tensor in session.get_inputs()}
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
    states = {
        tensor.name: np.zeros([1, *tensor.shape[1:]], types[tensor.type])
        for tensor in session.get_inputs()
        if tensor.name.startswith("state.")
    }
    outputs = [tensor.name for tensor in session.get_outputs()]
    (block,) = sizes["waveform"]
    best: list[int] = []
    start, frames = 0, None
    while frames is None or len(best) < frames + delay:
        piece = samples[start : start + block]
        ended = start + block >= len(samples)
        length = len(samples) if ended else start + block
        feeds = {
            "waveform": np.pad(piece, (0, block - len(piece)))[None].astype(np.float32),
            "lengths": np.array([length], np.int64),
        }
        found = dict(zip(outputs, session.run(outputs, {**feeds, **states}), strict=True))
        best += found["log_probs"][0].argmax(-1).tolist()
        if ended:
            frames = int(found["output_lengths"][0])
        states = {name: found["next." + name.removeprefix("state.")] for name in states}
        start += block
    path = best[delay : delay + (frames or 0)]
    kept = [one for one, before in zip(path, [0, *path], strict=False) if one not in (0, before)]
    return " ".join("".join(labels[one] for one in kept).split())


def main(model: str, path: str) -> None:
    """Print the text of a WAV file."""
    with wave.open(path) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    print(recognize(model, samples.astype(np.float32) / 32768))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:3])
