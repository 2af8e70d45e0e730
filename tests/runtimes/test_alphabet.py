"""Transcripts to labels and back, and what happens to characters that have none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds2deploy.runtimes.alphabet import BLANK, ENGLISH, Alphabet
from ds2deploy.runtimes.errors import AlphabetError, ConfigError, Ds2Error

CHARACTERS = ENGLISH[1:]


def test_english_is_that_of_deepspeech_pytorch():
    assert len(ENGLISH) == len(Alphabet()) == 29
    assert ENGLISH[BLANK] == "_"
    assert (ENGLISH[1], ENGLISH[2], ENGLISH[27], ENGLISH[28]) == ("'", "A", "Z", " ")


@given(st.text(CHARACTERS, max_size=60))
def test_a_transcript_comes_back(text):
    alphabet = Alphabet()
    labels = alphabet.encode(text)
    assert BLANK not in labels
    assert alphabet.decode(labels) == alphabet.normalize(text) == " ".join(text.split())


@given(
    st.lists(st.characters(exclude_categories=["Cs", "Z", "Cc"]), unique=True, min_size=1),
    st.data(),
)
def test_any_labels_and_any_text_of_theirs_come_back(characters, data):
    alphabet = Alphabet("\0" + "".join(characters))
    text = data.draw(st.text(characters, max_size=40))
    assert alphabet.unknown(text) == []
    assert alphabet.decode(alphabet.encode(text)) == text


@pytest.mark.parametrize("text", ["\ufa36", "\u1100\u1161", "\u212b"])
def test_a_label_that_unicode_would_write_otherwise(text: str):
    """A compatibility ideograph, letters of a Hangul syllable, the sign for angstrom."""
    alphabet = Alphabet("_" + text)
    assert alphabet.decode(alphabet.encode(text)) == text


@given(st.text(max_size=30))
def test_every_character_is_encoded_or_named(text):
    alphabet = Alphabet()
    unknown = alphabet.unknown(text)
    if unknown:
        with pytest.raises(AlphabetError) as raised:
            alphabet.encode(text)
        assert all(repr(character) in str(raised.value) for character in unknown)
    else:
        assert len(alphabet.encode(text)) == len(alphabet.normalize(text))


def test_the_error_names_the_source_the_characters_and_the_remedy():
    with pytest.raises(AlphabetError) as raised:
        Alphabet().encode("Café 4", source="a.txt")
    message = str(raised.value)
    assert message.startswith("a.txt: no label for '4', 'É' in 'Café 4'; ")
    assert "correct the transcript, or train with labels" in message
    assert isinstance(raised.value, Ds2Error)
    assert isinstance(raised.value, ValueError)


def test_the_blank_is_not_a_character():
    assert Alphabet().unknown("A_B") == ["_"]
    with pytest.raises(AlphabetError, match="no label for '_'"):
        Alphabet().encode("A_B")


@pytest.mark.parametrize(
    ("labels", "text", "normalized"),
    [
        ("_ABC ", "aB c", "AB C"),
        ("_abc ", "aB C", "ab c"),
        ("_abC ", "aB C", "aB C"),
        ("_01 ", "01 a", "01 a"),
        ("_äß ", "Äß", "äß"),
        ("_ÄSÖ ", "ö ß", "Ö SS"),
    ],
    ids=["upper", "lower", "mixed", "no case", "German lower", "German upper"],
)
def test_case_is_folded_only_where_the_labels_have_one(labels, text, normalized):
    assert Alphabet(labels).normalize(text) == normalized


def test_mixed_labels_keep_both_cases_apart():
    alphabet = Alphabet("_aA ")
    assert alphabet.encode("aA Aa") == [1, 2, 3, 2, 1]


@pytest.mark.parametrize("text", ["A B", "  A B ", "A\tB", "A\n B\n", "A\u00a0B", "A    B"])
def test_white_space_becomes_single_spaces(text):
    assert Alphabet().normalize(text) == "A B"
    assert Alphabet().encode(text) == [2, 28, 3]


def test_a_space_needs_a_label_too():
    assert Alphabet("_AB").unknown("A B") == [" "]


@pytest.mark.parametrize("labels", ["", "_", "_AA", "AAB", "_ABC_"])
def test_labels_that_are_too_few_or_stand_twice_are_refused(labels):
    with pytest.raises(ConfigError, match="expected the blank followed by each character once"):
        Alphabet(labels)
