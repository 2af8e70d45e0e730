"""Many recordings through one network: the same texts, in bounded memory, whatever is broken."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

import ds2deploy
from ds2deploy.runtimes import pipeline
from ds2deploy.runtimes.alphabet import ENGLISH
from ds2deploy.runtimes.artifact import (
    ArtifactDescription,
    ModelShape,
    WeightsSource,
)
from ds2deploy.runtimes.engine_description import Profile
from ds2deploy.runtimes.errors import AudioError, DeviceError, Ds2Error, MissingFileError
from ds2deploy.runtimes.features import FeatureConfig
from ds2deploy.runtimes.geometry import output_length
from ds2deploy.runtimes.pipeline import QueuedRecording, Recognized, batch_of_oldest
from ds2deploy.runtimes.preparation import AudioInput, Prepared
from ds2deploy.runtimes.recognizer import Recognizer

RATE = 16_000
PATIENCE_S = 600
"""No machine needs as long."""


class MeanSession:
    """Answers with one letter for each frame, from that frame alone: A for silence, then louder.

    Notes the shapes and lengths that it is given.
    """

    profile: Profile | None = None
    at_once: int | None = None

    def __init__(self, runtime: str = "numpy", pause_s: float = 0.0) -> None:
        self.runtime, self.pause_s = runtime, pause_s
        self.shapes: list[tuple[int, ...]] = []
        self.lengths: list[list[int]] = []
        self.description = ArtifactDescription(
            precision="fp32",
            labels=ENGLISH,
            features=FeatureConfig(normalize="none"),
            model=ModelShape(),
            source=WeightsSource(name="mean.ckpt", sha256="0" * 64, kind="ds2deploy"),
        )

    def run(self, features: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.shapes.append(features.shape)
        self.lengths.append(lengths.tolist())
        time.sleep(self.pause_s)
        loudness = features[:, 0, :, ::2].mean(axis=1)
        letters = np.clip((4 * loudness).astype(int) + 1, 1, 26)
        log_probs = np.full((*letters.shape, 29), -9.0, np.float32)
        np.put_along_axis(log_probs, letters[..., None], -0.1, axis=2)
        return log_probs, np.array([output_length(int(n)) for n in lengths])

    def streaming(self) -> None:
        return None


def noise(seconds: float, seed: int) -> np.ndarray:
    """Steps of loudness that tell one recording from another."""
    random = np.random.default_rng(seed)
    count = round(seconds * RATE)
    steps = np.repeat(random.uniform(0, 0.5, count // 800 + 1), 800)[:count]
    return (steps * random.standard_normal(count)).clip(-1, 1).astype(np.float32)


DURATIONS = [0.3 + (37 * i) % 29 / 10 for i in range(40)]
"""Seconds, from 0.3 to 3.1, in no order."""


@pytest.fixture
def sounds() -> list[np.ndarray]:
    return [noise(seconds, i) for i, seconds in enumerate(DURATIONS)]


def preparing() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("ds2deploy-prepare")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert preparing() == []


# The same as one by one


def test_spoken_digits_say_the_same_as_one_by_one(digits_onnx: Path, spoken_digits: Path):
    """Real recordings, alone and joined to 1 to 7 s; a real network whose batches pad them."""
    paths = sorted(spoken_digits.rglob("*.wav"))[::40]
    assert len(paths) > 40
    rate = soundfile.info(paths[0]).samplerate
    digits = [soundfile.read(path, dtype="float32")[0] for path in paths]
    joined = [
        np.concatenate([digits[(i * 7 + k) % len(digits)] for k in range(2 + i % 12)])
        for i in range(24)
    ]
    with ds2deploy.load(digits_onnx) as recognizer:
        audio = [sound for pair in zip(joined, digits, strict=False) for sound in pair]
        alone = [recognizer.transcribe(sound, rate) for sound in audio]
        together = recognizer.transcribe(audio, rate)
    assert len({one.text for one in alone}) > 20
    assert [found.text for found in together] == [one.text for one in alone]
    assert [found.words for found in together] == [one.words for one in alone]
    for found, one in zip(together, alone, strict=True):
        assert found.score == pytest.approx(one.score, abs=1e-5)


@pytest.mark.parametrize("window_s", [0.5, 4.0, 600.0])
def test_the_order_is_the_inputs_whatever_the_window(sounds, window_s, monkeypatch):
    alone = [Recognizer(MeanSession()).transcribe(sound, RATE) for sound in sounds]
    monkeypatch.setattr("ds2deploy.runtimes.whole_utterances.WINDOW_S", window_s)
    assert Recognizer(MeanSession()).transcribe(sounds, RATE) == alone
    found = list(Recognizer(MeanSession()).transcribe_many(iter(sounds), RATE))
    assert sorted(item.index for item in found) == list(range(len(sounds)))
    assert {item.index: item.result for item in found} == dict(enumerate(alone))
    assert [item.audio_s for item in found] == [round(DURATIONS[i.index], 3) for i in found]


def test_batches_do_not_depend_on_which_thread_was_faster(sounds, monkeypatch):
    monkeypatch.setattr("ds2deploy.runtimes.whole_utterances.WINDOW_S", 10.0)
    made = []
    for threads, pause_s in ((1, 0.0), (2, 0.005), (4, 0.0)):
        session = MeanSession(pause_s=pause_s)
        list(Recognizer(session).transcribe_many(sounds, RATE, threads=threads))
        made.append(session.lengths)
    assert made[0] == made[1] == made[2]


def test_long_ones_among_short_ones(sounds):
    """Those go through windows, and wait for no batch."""
    audio = [*sounds[:3], noise(11, 50), *sounds[3:6], noise(9.5, 51)]
    alone = [Recognizer(MeanSession()).transcribe(one, RATE, window_s=4) for one in audio]
    session = MeanSession()
    assert Recognizer(session).transcribe(audio, RATE, window_s=4) == alone
    assert max(shape[3] for shape in session.shapes) == 401
    assert max(shape[0] for shape in session.shapes) == 6


# Batches


@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=40),
    st.integers(1, 500),
    st.integers(1, 8),
    st.sets(st.integers(1, 39)),
)
def test_a_batch_holds_the_oldest_and_no_more_than_it_may(lengths, total, size, long):
    waiting = [
        QueuedRecording(
            7 * i, Prepared(None, frames, 1, long=AudioInput("", iter(())) if i in long else None)
        )
        for i, frames in enumerate(lengths)
    ]
    chosen = batch_of_oldest(waiting, total, size)
    frames = [item.prepared.frames for item in chosen]
    assert waiting[0] in chosen
    assert len({item.index for item in chosen}) == len(chosen) <= size
    assert len(chosen) == 1 or len(chosen) * max(frames) <= total
    assert all(item.prepared.long is None for item in chosen)
    left = [w.prepared.frames for w in waiting if w not in chosen and w.prepared.long is None]
    assert not any(min(frames) < other < max(frames) for other in left)  # of similar length


def test_batches_are_bounded_by_frames(sounds, monkeypatch):
    session = MeanSession()
    Recognizer(session).transcribe(sounds, RATE)
    assert len(session.shapes) == 2  # 64 s in all: more than one batch of 64 s with its padding
    assert all(shape[0] * shape[3] <= pipeline.CPU_FRAMES for shape in session.shapes)
    assert max(shape[0] for shape in session.shapes) > 16
    monkeypatch.setattr(pipeline, "CPU_FRAMES", 700)
    session = MeanSession()
    Recognizer(session).transcribe(sounds, RATE)
    assert all(shape[0] * shape[3] <= 700 for shape in session.shapes)
    assert sum(shape[0] for shape in session.shapes) == len(sounds)
    session = MeanSession("onnxruntime cuda")
    Recognizer(session).transcribe(sounds, RATE)
    assert [shape[0] for shape in session.shapes] == [40]


def test_an_engine_gets_what_it_takes(sounds):
    """Its most utterances, its longest audio in windows; and all of its profile is used."""
    session = MeanSession("tensorrt cuda:0")
    session.profile = Profile(batch=(1, 4, 6), frames=(51, 200, 501))
    audio = [*sounds, noise(7.5, 60)]
    alone = [Recognizer(MeanSession()).transcribe(one, RATE, window_s=5.0) for one in audio]
    assert [t.text for t in Recognizer(session).transcribe(audio, RATE)] == [t.text for t in alone]
    assert max(shape[0] for shape in session.shapes) == 6
    assert max(shape[3] for shape in session.shapes) == 501
    assert sum(shape[0] for shape in session.shapes) == len(sounds) + 2


# What is broken


def test_a_broken_file_among_good_ones(tmp_path: Path, sounds):
    """Each is told what it would be told alone; the others say what they would say alone."""
    good = tmp_path / "good.wav"
    soundfile.write(good, sounds[0], RATE, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("one two three")
    whole = tmp_path / "whole.wav"
    soundfile.write(whole, noise(9, 1), RATE, subtype="FLOAT")
    (tmp_path / "cut.wav").write_bytes(whole.read_bytes()[:-5000])
    missing = tmp_path / "missing.wav"
    paths = [missing, good, tmp_path / "text.wav", good, tmp_path / "cut.wav", whole]
    recognizer = Recognizer(MeanSession())
    found = {item.index: item.result for item in recognizer.transcribe_many(paths, window_s=4)}
    expected = recognizer.transcribe(good)
    assert (found[1], found[3]) == (expected, expected)
    assert found[5] == recognizer.transcribe(whole, window_s=4)
    for i, kind in ((0, MissingFileError), (2, AudioError), (4, AudioError)):
        assert isinstance(found[i], kind)
        with pytest.raises(kind) as raised:
            recognizer.transcribe(paths[i], window_s=4)
        assert str(found[i]) == str(raised.value)
        assert str(paths[i]) in str(found[i])
    with pytest.raises(AudioError) as raised:  # the first that is read
        recognizer.transcribe([good, *paths[2:4], missing], window_s=4)
    assert str(raised.value) == str(found[2])


def test_a_disk_that_fails_is_told_of_one_file(sounds):
    def failing() -> Iterator[np.ndarray]:
        yield sounds[0]
        raise PermissionError(13, "Permission denied")

    sources = [AudioInput("a.wav", iter([sounds[1]])), AudioInput("b.wav", failing())]
    good, bad = sorted(Recognizer(MeanSession()).transcribe_many(sources), key=lambda r: r.index)
    assert not isinstance(good.result, Ds2Error)
    assert str(bad.result).startswith("b.wav: cannot be read (Permission denied); ")
    assert bad.audio_s == 0


def test_an_engine_too_short_for_one_of_many(sounds):
    session = MeanSession()
    session.profile = Profile(batch=(1, 4, 8), frames=(1, 100, 301))
    found = list(Recognizer(session).transcribe_many([*sounds, noise(4, 0)], RATE))
    (bad,) = (item for item in found if isinstance(item.result, Ds2Error) and item.index == 40)
    assert "4.0 s of audio; this engine accepts" in str(bad.result)


def test_a_device_that_fails_is_no_ones_file(sounds):
    class Failing(MeanSession):
        def run(self, features, lengths):
            raise DeviceError("out of memory")

    with pytest.raises(DeviceError, match="out of memory"):
        list(Recognizer(Failing()).transcribe_many(sounds, RATE))


@pytest.mark.parametrize("where", ["in the list", "in a recording"])
def test_a_defect_is_raised_and_ends_the_threads(where, sounds):
    def pieces() -> Iterator[np.ndarray]:
        yield sounds[0]
        if where == "in a recording":
            raise ZeroDivisionError

    def sources() -> Iterator[AudioInput]:
        yield AudioInput("a", pieces())
        if where == "in the list":
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(Recognizer(MeanSession()).transcribe_many(sources()))


# Memory and threads


class Ledger:
    """Recordings of 1 s that are made when they are asked for, and know how many are alive."""

    def __init__(self, count: int) -> None:
        self.count, self.begun, self.done, self.most = count, 0, 0, 0

    def __iter__(self) -> Iterator[AudioInput]:
        for i in range(self.count):
            yield AudioInput(f"{i}", self._pieces(i))

    def _pieces(self, i: int) -> Iterator[np.ndarray]:
        self.begun += 1
        self.most = max(self.most, self.begun - self.done)
        yield noise(0.5, i)
        yield noise(0.5, i + 1)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_memory_does_not_grow_with_the_list(threads, monkeypatch, wait_until):
    """A window of 20 s, 10 s beyond it, and what each thread has just begun."""
    monkeypatch.setattr("ds2deploy.runtimes.whole_utterances.WINDOW_S", 20.0)
    monkeypatch.setattr("ds2deploy.runtimes.whole_utterances.AHEAD_S", 10.0)
    monkeypatch.setattr(pipeline, "CPU_FRAMES", 510)
    ledger = Ledger(150)

    class Slow(MeanSession):
        def run(self, features, lengths):
            wait_until(lambda: ledger.begun - ledger.done >= 30 or ledger.begun == 150)
            return super().run(features, lengths)

    found: list[Recognized] = []
    for item in Recognizer(Slow()).transcribe_many(ledger, threads=threads):
        found.append(item)
        # A batch is released when all of it was given out.
        ledger.done = len(found) // 5 * 5
    assert len(found) == 150
    assert 30 <= ledger.most <= 30 + 5 + threads


def test_the_next_are_prepared_while_the_network_runs(monkeypatch, wait_until):
    monkeypatch.setattr("ds2deploy.runtimes.whole_utterances.WINDOW_S", 2.0)
    ledger = Ledger(20)

    class Watching(MeanSession):
        def run(self, features, lengths):
            wait_until(lambda: ledger.begun == 20)  # all fit in what is prepared ahead
            return super().run(features, lengths)

    assert len(list(Recognizer(Watching()).transcribe_many(ledger))) == 20


@pytest.mark.parametrize("after", [0, 1, 7])
def test_a_generator_abandoned_midway_leaves_no_threads(after, monkeypatch):
    monkeypatch.setattr("ds2deploy.runtimes.whole_utterances.WINDOW_S", 10.0)
    ledger = Ledger(1_000_000)
    with closing(Recognizer(MeanSession()).transcribe_many(ledger)) as found:
        for _ in range(after):
            next(found)
        assert len(preparing()) == (2 if after else 0)
    assert preparing() == []
    assert ledger.begun < 200


def test_an_end_does_not_wait_for_the_rest_of_a_recording(sounds):
    """It comes between two pieces of what a thread reads."""
    reading = threading.Event()

    def endless() -> Iterator[np.ndarray]:
        while True:
            reading.set()
            time.sleep(0.001)
            yield np.zeros(16, np.float32)

    def sources() -> Iterator[AudioInput]:
        yield AudioInput("missing", failing())
        yield AudioInput("endless", endless())

    def failing() -> Iterator[np.ndarray]:
        raise AudioError("missing: no such file")
        yield

    found = Recognizer(MeanSession()).transcribe_many(sources())
    assert isinstance(next(found).result, AudioError)
    assert reading.wait(PATIENCE_S)
    closing_it = threading.Thread(target=found.close, daemon=True)
    closing_it.start()
    closing_it.join(PATIENCE_S)
    assert not closing_it.is_alive()
    assert preparing() == []


# Streaming models


def test_a_streaming_model_leaves_out_what_is_broken(
    streaming_onnx: Path, spoken_digits: Path, tmp_path: Path
):
    paths: list[Path] = sorted(spoken_digits.rglob("*.wav"))[::300]
    broken = tmp_path / "broken.wav"
    broken.write_bytes(paths[0].read_bytes()[:-3000])
    mixed = [*paths[:3], broken, *paths[3:], tmp_path / "missing.wav"]
    with ds2deploy.load(streaming_onnx) as recognizer:
        found = {item.index: item.result for item in recognizer.transcribe_many(mixed)}
        alone = [recognizer.transcribe(path) for path in paths]
    assert sorted(found) == list(range(len(mixed)))
    assert "truncated" in str(found.pop(3))
    assert isinstance(found.pop(len(mixed) - 1), MissingFileError)
    texts = [found[i].text for i in sorted(found)]  # type: ignore[union-attr]
    assert texts == [one.text for one in alone]
    assert len(set(texts)) > 3
