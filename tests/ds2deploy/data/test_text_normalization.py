"""Transcripts in the labels: nothing invented, nothing changed without an account."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds2deploy.data.text_normalization import Change, TextNormalizer, find_labels
from ds2deploy.runtimes.alphabet import Alphabet


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("It's", "IT'S"),
        ("it\u2019s", "IT'S"),
        ("Caf\u00e9, s'il vous pla\u00eet!", "CAFE S'IL VOUS PLAIT"),
        ("cafe\u0301", "CAFE"),
        ("twenty-one and/or \u2014 what?", "TWENTY ONE AND OR WHAT"),
        ("\ufeffzero\u200bwidth", "ZEROWIDTH"),
        ("non\u00a0breaking", "NON BREAKING"),
        ("\ufb01ne", "FINE"),
        ("\u201cquoted\u201d (aside)", "QUOTED ASIDE"),
        ("route 66", "ROUTE 66"),
        ("5 % & more", "5 % & MORE"),
        ("\u043f\u0440\u0438\u0432\u0435\u0442", "\u041f\u0420\u0418\u0412\u0415\u0422"),
        ("stra\u00dfe", "STRASSE"),
    ],
)
def test_english_labels(text: str, normalized: str):
    assert TextNormalizer(Alphabet()).normalize(text) == normalized


def test_an_account_of_every_character():
    normalizer = TextNormalizer(Alphabet())
    for text in ("Caf\u00e9!", "\u00e9t\u00e9, 7", "it\u2019s well-known"):
        normalizer.normalize(text)
    assert normalizer.changes == [
        Change("\u00e9", "e", 3),
        Change("!", "", 1),
        Change(",", "", 1),
        Change("-", " ", 1),
        Change("7", None, 1),
        Change("\u2019", "'", 1),
    ]


def test_a_letter_that_has_a_label_keeps_its_accent():
    normalizer = TextNormalizer(Alphabet("_abc\u00e9 "))
    assert normalizer.normalize("B\u00c9 \u00e8") == "b\u00e9 \u00e8"
    assert [(c.character, c.became) for c in normalizer.changes] == [("\u00e8", None)]


def test_labels_without_an_apostrophe_or_a_space():
    assert TextNormalizer(Alphabet("_ABC ")).normalize("a'b\u2019c") == "ABC"
    assert TextNormalizer(Alphabet("_ABC")).normalize("a-b") == "A B"  # for `encode` to refuse


@given(st.text())
def test_characters_with_labels_stay_and_others_are_reported(text: str):
    alphabet = Alphabet()
    normalizer = TextNormalizer(alphabet)
    normalized = normalizer.normalize(text)
    told = {c.character for c in normalizer.changes if c.became is None}
    assert bool(alphabet.unknown(normalized)) == bool(told)
    known = "".join(c for c in text if c in alphabet.labels[1:])
    assert normalizer.normalize(known) == alphabet.normalize(known)


@given(st.text(alphabet="ABC 'xyz\u00e9\u00df-,7"))
def test_normalizing_twice_changes_nothing_more(text: str):
    once = TextNormalizer(Alphabet()).normalize(text)
    assert TextNormalizer(Alphabet()).normalize(once) == once


def test_labels_of_another_language():
    texts = ["\u0417\u0434\u0440\u0430\u0432\u0441\u0442\u0432\u0443\u0439\u0442\u0435, 7!"]
    labels = find_labels([*texts, "d'accord"])
    assert labels == "_'ACDOR\u0410\u0412\u0414\u0415\u0417\u0419\u0420\u0421\u0422\u0423 "
    normalized = TextNormalizer(Alphabet(labels)).normalize(
        "\u0417\u0434\u0440\u0430\u0432\u0441\u0442\u0432"
    )
    assert not Alphabet(labels).unknown(normalized)


def test_a_rare_letter_gets_no_label():
    assert find_labels(["abc " * 10_000, "\u00e9"]) == "_ABC "
    assert find_labels(["abc " * 100, "\u00e9"]) == "_ABC\u00c9 "


def test_the_blank_is_no_letter():
    assert find_labels(["a_b"]) == "_AB"


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        (["Stra\u00dfe und Haus"], "_adehnrstu\u00df "),
        (["Cafe\u0301 ole\u0301"], "_ACFLO\u00c9 "),
        (["it\u2019s"], "_'IST"),
    ],
)
def test_found_labels_spell_what_they_were_found_in(texts: list[str], labels: str):
    """In either case, and whether accents are composed or not."""
    assert find_labels(texts) == labels
    alphabet = Alphabet(labels)
    for text in texts:
        normalized = TextNormalizer(alphabet).normalize(text)
        for said in (normalized, normalized.lower(), unicodedata.normalize("NFD", normalized)):
            assert alphabet.decode(alphabet.encode(said)) == normalized
