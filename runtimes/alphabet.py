"""The labels of a model: blank first, one character each."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from ds2deploy.runtimes.errors import AlphabetError, ConfigError

BLANK = 0
"""Index of the CTC blank, as in deepspeech.pytorch."""

ENGLISH = "_'ABCDEFGHIJKLMNOPQRSTUVWXYZ "
"""deepspeech.pytorch's 29 labels: blank, apostrophe, A to Z, space."""


class Alphabet:
    """Turns transcripts into labels and back; a character without a label is an error.

    Args:
        labels: one character per label, the blank first.

    Raises:
        ConfigError: fewer than two labels, or one that stands twice.
    """

    def __init__(self, labels: str = ENGLISH) -> None:
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if len(labels) < 2 or twice:
            found = f"; {', '.join(map(repr, twice))} occurs more than once" if twice else ""
            raise ConfigError(
                f"labels {labels!r}: expected the blank followed by each character once{found}"
            )
        self.labels = labels
        self._index = {character: i for i, character in enumerate(labels) if i != BLANK}
        self._upper = labels == labels.upper()
        self._lower = labels == labels.lower()
        self._composed = not any(map(unicodedata.combining, labels))

    def __len__(self) -> int:
        return len(self.labels)

    def normalize(self, text: str) -> str:
        """Fold case where the labels have one case only, and white space to single spaces.

        An accent joins its letter, unless accents have labels of their own, or there is one for
        every character as it stands.
        """
        text = " ".join(text.split())
        if self._upper and not self._lower:
            text = text.upper()
        elif self._lower and not self._upper:
            text = text.lower()
        if self._composed and not self._index.keys() >= set(text):
            text = unicodedata.normalize("NFC", text)
        return text

    def unknown(self, text: str) -> list[str]:
        """Find the characters of a transcript, after `normalize`, that have no label; sorted."""
        return sorted(set(self.normalize(text)) - self._index.keys())

    def encode(self, text: str, source: str = "transcript") -> list[int]:
        """Labels of a transcript.

        Args:
            text: the transcript; `normalize` is applied first.
            source: name of the file or the utterance in the error.

        Raises:
            AlphabetError: a character has no label. None is ever dropped.
        """
        if unknown := self.unknown(text):
            raise AlphabetError(
                f"{source}: no label for {', '.join(map(repr, unknown))} in {text!r}; correct the "
                "transcript, or train with labels that include these characters (current labels: "
                f"{self.labels[1:]!r})"
            )
        return [self._index[character] for character in self.normalize(text)]

    def decode(self, labels: Iterable[int]) -> str:
        """Text of a label sequence that holds no blanks."""
        return "".join(self.labels[label] for label in labels)
