"""Runs an artifact on a Triton server: features and text here, the network there.

The caller brings the transport (HTTP or gRPC), as `examples/triton_client.py` does; nothing is
imported for it. The description of the artifact comes from the server: the exporter puts it into
the model's configuration.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from ds2deploy.runtimes.artifact import METADATA_KEY, ArtifactDescription, read_description
from ds2deploy.runtimes.errors import ModelFileError
from ds2deploy.runtimes.features import FloatArray, IntArray
from ds2deploy.runtimes.streaming.state import BaseSession, StreamState
from ds2deploy.runtimes.tensors import (
    FEATURES,
    LENGTHS,
    LOG_PROBS,
    NEXT,
    OUTPUT_LENGTHS,
    POSITION,
    STATE,
    Tensors,
    samples_of,
)

BUCKET_S = 2.0
"""Utterances are padded to a multiple of so many seconds: Triton batches requests of equal shapes
only. The result does not depend on the padding."""


DIGITS, DIGIT_BITS = 3, 20
"""An id in float32 numbers, each of so many bits, which are exact."""


class SequencePart(NamedTuple):
    """Place of a request in a stream.

    Attributes:
        id: correlation id of the stream, from 1.
        start: True for the first request.
        end: True for the last request.
    """

    id: int
    start: bool
    end: bool


class Infer(Protocol):
    """Sends one request to the server, and waits for its result."""

    def __call__(
        self, inputs: Tensors, outputs: Sequence[str], sequence: SequencePart | None
    ) -> Tensors:
        """Run the model.

        Args:
            inputs: arrays with a batch axis of 1; `lengths` is (1, 1).
            outputs: names of the outputs to return.
            sequence: place in the stream; None for whole utterances.
        """
        ...


def served_description(config: Mapping[str, Any], name: str) -> ArtifactDescription:
    """Read the description of a model from the configuration that the server returns.

    Args:
        config: the configuration as JSON.
        name: name of the model, for the error.

    Raises:
        ModelFileError: ds2deploy did not write the configuration, or it is damaged.
    """
    entry = config.get("parameters", {}).get(METADATA_KEY, {})
    if "string_value" not in entry:
        raise ModelFileError(
            f"{name}: its Triton configuration contains no description of ds2deploy; write the "
            "repository with: ds2deploy export CHECKPOINT --out FOLDER --triton REPOSITORY"
        )
    return read_description(entry["string_value"], name)


class TritonSession(BaseSession):
    """A model on a Triton server.

    Several threads may run it at the same time, if the transport allows it: then the server
    batches what they send. Each utterance, and each block of a stream, is a request of its own.

    Args:
        description: metadata of the model, see `served_description`.
        infer: the transport.
        batched: True if the server batches requests; utterances are then padded.
    """

    def __init__(
        self, description: ArtifactDescription, infer: Infer, batched: bool = True
    ) -> None:
        self.description, self.runtime = description, "triton"
        engine = description.engine
        self.profile = None if engine is None else engine.profile
        self._infer, self._batched = infer, batched

    def compute(self, tensors: Tensors) -> Tensors:
        """Run whole utterances, or the next block of each stream; see `Session.compute`.

        The server keeps the states of streams. Those that are returned hold the stream's id.
        """
        if self.description.blocks is not None:
            rows = [
                self._block({name: array[i : i + 1] for name, array in tensors.items()})
                for i in range(len(tensors[LENGTHS]))
            ]
            return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        sound = tensors[self.description.inputs[0]]
        found = [self._utterance(*row) for row in zip(sound, tensors[LENGTHS], strict=True)]
        lengths = np.concatenate([counts for _, counts in found])
        log_probs = np.zeros((len(found), lengths.max(), found[0][0].shape[2]), np.float32)
        for target, (one, _), length in zip(log_probs, found, lengths, strict=True):
            target[:length] = one[0, :length]
        return {LOG_PROBS: log_probs, OUTPUT_LENGTHS: lengths}

    def _utterance(self, sound: FloatArray, length: np.int64) -> tuple[FloatArray, IntArray]:
        whole = sound[..., :length]
        padding = self._padded(int(length)) - int(length)
        whole = np.pad(whole, [(0, 0)] * (whole.ndim - 1) + [(0, padding)])
        counts = np.full((1, 1), length, np.int64)
        inputs: Tensors = {self.description.inputs[0]: whole[None], LENGTHS: counts}
        results = self._infer(inputs, (LOG_PROBS, OUTPUT_LENGTHS), None)
        return results[LOG_PROBS], results[OUTPUT_LENGTHS][:, 0]

    def _padded(self, length: int) -> int:
        """Length to pad an utterance to: a whole number of buckets, within the profile."""
        config, profile = self.description.features, self.profile
        samples = self.description.input == "waveform"
        bucket = int(BUCKET_S * config.sample_rate) // (1 if samples else config.stride)
        padded = -(-length // bucket) * bucket if self._batched else length
        if profile is None:
            return padded
        low, high = profile.frames[0], profile.frames[2]
        if samples:
            low, high = samples_of(low, config), samples_of(high, config)
        return max(low, length, min(padded, high))

    def _block(self, tensors: Tensors) -> Tensors:
        """Run the next block of one stream."""
        sound, position = self.description.inputs[0], int(tensors[POSITION][0, 0])
        states = {name: array for name, array in tensors.items() if name.startswith(STATE)}
        start, length = position == 0, int(tensors[LENGTHS][0])
        of_features = states[STATE + FEATURES]
        number = _new_id() if start else _id(of_features)
        part = SequencePart(number, start, self._is_last(position, length))
        inputs = {sound: tensors[sound], LENGTHS: tensors[LENGTHS][:, None]}
        results = self._infer(inputs, (LOG_PROBS, OUTPUT_LENGTHS), part)
        following = {NEXT + name.removeprefix(STATE): array for name, array in states.items()}
        following[NEXT + FEATURES] = _holding(number, of_features)
        counts = results[OUTPUT_LENGTHS][:, 0]
        return {**following, LOG_PROBS: results[LOG_PROBS], OUTPUT_LENGTHS: counts}

    def _is_last(self, position: int, length: int) -> bool:
        """Tell whether the stream has ended, and this block completes its output.

        The length of an open stream is the end of the block. That of an ended one is below it in
        the last block, since output comes later than sound.
        """
        state = StreamState(self.description, position)
        if length >= state.length:
            return False
        assert self.description.blocks is not None
        state.total = length
        state.position += self.description.blocks.frames
        return state.done


def _new_id() -> int:
    """Make an id that no other client has: random, since clients do not know each other."""
    return secrets.randbelow(2 ** (DIGITS * DIGIT_BITS) - 1) + 1


def _holding(number: int, state: FloatArray) -> FloatArray:
    """Make an array like a state, whose first values are the digits of a stream's id."""
    array = np.zeros_like(state)
    array.flat[:DIGITS] = [number >> (DIGIT_BITS * i) & (2**DIGIT_BITS - 1) for i in range(DIGITS)]
    return array


def _id(state: FloatArray) -> int:
    """Read the id that `_holding` put into an array."""
    return sum(int(digit) << (DIGIT_BITS * i) for i, digit in enumerate(state.flat[:DIGITS]))
