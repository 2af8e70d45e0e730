"""From audio to transcripts over a session that computes in numpy what the tests can foresee."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from ds2deploy.runtimes import pipeline
from ds2deploy.runtimes.alphabet import ENGLISH
from ds2deploy.runtimes.artifact import (
    ArtifactDescription,
    ModelShape,
    WeightsSource,
)
from ds2deploy.runtimes.decoding.transcript import Transcript
from ds2deploy.runtimes.engine_description import Profile
from ds2deploy.runtimes.errors import AudioError, ConfigError, MissingFileError
from ds2deploy.runtimes.features import FeatureConfig, FeatureExtractor
from ds2deploy.runtimes.geometry import output_length
from ds2deploy.runtimes.pipeline import batches
from ds2deploy.runtimes.recognizer import Recognizer

RATE = 16_000
STEP = 8
"""Frequency bins per letter: a tone of 400 Hz more is the next letter."""


class TuneSession:
    """Spells the loudest frequency of every second frame: bin 8 is A, bin 16 is B, silence blank.

    Past a length it answers nonsense, as a session may.
    """

    runtime = "numpy"
    profile: Profile | None = None
    at_once: int | None = None

    def __init__(self, labels: str = ENGLISH, normalize: str = "none") -> None:
        self.description = ArtifactDescription(
            precision="fp32",
            labels=labels,
            features=FeatureConfig(normalize=normalize),
            model=ModelShape(),
            source=WeightsSource(name="tune.ckpt", sha256="0" * 64, kind="ds2deploy"),
        )
        self.batches: list[tuple[tuple[int, ...], list[int]]] = []

    def run(self, features: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert features.dtype == np.float32
        assert lengths.dtype == np.int64
        self.batches.append((features.shape, lengths.tolist()))
        frames = features[:, 0, :, ::2]
        letters = np.rint(frames.argmax(axis=1) / STEP).astype(int) + 1
        best = np.where(frames.max(axis=1) > 0.5, letters, 0)
        output_lengths = (lengths - 1) // 2 + 1
        past = np.arange(best.shape[1]) >= output_lengths[:, None]
        best[past] = ENGLISH.index("Z")
        log_probs = np.full((*best.shape, len(self.description.labels)), -9.0, np.float32)
        np.put_along_axis(log_probs, best[..., None], -0.1, axis=2)
        return log_probs, output_lengths


def sing(word: str, seconds: float = 0.1, rate: int = RATE) -> np.ndarray:
    """Each letter as a tone, each space and each end as silence."""
    count = round(seconds * rate)
    time = np.arange(count) / rate
    silence = np.zeros(count)
    parts = [silence]
    for letter in word:
        step = ord(letter) - ord("A") + 1
        parts.append(
            silence if letter == " " else 0.5 * np.sin(2 * np.pi * 50 * STEP * step * time)
        )
    return np.concatenate([*parts, silence]).astype(np.float32)


@pytest.fixture
def session() -> TuneSession:
    return TuneSession()


@pytest.fixture
def recognizer(session: TuneSession) -> Recognizer:
    return Recognizer(session)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "bad.wav"
    soundfile.write(path, sing("BAD"), RATE)
    return path


def test_bytes_and_file_objects_are_transcribed_like_their_path(
    recognizer: Recognizer, recording: Path
):
    content = recording.read_bytes()
    expected = recognizer.transcribe(recording)
    assert expected.text == "BAD"
    assert recognizer.transcribe(content) == expected
    upload = io.BytesIO(content)
    assert recognizer.transcribe(upload) == expected
    assert not upload.closed
    with recording.open("rb") as file:
        cut = io.BytesIO(content[:-1000])
        cut.name = "mail/cut.wav"
        sources = [recording, content, io.BytesIO(content), file, cut, b"", io.StringIO("text")]
        found = {item.index: item.result for item in recognizer.transcribe_many(sources)}
    assert [found[i] for i in range(4)] == [expected] * 4
    for i, name in ((4, "mail/cut.wav"), (5, "audio"), (6, "audio")):
        assert isinstance(found[i], AudioError)
        assert str(found[i]).startswith(f"{name}: ")


def words_of_different_lengths() -> list[str]:
    letters = "ABCDEFGH"
    words = [(letters * 4)[i : i + 1 + (7 * i) % 11] for i in range(19)]
    assert len({len(word) for word in words}) > 5
    assert [len(w) for w in words] != sorted(len(w) for w in words)
    return words


def test_a_tune_is_spelled_with_its_times(recognizer):
    transcript = recognizer.transcribe(sing("BAD"), RATE)
    assert isinstance(transcript, Transcript)
    assert transcript.text == "BAD"
    assert transcript.duration == 0.5
    for i, char in enumerate(transcript.chars):
        # 20 ms from one output frame to the next, and a window that reaches 10 ms to each side.
        assert char.start == pytest.approx(0.1 * (i + 1), abs=0.021)
        assert char.end == pytest.approx(0.1 * (i + 2), abs=0.021)


def test_one_utterance_gives_a_transcript_and_a_list_a_list(recognizer):
    one = recognizer.transcribe(sing("CAB"), RATE)
    assert recognizer.transcribe([sing("CAB")], RATE) == [one]
    assert recognizer.transcribe((sing("CAB"),), RATE) == [one]
    assert recognizer.transcribe([], RATE) == []


def test_a_list_comes_back_in_its_order_and_as_if_one_by_one(recognizer):
    words = words_of_different_lengths()
    together = recognizer.transcribe([sing(word) for word in words], RATE)
    assert [transcript.text for transcript in together] == words
    assert together == [recognizer.transcribe(sing(word), RATE) for word in words]


def test_batches_hold_utterances_of_similar_length(recognizer, session, monkeypatch):
    monkeypatch.setattr(pipeline, "MOST", 8)
    words = words_of_different_lengths()
    recognizer.transcribe([sing(word) for word in words], RATE)
    sizes = [len(lengths) for _, lengths in session.batches]
    assert sorted(sizes) == [3, 8, 8]
    # Which of them comes first is for the pipeline to say.
    session.batches.sort(key=lambda batch: max(batch[1]))
    everything = [length for _, lengths in session.batches for length in lengths]
    assert everything == sorted(everything)
    for shape, lengths in session.batches:
        assert shape == (len(lengths), 1, 161, max(lengths))


@given(st.lists(st.integers(1, 100), max_size=40), st.integers(1, 500), st.integers(1, 8))
def test_batches_are_as_large_as_they_may_be(lengths, total, size):
    made = list(batches(lengths, total, size))
    assert sorted(i for batch in made for i in batch) == list(range(len(lengths)))
    ordered = [lengths[i] for batch in made for i in batch]
    assert ordered == sorted(lengths)
    for batch in made:
        assert 1 <= len(batch) <= size
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= total
    for batch, following in pairwise(made):
        longer = lengths[following[0]]
        assert len(batch) == size or (len(batch) + 1) * longer > total


def test_long_recordings_share_a_batch_only_while_memory_allows(recognizer, session, monkeypatch):
    monkeypatch.setattr(pipeline, "CPU_FRAMES", 100)
    tunes = [sing("ABC"), sing("D"), sing("EFGH"), sing("A")]  # 0.5, 0.3, 0.6 and 0.3 s
    transcripts = recognizer.transcribe(tunes, RATE)
    assert [transcript.text for transcript in transcripts] == ["ABC", "D", "EFGH", "A"]
    assert sorted(lengths for _, lengths in session.batches) == [[31, 31], [51], [61]]


def test_padding_in_a_batch_is_not_decoded(recognizer):
    # The session answers Z past each length.
    short, long = recognizer.transcribe([sing("A"), sing("ABCDEFGH")], RATE)
    assert (short.text, long.text) == ("A", "ABCDEFGH")


def test_features_are_those_of_the_description(session):
    seen = []

    class Spy(TuneSession):
        def run(self, features, lengths):
            seen.append(features)
            return super().run(features, lengths)

    spy = Spy(normalize="utterance")
    audio = sing("AB")
    Recognizer(spy).transcribe(audio, RATE)
    expected = FeatureExtractor(FeatureConfig())(audio)
    np.testing.assert_array_equal(seen[0][0, 0], expected)


def test_audio_of_another_rate_is_converted(recognizer):
    transcript = recognizer.transcribe(sing("BAD", rate=48_000), 48_000)
    assert transcript.text == "BAD"
    assert transcript.duration == 0.5


def test_stereo_is_mixed_down(recognizer):
    stereo = np.stack([sing("BAD"), np.zeros_like(sing("BAD"))], axis=1)
    assert recognizer.transcribe(stereo, RATE).text == "BAD"


def test_a_path_may_be_a_string_or_a_path(recognizer, recording):
    expected = recognizer.transcribe(sing("BAD"), RATE)
    for path in (recording, str(recording)):
        transcript = recognizer.transcribe(path)
        assert (transcript.text, transcript.duration) == (expected.text, expected.duration)


def test_paths_and_arrays_may_be_mixed(recognizer, recording):
    mixed = [sing("ACE"), recording, str(recording)]
    assert [t.text for t in recognizer.transcribe(mixed, RATE)] == ["ACE", "BAD", "BAD"]


def test_an_array_needs_its_sample_rate(recognizer, recording):
    for audio in (sing("BAD"), [recording, sing("BAD")]):
        with pytest.raises(AudioError, match="pass sample_rate in Hz"):
            recognizer.transcribe(audio)


def test_a_bad_recording_in_a_list_is_named_before_anything_is_computed(
    recognizer, session, recording, tmp_path
):
    missing = tmp_path / "missing.wav"
    with pytest.raises(MissingFileError, match=r"missing\.wav: no such file"):
        recognizer.transcribe([recording, missing])
    assert session.batches == []


def test_silence_is_an_empty_transcript(recognizer):
    transcript = recognizer.transcribe(np.zeros(RATE, np.float32), RATE)
    assert (transcript.text, transcript.words, transcript.chars) == ("", (), ())
    assert transcript.score == pytest.approx(-0.1)


def test_the_shortest_audio_is_taken(recognizer):
    assert recognizer.transcribe(np.zeros(160, np.float32), RATE).text == ""


def test_labels_that_cannot_be_are_refused_at_once():
    with pytest.raises(ConfigError, match="expected the blank"):
        Recognizer(TuneSession(labels="AA"))


# Features of one's own


def test_log_probs_takes_features_and_lengths(recognizer, session):
    features = np.zeros((3, 1, 161, 40), np.float32)
    log_probs, lengths = recognizer.log_probs(features, [40, 7, 1])
    assert log_probs.shape == (3, output_length(40), 29)
    assert lengths.tolist() == [20, 4, 1]
    assert session.batches == [((3, 1, 161, 40), [40, 7, 1])]


def test_log_probs_converts_types_and_layouts(recognizer):
    features = np.random.default_rng(0).uniform(size=(2, 1, 161, 30))
    expected, _ = recognizer.log_probs(features.astype(np.float32), np.array([30, 11]))
    for mine in (features, np.asfortranarray(features, np.float32), features.tolist()):
        for lengths in ([30, 11], np.array([30, 11], np.int32), np.array([30, 11], np.uint8)):
            result, _ = recognizer.log_probs(mine, lengths)
            np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("shape", "lengths", "message"),
    [
        ((2, 1, 160, 40), [40, 40], r"features \(2, 1, 160, 40\): expected \(batch, 1, 161, time"),
        ((2, 1, 40, 161), [40, 40], "features .* expected"),
        ((2, 2, 161, 40), [40, 40], "features .* expected"),
        ((2, 161, 40), [40, 40], "features .* expected"),
        ((161, 40), [40], "features .* expected"),
        ((0, 1, 161, 40), [], "features .* expected"),
        ((2, 1, 161, 0), [0, 0], "features .* expected"),
        ((2, 1, 161, 40), [40], r"lengths \(1,\): expected one per utterance, \(2,\)"),
        ((2, 1, 161, 40), [40, 40, 40], r"lengths \(3,\): expected one per utterance"),
        ((2, 1, 161, 40), [[40, 40]], r"lengths \(1, 2\): expected one per utterance"),
        ((2, 1, 161, 40), [40, 0], "lengths 0 to 40: expected 1 to 40 frames"),
        ((2, 1, 161, 40), [40, -1], "lengths -1 to 40: expected 1 to 40 frames"),
        ((2, 1, 161, 40), [41, 40], "lengths 40 to 41: expected 1 to 40 frames"),
        ((2, 1, 161, 40), [1.0, 0.5], "lengths of type float64: expected integers"),
        ((2, 1, 161, 40), [True, True], "lengths of type bool: expected integers"),
    ],
)
def test_log_probs_refuses_what_no_model_can_take(recognizer, session, shape, lengths, message):
    with pytest.raises(ValueError, match=message):
        recognizer.log_probs(np.zeros(shape, np.float32), lengths)
    assert session.batches == []


def test_an_engine_too_short_for_windows_is_named_with_the_way_out(tmp_path: Path):
    """Before anything is computed; and an array, which has no name, just as well."""
    session = TuneSession()
    session.profile = Profile(batch=(1, 4, 16), frames=(51, 201, 301))
    short, long = sing("A"), np.zeros(round(31.2 * RATE), np.float32)
    soundfile.write(tmp_path / "long.wav", long, RATE)
    message = (
        "31.2 s of audio; this engine accepts 0.5 to 3 s: split the recording, or rebuild "
        "the engine with --seconds 0.5,2,40"
    )
    with pytest.raises(AudioError) as raised:
        Recognizer(session).transcribe([short, tmp_path / "long.wav"], RATE)
    assert str(raised.value) == f"{tmp_path / 'long.wav'}: {message}"
    with pytest.raises(AudioError) as raised:
        Recognizer(session).transcribe(long, RATE)
    assert str(raised.value) == message
    assert session.batches == []
    assert Recognizer(session).transcribe(short, RATE).text == "A"
    assert Recognizer(session).transcribe(long[: 3 * RATE], RATE).text == ""


def test_batches_are_no_larger_than_an_engine_takes():
    session = TuneSession()
    session.profile = Profile(batch=(1, 2, 3), frames=(1, 100, 1000))
    texts = [t.text for t in Recognizer(session).transcribe([sing("B")] * 8, RATE)]
    assert texts == ["B"] * 8
    assert [shape[0] for shape, _ in session.batches] == [3, 3, 2]


def test_it_closes_its_session():
    closed = []

    class Closing(TuneSession):
        def close(self) -> None:
            closed.append(True)

    with Recognizer(Closing()) as recognizer:
        assert recognizer.transcribe(sing("C"), RATE).text == "C"
        assert not closed
    assert closed == [True]
