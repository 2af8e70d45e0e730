"""Segments of a stream: where they end, and that no word is lost or doubled there."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

import ds2deploy
from ds2deploy.export.parity.speech import synthesize
from ds2deploy.runtimes.decoding.greedy import greedy_labels
from ds2deploy.runtimes.decoding.transcript import Transcript
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.streaming.endpoint import Endpoint, EndpointRule, joined

RATE = 16_000
FRAME_S = 0.02
BLANK, A, B, SPACE = 0, 1, 2, 3


def rows(path: list[int]) -> np.ndarray:
    return np.eye(4, dtype=np.float32)[path]


def ends(endpoint: Endpoint, path: list[int], cuts: list[int]) -> list[int]:
    """Frames after which segments end, with the frames given in pieces."""
    rule = EndpointRule(endpoint, FRAME_S, SPACE)
    found, first = [], 0
    for last in [*sorted({min(cut, len(path)) for cut in cuts}), len(path)]:
        while first < last:
            count = rule.cut(rows(path[first:last]))
            if count is None:
                first = last
            else:
                first += count
                found.append(first)
    return found


def test_silence_after_speech_and_before():
    rules = Endpoint(silence_s=0.2, leading_silence_s=0.4, longest_s=10)
    assert ends(rules, [BLANK] * 50, []) == [20, 40]
    assert ends(rules, [A] * 3 + [BLANK] * 9 + [A] + [BLANK] * 30, []) == [23, 43]
    assert ends(rules, [A] + [SPACE] * 10 + [A] * 5, []) == [11]


def test_a_long_segment_ends_between_words():
    rules = Endpoint(silence_s=5, leading_silence_s=5, longest_s=0.2)
    word = [A, BLANK, B, BLANK]
    assert ends(rules, word * 4 + [SPACE] + word * 2, []) == [17]  # at the space after 10 frames
    forever = ends(rules, word * 100, [])
    assert forever[0] == 260  # ten frames, and the patience of five seconds; at a blank
    assert (word * 100)[forever[0] - 1] == BLANK


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([BLANK, BLANK, BLANK, A, B, SPACE]), min_size=1, max_size=120),
    st.lists(st.integers(0, 120), max_size=8),
)
def test_the_cut_decides_nothing_and_no_letter_is_lost_or_doubled(path: list[int], cuts: list[int]):
    rules = Endpoint(silence_s=0.06, leading_silence_s=0.1, longest_s=0.3)
    found = ends(rules, path, cuts)
    assert found == ends(rules, path, [])
    whole = [label for label, _, _ in greedy_labels(rows(path))]
    parts = [
        label
        for part in np.split(np.array(path), found)
        if len(part)
        for label, _, _ in greedy_labels(rows(part.tolist()))
    ]
    letters = [label for label in parts if label != SPACE]
    assert letters == [label for label in whole if label != SPACE]


@pytest.mark.parametrize("name", ["silence_s", "leading_silence_s", "longest_s"])
def test_rules_that_cannot_be(name: str):
    for value in (0.0, -1.0, 1e9, float("nan")):
        with pytest.raises(ConfigError, match=rf"{name}.*more than 0 and less than"):
            Endpoint(**{name: value})


def test_joined_segments_have_the_silence_between_them():
    first, second = (
        Transcript(text, (), (), -0.1, 2.0, start=start) for text, start in (("A", 1.0), ("B", 6.0))
    )
    found = joined([first, second])
    assert (found.text, found.start, found.duration, found.end) == ("A B", 1.0, 7.0, 8.0)


@pytest.fixture(
    scope="module", params=[None, ds2deploy.DecoderConfig(beam=8)], ids=["greedy", "beam"]
)
def recognizer(request: Any, streaming_checkpoint: Path) -> Any:
    return ds2deploy.load(streaming_checkpoint, decoder=request.param)


def test_segments_are_what_the_whole_says(recognizer):
    pause = np.zeros(RATE, np.float32)
    sound = np.concatenate([synthesize(RATE, RATE, seed=1), pause, synthesize(RATE, RATE, seed=2)])
    rules = Endpoint(silence_s=0.3)

    def segments(pieces: int) -> list[Any]:
        found = []
        with recognizer.stream(RATE, endpoint=rules) as stream:
            for piece in np.array_split(sound, pieces):
                found += stream.accept(piece).segments
            found.append(stream.finish())
        return [segment for segment in found if segment.text]

    found = segments(7)
    assert len(found) > 1
    assert found == segments(60)
    whole = recognizer.transcribe(sound, RATE)
    text = "".join(segment.text for segment in found).replace(" ", "")
    assert text == whole.text.replace(" ", "")
    assert all(one.end <= two.start for one, two in itertools.pairwise(found))
    times = [word.start for segment in found for word in segment.words]
    assert times == sorted(times)
    assert found[-1].words[-1].end <= len(sound) / RATE + 0.04


def test_a_pool_ends_segments_too(recognizer):
    sound = np.concatenate([synthesize(RATE, RATE, seed=1), np.zeros(2 * RATE, np.float32)])
    with recognizer.pool() as pool:
        stream = pool.open(RATE, endpoint=Endpoint(silence_s=0.3))
        stream.accept(sound)
        ticks = pool.tick()
        while pool.wait(0):
            ticks += pool.tick()
        texts = [segment.text for tick in ticks for segment in tick.update.segments]
    assert texts
    assert texts[0]


STRINGS = 40


def digit_strings(folder: Path, count: int) -> list[np.ndarray]:
    """Digits of one speaker each, with pauses of 0.05 to 2 s, at 8 kHz."""
    random = np.random.default_rng(0)
    files = sorted(folder.glob("*.wav"))
    speakers = sorted({path.stem.split("_")[1] for path in files})
    strings = []
    for number in range(count):
        speaker = speakers[number % len(speakers)]
        own = [path for path in files if path.stem.split("_")[1] == speaker]
        parts = []
        for at in random.integers(0, len(own), random.integers(3, 8)).tolist():
            parts += [
                soundfile.read(own[at], dtype="float32")[0],
                np.zeros(int(8000 * random.uniform(0.05, 2.0)), np.float32),
            ]
        strings.append(np.concatenate(parts))
    return strings


@pytest.mark.thorough
@pytest.mark.parametrize("decoder", [None, ds2deploy.DecoderConfig()], ids=["greedy", "beam"])
def test_digit_strings_lose_nothing_at_a_seam(spoken_digits: Path, decoder: Any):
    model = Path(__file__).resolve().parents[2] / "models" / "digits-streaming.ckpt"
    random = np.random.default_rng(1)
    ended = 0
    with ds2deploy.load(model, decoder=decoder) as recognizer:
        for sound in digit_strings(spoken_digits, STRINGS):
            found = []
            with recognizer.stream(8000, endpoint=Endpoint(silence_s=0.5)) as stream:
                cuts = np.sort(random.integers(0, len(sound), 20))
                for piece in np.split(sound, cuts):
                    found += stream.accept(piece).segments
                found.append(stream.finish())
            texts = [segment.text for segment in found if segment.text]
            ended += len(texts) - 1
            # A word that the model completes when the next one begins is cut in two.
            letters = recognizer.transcribe(sound, 8000).text.replace(" ", "")
            assert "".join(texts).replace(" ", "") == letters
    assert ended > 2 * STRINGS
