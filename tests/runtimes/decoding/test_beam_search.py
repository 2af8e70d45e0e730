"""Beam search against the sum over all paths, and alone against batches and streams."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.beam import BeamDecoder
from ds2deploy.runtimes.decoding.config import DecoderConfig
from ds2deploy.runtimes.decoding.decoder import decode_batch
from ds2deploy.runtimes.decoding.transcript import Word
from ds2deploy.runtimes.errors import AlphabetError, ConfigError, NotFiniteError

ALPHABET = Alphabet("_AB ")
FRAME_S = 0.02
EXACT = DecoderConfig(
    beam=10_000, labels_per_frame=4, least_log_prob=-1e9, threshold=1e9, nbest=10_000
)


def log_probs(frames: int, seed: int, sharp: float = 1.0) -> np.ndarray:
    """Random posteriors, (frames, 4) float32."""
    logits = sharp * np.random.default_rng(seed).standard_normal((frames, 4))
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(path) if label)


def all_texts(rows: np.ndarray) -> dict[tuple[int, ...], float]:
    """Log-probability of every label sequence: the sum over all of its paths."""
    chances: defaultdict[tuple[int, ...], float] = defaultdict(lambda: -np.inf)
    for path in itertools.product(range(rows.shape[1]), repeat=len(rows)):
        score = sum(float(rows[t, label]) for t, label in enumerate(path))
        chances[collapse(path)] = np.logaddexp(chances[collapse(path)], score)
    return chances


def decode(config: DecoderConfig, *utterances: np.ndarray) -> Any:
    decoder = config(ALPHABET, FRAME_S)
    longest = max(map(len, utterances))
    padded = np.full((len(utterances), longest, utterances[0].shape[1]), np.nan, np.float32)
    for rows, utterance in zip(padded, utterances, strict=True):
        rows[: len(utterance)] = utterance
    lengths = np.array([len(utterance) for utterance in utterances])
    return decode_batch(decoder, padded, lengths, [FRAME_S * n for n in lengths])


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1.0, 3.0]))
def test_the_scores_are_sums_over_all_paths(frames: int, seed: int, sharp: float):
    rows = log_probs(frames, seed, sharp)
    expected: dict[str, float] = {}
    for labels, score in all_texts(rows).items():
        text = " ".join(ALPHABET.decode(labels).split())
        expected[text] = max(expected.get(text, -np.inf), score)
    found = decode(EXACT, rows)[0]
    assert {one.text: one.score for one in found.alternatives} == pytest.approx(expected, abs=1e-6)
    best = max(expected, key=lambda text: expected[text])
    assert expected[found.text] == pytest.approx(expected[best], abs=1e-9)
    assert sum(one.confidence for one in found.alternatives) == pytest.approx(1, abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
@example(5, 45631)  # the best path has two spaces after the phrase
def test_a_closed_list_is_the_best_of_its_phrases(frames: int, seed: int):
    rows = log_probs(frames, seed)
    phrases = ("A", "AB", "B A", "BB")
    spelled = {
        labels: score
        for labels, score in all_texts(rows).items()
        if " ".join(ALPHABET.decode(labels).split()) in phrases
    }
    found = decode(EXACT.__class__(**{**_fields(EXACT), "phrases": phrases}), rows)[0]
    if not spelled:
        assert found.text == ""
    else:
        best = max(spelled.values())
        assert found.alternatives[0].score == pytest.approx(best, abs=1e-6)


def _fields(config: DecoderConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__struct_fields__}


def bonus(text: str, phrases: dict[str, float]) -> float:
    """Nats for the phrases that stand in a text, none inside another."""
    return sum(
        weight
        * len(phrase)
        * f" {text} ".replace(" ", "  ").count(f" {phrase.replace(' ', '  ')} ")
        for phrase, weight in phrases.items()
    )


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 6),
    st.integers(0, 2**32 - 1),
    st.sampled_from([{"AB": 0.8}, {"AB": 0.8, "B": 0.3}, {"BA": 1.0, "AA": 0.5}]),
)
def test_hot_words_pay_for_whole_phrases_and_nothing_else(
    frames: int, seed: int, phrases: dict[str, float]
):
    rows = log_probs(frames, seed)
    expected: dict[str, float] = {}
    for labels, score in all_texts(rows).items():
        text = " ".join(ALPHABET.decode(labels).split())
        total = score + bonus(text, phrases)
        expected[text] = max(expected.get(text, -np.inf), total)
    found = decode(EXACT.__class__(**{**_fields(EXACT), "hot_words": phrases}), rows)[0]
    assert {one.text: one.score for one in found.alternatives} == pytest.approx(expected, abs=1e-6)
    assert set(found.hot_words) == {p for p in phrases if f" {p} " in f" {found.text} "}


CONFIGS = {
    "plain": DecoderConfig(beam=8, threshold=8.0, nbest=3),
    "hot": DecoderConfig(beam=8, threshold=8.0, hot_words={"AB": 1.0, "BA": 0.7}, nbest=3),
    "closed": DecoderConfig(beam=6, phrases=("A", "AB BA", "BA", "BAB AB A")),
    "lexicon": DecoderConfig(beam=8, lexicon=("AB", "BA", "BAB"), unknown_letter=-1.0),
}


@pytest.mark.parametrize("name", CONFIGS)
@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 2**32 - 1)), min_size=1, max_size=5),
    st.lists(st.integers(0, 40), max_size=4),
)
def test_alone_in_a_batch_and_in_pieces_are_one(name: str, cases: list[Any], cuts: list[int]):
    check_alone_in_a_batch_and_in_pieces(CONFIGS[name], cases, cuts)


def check_alone_in_a_batch_and_in_pieces(
    config: DecoderConfig, cases: list[Any], cuts: list[int]
) -> None:
    sounds = [log_probs(frames, seed, 2.0) for frames, seed in cases]
    alone = [decode(config, sound)[0] for sound in sounds]
    assert decode(config, *sounds) == alone
    decoder = config(ALPHABET, FRAME_S)
    states = [decoder.start() for _ in sounds]
    edges = sorted(cuts)
    for first, last in itertools.pairwise([0, *edges, 10_000]):
        decoder.advance(states, [sound[first:last] for sound in sounds])
        for state in states:
            decoder.update(state)
    found = [
        decoder.finish(state, FRAME_S * len(sound))
        for state, sound in zip(states, sounds, strict=True)
    ]
    assert found == alone


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 200),
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 200), max_size=6),
    st.sampled_from([0.2, 0.5]),
)
def test_committed_text_stays_for_any_cut_of_the_audio(
    frames: int, seed: int, cuts: list[int], commit_s: float
):
    check_that_cuts_decide_nothing(DecoderConfig(beam=12, commit_s=commit_s), frames, seed, cuts)


def check_that_cuts_decide_nothing(
    config: DecoderConfig, frames: int, seed: int, cuts: list[int]
) -> None:
    decoder = config(ALPHABET, FRAME_S)
    sound = log_probs(frames, seed, 2.0)

    def stream(edges: list[int]) -> Any:
        state = decoder.start(live=True)
        stable: list[Word] = []
        for first, last in itertools.pairwise([0, *edges, 10_000]):
            decoder.advance([state], [sound[first:last]])
            update = decoder.update(state)
            stable += update.words
            assert update.stable == " ".join(word.text for word in stable)
        found = decoder.finish(state, FRAME_S * frames)
        assert list(found.words[: len(stable)]) == stable  # with their times and confidence
        return found

    assert stream(sorted(cuts)) == stream([])


def test_a_beam_of_all_commits_nothing_that_the_whole_says_otherwise():
    """Without a commit, a live stream is the whole."""
    config = DecoderConfig(commit_s=None)
    decoder = config(ALPHABET, FRAME_S)
    sound = log_probs(300, 5, 2.0)
    state = decoder.start(live=True)
    for block in np.array_split(sound, 20):
        decoder.advance([state], [block])
    assert decoder.finish(state, 6.0) == decode(config, sound)[0]


def test_not_a_number_is_an_error():
    decoder = DecoderConfig()(ALPHABET, FRAME_S)
    assert isinstance(decoder, BeamDecoder)
    sound = log_probs(5, 1)
    sound[3, 1] = np.nan
    with pytest.raises(NotFiniteError):
        decoder.advance([decoder.start()], [sound])


@pytest.mark.parametrize(
    ("settings_", "error"),
    [
        ({"beam": 0}, ConfigError),
        ({"threshold": 0.0}, ConfigError),
        ({"commit_s": -1.0}, ConfigError),
        ({"hot_words": {"": 1.0}}, ConfigError),
        ({"hot_words": {"A" * 1000: 1.0}}, ConfigError),
        ({"hot_words": {"AX": 1.0}}, AlphabetError),
        ({"lexicon": ("A", "AX")}, AlphabetError),
        ({"phrases": ("AX",)}, AlphabetError),
    ],
)
def test_settings_that_cannot_be(settings_: dict[str, Any], error: type[Exception]):
    with pytest.raises(error):
        DecoderConfig(**settings_)(ALPHABET, FRAME_S)


def silence(frames: int, word: str = "") -> np.ndarray:
    """A word of clear letters, and blanks after it, (frames, 4) float32."""
    rows = np.full((frames, 4), -12.0, np.float32)
    rows[:, 0] = -1e-4
    for at, letter in enumerate(word):
        rows[2 * at + 1] = -12.0
        rows[2 * at + 1, ALPHABET.labels.index(letter)] = -1e-4
    return rows


def test_a_word_is_one_though_a_long_silence_is_in_it():
    decoder = DecoderConfig()(ALPHABET, FRAME_S)
    state = decoder.start(live=True)
    for part in (silence(2000, "AB"), silence(2000, "BA"), silence(100, " A")):
        for block in np.array_split(part, 50):
            decoder.advance([state], [block])
            update = decoder.update(state)
    assert (update.stable, update.tail) == ("ABBA", "A")
    found = decoder.finish(state, 4100 * FRAME_S)
    assert found.text == "ABBA A"
    assert [char.start for char in found.chars] == pytest.approx(
        [FRAME_S * frame for frame in (1, 3, 2001, 2003, 4001, 4003)]
    )


@pytest.mark.parametrize("word", ["", "AB"])
def test_silence_takes_no_memory(word: str):
    """Five minutes of it: the log-probabilities alone would be 240 kB."""
    decoder = DecoderConfig()(ALPHABET, FRAME_S)
    state = decoder.start(live=True)
    decoder.advance([state], [silence(100, word)])
    for _ in range(150):
        decoder.advance([state], [silence(100)])
        decoder.update(state)
    assert sum(block.nbytes for block in state.held) < 5_000
    assert state.history.size < 300


@pytest.mark.parametrize("live", [False, True])
def test_a_lexicon_drops_half_a_word_and_keeps_those_before_it(live: bool):
    config = DecoderConfig(lexicon=("AB", "BA"), unknown_letter=None, commit_s=0.2)
    decoder = config(ALPHABET, FRAME_S)
    sound = np.concatenate([silence(60, "AB BA "), silence(30, "B")])
    state = decoder.start(live=live)
    told = []
    for block in np.array_split(sound, 30):
        decoder.advance([state], [block])
        told += [word.text for word in decoder.update(state).words]
    found = decoder.finish(state, FRAME_S * len(sound))
    assert found.text == "AB BA"
    assert found.confidence == (0 if live else 1)  # committed is committed
    assert told == (["AB", "BA"] if live else [])


def test_a_closed_list_writes_no_half_phrase():
    found = decode(DecoderConfig(phrases=("AB BA",)), silence(40, "AB "))[0]
    assert (found.text, found.confidence) == ("", 0.0)
