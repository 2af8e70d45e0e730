"""Greedy CTC decoding against an implementation that goes frame by frame."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2deploy.runtimes.alphabet import BLANK, ENGLISH, Alphabet
from ds2deploy.runtimes.decoding.decoder import decode_batch
from ds2deploy.runtimes.decoding.greedy import GreedyDecoder, greedy_labels, greedy_text
from ds2deploy.runtimes.decoding.transcript import Transcript

FRAME_S = 0.02
SPACE = ENGLISH.index(" ")
LABELS = len(ENGLISH)

paths = st.lists(st.integers(0, LABELS - 1), min_size=1, max_size=80)
wordy_paths = st.lists(st.sampled_from([BLANK, SPACE, 2, 3]), min_size=1, max_size=40)


def log_probs_of(path: list[int], best: float = 0.9) -> np.ndarray:
    """Log-probabilities, (time, labels), whose best labels are the path."""
    rest = (1 - best) / (LABELS - 1)
    frames = np.full((len(path), LABELS), np.log(rest), np.float32)
    frames[np.arange(len(path)), path] = np.log(best)
    return frames


def decode_greedy(log_probs: np.ndarray, duration_s: float) -> Transcript:
    decoder = GreedyDecoder(Alphabet(), FRAME_S)
    return decode_batch(decoder, log_probs[None], np.array([len(log_probs)]), [duration_s])[0]


def decode(path: list[int], duration_s: float | None = None):
    duration = len(path) * FRAME_S if duration_s is None else duration_s
    return decode_greedy(log_probs_of(path), duration)


def naive(path: list[int]) -> list[tuple[int, int, int]]:
    """Collapse frame by frame, as the definition of CTC says."""
    found: list[tuple[int, int, int]] = []
    previous = BLANK
    for frame, label in enumerate(path):
        if label != BLANK:
            if label == previous:
                found[-1] = (label, found[-1][1], frame)
            else:
                found.append((label, frame, frame))
        previous = label
    return found


@st.composite
def rendered(draw) -> tuple[list[int], list[int]]:
    """A label sequence, and frames that spell it with random repeats and blanks."""
    labels = draw(st.lists(st.integers(1, LABELS - 1), max_size=25))
    path = [BLANK] * draw(st.integers(0, 3))
    for i, label in enumerate(labels):
        path += [label] * draw(st.integers(1, 4))
        must = i + 1 < len(labels) and labels[i + 1] == label
        path += [BLANK] * draw(st.integers(1 if must else 0, 3))
    return labels, path or [BLANK]


@given(rendered())
def test_a_sequence_with_any_repeats_and_blanks_decodes_to_itself(case):
    labels, path = case
    assert [label for label, _, _ in greedy_labels(log_probs_of(path))] == labels


@given(paths)
def test_labels_and_their_frames_equal_the_naive_ones(path):
    assert greedy_labels(log_probs_of(path)) == naive(path)


@given(st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_so_do_those_of_random_log_probabilities(frames, seed):
    logits = np.random.default_rng(seed).standard_normal((frames, LABELS)).astype(np.float32)
    assert greedy_labels(logits) == naive([int(np.argmax(frame)) for frame in logits])


def test_a_double_letter_needs_a_blank_between():
    t, o = ENGLISH.index("T"), ENGLISH.index("O")
    assert decode([t, o, o]).text == "TO"
    assert decode([t, o, BLANK, o]).text == "TOO"
    assert decode([t, o, BLANK, BLANK, o, o]).text == "TOO"


def test_times_are_those_of_the_frames():
    a, b = ENGLISH.index("A"), ENGLISH.index("B")
    transcript = decode([BLANK, a, a, BLANK, b, SPACE, BLANK, b, BLANK], duration_s=0.17)
    assert [(c.text, c.start, c.end) for c in transcript.chars] == [
        ("A", 0.02, 0.06),
        ("B", 0.08, 0.10),
        (" ", 0.10, 0.12),
        ("B", 0.14, 0.16),
    ]
    assert [(w.text, w.start, w.end) for w in transcript.words] == [
        ("AB", 0.02, 0.10),
        ("B", 0.14, 0.16),
    ]
    assert transcript.duration == 0.17


@settings(max_examples=200)
@given(path=st.one_of(paths, wordy_paths), missing=st.floats(0, 0.03))
def test_times_rise_and_stay_within_the_audio(path, missing):
    # The last frame may reach past the end of the audio: it is centred on its last samples.
    duration = max(len(path) * FRAME_S - missing, 0.001)
    transcript = decode(path, duration)
    for spans in (transcript.chars, transcript.words):
        edges = [edge for span in spans for edge in (span.start, span.end)]
        assert edges == sorted(edges)
        assert all(0 <= edge <= transcript.duration for edge in edges)
    assert transcript.duration == pytest.approx(duration, abs=0.0005)


@settings(max_examples=200)
@given(st.one_of(paths, wordy_paths))
def test_words_are_the_runs_of_characters_between_spaces(path):
    transcript = decode(path)
    assert "".join(char.text for char in transcript.chars).split() == [
        word.text for word in transcript.words
    ]
    chars = iter(transcript.chars)
    for word in transcript.words:
        letters = [next(c for c in chars if c.text != " ")]
        letters += [next(chars) for _ in word.text[1:]]
        assert "".join(letter.text for letter in letters) == word.text
        assert (word.start, word.end) == (letters[0].start, letters[-1].end)


@settings(max_examples=200)
@given(wordy_paths)
def test_the_text_has_single_spaces_between_words_only(path):
    text = decode(path).text
    assert text == " ".join(text.split())
    assert text == " ".join(Alphabet().decode(label for label, _, _ in naive(path)).split())
    assert text == greedy_text(log_probs_of(path), Alphabet())


@pytest.mark.parametrize("path", [[BLANK], [BLANK] * 50, [SPACE], [BLANK, SPACE, BLANK, SPACE]])
def test_nothing_said_is_an_empty_transcript(path):
    transcript = decode(path)
    assert transcript.text == ""
    assert transcript.words == ()
    assert all(char.text == " " for char in transcript.chars)


@given(paths, st.floats(0.5, 0.999))
def test_the_score_is_the_mean_of_the_best_log_probabilities(path, best):
    frames = log_probs_of(path, best)
    frames[0] = log_probs_of(path, 0.4)[0]
    transcript = decode_greedy(frames, 1.0)
    expected = (np.log(best) * (len(path) - 1) + np.log(0.4)) / len(path)
    assert transcript.score == pytest.approx(expected, abs=1e-5)
    assert isinstance(transcript.score, float)


def test_a_certain_path_scores_zero():
    assert decode_greedy(log_probs_of([2, 0, 3], 1 - 1e-9), 1.0).score == (
        pytest.approx(0, abs=1e-6)
    )
