"""The simulated batchers: what is batched, when, and what a stream keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ds2deploy.export.triton.schema import parse_config
from ds2deploy.export.triton.sequences import GARBAGE, SequenceBatcher
from ds2deploy.export.triton.simulator import (
    DynamicBatcher,
    Request,
    RequestError,
    SimulatedModel,
)
from ds2deploy.runtimes.triton import SequencePart

pytest.importorskip("tritonclient", reason="the extra triton is not installed")

WHOLE = """
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [-1] }
input { name: "n" data_type: TYPE_INT64 dims: [1] reshape { } }
output { name: "y" data_type: TYPE_FP32 dims: [-1] }
output { name: "m" data_type: TYPE_INT64 dims: [1] reshape { } }
dynamic_batching { preferred_batch_size: [2, 4] max_queue_delay_microseconds: 100 }
"""

STATE = """
  state { input_name: "state.sum" output_name: "next.sum" data_type: TYPE_FP32 dims: [1]
          initial_state { name: "zeros" data_type: TYPE_FP32 dims: [1] zero_data: true } }
"""
STREAMS = f"""
max_batch_size: 8
input {{ name: "x" data_type: TYPE_FP32 dims: [1] }}
output {{ name: "y" data_type: TYPE_FP32 dims: [1] }}
sequence_batching {{
  max_sequence_idle_microseconds: 1000
  oldest {{ max_candidate_sequences: 2 max_queue_delay_microseconds: 100 }}{STATE}}}
"""


def double(tensors: Any) -> Any:
    assert tensors["n"].ndim == 1
    return {"y": 2 * tensors["x"], "m": tensors["n"] + 1}


def add_up(tensors: Any) -> Any:
    total = tensors["state.sum"] + tensors["x"]
    return {"y": total, "next.sum": total}


def utterance(length: int, batch: int = 1) -> Request:
    x = np.full((batch, length), length, np.float32)
    return Request({"x": x, "n": np.full((batch, 1), length, np.int64)})


def block(number: int, value: float, start: bool = False, end: bool = False) -> Request:
    return Request({"x": np.array([[value]], np.float32)}, SequencePart(number, start, end))


def value(request: Request) -> float:
    assert request.error is None
    assert request.results is not None
    return float(request.results["y"][0, 0])


@pytest.fixture
def whole() -> Any:
    model = SimulatedModel(parse_config(WHOLE), double)
    settings = model.config.dynamic_batching
    return model, DynamicBatcher(model, settings.preferred_batch_size, 100)


@pytest.fixture
def streams() -> Any:
    model = SimulatedModel(parse_config(STREAMS), add_up)
    return model, SequenceBatcher(model)


def sizes(model: SimulatedModel) -> list[int]:
    return [len(batch) for batch in model.batches]


def test_a_request_waits_for_others_and_no_longer_than_the_delay(whole: Any):
    model, batcher = whole
    request = utterance(3)
    batcher.submit(request, 0)
    batcher.advance(99)
    assert request.results is None
    assert batcher.deadline == 100
    batcher.advance(100)
    assert request.results["y"].tolist() == [[6, 6, 6]]
    assert request.results["m"].tolist() == [[4]]


def test_a_preferred_size_runs_at_once(whole: Any):
    model, batcher = whole
    for _ in range(7):
        batcher.submit(utterance(3), 0)
    batcher.advance(0)
    assert sizes(model) == [4, 2]  # and one waits
    batcher.advance(100)
    assert sizes(model) == [4, 2, 1]


def test_only_equal_shapes_are_batched(whole: Any):
    model, batcher = whole
    requests = [utterance(length) for length in (3, 3, 5, 3)]
    for request in requests:
        batcher.submit(request, 0)
    batcher.advance(0)
    batcher.advance(100)
    assert sizes(model) == [2, 1, 1]
    assert [len(request.results["y"][0]) for request in requests] == [3, 3, 5, 3]


def test_a_request_may_be_a_batch_itself(whole: Any):
    model, batcher = whole
    first, second = utterance(3, batch=3), utterance(3)
    batcher.submit(first, 0)
    batcher.submit(second, 0)
    batcher.advance(0)
    assert sizes(model) == [2]
    assert first.results["y"].shape == (3, 3)
    assert second.results["y"].shape == (1, 3)


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": np.zeros((1, 3), np.float32)},
        {"x": np.zeros((1, 3), np.float64), "n": np.zeros((1, 1), np.int64)},
        {"x": np.zeros((1, 3), np.float32), "n": np.zeros(1, np.int64)},
        {"x": np.zeros((9, 3), np.float32), "n": np.zeros((9, 1), np.int64)},
        {"x": np.zeros((2, 3), np.float32), "n": np.zeros((1, 1), np.int64)},
    ],
)
def test_tensors_missing_in_the_configuration_are_refused(whole: Any, inputs: Any):
    with pytest.raises(RequestError):
        whole[1].submit(Request(inputs), 0)


def test_each_stream_has_its_own_states(streams: Any):
    model, batcher = streams
    for turn in range(3):
        requests = [block(i, i * 10 + turn, turn == 0, turn == 2) for i in (1, 2)]
        for request in requests:
            batcher.submit(request, turn * 200)
        batcher.advance(turn * 200 + 100)
        assert [value(one) for one in requests] == [
            sum(i * 10 + t for t in range(turn + 1)) for i in (1, 2)
        ]
    assert sizes(model) == [2, 2, 2]
    assert batcher.free == 2


def test_requests_of_one_stream_run_one_after_the_other(streams: Any):
    model, batcher = streams
    requests = [block(7, 1, i == 0, i == 2) for i in range(3)]
    for request in requests:
        batcher.submit(request, 0)
    for now in (100, 200, 300):
        batcher.advance(now)
    assert [value(one) for one in requests] == [1, 2, 3]
    assert sizes(model) == [1, 1, 1]


def test_the_same_id_again_begins_at_zero(streams: Any):
    _, batcher = streams
    for expected in (5, 5):
        request = block(7, 5, True, True)
        batcher.submit(request, 0)
        batcher.advance(100)
        assert value(request) == expected
    abandoned, again = block(7, 5, True), block(7, 6, True)
    for now, request in ((200, abandoned), (400, again)):
        batcher.submit(request, now)
        batcher.advance(now + 100)
    assert value(again) == 6


def test_a_stream_without_a_start_is_refused(streams: Any):
    for part in (SequencePart(3, False, False), SequencePart(0, True, False), None):
        with pytest.raises(RequestError):
            streams[1].submit(Request({"x": np.zeros((1, 1), np.float32)}, part), 0)


def test_an_idle_stream_is_forgotten(streams: Any):
    _, batcher = streams
    batcher.submit(block(1, 1, True), 0)
    batcher.advance(100)
    batcher.submit(block(1, 1), 900)
    batcher.advance(1800)
    assert batcher.free == 1
    batcher.advance(1901)
    assert batcher.free == 2
    with pytest.raises(RequestError, match="START"):
        batcher.submit(block(1, 1), 1902)


def test_a_stream_more_than_there_are_slots_waits(streams: Any):
    _, batcher = streams
    for number in (1, 2):
        batcher.submit(block(number, 1, True), 0)
    third = [block(3, 4, True), block(3, 4, False, True)]
    for request in third:
        batcher.submit(request, 0)
    batcher.advance(100)
    assert third[0].results is None
    batcher.submit(block(1, 1, False, True), 200)
    for now in (300, 400, 500):
        batcher.advance(now)
    assert [value(one) for one in third] == [4, 8]


def test_a_cancelled_stream_frees_its_slot_once(streams: Any):
    _, batcher = streams
    first, waiting = block(1, 1, True), block(1, 1)
    other = block(2, 3, True)
    for request in (first, waiting, other):
        batcher.submit(request, 0)
    batcher.cancel(1, 50)
    assert isinstance(waiting.error, RequestError)
    batcher.advance(100)  # what was on its way still runs
    assert batcher.free == 1
    batcher.cancel(1, 100)
    batcher.advance(5000)
    assert batcher.free == 2
    with pytest.raises(RequestError, match="START"):
        batcher.submit(block(1, 1), 5000)
    assert value(other) == 3


def test_states_are_paired_by_their_sorted_names():
    """As configured a goes to z; sorted, it goes to w."""
    states = [
        STATE.replace("state.sum", name).replace("next.sum", following)
        for name, following in (("a", "z"), ("b", "w"))
    ]
    text = STREAMS.replace(STATE, "".join(states))
    seen = []

    def run(tensors: Any) -> Any:
        seen.append((float(tensors["a"][0, 0]), float(tensors["b"][0, 0])))
        one = np.ones_like(tensors["x"])
        return {"y": one, "z": one * 26, "w": one * 25}

    batcher = SequenceBatcher(SimulatedModel(parse_config(text), run))
    for turn in range(2):
        batcher.submit(block(1, 0, turn == 0, turn == 1), turn * 200)
        batcher.advance(turn * 200 + 100)
    assert seen == [(0, 0), (25, 26)]


def test_states_without_a_beginning_hold_anything():
    text = STREAMS.replace(
        'initial_state { name: "zeros" data_type: TYPE_FP32 dims: [1] zero_data: true }', ""
    )
    batcher = SequenceBatcher(SimulatedModel(parse_config(text), add_up))
    request = block(1, 1, True)
    batcher.submit(request, 0)
    batcher.advance(100)
    assert value(request) == 1 + GARBAGE
