"""Recognise recordings on a Triton server: `python examples/triton_client.py MODEL a.wav b.wav`.

The server runs a model that `ds2deploy export --triton REPOSITORY` wrote. The client computes
features and text without PyTorch: pip install 'ds2deploy[triton]'. It reads from the server's
description of the model whether to send whole utterances or the blocks of a stream.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import ModuleType

import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from ds2deploy.runtimes.audio.loading import read_blocks
from ds2deploy.runtimes.errors import Ds2Error
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.runtimes.tensors import Tensors
from ds2deploy.runtimes.triton import SequencePart, TritonSession, served_description


def connect(model: str, url: str, use_grpc: bool = False) -> TritonSession:
    """Open a session of a model on the server, with its own connection.

    Args:
        model: name of the model, which is the name of its folder in the repository.
        url: address of the server, such as localhost:8000 (HTTP) or localhost:8001 (gRPC).
        use_grpc: use gRPC instead of HTTP.
    """
    library: ModuleType = tritonclient.grpc if use_grpc else tritonclient.http
    server = library.InferenceServerClient(url)
    if use_grpc:
        config = server.get_model_config(model, as_json=True)["config"]
    else:
        config = server.get_model_config(model)

    def infer(inputs: Tensors, outputs: Sequence[str], sequence: SequencePart | None) -> Tensors:
        tensors = []
        for name, array in inputs.items():
            tensor = library.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        place = {}
        if sequence is not None:
            place = {
                "sequence_id": sequence.id,
                "sequence_start": sequence.start,
                "sequence_end": sequence.end,
            }
        wanted = [library.InferRequestedOutput(name) for name in outputs]
        result = server.infer(model, tensors, outputs=wanted, **place)
        return {name: result.as_numpy(name) for name in outputs}

    description = served_description(config, model)
    return TritonSession(description, infer, batched=int(config["max_batch_size"]) > 1)


def recognise(path: str, model: str, url: str, use_grpc: bool, live: bool) -> str:
    """Recognise one recording, as a stream if the model takes blocks.

    Args:
        path: path of the recording.
        model: name of the model, see `connect`.
        url: address of the server, see `connect`.
        use_grpc: use gRPC, see `connect`.
        live: print the text of a stream while it grows.
    """
    recognizer = Recognizer(connect(model, url, use_grpc))
    if recognizer.description.blocks is None:
        return recognizer.transcribe(path).text
    rate = recognizer.description.features.sample_rate
    with recognizer.stream(rate, name=path) as stream:
        for samples in read_blocks(path, rate):  # or from a microphone
            update = stream.accept(samples)
            if live and (update.words or update.tail):
                print(f"{path}: {update.text} ...", file=sys.stderr)
        return stream.finish().text


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the text of every recording; return the exit code."""
    parser = argparse.ArgumentParser(description="Recognise recordings on a Triton server.")
    parser.add_argument("model", help="name of the model on the server")
    parser.add_argument("audio", nargs="+", help="recordings")
    parser.add_argument(
        "--url", help="address (default localhost:8000, or localhost:8001 with --grpc)"
    )
    parser.add_argument("--grpc", action="store_true", help="use gRPC instead of HTTP")
    parser.add_argument("--live", action="store_true", help="print a stream's text while it grows")
    parser.add_argument(
        "--threads", type=int, default=1, help="simultaneous recordings (default 1)"
    )
    given = parser.parse_args(arguments)
    url = given.url or ("localhost:8001" if given.grpc else "localhost:8000")
    work = partial(recognise, model=given.model, url=url, use_grpc=given.grpc, live=given.live)
    try:
        # The server batches simultaneous requests of the threads.
        with ThreadPoolExecutor(given.threads) as threads:
            for path, text in zip(given.audio, threads.map(work, given.audio), strict=True):
                print(f"{path}: {text}")
    except (Ds2Error, InferenceServerException, OSError) as error:
        print(f"triton_client: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
