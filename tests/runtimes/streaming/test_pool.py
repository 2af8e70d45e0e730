"""Many streams on one session: each says what it would say alone."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ds2deploy
from ds2deploy.export.onnx.graph import build_graph
from ds2deploy.export.onnx.lowering import lower
from ds2deploy.export.parity.speech import synthesize
from ds2deploy.export.verified_onnx import append_description
from ds2deploy.model.load import load_checkpoint
from ds2deploy.model.streaming import streaming_description, torch_session
from ds2deploy.runtimes.errors import AudioError, BackPressureError, DeviceError, StreamError
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.runtimes.streaming.pool import PooledStream, StreamPool

RATE = 16_000
PATIENCE_S = 600
"""No machine needs as long."""
SPEECH = [synthesize(RATE, 2 * RATE, seed=i) for i in range(8)]


@pytest.fixture(scope="module")
def checkpoint(streaming_checkpoint: Path) -> Any:
    return load_checkpoint(streaming_checkpoint)


@pytest.fixture(scope="module", params=["onnxruntime", "waveform", "torch"])
def recognizer(request, checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Recognizer:
    if request.param == "torch":
        return Recognizer(torch_session(checkpoint))
    import onnx

    sound = "waveform" if request.param == "waveform" else "features"
    description = streaming_description(checkpoint.description(), sound)
    path = tmp_path_factory.mktemp("pool") / "model.onnx"
    onnx.save(build_graph(lower(checkpoint.network), description), path)
    append_description(path, description)
    return ds2deploy.load(path, threads=1)


@pytest.fixture(scope="module")
def alone(checkpoint) -> Any:
    """What the reference makes of a whole utterance."""
    reference, known = Recognizer(torch_session(checkpoint)), {}

    def answer(voice: int, count: int) -> Any:
        if (voice, count) not in known:
            known[voice, count] = reference.transcribe(SPEECH[voice][:count], RATE)
        return known[voice, count]

    return answer


class Speaker:
    """Feeds one stream with one utterance, in pieces of its own size."""

    def __init__(self, stream: PooledStream, voice: int, count: int, size: int) -> None:
        self.stream, self.voice, self.count, self.size = stream, voice, count, size
        self.sent = 0
        self.words: list[str] = []

    def speak(self) -> None:
        if self.sent >= self.count:
            if not self.stream.ended:
                self.stream.finish()
            return
        end = min(self.sent + self.size, self.count)
        self.stream.accept(SPEECH[self.voice][self.sent : end])
        self.sent = end


def run_to_the_end(pool: StreamPool, speakers: list[Speaker], rounds: int = 10_000) -> None:
    by_stream = {speaker.stream: speaker for speaker in speakers}
    for _ in range(rounds):
        for speaker in speakers:
            speaker.speak()
        for stream, update in pool.tick():
            by_stream[stream].words += [word.text for word in update.words]
        if all(speaker.stream.transcript is not None for speaker in speakers):
            return
    raise AssertionError("streams that never end")


def test_sixty_four_streams_at_random_offsets(recognizer: Recognizer, alone):
    random = np.random.default_rng(5)
    with recognizer.pool(batch=24) as pool:
        waiting = [
            (int(random.integers(8)), int(random.integers(200, 2 * RATE)), int(random.integers(12)))
            for _ in range(64)
        ]
        speakers: list[Speaker] = []
        for turn in range(12):  # they join over a dozen ticks, each with pieces of its own
            for voice, count, start in waiting:
                if start == turn:
                    size = int(random.integers(100, 9000))
                    speakers.append(Speaker(pool.open(RATE), voice, count, size))
            for speaker in speakers:
                speaker.speak()
            for stream, update in pool.tick():
                owner = next(s for s in speakers if s.stream is stream)
                owner.words += [word.text for word in update.words]
        assert len(speakers) == 64
        run_to_the_end(pool, speakers)
        assert len(pool) == 0
    for speaker in speakers:
        expected = alone(speaker.voice, speaker.count)
        found = speaker.stream.transcript
        assert (found.text, found.words, found.chars) == (
            expected.text, expected.words, expected.chars,
        )  # fmt: skip
        assert expected.text.split()[: len(speaker.words)] == speaker.words
    assert len({speaker.stream.transcript.text for speaker in speakers}) > 8


@pytest.fixture
def pool(recognizer: Recognizer) -> StreamPool:
    with recognizer.pool(streams=8, backlog_s=1.0) as made:
        yield made


def test_a_stream_that_stops_sending_holds_no_one_up(pool: StreamPool, alone):
    silent, talking = pool.open(name="silent"), pool.open(name="talking")
    silent.accept(SPEECH[0][:3000])  # less than a block, and then nothing
    speaker = Speaker(talking, 1, 2 * RATE, 5120)
    run_to_the_end(pool, [speaker])
    assert talking.transcript.chars == alone(1, 2 * RATE).chars
    assert silent.transcript is None
    silent.finish()
    while pool.tick():
        pass
    assert silent.transcript.chars == alone(0, 3000).chars


def test_back_pressure_has_a_bound_and_says_so(pool: StreamPool, alone):
    stream = pool.open(RATE, name="call 7")
    stream.accept(SPEECH[2][:15_000])
    with pytest.raises(BackPressureError) as raised:
        stream.accept(SPEECH[2][15_000:17_000])
    assert str(raised.value) == (
        "stream call 7: 0.94 s of audio are waiting and 0.12 s more were sent, above the limit of "
        "1 s: send it again after the next ticks or in smaller pieces, or serve fewer streams"
    )
    assert stream.backlog_s == 15_000 / RATE
    pool.tick()
    stream.accept(SPEECH[2][15_000:17_000])  # nothing of it had been taken
    stream.finish()
    while pool.tick():
        pass
    assert stream.transcript.chars == alone(2, 17_000).chars


def test_no_more_streams_than_it_was_made_for(pool: StreamPool):
    streams = [pool.open() for _ in range(8)]
    with pytest.raises(BackPressureError, match=r"limit of 8 open streams .*: finish one first"):
        pool.open()
    streams.pop().finish()  # said nothing: done with the next tick
    ((stream, update),) = pool.tick()
    assert (stream.transcript.text, update.text) == ("", "")
    assert len(pool) == 7
    streams.append(pool.open())
    del streams[0], stream  # forgotten without finish
    gc.collect()
    assert len(pool) == 7
    pool.open()


@pytest.mark.parametrize(
    "settings", [{"streams": 0}, {"batch": 0}, {"backlog_s": 0.6}, {"backlog_s": float("nan")}]
)
def test_a_pool_that_could_serve_nobody(recognizer: Recognizer, settings: dict[str, Any]):
    with pytest.raises(StreamError, match=r"expected at least 1, 1 and 0\.64 \(two blocks\)"):
        recognizer.pool(**settings)


def test_bad_audio_is_refused_and_the_stream_goes_on(pool: StreamPool, alone):
    stream = pool.open()
    stream.accept(SPEECH[3][:5000])
    ragged = [[1.0], [1.0, 2.0]]
    for bad in (np.array([np.nan], np.float32), np.zeros(3, np.int16), np.float32(1), "x", ragged):
        with pytest.raises(AudioError):
            stream.accept(bad)
    stream.accept([])
    stream.accept(SPEECH[3][5000:9000])
    stream.finish()
    while pool.tick():
        pass
    assert stream.transcript.chars == alone(3, 9000).chars
    for call in (stream.finish, lambda: stream.accept(SPEECH[3])):
        with pytest.raises(StreamError, match=f"stream {stream.name} has finished; open another"):
            call()
    with pytest.raises(AudioError, match="sample rate"):
        pool.open(-1)


def test_a_closed_pool(recognizer: Recognizer):
    with recognizer.pool() as pool:
        stream = pool.open()
    for call in (pool.open, pool.tick, stream.finish, lambda: stream.accept(SPEECH[0])):
        with pytest.raises(StreamError, match="the pool is closed; make another"):
            call()


def test_finished_streams_are_drained_before_the_end(recognizer: Recognizer, alone):
    with recognizer.pool() as pool:
        streams = [pool.open() for _ in range(3)]
        for voice, stream in enumerate(streams):
            stream.accept(SPEECH[voice])
        for stream in streams[:2]:
            stream.finish()
        told = pool.drain()
        assert pool.drain() == []
        assert {tick.stream for tick in told} >= set(streams[:2])
        assert [s.transcript.chars for s in streams[:2]] == [
            alone(voice, 2 * RATE).chars for voice in range(2)
        ]
        assert streams[2].transcript is None


def test_waiting_ends_when_the_pool_closes(recognizer: Recognizer):
    with recognizer.pool() as pool:
        said: list[bool] = []
        waiting = threading.Thread(target=lambda: said.append(pool.wait(PATIENCE_S)))
        waiting.start()
    waiting.join(PATIENCE_S)
    assert said == [False]


def test_a_stream_that_ends_while_a_tick_runs_leaves_nothing(recognizer: Recognizer):
    """The tick may conclude it at the first moment at which it can be seen to have ended."""
    with recognizer.pool() as pool:
        feeders = [
            threading.Thread(target=lambda: [pool.open().finish() for _ in range(200)])
            for _ in range(3)
        ]
        for feeder in feeders:
            feeder.start()
        while any(feeder.is_alive() for feeder in feeders) or pool.wait(0):
            pool.tick()
        assert len(pool) == 0
        assert pool._ending == {}


def test_it_waits_for_what_there_is_to_do(pool: StreamPool):
    assert not pool.wait(0)
    stream = pool.open()
    stream.accept(SPEECH[0][:5000])
    assert not pool.wait(0)  # not yet a block
    feeder = threading.Timer(0.05, lambda: stream.accept(SPEECH[0][5000:12_000]))
    feeder.start()
    assert pool.wait(PATIENCE_S)
    assert len(pool.tick()) == 1
    assert pool.wait(0)  # another block is ready
    pool.tick()
    assert not pool.wait(0)
    stream.finish()
    assert pool.wait(0)


def test_threads_feed_while_one_ticks(recognizer: Recognizer, alone):
    with recognizer.pool(backlog_s=5.0) as pool:
        streams = [pool.open() for _ in range(6)]
        errors: list[BaseException] = []

        def feed(voice: int) -> None:
            try:
                for piece in np.array_split(SPEECH[voice], 90):
                    streams[voice].accept(piece)
                streams[voice].finish()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=feed, args=(voice,)) for voice in range(6)]
        for thread in threads:
            thread.start()
        while any(stream.transcript is None for stream in streams) and not errors:
            if pool.wait(1):
                pool.tick()
        for thread in threads:
            thread.join()
        assert errors == []
        for voice, stream in enumerate(streams):
            assert stream.transcript.chars == alone(voice, 2 * RATE).chars


def test_a_session_that_fails_loses_nothing(recognizer: Recognizer, alone, monkeypatch):
    """Of three batches the second fails: all is told in the end, in order."""
    with recognizer.pool(batch=2) as pool:
        speakers = [Speaker(pool.open(), voice, 12_000, 12_000) for voice in range(6)]
        for speaker in speakers:
            speaker.speak()
        session, calls = pool._session, []
        compute = session.compute

        def failing(tensors: Any) -> Any:
            calls.append(len(tensors["lengths"]))
            if len(calls) == 2:
                raise DeviceError("out of memory")
            return compute(tensors)

        monkeypatch.setattr(session, "compute", failing)
        with pytest.raises(DeviceError):
            pool.tick()
        assert calls == [2, 2]
        assert pool.wait(0)
        run_to_the_end(pool, speakers)
        for speaker in speakers:
            assert speaker.stream.transcript.chars == alone(speaker.voice, 12_000).chars


@pytest.mark.thorough
@pytest.mark.parametrize("recognizer", ["waveform"], indirect=True)
def test_ten_thousand_streams_opened_and_closed(recognizer: Recognizer):
    def serve(pool: StreamPool, count: int) -> None:
        for i in range(count):
            stream = pool.open(8_000 if i % 2 else RATE)
            stream.accept(SPEECH[0][:300])
            if i % 5 == 0:
                stream.finish()  # the others are abandoned
            if i % 400 == 0:
                pool.tick()
        stream = None
        while pool.tick():
            pass

    with recognizer.pool(streams=200) as pool:
        serve(pool, 500)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(10):
            serve(pool, 1000)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert len(pool) == 0
    assert grown < 500_000, grown
