"""The client's session: what it sends to a Triton server, without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.engine_description import Profile
from ds2deploy.runtimes.features import FeatureConfig
from ds2deploy.runtimes.tensors import LENGTHS, LOG_PROBS, OUTPUT_LENGTHS
from ds2deploy.runtimes.triton import TritonSession, _holding, _id, _new_id

SHAPE = ModelShape(hidden=4, layers=1, bidirectional=False, lookahead=2)
GLOBAL = FeatureConfig(normalize="none")


class Server:
    """Keeps what it is sent, and gives zeros."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, Any]] = []

    def __call__(self, inputs: Any, outputs: Any, sequence: Any) -> Any:
        self.sent.append((inputs, sequence))
        counts = (inputs[LENGTHS] - 1) // 2 + 1
        frames = int(counts.max())
        return {LOG_PROBS: np.zeros((1, frames, 29), np.float32), OUTPUT_LENGTHS: counts}


@pytest.mark.parametrize(
    ("length", "batched", "padded"),
    [(1, True, 200), (200, True, 200), (201, True, 400), (7, False, 7)],
)
def test_utterances_are_padded_to_buckets_where_the_server_batches(
    describe: Callable[..., Any], length: int, batched: bool, padded: int
):
    server = Server()
    session = TritonSession(describe(SHAPE), server, batched)
    sound = np.ones((1, 1, 161, length + 3), np.float32)
    log_probs, lengths = session.run(sound, np.array([length]))
    ((inputs, sequence),) = server.sent
    assert sequence is None
    assert inputs["features"].shape == (1, 1, 161, padded)
    assert inputs["features"].sum() == 161 * length  # zeros past the length
    assert inputs["lengths"].tolist() == [[length]]
    assert lengths.tolist() == [(length - 1) // 2 + 1]
    assert log_probs.shape[1] == lengths[0]


def test_utterances_stay_within_an_engines_profile(describe: Callable[..., Any]):
    server = Server()
    session = TritonSession(describe(SHAPE), server)
    session.profile = Profile(batch=(1, 2, 4), frames=(51, 201, 301))
    session.run(np.zeros((3, 1, 161, 301), np.float32), np.array([10, 250, 301]))
    assert [inputs["features"].shape[-1] for inputs, _ in server.sent] == [200, 301, 301]
    unbatched = TritonSession(describe(SHAPE), server, batched=False)
    unbatched.profile = session.profile
    unbatched.run(np.zeros((1, 1, 161, 10), np.float32), np.array([10]))
    assert server.sent[-1][0]["features"].shape[-1] == 51


def test_an_id_goes_through_float32():
    for number in (1, 2**60 - 1, *(_new_id() for _ in range(100))):
        state = np.full((1, 1, 3, 9), 5, np.float32)
        assert _id(_holding(number, state)) == number
    assert len({_new_id() for _ in range(100)}) == 100


@pytest.mark.parametrize("sound", ["features", "waveform"])
@pytest.mark.parametrize("count", [1, 20, 21, 40, 41, 77, 80])
def test_the_last_block_of_every_stream_says_so(
    describe: Callable[..., Any], sound: str, count: int
):
    """Several streams of one session, of different lengths: each begins and ends once."""
    description = describe(SHAPE, features=GLOBAL, sound=sound, block_ms=200)
    assert description.blocks is not None
    server = Server()

    def answer(inputs: Any, outputs: Any, sequence: Any) -> Any:
        server.sent.append((inputs, sequence))
        return {LOG_PROBS: np.zeros((1, 10, 29), np.float32),
                OUTPUT_LENGTHS: np.zeros((1, 1), np.int64)}  # fmt: skip

    session = TritonSession(description, answer)
    lengths = np.array([count, count + 13, 1]) * (160 if sound == "waveform" else 1)
    shape = (3, 1, 161, lengths.max()) if sound == "features" else (3, lengths.max())
    session.run(np.zeros(shape, np.float32), lengths)
    streams: dict[int, list[Any]] = {}
    for inputs, part in server.sent:
        assert inputs[sound].shape[0] == 1
        streams.setdefault(part.id, []).append((part.start, part.end))
    assert len(streams) == 3
    for flags in streams.values():
        assert [start for start, _ in flags] == [True, *[False] * (len(flags) - 1)]
        assert [end for _, end in flags] == [*[False] * (len(flags) - 1), True]


def test_a_streaming_session_gives_itself(describe: Callable[..., Any]):
    stream = describe(SHAPE, features=GLOBAL, block_ms=200)
    session = TritonSession(stream, Server())
    assert session.streaming() is session
    whole = msgspec.structs.replace(describe(SHAPE), precision="fp16")
    assert TritonSession(whole, Server()).streaming() is None
