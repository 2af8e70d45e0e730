"""Recordings longer than a window: joined log-probabilities, and memory that does not grow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

import ds2deploy
from ds2deploy.data.preparation import JOIN_PAUSE_S
from ds2deploy.export.parity.speech import synthesize
from ds2deploy.runtimes.alphabet import ENGLISH, Alphabet
from ds2deploy.runtimes.artifact import (
    ArtifactDescription,
    ModelShape,
    WeightsSource,
)
from ds2deploy.runtimes.decoding.greedy import GreedyDecoder
from ds2deploy.runtimes.engine_description import Profile
from ds2deploy.runtimes.errors import AudioError, ConfigError
from ds2deploy.runtimes.features import LOCAL_S, FeatureConfig, FeatureExtractor
from ds2deploy.runtimes.geometry import output_length
from ds2deploy.runtimes.long_audio import WindowShape, transcribe_windows
from ds2deploy.runtimes.recognizer import Recognizer

RATE = 16_000
CONFIG = FeatureConfig(normalize="none")


class LocalSession:
    """Answers each output frame by the loudest bin of the features there: no context, no state."""

    runtime, profile, at_once = "numpy", None, None

    def __init__(self, jitter: bool = False, spikes: bool = False) -> None:
        self.description = ArtifactDescription(
            precision="fp32",
            labels=ENGLISH,
            features=CONFIG,
            model=ModelShape(),
            source=WeightsSource(name="local.ckpt", sha256="0" * 64, kind="ds2deploy"),
        )
        self.shapes: list[tuple[int, ...]] = []
        self._jitter, self._spikes = jitter, spikes

    def streaming(self) -> None:
        return None

    def run(self, features: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.shapes.append(features.shape)
        frames = features[:, 0, :, ::2]
        best = np.where(frames.max(axis=1) > 0.5, frames.argmax(axis=1) % 26 + 2, 0)
        if self._spikes:  # as CTC answers: a letter in a single frame, and then blanks
            best[:, 1:] *= best[:, 1:] != best[:, :-1]
        if self._jitter and len(self.shapes) % 2:  # it hears each letter a frame later
            best = np.pad(best, ((0, 0), (1, 0)))[:, :-1]
        log_probs = np.full((*best.shape, 29), -9.0, np.float32)
        np.put_along_axis(log_probs, best[..., None], -0.1, axis=2)
        return log_probs, (lengths - 1) // 2 + 1


def tune(seconds: float, seed: int) -> np.ndarray:
    """Tones of a tenth of a second with silence between them."""
    random, rate = np.random.default_rng(seed), RATE
    time = np.arange(rate // 10) / rate
    parts = []
    for _ in range(int(seconds * 4)):
        parts.append(0.4 * np.sin(2 * np.pi * 50 * random.integers(10, 140) * time))
        parts.append(np.zeros(int(rate * random.uniform(0.1, 0.2))))
    return np.concatenate(parts)[: int(seconds * rate)].astype(np.float32)


@given(total=st.integers(1, 200_000), cuts=st.lists(st.integers(0, 60_000), max_size=5))
def test_windows_cover_everything_once(total: int, cuts: list[int]):
    """What is kept of them, joined, is every output frame, whatever pieces the audio comes in."""
    shape = WindowShape(CONFIG, 4.0)
    samples = np.arange(total, dtype=np.float32)
    pieces = np.split(samples, sorted(min(cut, total) for cut in cuts))
    windows = list(shape.cut(pieces))
    assert [last for _, last in windows] == [False] * (len(windows) - 1) + [True]
    covered = 0
    for i, (window, _) in enumerate(windows):
        assert window[0] == i * shape.hop if len(window) else total == 0
        assert len(window) <= shape.size
        assert i * shape.hop <= covered  # they overlap
        covered = i * shape.hop + len(window)
    assert covered == total
    if len(windows) > 1:
        assert len(windows[-1][0]) > shape.size - shape.hop  # the last has context too


@pytest.mark.parametrize("jitter", [False, True], ids=["exact", "a frame apart"])
@settings(deadline=None, max_examples=40)
@given(seconds=st.floats(4.1, 40), window_s=st.sampled_from([4.0, 6.5, 10.0]))
def test_joined_windows_say_what_the_whole_says(jitter: bool, seconds: float, window_s: float):
    """Each letter once, though neighbouring windows may have it a frame apart."""
    audio = tune(seconds, seed=int(seconds * 1000))
    extract = FeatureExtractor(CONFIG)
    whole = Recognizer(LocalSession(spikes=jitter)).transcribe(audio, RATE, window_s=600)
    session = LocalSession(jitter, spikes=jitter)
    shape = WindowShape(CONFIG, window_s)
    decoder = GreedyDecoder(Alphabet(session.description.labels), session.description.frame_s)
    found = transcribe_windows(session, extract, decoder, np.array_split(audio, 7), shape)
    # At the very end a letter that is heard late may be cut off.
    if jitter:
        assert found.text in (whole.text, whole.text[:-1])
    else:
        assert (found.text, found.duration) == (whole.text, whole.duration)
        assert [c.start for c in found.chars] == [c.start for c in whole.chars]
    assert {batch for batch, *_ in session.shapes} == {1}
    assert all(frames <= window_s * 100 + 1 for *_, frames in session.shapes)


def test_only_what_is_longer_is_taken_in_windows(tmp_path: Path):
    session = LocalSession()
    recognizer = Recognizer(session)
    short, long = tune(8, 1), tune(25, 2)
    soundfile.write(tmp_path / "long.wav", long, RATE, subtype="FLOAT")
    texts = [t.text for t in recognizer.transcribe([short, tmp_path / "long.wav", short], RATE, 10)]
    assert texts[0] == texts[2]
    assert [frames for *_, frames in session.shapes] == [1001, 1001, 801] or (
        max(frames for *_, frames in session.shapes) == 1001
    )
    assert texts[1] == recognizer.transcribe(long, RATE).text
    session.profile = Profile(batch=(1, 1, 1), frames=(1, 500, 601))  # an engine's, of 6 s
    session.shapes.clear()
    assert recognizer.transcribe(long, RATE).text == texts[1]
    assert {batch for batch, *_ in session.shapes} == {1}
    assert max(frames for *_, frames in session.shapes) <= 601


def test_recordings_within_an_engines_maximum_are_not_split():
    """To the last sample: windows are of whole output frames, an engine's profile is not."""
    session = LocalSession()
    for frames in (301, 801):
        session.profile = Profile(batch=(1, 1, 1), frames=(1, 200, frames))
        session.shapes.clear()
        samples = frames * 160 - 1
        assert Recognizer(session).transcribe(tune(9, 4)[:samples], RATE).text
        assert session.shapes == [(1, 1, 161, frames)]
    session.profile = Profile(batch=(1, 1, 1), frames=(1, 200, 301))
    with pytest.raises(AudioError, match=r"3\.1 s of audio; this engine accepts"):
        Recognizer(session).transcribe(tune(4, 4)[: 301 * 160], RATE)


def test_recordings_that_come_in_pieces():
    """Of any length: the same words as of the whole, at another rate too."""
    recognizer, long = Recognizer(LocalSession()), tune(25, 2)
    for rate in (RATE, 8000):
        pieces = np.array_split(long[:: RATE // rate], 99)
        for window_s in (None, 10):
            whole = recognizer.transcribe(long[:: RATE // rate], rate, window_s)
            assert recognizer.transcribe_pieces(iter(pieces), rate, window_s) == whole


@pytest.mark.parametrize("window_s", [0, 1.0, -5, 601, float("nan")])
def test_windows_that_are_none(window_s: float):
    with pytest.raises(ConfigError, match="expected 4 to 600 s"):
        Recognizer(LocalSession()).transcribe(tune(5, 0), RATE, window_s)


def test_windows_longer_than_an_engine_takes():
    session = LocalSession()
    session.profile = Profile(batch=(1, 1, 1), frames=(1, 500, 601))
    with pytest.raises(ConfigError, match="this engine accepts at most 6 s; use a smaller window"):
        Recognizer(session).transcribe(tune(5, 0), RATE, 8)


def test_local_normalisation_is_that_of_its_surroundings():
    """Written out frame by frame, in float64; and where all is near, it is the utterance's."""
    config = FeatureConfig()
    extract = FeatureExtractor(config)
    samples = synthesize(RATE, 12 * RATE, seed=1)
    samples[: 6 * RATE] *= 0.05  # somebody far away, and then somebody near
    found = extract.of_long_audio(samples)
    spectrogram = extract.log_spectrogram(samples).astype(np.float64)
    around = int(LOCAL_S / 2 * 100)
    for frame in (0, 3, around, 600, 1000, spectrogram.shape[1] - 1):
        near = spectrogram[:, max(0, frame - around) : frame + around + 1]
        expected = (spectrogram[:, frame] - near.mean()) / near.std(ddof=1)
        np.testing.assert_allclose(found[:, frame], expected, atol=2e-4)
    short = samples[: 2 * RATE]
    np.testing.assert_allclose(extract.of_long_audio(short), extract(short), atol=2e-4)
    plain = FeatureExtractor(CONFIG)
    np.testing.assert_array_equal(plain.of_long_audio(short), plain(short))


def test_silence_is_normalised_to_zeros():
    extract = FeatureExtractor(FeatureConfig())
    assert not extract.of_long_audio(np.zeros(RATE, np.float32)).any()


# The trained model on half an hour --------------------------------------------------------------

MEASURE = """
import sys, ds2deploy
model, audio = sys.argv[1:]
recognizer = ds2deploy.load(model, threads=2)
text = recognizer.transcribe(audio).text
# Not ru_maxrss, which counts the process that started this one as well.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
print(text)
"""


def measured(model: Path, audio: Path) -> tuple[float, str]:
    """Peak resident memory of a whole process in MB, and what was said."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(model), str(audio)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak, text = done.stdout.split("\n", 1)
    return int(peak) * 1024 / 1e6, text.strip()


@pytest.fixture(scope="module")
def half_an_hour(digit_strings: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Digit strings by four speakers, one after the other: recordings of a minute and of thirty."""
    from ds2deploy.data.cuts import read_audio, transcript
    from ds2deploy.data.manifest import read_manifest

    folder = tmp_path_factory.mktemp("long")
    cuts = list(read_manifest(digit_strings))
    random = np.random.default_rng(0)
    parts, words, ends, seconds = [], [], [], 0.0
    order = np.concatenate([random.permutation(len(cuts)) for _ in range(7)])
    for i in order:
        samples = read_audio(cuts[i], RATE)
        pause = np.zeros(int(RATE * random.uniform(*JOIN_PAUSE_S)), np.float32)
        parts += [samples, pause]
        words.append(transcript(cuts[i]))
        seconds += (len(samples) + len(pause)) / RATE
        ends.append(seconds)
        if seconds > 1800:
            break
    whole = np.concatenate(parts)
    soundfile.write(folder / "half.wav", whole, RATE)
    soundfile.write(folder / "minute.wav", whole[: 55 * RATE], RATE)
    strings = [read_audio(cut, RATE) for cut in cuts]
    return folder / "half.wav", folder / "minute.wav", words, strings, order[: len(words)]


@pytest.mark.thorough
def test_half_an_hour_of_digits(half_an_hour: Any, digits_onnx: Path):
    """Flat memory, and hardly an error more than utterance by utterance."""
    from ds2deploy.training.scoring import count_errors

    half, minute, words, strings, order = half_an_hour
    assert soundfile.info(half).duration > 1800
    base, _ = measured(digits_onnx, minute)
    peak, text = measured(digits_onnx, half)
    assert peak - base < 200, (peak, base)
    joined = count_errors([" ".join(words)], [text])
    recognizer = ds2deploy.load(digits_onnx, threads=2)
    texts = [transcript.text for transcript in recognizer.transcribe(strings, RATE)]
    single = count_errors(words, [texts[i] for i in order])
    print(f"{peak:.0f} MB against {base:.0f} MB; WER {joined.wer:.4f} against {single.wer:.4f}")
    assert single.words == joined.words > 2000
    assert joined.wer <= single.wer + 0.003, (joined, single)


def test_the_meaning_of_lengths():
    """Output frames of windows that begin at whole output frames are those of the whole."""
    shape = WindowShape(CONFIG, 7.3)
    assert shape.size % shape.per_frame == shape.hop % shape.per_frame == 0
    for samples in (shape.size + 1, 3 * shape.size + 12_345):
        windows = list(shape.cut([np.zeros(samples, np.float32)]))
        first = (len(windows) - 1) * shape.hop // shape.per_frame
        last = output_length(CONFIG.frames(len(windows[-1][0])))
        assert first + last == output_length(CONFIG.frames(samples))
