"""Language models, a lexicon, a closed list and hot words together, against all texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ds2deploy.language_models.estimate import estimate
from ds2deploy.runtimes.decoding.config import DecoderConfig
from ds2deploy.runtimes.decoding.decoder import Decoder, decode_batch
from ds2deploy.runtimes.decoding.transcript import Transcript
from ds2deploy.runtimes.errors import ConfigError
from tests.ds2deploy.language_models.models import backed_off, entries, model_of, read_corpus
from tests.runtimes.decoding.test_beam_search import (
    ALPHABET,
    EXACT,
    FRAME_S,
    all_texts,
    bonus,
    check_alone_in_a_batch_and_in_pieces,
    check_that_cuts_decide_nothing,
    decode,
    log_probs,
)

SENTENCES = "AB BA\nAB A\nBA AB AB\nA BA\n"
ORDERS = {"words": 2, "characters": 3}
BOTH = frozenset(ORDERS)
PHRASES = ("A", "AB", "B A", "BB", "BA B")
HOT_WORDS = {"AB": 0.8, "B": 0.3}
LEXICON = ("AB", "B", "AAA")

Table = dict[str, tuple[float, float]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of a model of words and of one of characters."""
    found = {}
    for kind, order in ORDERS.items():
        folder = tmp_path_factory.mktemp(kind)
        found[kind] = str(model_of(SENTENCES, folder, ALPHABET.labels, kind=kind, order=order).path)
    return found


def table_of(kind: str) -> Table:
    """Probabilities and back-offs of all n-grams, as the estimate gives them."""
    ngrams = estimate(*read_corpus(SENTENCES, kind, ALPHABET.labels), ORDERS[kind]).ngrams
    return {gram: (p, b) for order in entries(ngrams) for gram, p, b in order}


TABLES = {kind: table_of(kind) for kind in ORDERS}


def sentence_score(kind: str, tokens: Sequence[str]) -> float:
    """Natural logarithm of the probability of a sentence, its end included."""
    table = TABLES[kind]
    history, total = ["<s>"], 0.0
    for token in (*tokens, "</s>"):
        token = token if token in table else "<unk>"
        total += backed_off(table, history[1 - ORDERS[kind] :], token)
        history.append(token)
    return math.log(10) * total


def added(config: DecoderConfig, kinds: frozenset[str], written: str) -> float:
    """Nats that a text, with the spaces as they are written, has besides the network's."""
    words, total = written.split(), bonus(" ".join(written.split()), config.hot_words)
    if "characters" in kinds:
        weight = config.character_lm_weight
        tokens = ["<space>" if letter == " " else letter for letter in written]
        total += (config.lm_weight if weight is None else weight) * sentence_score(
            "characters", tokens
        )
    lexicon = config.lexicon or (TABLES["words"] if "words" in kinds else ())
    if lexicon:
        letter = -np.inf if config.unknown_letter is None else config.unknown_letter
        total += config.word_score * len(words)
        total += sum(letter * len(word) for word in words if word not in lexicon)
    if "words" in kinds:
        # In a lexicon, what the model does not know; outside of it, `<unk>` too.
        known = [word if word in lexicon else "<unk>" for word in words]
        total += config.lm_weight * sentence_score("words", known)
    if config.phrases and " ".join(words) not in config.phrases:
        return -np.inf
    return total


@settings(deadline=None, max_examples=120)
@given(
    kinds=st.frozensets(st.sampled_from(sorted(ORDERS))),
    config=st.builds(
        DecoderConfig,
        lm_weight=st.sampled_from([0.0, 0.4, 1.3]),
        character_lm_weight=st.sampled_from([None, 0.0, 0.7]),
        word_score=st.sampled_from([-1.0, 0.0, 0.6]),
        lexicon=st.sampled_from([(), LEXICON]),
        unknown_letter=st.sampled_from([None, -0.5]),
        phrases=st.sampled_from([(), PHRASES]),
        hot_words=st.sampled_from([{}, HOT_WORDS]),
    ),
    frames=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
    sharp=st.sampled_from([0.5, 2.0]),
)
@example(
    kinds=frozenset(),
    config=DecoderConfig(phrases=PHRASES),
    frames=5,
    seed=971898,
    sharp=2.0,
)  # the best path to "A" ends with two spaces
def test_any_combination_gives_the_best_of_all_texts(
    models: dict[str, str],
    kinds: frozenset[str],
    config: DecoderConfig,
    frames: int,
    seed: int,
    sharp: float,
):
    limits = ("beam", "labels_per_frame", "least_log_prob", "threshold", "nbest")
    exact = {name: getattr(EXACT, name) for name in limits}
    config = msgspec.structs.replace(together(models, kinds, config), **exact)
    rows = log_probs(frames, seed, sharp)
    expected: dict[str, float] = {}
    for labels, score in all_texts(rows).items():
        written = ALPHABET.decode(labels)
        text, score = " ".join(written.split()), score + added(config, kinds, written)
        if score > -np.inf:
            expected[text] = max(expected.get(text, -np.inf), score)
    found = decode(config, rows)[0]
    assert {one.text: one.score for one in found.alternatives} == pytest.approx(expected, abs=1e-5)
    if not expected:
        assert found.text == ""
    else:
        assert expected[found.text] == pytest.approx(max(expected.values()), abs=1e-5)


def together(models: dict[str, str], kinds: frozenset[str], config: DecoderConfig) -> DecoderConfig:
    """Give settings the models of these kinds."""
    return msgspec.structs.replace(config, lm=tuple(models[kind] for kind in sorted(kinds)))


NARROW = DecoderConfig(
    beam=8,
    threshold=8.0,
    nbest=3,
    lm_weight=0.6,
    character_lm_weight=0.3,
    word_score=0.5,
    unknown_letter=-1.0,
)
MORE: dict[str, dict[str, Any]] = {
    "both models": {},
    "lexicon": {"lexicon": LEXICON},
    "hot words": {"hot_words": HOT_WORDS},
    "closed list": {"phrases": ("A", "AB BA", "BA", "BAB AB A")},
}


@pytest.mark.parametrize("name", MORE)
@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 2**32 - 1)), min_size=1, max_size=4),
    st.lists(st.integers(0, 40), max_size=4),
)
def test_alone_in_a_batch_and_in_pieces_are_one(
    models: dict[str, str], name: str, cases: list[Any], cuts: list[int]
):
    config = msgspec.structs.replace(NARROW, **MORE[name])
    check_alone_in_a_batch_and_in_pieces(together(models, BOTH, config), cases, cuts)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 200),
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 200), max_size=6),
)
def test_text_committed_with_two_models_stays_for_any_cut(
    models: dict[str, str], frames: int, seed: int, cuts: list[int]
):
    config = msgspec.structs.replace(NARROW, commit_s=0.3)
    check_that_cuts_decide_nothing(together(models, BOTH, config), frames, seed, cuts)


def test_weights_can_be_changed_without_another_decoder(models: dict[str, str]):
    sound = log_probs(60, 3, 2.0)
    old = together(models, BOTH, msgspec.structs.replace(NARROW, phrases=PHRASES[:-1]))
    new = msgspec.structs.replace(
        old, lm_weight=1.3, character_lm_weight=0.1, word_score=-2.0, confidence_scale=0.5
    )

    def text_of(decoder: Decoder) -> Transcript:
        return decode_batch(decoder, sound[None], np.array([len(sound)]), [1.2])[0]

    first = old(ALPHABET, FRAME_S)
    before = text_of(first)
    changed = first.with_weights(new.weights, new.confidence_scale)
    assert text_of(changed) == text_of(new(ALPHABET, FRAME_S)) != before
    assert text_of(first) == before


@pytest.mark.parametrize("kind", sorted(ORDERS))
def test_one_model_is_the_same_as_a_path_and_in_a_tuple(models: dict[str, str], kind: str):
    rows = log_probs(40, 3, 2.0)
    alone = msgspec.structs.replace(NARROW, lm=models[kind], character_lm_weight=None)
    assert decode(alone, rows) == decode(msgspec.structs.replace(alone, lm=(models[kind],)), rows)


@pytest.mark.parametrize("kind", sorted(ORDERS))
def test_two_models_of_one_kind_are_refused(models: dict[str, str], kind: str, tmp_path: Path):
    other = tmp_path / "other.lm"
    other.write_bytes(Path(models[kind]).read_bytes())
    config = DecoderConfig(lm=(models[kind], str(other)))
    with pytest.raises(ConfigError, match=rf"{models[kind]}.*{other}.*one of words") as error:
        config(ALPHABET, FRAME_S)
    assert f"of {kind}" in str(error.value)
