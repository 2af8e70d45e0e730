"""State of a stream in the network, and the step that runs one block of many streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.engine_description import Profile
from ds2deploy.runtimes.features import FloatArray, IntArray
from ds2deploy.runtimes.geometry import TIME_STRIDE, output_length
from ds2deploy.runtimes.session import Closing, Session, check_finite
from ds2deploy.runtimes.tensors import (
    LENGTHS,
    LOG_PROBS,
    NEXT,
    OUTPUT_LENGTHS,
    POSITION,
    STATE,
    Tensors,
    first_state,
)


class StreamState:
    """State that the next block of one stream needs.

    Args:
        description: description of a streaming model.
        position: feature frame at which the first block begins; below 0 if the block begins
            before the stream.

    Attributes:
        position: feature frame at which the next block begins.
        total: length of the whole stream, in frames, or in samples if the input of the model is
            samples; None until the stream ends.
        memory: states of the network by name, without the batch axis.
    """

    def __init__(self, description: ArtifactDescription, position: int = 0) -> None:
        assert description.blocks is not None
        self.position = position
        self.total: int | None = None
        self.memory = first_state(description)
        self._blocks = description.blocks
        self._features = description.features
        self._samples = description.input == "waveform"

    @property
    def length(self) -> int:
        """Frames or samples up to the end of the next block, or of the stream."""
        if self.total is not None:
            return self.total
        known = max(1, self.position + self._blocks.frames)  # a first block may end before it
        return known * self._features.stride if self._samples else known

    @property
    def output_length(self) -> int | None:
        """Number of output frames of the whole stream; None until the stream ends."""
        if self.total is None:
            return None
        return output_length(self._features.frames(self.total) if self._samples else self.total)

    @property
    def done(self) -> bool:
        """True if the stream has ended and all its output frames were returned."""
        return self.output_length is not None and self._first_row >= self.output_length

    @property
    def _first_row(self) -> int:
        """Output frame of the first row of the next block."""
        return self.position // TIME_STRIDE - self._blocks.output_delay

    def valid_rows(self, log_probs: FloatArray) -> FloatArray:
        """Return the rows of the block's result that are output frames of the stream."""
        first, end = self._first_row, self.output_length
        stop = len(log_probs) if end is None else min(len(log_probs), end - first)
        return log_probs[max(0, -first) : max(0, stop)]

    def advance(self, memory: dict[str, FloatArray]) -> None:
        """Go to the next block, with the states after the last one."""
        for name, array in self.memory.items():
            np.copyto(array, memory[name])  # a view would keep the whole batch alive
        self.position += self._blocks.frames


def step(
    session: Session, states: Sequence[StreamState], blocks: Sequence[FloatArray]
) -> list[FloatArray]:
    """Run the next block of each of these streams, in one batch.

    Args:
        session: session of a streaming model.
        states: states of the streams. All are advanced; after an error, none is.
        blocks: block of each stream: features (1, bins, frames) or samples (samples,), float32.

    Returns:
        New log-probabilities of each stream, (frames, labels) float32; no rows before the first
        output frame or after the last.

    Raises:
        NotFiniteError: the model computed log-probabilities that are NaN.
    """
    tensors: dict[str, npt.NDArray[Any]] = {
        session.description.inputs[0]: np.stack(blocks),
        LENGTHS: np.array([state.length for state in states], np.int64),
        POSITION: np.array([[state.position] for state in states], np.int64),
    }
    names = states[0].memory.keys()
    for name in names:
        tensors[STATE + name] = np.stack([state.memory[name] for state in states])
    results = session.compute(tensors)
    rows = [
        state.valid_rows(block) for state, block in zip(states, results[LOG_PROBS], strict=True)
    ]
    check_finite(session, np.concatenate(rows))
    for i, state in enumerate(states):
        state.advance({name: results[NEXT + name][i] for name in names})
    return rows


def run_whole(
    session: Session, sound: FloatArray, lengths: IntArray
) -> tuple[FloatArray, IntArray]:
    """Compute `Session.run` through `Session.compute`.

    Raises:
        NotFiniteError: the model computed log-probabilities that are NaN.
    """
    if session.description.blocks is not None:
        return run_in_blocks(session, sound, lengths)
    name, of_lengths = session.description.inputs
    results = session.compute({name: sound, of_lengths: lengths})
    log_probs, output_lengths = results[LOG_PROBS], results[OUTPUT_LENGTHS]
    for row, length in zip(log_probs, output_lengths, strict=True):
        check_finite(session, row[:length])
    return log_probs, output_lengths


class BaseSession(Closing):
    """Base class of sessions, whose other methods follow from `compute`; see `Session`.

    A session sets `description` and `runtime`; and `profile`, `at_once` or `close` if needed.
    """

    description: ArtifactDescription
    runtime: str
    profile: Profile | None = None
    at_once: int | None = None

    def compute(self, tensors: Tensors) -> Tensors:
        """Run the network once; see `Session.compute`."""
        raise NotImplementedError

    def run(self, sound: FloatArray, lengths: IntArray) -> tuple[FloatArray, IntArray]:
        """Run the network on whole utterances; see `Session.run`."""
        return run_whole(self, sound, lengths)

    def streaming(self) -> Session | None:
        """Return this session if it takes blocks, else None; see `Session.streaming`."""
        return self if self.description.blocks is not None else None

    def close(self) -> None:
        """Do nothing: most runtimes free their memory themselves; see `Session.close`."""


def run_in_blocks(
    session: Session, sound: FloatArray, lengths: IntArray, stagger: int = 0
) -> tuple[FloatArray, IntArray]:
    """Compute `Session.run` of a streaming model, with each utterance as a stream.

    Args:
        session: session of a streaming model.
        sound: features (batch, 1, bins, time) or a waveform (batch, samples), float32.
        lengths: (batch,) int64, valid frames or samples, from 1.
        stagger: number of blocks by which each stream begins after the previous one.
    """
    description = session.description
    assert description.blocks is not None
    size = description.blocks.frames
    if description.input == "waveform":
        size *= description.features.stride
    states = [StreamState(description) for _ in lengths]
    rows: list[list[FloatArray]] = [[] for _ in lengths]
    for state, length in zip(states, lengths, strict=True):
        state.total = int(length)
    tick = 0
    while waiting := [i for i, state in enumerate(states) if not state.done]:
        chosen = [i for i in waiting if tick >= i * stagger]
        blocks = [_block(sound[i], (tick - i * stagger) * size, size) for i in chosen]
        limit = len(chosen) if session.profile is None else session.profile.batch[2]
        for start in range(0, len(chosen), max(1, limit)):
            some = chosen[start : start + limit]
            results = step(session, [states[i] for i in some], blocks[start : start + limit])
            for i, new in zip(some, results, strict=True):
                rows[i].append(new)
        tick += 1
    whole = [np.concatenate(parts) for parts in rows]
    log_probs = np.zeros((len(whole), max(map(len, whole)), whole[0].shape[1]), np.float32)
    for target, source in zip(log_probs, whole, strict=True):
        target[: len(source)] = source
    return log_probs, np.array([len(part) for part in whole], np.int64)


def _block(sound: FloatArray, start: int, size: int) -> FloatArray:
    """Cut `size` frames or samples from `start` on, padded with zeros."""
    piece = sound[..., start : start + size]
    missing = size - piece.shape[-1]
    return np.pad(piece, [(0, 0)] * (piece.ndim - 1) + [(0, missing)]) if missing else piece
