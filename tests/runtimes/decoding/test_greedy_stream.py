"""What is decoded piece by piece is what is decoded at once, and what was stable stays so."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.decoder import decode_batch
from ds2deploy.runtimes.decoding.greedy import GreedyDecoder

ALPHABET = Alphabet("_ab ")


def log_probs_of(best: list[int]) -> np.ndarray:
    random = np.random.default_rng(len(best))
    values = random.uniform(-9, -3, (len(best), 4)).astype(np.float32)
    values[np.arange(len(best)), best] = random.uniform(-2, -0.1, len(best))
    return values


@given(
    best=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    short_s=st.sampled_from([0.0, 0.015]),
)
def test_any_split_gives_the_whole(best: list[int], cuts: list[int], short_s: float):
    log_probs, duration_s = log_probs_of(best), 0.02 * len(best) - short_s
    decoder = GreedyDecoder(ALPHABET, 0.02)
    whole = decode_batch(decoder, log_probs[None], np.array([len(best)]), [duration_s])[0]
    state = decoder.start()
    stable: list[str] = []
    for piece in np.split(log_probs, sorted(min(cut, len(best)) for cut in cuts)):
        decoder.advance([state], [piece])
        update = decoder.update(state)
        stable += [word.text for word in update.words]
        assert update.stable == " ".join(stable)
        # What is certain is a beginning of what comes of it; so is all that was heard.
        assert whole.text.split()[: len(stable)] == stable
        assert whole.text.startswith(update.text)
        assert " ".join(word.text for word in update.tail_words) == update.tail
        assert " " not in update.tail
    found = decoder.finish(state, duration_s)
    assert (found.text, found.words, found.chars) == (whole.text, whole.words, whole.chars)
    assert found.duration == whole.duration
    assert found.score == pytest.approx(whole.score, abs=1e-6)


def test_a_word_is_stable_when_a_space_follows():
    decoder = GreedyDecoder(ALPHABET, 0.02)
    state = decoder.start()
    decoder.advance([state], [log_probs_of([1, 1, 0, 2])])
    update = decoder.update(state)
    assert (update.stable, update.tail, update.words) == ("", "ab", ())
    decoder.advance([state], [log_probs_of([2, 2])])  # the same b goes on
    assert decoder.update(state).tail_words[0].end == pytest.approx(0.12)
    decoder.advance([state], [log_probs_of([0, 2, 3, 1])])
    update = decoder.update(state)
    assert (update.stable, update.tail, update.text) == ("abb", "a", "abb a")
    assert [(word.text, word.start, word.end) for word in update.words] == [("abb", 0.0, 0.16)]
    assert decoder.update(state).words == ()  # told once


def test_nothing_was_said():
    decoder = GreedyDecoder(ALPHABET, 0.02)
    transcript = decoder.finish(decoder.start(), 0.0)
    assert (transcript.text, transcript.score, transcript.duration) == ("", 0.0, 0.0)
