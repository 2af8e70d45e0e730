"""Texts of flashlight's beam search, with a lexicon and a language model through KenLM."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from ds2deploy.language_models.make import LanguageModelOptions, make_language_model
from ds2deploy.runtimes.alphabet import ENGLISH, Alphabet
from ds2deploy.runtimes.decoding.config import DecoderConfig
from ds2deploy.runtimes.decoding.decoder import decode_batch
from tests.ds2deploy.language_models.test_arpa import arpa_text, ngrams_of

ALPHABET = Alphabet(ENGLISH)
SPACE = ENGLISH.index(" ")
WORDS = ["ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE"]
FRAME_S = 0.02
LM_WEIGHT, WORD_SCORE = 0.6, 0.5
NOISE, UTTERANCES = 3.2, 40


def spoken(text: str, random: np.random.Generator) -> np.ndarray:
    """Log-probabilities of a text and a space after it, with much noise on the letters."""
    path = [label for letter in ALPHABET.encode(text) for label in (letter, letter, 0)]
    path += [SPACE, SPACE]
    logits = NOISE * random.standard_normal((len(path), len(ENGLISH)))
    # A space is clear: flashlight takes several of them for one, here they are different texts.
    logits[:, SPACE] = -20.0
    logits[np.arange(len(path)), path] += 4.0
    logits[np.array(path) == SPACE, SPACE] += 26.0
    rows = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return np.ascontiguousarray(rows, np.float32)


def flashlight_texts(arpa: Path, sounds: list[np.ndarray]) -> list[str]:
    """The best text of each, by the search that torchaudio and others use."""
    decoder_module = pytest.importorskip(
        "flashlight.lib.text.decoder", reason="pip install 'ds2deploy[peers]'"
    )
    kenlm = pytest.importorskip("flashlight.lib.text.decoder.kenlm")
    dictionary = pytest.importorskip("flashlight.lib.text.dictionary")
    words = dictionary.Dictionary()
    for word in [*WORDS, "<unk>"]:
        words.add_entry(word)
    lm = kenlm.KenLM(str(arpa), words)
    trie = decoder_module.Trie(len(ENGLISH), SPACE)
    for word in WORDS:
        index = words.get_index(word)
        _, worth = lm.score(lm.start(False), index)
        trie.insert([*ALPHABET.encode(word), SPACE], index, worth)
    trie.smear(decoder_module.SmearingMode.MAX)
    options = decoder_module.LexiconDecoderOptions(
        beam_size=2000,
        beam_size_token=len(ENGLISH),
        beam_threshold=200.0,
        lm_weight=LM_WEIGHT * math.log(10),  # KenLM's logarithms are to the base of ten
        word_score=WORD_SCORE,
        unk_score=-math.inf,
        sil_score=0.0,
        log_add=True,
        criterion_type=decoder_module.CriterionType.CTC,
    )
    decoder = decoder_module.LexiconDecoder(
        options, trie, lm, SPACE, 0, words.get_index("<unk>"), [], False
    )
    texts = []
    for sound in sounds:
        best = decoder.decode(sound.ctypes.data, *sound.shape)[0]
        texts.append(" ".join(words.get_entry(index) for index in best.words if index >= 0))
    return texts


def test_texts_are_those_of_flashlight(tmp_path: Path):
    random = np.random.default_rng(5)
    lines = [" ".join(random.choice(WORDS, random.integers(1, 4))) for _ in range(200)]
    arpa, lm = tmp_path / "digits.arpa", tmp_path / "digits.lm"
    arpa.write_text(arpa_text(ngrams_of("\n".join(lines), 3)))
    make_language_model([arpa], lm, ALPHABET, LanguageModelOptions(kind="words"))
    sounds = [spoken(line, random) for line in lines[:UTTERANCES]]
    theirs = flashlight_texts(arpa, sounds)
    settings = DecoderConfig(
        beam=2000,
        labels_per_frame=len(ENGLISH),
        least_log_prob=-200.0,
        threshold=200.0,
        lm=str(lm),
        lm_weight=LM_WEIGHT,
        word_score=WORD_SCORE,
        unknown_letter=None,
    )
    decoder = settings(ALPHABET, FRAME_S)
    ours = []
    for sound in sounds:
        lengths = np.array([len(sound)])
        [found] = decode_batch(decoder, sound[None], lengths, [FRAME_S * len(sound)])
        ours.append(found.text)
    assert ours == theirs
    # Not just because it was easy: both are wrong in some of them.
    assert sum(line != text for line, text in zip(lines, ours, strict=False)) > 5
