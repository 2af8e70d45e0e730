"""Segments of a stream: where they end, and that no word is lost or doubled there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ds2deploy
from ds2deploy.export.parity.speech import synthesize
from ds2deploy.runtimes.decoding.greedy import greedy_labels
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.streaming.endpoint import Endpoint, EndpointRule

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
    with pytest.raises(ConfigError, match=name):
        Endpoint(**{name: 0.0})


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
