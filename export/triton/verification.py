"""Compares a model as Triton would serve it, in simulation, with the artifact run directly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ds2deploy.export.parity.reference import behind_best, distance
from ds2deploy.export.parity.report import Tolerance, tolerance_for
from ds2deploy.export.parity.speech import synthesize
from ds2deploy.export.triton.clients import make_batcher, run_clients
from ds2deploy.export.triton.config import warmup_size
from ds2deploy.export.triton.simulator import Request, Run, SimulatedModel
from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.decoding.greedy import GreedyDecoder
from ds2deploy.runtimes.errors import ParityError, one_line
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.runtimes.session import Session
from ds2deploy.runtimes.tensors import LENGTHS
from ds2deploy.runtimes.triton import Infer, TritonSession

CLIENTS = 8
"""Clients that send at the same time."""

SECONDS = (0.4, 2.5)
"""Durations of the first and the last synthetic utterance; others are between."""

LONGEST_S = 10.0
"""Recordings are cut to so many seconds: what is compared here is not the network."""

PIECES = 7
"""Parts that a stream's audio comes in."""


class Simulation(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a simulation.

    Attributes:
        clients: number of clients, each with an utterance or a stream.
        requests: number of requests.
        largest_batch: requests in the largest batch.
        max_difference: largest difference of log-probabilities from the artifact run directly.
        same_text: clients whose text is the same.
        passed: within tolerance.
    """

    clients: int
    requests: int
    largest_batch: int
    max_difference: float
    same_text: int
    passed: bool

    def failure(self) -> str:
        """Explain in one line what differs."""
        return (
            f"log-probabilities differ by up to {self.max_difference:.2g}, and "
            f"{self.clients - self.same_text} of {self.clients} texts differ"
        )


class Heard(NamedTuple):
    """Result of a client: text, and log-probabilities (time, labels)."""

    text: str
    log_probs: FloatArray


def hear(session: Session, waveform: FloatArray) -> Heard:
    """Recognise an utterance, as a stream where the model takes blocks.

    Args:
        session: the model, direct or on a server.
        waveform: (samples,) float32 at the model's rate.
    """
    kept: list[FloatArray] = []

    class Keeping(GreedyDecoder):
        def advance(self, states: Any, blocks: Any) -> None:
            kept.extend(block.copy() for block in blocks)
            super().advance(states, blocks)

    recognizer = Recognizer(session, Keeping)
    rate = session.description.features.sample_rate
    if session.description.blocks is None:
        text = recognizer.transcribe(waveform, rate).text
    else:
        with recognizer.stream(rate) as stream:
            for piece in np.array_split(waveform, PIECES):
                stream.accept(piece)
            text = stream.finish().text
    return Heard(text, np.concatenate(kept))


def simulate(
    config: Any,
    run: Run,
    direct: Session,
    waveforms: Sequence[FloatArray] | None = None,
    pytorch_difference: float | None = None,
) -> Simulation:
    """Serve utterances or streams of several clients, in simulation, and compare.

    Args:
        config: the parsed configuration.
        run: runs the model's file as it is.
        direct: a session of ds2deploy on the same file.
        waveforms: each (samples,) float32 at the model's rate; synthetic speech by default.
        pytorch_difference: see `tolerance_for`.

    Raises:
        ParityError: the simulated server refuses or fails a request.
    """
    description = direct.description
    speech = waveforms or synthetic_speech(description)
    model = SimulatedModel(config, run)
    streams = description.blocks is not None

    def client(waveform: FloatArray) -> Callable[[Infer], Heard]:
        batched = config.max_batch_size > 1
        return lambda infer: hear(TritonSession(description, infer, batched), waveform)

    try:
        _warm_up(model, description)
        model.batches.clear()
        clients = [client(waveform) for waveform in speech]
        served = run_clients(make_batcher(model), clients, stagger=int(streams))
    except Exception as error:  # of the simulated server, or of the engine that it runs
        raise ParityError(
            f"a request failed in the simulation of Triton: {one_line(error)}"
        ) from error
    expected = [hear(direct, waveform) for waveform in speech]
    tolerance = tolerance_for(description.precision, pytorch_difference)
    return _judged(tolerance, model, served, expected)


def synthetic_speech(description: ArtifactDescription) -> list[FloatArray]:
    """Utterances of several durations, within the profile of an engine."""
    rate, engine = description.features.sample_rate, description.engine
    low, high = SECONDS
    if engine is not None and description.blocks is None:
        shortest, _, longest = engine.profile.seconds(description.features)
        low, high = max(low, shortest), min(high, longest)
        low = min(low, high)
    durations = np.linspace(low, high, CLIENTS)
    return [synthesize(rate, int(rate * duration), i) for i, duration in enumerate(durations)]


def _warm_up(model: SimulatedModel, description: ArtifactDescription) -> None:
    """Run the requests of the warm-up; their results are not looked at."""
    for warmup in model.config.model_warmup:
        name = description.inputs[0]
        sound = np.zeros((1, *warmup.inputs[name].dims), np.float32)
        inputs = {name: sound, LENGTHS: np.full((1, 1), warmup_size(description))}
        requests = [Request(inputs) for _ in range(warmup.batch_size)]
        for request in requests:
            model.check(request)
        model.execute(requests)
        if requests[0].error is not None:
            raise requests[0].error


def _judged(
    tolerance: Tolerance,
    model: SimulatedModel,
    served: Sequence[Heard],
    expected: Sequence[Heard],
) -> Simulation:
    difference, behind, same = 0.0, 0.0, 0
    for found, other in zip(served, expected, strict=True):
        same += found.text == other.text
        if found.log_probs.shape != other.log_probs.shape:
            difference = behind = float("inf")
            continue
        exact = other.log_probs.astype(np.float64)
        difference = max(difference, distance(exact, found.log_probs))
        behind = max(behind, behind_best(exact, found.log_probs))
    # Two labels may be too close for any runtime to order. In int8 nothing is batched, nor padded.
    text = same == len(served) or not tolerance.by_words
    return Simulation(
        clients=len(served),
        requests=sum(map(len, model.batches)),
        largest_batch=max(map(len, model.batches)),
        max_difference=difference,
        same_text=same,
        passed=text and difference <= tolerance.log_probs and behind <= tolerance.tie,
    )
