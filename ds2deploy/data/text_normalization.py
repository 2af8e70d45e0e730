"""Normalisation of transcripts to a model's labels, with a count of replaced characters."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec

from ds2deploy.runtimes.alphabet import Alphabet

APOSTROPHES = "\u2018\u2019\u201b\u02bc\u02b9\u0060\u00b4\uff07"
"""Characters that people type instead of the apostrophe in IT'S."""

SPOKEN = "%&@#*\u00a7"
"""Characters that Unicode counts as punctuation but that people read aloud; they are kept."""

RARE = 1e-4
"""Share of all letters below which a character gets no label in `find_labels`."""


class Change(msgspec.Struct, frozen=True):
    """Replacement of a character that has no label.

    Attributes:
        character: character of the transcripts.
        became: replacement; empty if the character was dropped, None if there is no replacement
            and the utterance was rejected.
        times: number of occurrences.
    """

    character: str
    became: str | None
    times: int

    def __str__(self) -> str:
        became = {None: "no label", "": "dropped", " ": "a space"}.get(self.became, self.became)
        return f"{self.character!r}  {self.times} times: {became}"


class TextNormalizer:
    """Normaliser of transcripts, which counts its replacements.

    Args:
        alphabet: labels of the model.
    """

    def __init__(self, alphabet: Alphabet) -> None:
        self._alphabet = alphabet
        self._known = set(alphabet.labels[1:])
        self._changes: Counter[tuple[str, str | None]] = Counter()

    def normalize(self, text: str, times: int = 1) -> str:
        """Replace characters that have no label, if a replacement is known.

        Case is folded as by `Alphabet.normalize`. Typographic apostrophes become ', accents are
        dropped if the base letter has a label, and dashes and slashes become spaces. Other
        punctuation and invisible characters are dropped. Digits, symbols that are read aloud and
        letters of other scripts stay unchanged, so that `Alphabet.encode` rejects them.

        Args:
            text: transcript, or part of one.
            times: number of occurrences of the text, for `changes`.
        """
        composed = unicodedata.normalize("NFC", text)
        return self._alphabet.normalize("".join(self._replace(c, times) for c in composed))

    @property
    def changes(self) -> list[Change]:
        """List the replacements in all transcripts so far, most frequent first."""
        ordered = sorted(self._changes.items(), key=lambda item: (-item[1], item[0][0]))
        return [Change(character, became, times) for (character, became), times in ordered]

    def _replace(self, character: str, times: int) -> str:
        if self._has_label(character) or (character.isspace() and " " in self._known):
            return character
        became = self._find(character)
        self._changes[(character, became)] += times
        return character if became is None else became

    def _find(self, character: str) -> str | None:
        if character in APOSTROPHES and "'" in self._known:
            return "'"
        category = unicodedata.category(character)
        if category in ("Pd", "Pc") or character in "/\\\u2212" or character.isspace():
            return " "
        if category in ("Cf", "Cc") or (category.startswith("P") and character not in SPOKEN):
            return ""
        if category == "Mn":  # a combining accent
            return ""
        bare = "".join(
            part
            for part in unicodedata.normalize("NFKD", character)
            if unicodedata.category(part) != "Mn"
        )
        if bare and bare != character and all(map(self._has_label, bare)):
            return bare
        return None

    def _has_label(self, character: str) -> bool:
        return all(part in self._known for part in self._alphabet.normalize(character) or "\0")


def find_labels(texts: Iterable[str]) -> str:
    """Find labels for transcripts in any language: the blank, and every letter that is not rare.

    Letters are in upper case, as in the labels of deepspeech.pytorch. They are in lower case if
    one of them has no upper case, such as the German sharp s. Apostrophe and space are included if
    the transcripts contain them.

    Args:
        texts: transcripts.

    Returns:
        The labels, blank (`_`) first, for `Alphabet`.
    """
    characters = Counter(
        character for text in texts for character in unicodedata.normalize("NFC", text)
    )
    frequent = RARE * sum(characters.values())
    lower = any(len(c.upper()) > 1 for c, times in characters.items() if times >= frequent)
    counts: Counter[str] = Counter()
    for character, times in characters.items():
        for letter in _letters(character, lower):
            counts[letter] += times
    total = sum(counts.values())
    kept = sorted(c for c, times in counts.items() if times >= RARE * total and c not in "' ")
    return "_" + "'" * ("'" in counts) + "".join(kept) + " " * (" " in counts)


def _letters(character: str, lower: bool) -> Iterator[str]:
    """Yield the parts of a character that can be labels."""
    if character in APOSTROPHES or character == "'":
        yield "'"
    elif character.isspace():
        yield " "
    elif unicodedata.category(character)[0] in "LM":
        yield from character.lower() if lower else character.upper()
