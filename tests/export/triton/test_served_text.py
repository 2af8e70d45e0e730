"""What clients get from Triton, in simulation, is what the artifact gives directly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ds2deploy.export.parity.reference import distance
from ds2deploy.export.parity.speech import synthesize
from ds2deploy.export.triton.clients import make_batcher, run_clients
from ds2deploy.export.triton.schema import parse_config
from ds2deploy.export.triton.simulator import SimulatedModel, onnx_run
from ds2deploy.export.triton.verification import hear, simulate
from ds2deploy.runtimes.errors import ParityError
from ds2deploy.runtimes.onnx.session import OnnxSession
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.runtimes.triton import TritonSession

pytest.importorskip("tritonclient", reason="the extra triton is not installed")

CLIENTS = 20
TOLERANCE = 1e-4
"""Of log-probabilities above -10, in fp32; measured 2e-5: the same file in other batches."""


def speech(rate: int) -> list[np.ndarray]:
    """Utterances of 0.1 to 1.7 s, in no order of length."""
    order = np.random.default_rng(0).permutation(CLIENTS)
    return [synthesize(rate, int(rate * (0.1 + 0.08 * i)), seed=int(i)) for i in order]


def test_twenty_clients_at_a_time_hear_what_each_would_alone(served: Any):
    direct = OnnxSession(served.path)
    waveforms = [one[: len(one) // 2] for one in speech(served.description.features.sample_rate)]
    model = SimulatedModel(parse_config(served.text), onnx_run(served.path))
    clients = [
        lambda infer, waveform=waveform: hear(TritonSession(served.description, infer), waveform)
        for waveform in waveforms
    ]
    found = run_clients(make_batcher(model), clients, stagger=1)
    for one, waveform in zip(found, waveforms, strict=True):
        alone = hear(direct, waveform)
        assert one.text == alone.text
        assert one.log_probs.shape == alone.log_probs.shape
        assert distance(alone.log_probs.astype(np.float64), one.log_probs) < TOLERANCE
    if served.path.name.startswith("streaming"):
        assert any(one.text for one in found)  # a trained model says something
    sizes = {len(batch) for batch in model.batches}
    assert served.description.blocks is None or max(sizes) > 2


def test_requests_of_one_bucket_are_batched(make_served: Callable[[str], Any]):
    """Utterances of 0.1 to 1.7 s have one shape: all are padded to 2 s."""
    served = make_served("offline")
    model = SimulatedModel(parse_config(served.text), onnx_run(served.path))
    waveforms = speech(served.description.features.sample_rate)
    clients = [
        lambda infer, waveform=waveform: hear(TritonSession(served.description, infer), waveform)
        for waveform in waveforms
    ]
    run_clients(make_batcher(model), clients)
    assert [len(batch) for batch in model.batches] == [16, 4]
    assert {batch[0].inputs["features"].shape[-1] for batch in model.batches} == {200}


def test_a_pool_and_a_list_of_recordings_go_through_one_session(make_served: Callable[[str], Any]):
    """Each stream keeps its id, however their blocks are mixed."""
    served = make_served("streaming waveform")
    waveforms = speech(16_000)[:5]
    expected = Recognizer(OnnxSession(served.path)).transcribe(waveforms, 16_000)

    def client(infer: Any) -> list[str]:
        recognizer = Recognizer(TritonSession(served.description, infer))
        texts = [one.text for one in recognizer.transcribe(waveforms, 16_000)]
        with recognizer.pool() as pool:
            calls = [pool.open(16_000) for _ in waveforms]
            for call, waveform in zip(calls, waveforms, strict=True):
                call.accept(waveform)
                call.finish()
            pool.drain()
        return texts + [call.transcript.text for call in calls]

    model = SimulatedModel(parse_config(served.text), onnx_run(served.path))
    (found,) = run_clients(make_batcher(model), [client])
    assert found == [one.text for one in expected] * 2


def test_given_speech_and_the_report(make_served: Callable[[str], Any]):
    served = make_served("streaming")
    config, direct = parse_config(served.text), OnnxSession(served.path)
    report = simulate(config, onnx_run(served.path), direct, speech(16_000)[:3])
    assert report.passed
    assert (report.clients, report.same_text) == (3, 3)
    assert report.largest_batch > 1


@pytest.mark.parametrize("kind", ["streaming", "streaming waveform", "gru"])
def test_the_old_name_of_the_position_is_paired_with_another_state(
    make_served: Callable[[str], Any], tmp_path: Path, kind: str
):
    """Before artifact format 3 it was `position`; sorted, it takes the place of another state."""
    served = make_served(kind)
    model = onnx.load(served.path)
    for value in model.graph.input:
        value.name = value.name.replace("state.position", "position")
    for node in model.graph.node:
        node.input[:] = [name.replace("state.position", "position") for name in node.input]
    onnx.save(model, tmp_path / "old.onnx")
    config = parse_config(served.text.replace('"state.position"', '"position"'))
    with pytest.raises(ParityError, match="a request failed"):
        simulate(config, onnx_run(tmp_path / "old.onnx"), OnnxSession(served.path))


def test_states_of_one_shape_that_are_exchanged_are_noticed(make_served: Callable[[str], Any]):
    """The hidden and the cell state: no shape tells them apart, the result does."""
    served = make_served("streaming")
    run = onnx_run(served.path)

    def exchanged(tensors: Any) -> Any:
        found = run(tensors)
        return {**found, "next.rnn": found["next.cell"], "next.cell": found["next.rnn"]}

    report = simulate(parse_config(served.text), exchanged, OnnxSession(served.path))
    assert not report.passed
    assert report.same_text < report.clients


def test_states_that_do_not_begin_at_zero_are_noticed(make_served: Callable[[str], Any]):
    served = make_served("streaming")
    config = parse_config(served.text)
    for state in config.sequence_batching.state:
        if state.input_name == "state.rnn":
            del state.initial_state[:]
    report = simulate(config, onnx_run(served.path), OnnxSession(served.path))
    assert not report.passed


def test_padding_that_counts_is_noticed(make_served: Callable[[str], Any]):
    served = make_served("offline")
    run = onnx_run(served.path)

    def careless(tensors: Any) -> Any:
        whole = np.full_like(tensors["lengths"], tensors["features"].shape[-1])
        return {**run({**tensors, "lengths": whole}),
                "output_lengths": run(tensors)["output_lengths"]}  # fmt: skip

    report = simulate(parse_config(served.text), careless, OnnxSession(served.path))
    assert not report.passed
