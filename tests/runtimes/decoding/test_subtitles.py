"""Subtitles that players accept: cues in order, cut where a reader needs it."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds2deploy.runtimes.decoding.subtitles import (
    LONGEST_CUE_S,
    LONGEST_PAUSE_S,
    MOST_CHARACTERS,
    cues,
    to_srt,
    to_vtt,
)
from ds2deploy.runtimes.decoding.transcript import Span, Transcript


def transcript_of(words: list[Span]) -> Transcript:
    return Transcript(
        text=" ".join(word.text for word in words),
        words=tuple(words),
        chars=(),
        score=0.0,
        duration=words[-1].end if words else 1.0,
    )


def said(*words: tuple[str, float, float]) -> list[Span]:
    return [Span(*word) for word in words]


@st.composite
def speech(draw) -> Transcript:
    """Words on a grid of 20 ms, as the decoder gives them; the last may have no length."""
    frame = draw(st.integers(0, 400_000))
    words = []
    for _ in range(draw(st.integers(0, 30))):
        text = draw(st.text("ABC'", min_size=1, max_size=draw(st.sampled_from([5, 60]))))
        end = frame + draw(st.integers(1, 60))
        words.append(Span(text, round(frame * 0.02, 3), round(end * 0.02, 3)))
        frame = end + draw(st.sampled_from([1, 2, 10, 39, 40, 41, 200]))
    if words and draw(st.booleans()):
        words[-1] = Span(words[-1].text, words[-1].start, words[-1].start)
    return transcript_of(words)


def milliseconds(time: str, point: str) -> int:
    matched = re.fullmatch(rf"(\d\d+):([0-5]\d):([0-5]\d){re.escape(point)}(\d\d\d)", time)
    assert matched, time
    hours, minutes, seconds, rest = map(int, matched.groups())
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + rest


def check_cues(blocks: list[tuple[str, str]], point: str, transcript: Transcript) -> None:
    """Blocks of (times, text): in order, without overlap, each with some length, all words."""
    previous = 0
    for times, text in blocks:
        start, end = (milliseconds(time, point) for time in times.split(" --> "))
        assert previous <= start < end
        assert text
        assert "\n" not in text
        previous = end
    assert " ".join(text for _, text in blocks) == transcript.text


@given(speech())
def test_srt_is_well_formed(transcript):
    document = to_srt(transcript)
    blocks = [block.split("\n") for block in document.rstrip("\n").split("\n\n") if block]
    assert all(len(block) == 3 for block in blocks)
    assert [block[0] for block in blocks] == [str(i + 1) for i in range(len(blocks))]
    check_cues([(block[1], block[2]) for block in blocks], ",", transcript)


@given(speech())
def test_vtt_is_well_formed(transcript):
    head, *blocks = to_vtt(transcript).rstrip("\n").split("\n\n")
    assert head == "WEBVTT"
    pairs = [tuple(block.split("\n")) for block in blocks]
    assert all(len(pair) == 2 for pair in pairs)
    check_cues(pairs, ".", transcript)


@given(speech())
def test_cues_keep_to_the_limits_and_are_cut_nowhere_else(transcript):
    groups = list(cues(transcript.words))
    assert [word for group in groups for word in group] == list(transcript.words)
    for group in groups:
        if len(group) > 1:
            assert len(" ".join(word.text for word in group)) <= MOST_CHARACTERS
            assert group[-1].end - group[0].start <= LONGEST_CUE_S
        for before, after in pairwise(group):
            assert after.start - before.end <= LONGEST_PAUSE_S
    for group, following in pairwise(groups):
        word = following[0]
        assert (
            word.start - group[-1].end > LONGEST_PAUSE_S
            or word.end - group[0].start > LONGEST_CUE_S
            or len(" ".join(w.text for w in [*group, word])) > MOST_CHARACTERS
        )


def test_a_cue_is_cut_at_a_pause():
    words = said(("ONE", 0.0, 0.4), ("TWO", 1.2, 1.5), ("THREE", 2.31, 2.6))
    assert [[word.text for word in cue] for cue in cues(words)] == [["ONE", "TWO"], ["THREE"]]


def test_a_cue_is_cut_by_its_duration():
    words = said(*[(f"W{i}", float(i), i + 0.5) for i in range(9)])
    assert [len(cue) for cue in cues(words)] == [5, 4]


def test_a_cue_is_cut_by_its_characters():
    words = said(*[("ABCDEFG", i * 0.3, i * 0.3 + 0.2) for i in range(6)])
    assert [len(cue) for cue in cues(words)] == [5, 1]  # 5 x 7 and 4 spaces: 39; a sixth: 47


def test_one_long_word_is_a_cue_of_its_own():
    words = said(("A", 0.0, 0.1), ("B" * 60, 0.2, 8.0), ("C", 8.1, 8.2))
    assert [len(cue) for cue in cues(words)] == [1, 1, 1]


def test_documents_as_players_expect_them():
    transcript = transcript_of(
        said(("HELLO", 0.5, 1.0), ("WORLD", 1.1, 1.52), ("AGAIN", 3661.0, 3661.005))
    )
    assert to_srt(transcript) == (
        "1\n00:00:00,500 --> 00:00:01,520\nHELLO WORLD\n\n2\n01:01:01,000 --> 01:01:01,005\nAGAIN\n"
    )
    assert to_vtt(transcript) == (
        "WEBVTT\n"
        "\n00:00:00.500 --> 00:00:01.520\nHELLO WORLD\n"
        "\n01:01:01.000 --> 01:01:01.005\nAGAIN\n"
    )


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "00:00:00,000"),
        (59.9994, "00:00:59,999"),
        (59.9996, "00:01:00,000"),
        (3599.9996, "01:00:00,000"),
        (36_000.0, "10:00:00,000"),
        (360_000.0, "100:00:00,000"),
    ],
)
def test_times_carry_over(seconds, expected):
    document = to_srt(transcript_of(said(("A", seconds, seconds + 1))))
    assert document.split("\n")[1].split(" --> ")[0] == expected


def test_nothing_said_is_an_empty_document():
    assert to_srt(transcript_of([])) == ""
    assert to_vtt(transcript_of([])) == "WEBVTT\n"
