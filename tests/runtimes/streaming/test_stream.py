"""I2 on the trained model: any split of the audio gives what the whole utterance gives at once."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

import ds2deploy
from ds2deploy.export.onnx.graph import build_graph
from ds2deploy.export.onnx.lowering import lower
from ds2deploy.export.parity.speech import synthesize
from ds2deploy.export.verified_onnx import append_description
from ds2deploy.model.load import load_checkpoint
from ds2deploy.model.streaming import streaming_description, torch_session
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.greedy import GreedyDecoder
from ds2deploy.runtimes.decoding.transcript import Transcript
from ds2deploy.runtimes.errors import AudioError, DeviceError, StreamError
from ds2deploy.runtimes.features import FeatureExtractor, pad_features
from ds2deploy.runtimes.onnx.session import OnnxSession
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.runtimes.streaming.stream import Channel, run_channels
from ds2deploy.runtimes.tensors import with_tensors

RATE = 16_000
TOLERANCE = 1e-4
"""Of log-probabilities above -10, in fp32, against the reference on the whole utterance."""

SPEECH = [synthesize(RATE, 3 * RATE, seed=i) for i in range(4)]
BLOCKS_MS = (20, 60, 320, 1000)
EDGES = [1, 2, 159, 160, 161, 319, 320, 321, 5119, 5120, 5121, 5279, 5280, 5281, 10_240]
"""Samples around the edges of strides, windows and blocks."""


def session_of(checkpoint: Any, folder: Path, sound: str, block_ms: float) -> OnnxSession:
    whole = checkpoint.description()
    description = streaming_description(whole, sound, block_ms)
    import onnx

    path = folder / f"{sound}-{block_ms}.onnx"
    onnx.save(build_graph(lower(checkpoint.network), description), path)
    append_description(path, description)
    return OnnxSession(path, threads=1)


@pytest.fixture(scope="module")
def checkpoint(streaming_checkpoint: Path) -> Any:
    return load_checkpoint(streaming_checkpoint)


@pytest.fixture(scope="module")
def sessions(checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """Blocks of all sizes in ONNX Runtime, of features and of samples, and the torch reference."""
    folder = tmp_path_factory.mktemp("blocks")
    made: dict[Any, Any] = {
        (sound, block_ms): session_of(checkpoint, folder, sound, block_ms)
        for sound in ("features", "waveform")
        for block_ms in BLOCKS_MS
    }
    made["torch", 320] = torch_session(checkpoint).streaming()
    return made


@pytest.fixture(scope="module")
def whole(checkpoint) -> Any:
    """The reference on whole utterances: log-probabilities, and the transcript."""
    recognizer = Recognizer(torch_session(checkpoint))
    extract = FeatureExtractor(checkpoint.recipe.features)

    def answer(samples: np.ndarray) -> tuple[np.ndarray, Transcript | None]:
        log_probs, _ = recognizer.session.run(*pad_features([extract(samples)]))
        long_enough = len(samples) >= RATE // 100  # shorter is no recording
        return log_probs[0], recognizer.transcribe(samples, RATE) if long_enough else None

    return answer


class Recording(GreedyDecoder):
    """Keeps the log-probabilities of every utterance."""

    def start(self, live: bool = False) -> Any:
        state: Any = super().start(live)
        state.rows = []
        return state

    def advance(self, states: Any, blocks: Any) -> None:
        for state, block in zip(states, blocks, strict=True):
            state.rows.append(block.copy())
        super().advance(states, blocks)


def recorded(session: Any, rate: float = RATE) -> Channel:
    description = session.description
    decoder = Recording(Alphabet(description.labels), description.frame_s)
    return Channel(session, FeatureExtractor(description.features), decoder, rate)


def assert_equal(channel: Channel, expected: tuple[np.ndarray, Transcript | None]) -> None:
    log_probs, transcript = expected
    found = np.concatenate(channel.decoding.rows)
    assert found.shape == log_probs.shape
    decisive = np.maximum(found, log_probs) > -10
    assert np.abs(found - log_probs)[decisive].max() <= TOLERANCE
    if transcript is not None:
        result = channel.finish()
        assert (result.text, result.chars, result.duration) == (
            transcript.text, transcript.chars, transcript.duration,
        )  # fmt: skip
        assert_words_equal(result, transcript)
        assert result.score == pytest.approx(transcript.score, abs=1e-4)


def assert_words_equal(found: Transcript, expected: Transcript) -> None:
    """Times to the millisecond; confidence as near as the log-probabilities."""
    for word, other in zip(found.words, expected.words, strict=True):
        assert (word.text, word.start, word.end) == (other.text, other.start, other.end)
        assert word.confidence == pytest.approx(other.confidence, abs=1e-3)


stream = st.tuples(
    st.integers(0, 3),  # voice
    st.one_of(st.integers(1, 2 * RATE), st.sampled_from(EDGES)),  # samples
    st.integers(0, 6),  # round in which it begins
    st.lists(st.one_of(st.integers(1, 400), st.integers(1, 3 * RATE)), min_size=1, max_size=6),
)


@pytest.mark.parametrize("kind", ["features", "waveform", "torch"])
@settings(deadline=None, max_examples=25)
@given(streams=st.lists(stream, min_size=1, max_size=5), block_ms=st.sampled_from(BLOCKS_MS))
def test_any_split_equals_the_whole(sessions, whole, kind: str, streams: Any, block_ms: int):
    """Batches of streams at different positions, which begin late and end early."""
    session = sessions[kind, 320 if kind == "torch" else block_ms]
    channels, feeds = [], []
    for voice, count, _, sizes in streams:
        samples = SPEECH[voice][:count]
        cuts = np.cumsum(np.resize(sizes, 2 + count // min(sizes)) if count < 9000 else sizes)
        channels.append(recorded(session))
        feeds.append(list(np.split(samples, cuts[cuts < count])))
    for turn in range(10_000):
        for channel, feed, (_, _, start, _) in zip(channels, feeds, streams, strict=True):
            if turn >= start and not channel.ready and channel.audio.total is None:
                if feed:
                    channel.audio.push(feed.pop(0))
                else:
                    channel.end()
        ready = [channel for channel in channels if channel.ready]
        if ready:
            run_channels(session, ready)
        elif all(channel.done for channel in channels):
            break
    for channel, (voice, count, *_) in zip(channels, streams, strict=True):
        assert_equal(channel, whole(SPEECH[voice][:count]))


@pytest.mark.parametrize("kind", ["features", "waveform", "torch"])
@pytest.mark.parametrize("count", EDGES)
def test_the_cut_decides_nothing(sessions, whole, kind: str, count: int):
    """Shorter than a block, than a window, and at their edges: one sample at a time, or at once."""
    samples = SPEECH[1][4000 : 4000 + count]
    expected = whole(samples)
    pieces = [[samples], np.split(samples, [count // 3, count // 2])]
    if count <= 321:
        pieces.append(np.split(samples, count))
    for cut in pieces:
        channel = recorded(sessions[kind, 320])
        for piece in cut:
            channel.audio.push(piece)
            while channel.ready:
                run_channels(sessions[kind, 320], [channel])
        channel.end()
        while channel.ready:
            run_channels(sessions[kind, 320], [channel])
        assert_equal(channel, expected)


@pytest.fixture(scope="module")
def recognizer(sessions) -> Recognizer:
    return Recognizer(sessions["features", 320])


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_streams_at_other_rates_equal_the_resampled_recording(
    recognizer: Recognizer, whole, rate: int
):
    """The resampler keeps its state: the whole recording, resampled at once, says the same."""
    samples = soxr.resample(SPEECH[2], RATE, rate)
    expected = whole(soxr.resample(samples, rate, RATE))[1]
    with recognizer.stream(rate) as one:
        for piece in np.array_split(samples, 37):
            one.accept(piece)
        assert one.finish().chars == expected.chars
    assert recognizer.transcribe(samples, rate).chars == expected.chars


def test_partial_results_grow_into_the_whole(recognizer: Recognizer, whole):
    samples = SPEECH[0]
    stable: list[str] = []
    grew = 0
    with recognizer.stream() as one:
        for piece in np.array_split(samples, 60):
            update = one.accept(piece)
            stable += [word.text for word in update.words]
            assert update.stable.split() == stable
            grew += bool(update.words or update.tail)
        transcript = one.finish()
    assert grew > 3
    assert transcript == pytest.approx(transcript)
    assert transcript.text.split()[: len(stable)] == stable
    assert transcript.chars == whole(samples)[1].chars


def test_transcribe_takes_recordings_through_the_same_streams(recognizer: Recognizer, whole):
    """Any number, of any lengths; each ends when it ends."""
    audio = [SPEECH[i % 4][: 4000 + 3001 * i] for i in range(11)]
    for found, samples in zip(recognizer.transcribe(audio, RATE), audio, strict=True):
        assert found.chars == whole(samples)[1].chars


def test_a_checkpoint_that_can_stream_needs_no_windows(checkpoint, whole, monkeypatch):
    """What is too long to be taken whole goes through it as a stream, exactly."""
    expected = whole(SPEECH[0])[1]
    monkeypatch.setattr("ds2deploy.runtimes.whole_utterances.LONGEST_S", 1.0)
    monkeypatch.setattr("ds2deploy.runtimes.whole_utterances.transcribe_windows", None)
    found = Recognizer(torch_session(checkpoint)).transcribe([SPEECH[0], SPEECH[1][:8000]], RATE)
    assert found[0].chars == expected.chars
    assert found[1].chars == whole(SPEECH[1][:8000])[1].chars


def test_log_probs_of_features_of_ones_own(recognizer: Recognizer, whole, checkpoint):
    extract = FeatureExtractor(checkpoint.recipe.features)
    features, lengths = pad_features([extract(SPEECH[0][:9000]), extract(SPEECH[1])])
    log_probs, counts = recognizer.log_probs(features, lengths)
    for rows, count, samples in zip(log_probs, counts, (SPEECH[0][:9000], SPEECH[1]), strict=True):
        expected = whole(samples)[0]
        assert count == len(expected)
        assert np.abs(rows[:count] - expected)[expected > -10].max() <= TOLERANCE


# Bad input --------------------------------------------------------------------------------------


def heard(recognizer: Recognizer, samples: np.ndarray) -> Any:
    return recognizer.transcribe(samples, RATE).chars


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (np.array([0.1, np.nan], np.float32), "NaN or infinite"),
        (np.full(160, np.inf, np.float32), "NaN or infinite"),
        (np.zeros(160, np.int16), "type int16; expected float32"),
        (np.zeros((2, 160), np.float32), "transpose"),
    ],
    ids=["nan", "infinity", "int16", "transposed"],
)
def test_a_bad_block_is_refused_and_the_stream_goes_on(recognizer: Recognizer, block, message):
    with recognizer.stream() as one:
        one.accept(SPEECH[3][:7000])
        with pytest.raises(AudioError, match=message):
            one.accept(block)
        one.accept(SPEECH[3][7000:])
        assert one.finish().chars == heard(recognizer, SPEECH[3])


def test_nothing_comes(recognizer: Recognizer):
    with recognizer.stream() as one:
        for _ in range(3):
            update = one.accept(np.zeros(0, np.float32))
            assert (update.text, update.words) == ("", ())
        one.accept(SPEECH[3][:9000])
        one.accept([])
        assert one.finish().chars == heard(recognizer, SPEECH[3][:9000])
    with recognizer.stream() as one:
        assert one.finish() == Transcript("", (), (), 0.0, 0.0)


def test_after_the_end(recognizer: Recognizer):
    with recognizer.stream() as one:
        one.accept(SPEECH[0])
        one.finish()
        with pytest.raises(StreamError, match="this stream has finished; open another"):
            one.accept(SPEECH[0])
        with pytest.raises(StreamError, match="finished"):
            one.finish()
    with recognizer.stream() as one:
        pass
    with pytest.raises(StreamError, match="finished"):
        one.accept(SPEECH[0])


@pytest.mark.parametrize("rate", [0, -8000, float("nan"), 12, "16000"])
def test_a_rate_that_is_none(recognizer: Recognizer, rate: Any):
    with pytest.raises(AudioError, match="sample rate"):
        recognizer.stream(rate)


def test_a_session_that_fails_loses_nothing(sessions, whole):
    """The audio waits; the next call goes on as if nothing had been."""

    class Failing:
        def __init__(self, session: OnnxSession) -> None:
            self.description, self.profile, self.runtime = session.description, None, "failing"
            self.at_once = None
            self.session, self.fails = session, 0

        def streaming(self) -> Any:
            return self

        def compute(self, tensors: Any) -> Any:
            if self.fails:
                self.fails -= 1
                raise DeviceError("out of memory")
            return self.session.compute(tensors)

    failing = Failing(sessions["waveform", 320])
    with Recognizer(failing).stream() as one:
        one.accept(SPEECH[1][:6000])
        failing.fails = 1
        with pytest.raises(DeviceError):
            one.accept(SPEECH[1][6000:])
        failing.fails = 1
        with pytest.raises(DeviceError):
            one.finish()
        with pytest.raises(StreamError, match=r"was finished.*; call finish\(\) again"):
            one.accept(SPEECH[1])
        assert one.finish().chars == whole(SPEECH[1])[1].chars


def test_an_offline_artifact_says_what_to_export(
    streaming_checkpoint: Path, checkpoint, tmp_path: Path
):
    import onnx

    description = with_tensors(checkpoint.description())
    onnx.save(build_graph(lower(checkpoint.network), description), tmp_path / "x.onnx")
    append_description(tmp_path / "x.onnx", description)
    with pytest.raises(StreamError, match=r"whole utterances; export .* with --streaming"):
        ds2deploy.load(tmp_path / "x.onnx").stream()


def test_streams_that_are_abandoned_leave_nothing(recognizer: Recognizer):
    """10,000 opened; some finished, most dropped in the middle of a block."""

    def open_some(count: int) -> None:
        for i in range(count):
            one = recognizer.stream(8_000 if i % 2 else RATE)
            one.accept(SPEECH[0][: 200 + i % 50])
            if i % 500 == 0:
                one.finish()

    open_some(200)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    open_some(10_000)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 500_000, grown  # one stream remembers 170,000 bytes
