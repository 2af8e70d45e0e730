"""What several threads may use at once gives each of them what it would get alone."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import soundfile

import ds2deploy
from ds2deploy.loading import BACKENDS
from ds2deploy.runtimes.audio.loading import load_audio
from ds2deploy.runtimes.decoding.transcript import Transcript
from ds2deploy.runtimes.errors import BackPressureError, StreamError
from ds2deploy.runtimes.features import FeatureExtractor, pad_features
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.runtimes.streaming.audio_blocks import StreamAudio

RATE = 8_000
"""Of the digits."""

THREADS = 6
PATIENCE_S = 600
"""No machine needs as long."""

RUNTIMES = [
    pytest.param(backend.name, marks=[pytest.mark.slow] if backend.asked_only else [])
    for backend in BACKENDS
    if not backend.needs_gpu
]
"""All that run on a CPU."""

T = TypeVar("T")


def at_once(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Call each in a thread of its own, all begun at the same moment; the first error is raised."""
    begin = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        begin.wait(PATIENCE_S)
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return [done.result(PATIENCE_S) for done in [threads.submit(run, call) for call in calls]]


@pytest.fixture(autouse=True)
def threads_change_often() -> Iterator[None]:
    """Let the interpreter go from thread to thread every 10 us, not every 5 ms."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="module")
def digits(spoken_digits: Path) -> list[np.ndarray]:
    """Strings of one to four spoken digits."""
    paths = sorted(spoken_digits.rglob("*.wav"))[::151]
    one = [soundfile.read(path, dtype="float32")[0] for path in paths]
    return [
        np.concatenate([one[(5 * i + 3 * k) % len(one)] for k in range(1 + i % 4)])
        for i in range(12)
    ]


@pytest.fixture(scope="module")
def open_model(
    digits_checkpoint: Path, streaming_checkpoint: Path, offline_onnx: Path, streaming_onnx: Path
) -> Callable[..., Recognizer]:
    """Opens the model for digits, of whole utterances or of streams, on a runtime."""

    def open_on(runtime: str, streaming: bool = False) -> Recognizer:
        backend = next(item for item in BACKENDS if item.name == runtime)
        if backend.module:
            pytest.importorskip(backend.module, reason=f"the extra {runtime} is not installed")
        if runtime == "torch":
            path = streaming_checkpoint if streaming else digits_checkpoint
        else:
            path = streaming_onnx if streaming else offline_onnx
        return ds2deploy.load(path, runtime=runtime, threads=1)

    return open_on


@pytest.fixture(params=RUNTIMES)
def recognizer(request, open_model) -> Iterator[Recognizer]:
    with open_model(request.param) as opened:
        yield opened


@pytest.fixture(params=RUNTIMES)
def streaming(request, open_model) -> Iterator[Recognizer]:
    with open_model(request.param, streaming=True) as opened:
        yield opened


def rotated(items: Sequence[T], by: int) -> list[T]:
    return [*items[by:], *items[:by]]


def told(transcripts: Sequence[Transcript]) -> list[Any]:
    """What was recognised, and when it was said; a batch moves the score by its last digits."""
    return [(found.text, found.words) for found in transcripts]


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_threads_load_recordings_at_the_same_time(form: str, tmp_path: Path):
    random = np.random.default_rng(0)
    contents, paths = [], []
    for i in range(THREADS):
        buffer = io.BytesIO()
        samples = 0.1 * random.standard_normal(RATE * (1 + i))
        soundfile.write(buffer, samples, RATE, format=form)
        contents.append(buffer.getvalue())
        paths.append(tmp_path / f"{i}")
        paths[i].write_bytes(contents[i])
    expected = [load_audio(path, 16_000) for path in paths]
    for sources in (paths, contents, list(map(io.BytesIO, contents))):
        found = at_once([lambda source=source: load_audio(source, 16_000) for source in sources])
        for samples, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(samples, other)


def test_threads_transcribe_at_the_same_time(recognizer: Recognizer, digits):
    expected = recognizer.transcribe(digits, RATE)
    assert len({found.text for found in expected}) > 8
    found = at_once(
        [lambda i=i: recognizer.transcribe(rotated(digits, i), RATE) for i in range(THREADS)]
    )
    for i, transcripts in enumerate(found):
        assert told(transcripts) == told(rotated(expected, i))


def test_threads_have_an_iteration_each(recognizer: Recognizer, digits):
    expected = recognizer.transcribe(digits, RATE)

    def run(i: int) -> list[Transcript]:
        many = recognizer.transcribe_many(iter(rotated(digits, i)), RATE)
        return [item.result for item in sorted(many, key=lambda item: item.index)]  # type: ignore[misc]

    for i, transcripts in enumerate(at_once([lambda i=i: run(i) for i in range(2)])):
        assert told(transcripts) == told(rotated(expected, i))


def test_threads_get_log_probs_of_their_own(recognizer: Recognizer, digits):
    extract = FeatureExtractor(recognizer.description.features)
    rate = recognizer.description.features.sample_rate
    features = [extract(np.repeat(sound, rate // RATE)) for sound in digits]
    batches = [pad_features(features[i : i + 2]) for i in range(THREADS)]
    alone = [recognizer.log_probs(*batch) for batch in batches]
    for _ in range(3):
        found = at_once([lambda batch=batch: recognizer.log_probs(*batch) for batch in batches])
        for (log_probs, lengths), (expected, expected_lengths) in zip(found, alone, strict=True):
            assert lengths.tolist() == expected_lengths.tolist()
            for row, other, length in zip(log_probs, expected, lengths, strict=True):
                np.testing.assert_allclose(row[:length], other[:length], atol=1e-5)


def stream(recognizer: Recognizer, sound: np.ndarray) -> Transcript:
    with recognizer.stream(RATE) as opened:
        for piece in np.array_split(sound, 1 + len(sound) // 700):
            opened.accept(piece)
        return opened.finish()


def test_each_thread_has_a_stream(streaming: Recognizer, digits):
    expected = [stream(streaming, sound) for sound in digits[:THREADS]]
    assert len({found.text for found in expected}) > 3
    found = at_once([lambda sound=sound: stream(streaming, sound) for sound in digits[:THREADS]])
    assert told(found) == told(expected)


def test_a_stream_goes_from_thread_to_thread(streaming: Recognizer, digits):
    expected = stream(streaming, digits[3])
    with streaming.stream(RATE) as opened:
        for piece in np.array_split(digits[3], 9):
            at_once([lambda piece=piece: opened.accept(piece)])
        (found,) = at_once([opened.finish])
    assert told([found]) == told([expected])


def test_threads_open_feed_and_finish_streams_of_a_pool_while_one_ticks(
    streaming: Recognizer, digits
):
    """And another transcribes whole recordings with the same recognizer."""
    expected = [stream(streaming, sound) for sound in digits]
    over = threading.Event()
    with streaming.pool(backlog_s=2.0) as pool:

        def feed(sound: np.ndarray) -> Any:
            opened = pool.open(RATE)
            for piece in np.array_split(sound, 1 + len(sound) // 300):
                while True:
                    try:
                        opened.accept(piece)
                        break
                    except BackPressureError:
                        pool.wait(0.001)
            opened.finish()
            return opened

        def tick() -> None:
            while not over.is_set() or len(pool):
                if pool.wait(0.01):
                    pool.tick()

        ticking = threading.Thread(target=tick)
        ticking.start()
        try:
            calls = [lambda sound=sound: feed(sound) for sound in digits]
            *streams, whole = at_once([*calls, lambda: streaming.transcribe(digits, RATE)])
        finally:
            over.set()
            ticking.join(PATIENCE_S)
        assert told([opened.transcript for opened in streams]) == told(expected)
        assert told(whole) == told(expected)


def test_a_stream_is_fed_while_blocks_are_taken(open_model):
    description = open_model("onnxruntime", streaming=True).description
    audio = StreamAudio(description, FeatureExtractor(description.features), 16_000)
    sound = np.random.default_rng(0).uniform(-1, 1, 200_000).astype(np.float32)

    def feed() -> None:
        for start in range(0, len(sound), 2):
            audio.push(sound[start : start + 2])
        audio.end()

    def take() -> list[np.ndarray]:
        blocks = []
        while audio.total is None or audio.waiting_s:
            if audio.full or audio.total is not None:
                blocks.append(audio.block())
                audio.drop()
        return blocks

    _, blocks = at_once([feed, take])
    np.testing.assert_array_equal(np.concatenate(blocks)[: len(sound)], sound)


# An end while another thread works


class Held:
    """Lets a session's `compute` begin, and end when it is released."""

    def __init__(self, session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        compute = session.compute

        def held(tensors: Any) -> Any:
            self.begun.set()
            assert self.go.wait(PATIENCE_S)
            return compute(tensors)

        monkeypatch.setattr(session, "compute", held)


def test_a_recognizer_closed_in_between_finishes_what_has_begun(
    recognizer: Recognizer, digits, monkeypatch: pytest.MonkeyPatch
):
    """On a CPU, whose sessions hold nothing that is freed; see the tests of TensorRT for a GPU."""
    expected = recognizer.transcribe(digits[3], RATE)
    held = Held(recognizer.session, monkeypatch)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(recognizer.transcribe, digits[3], RATE)
        assert held.begun.wait(PATIENCE_S)
        recognizer.close()
        held.go.set()
        assert told([running.result(PATIENCE_S)]) == told([expected])  # type: ignore[list-item]


def test_a_stream_closed_in_between_ends_after_its_block(
    open_model, digits, monkeypatch: pytest.MonkeyPatch
):
    recognizer = open_model("onnxruntime", streaming=True)
    held = Held(recognizer.session, monkeypatch)
    opened = recognizer.stream(RATE)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(opened.accept, digits[3])
        assert held.begun.wait(PATIENCE_S)
        opened.close()
        held.go.set()
        running.result(PATIENCE_S)
    with pytest.raises(StreamError):
        opened.accept(digits[3])


def test_a_pool_is_closed_after_the_tick_under_way(
    open_model, digits, monkeypatch: pytest.MonkeyPatch
):
    recognizer = open_model("onnxruntime", streaming=True)
    held = Held(recognizer.session, monkeypatch)
    pool = recognizer.pool()
    opened = pool.open(RATE)
    opened.accept(digits[3])
    with ThreadPoolExecutor(2) as threads:
        ticking = threads.submit(pool.tick)
        assert held.begun.wait(PATIENCE_S)
        ending = threads.submit(pool.close)
        try:
            wait([ending], timeout=0.05)
            assert not ending.done()
            opened.accept(digits[3])  # neither the tick nor the end that waits for it holds it up
        finally:
            held.go.set()
        assert len(ticking.result(PATIENCE_S)) == 1
        ending.result(PATIENCE_S)
    for call in (lambda: opened.accept(digits[3]), pool.tick, pool.open):
        with pytest.raises(StreamError):
            call()


def test_an_iteration_closed_by_another_thread_ends_its_threads(open_model, digits):
    many = open_model("onnxruntime").transcribe_many(iter(digits), RATE)
    next(many)
    at_once([many.close])
    assert not [t for t in threading.enumerate() if t.name.startswith("ds2deploy-prepare")]
