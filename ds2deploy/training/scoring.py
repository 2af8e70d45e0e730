"""Word and character error rates."""

from __future__ import annotations

from collections.abc import Sequence

import jiwer
import msgspec
from msgspec.structs import astuple


class ErrorCounts(msgspec.Struct, frozen=True):
    """Counts of errors and reference lengths, which can be added over batches and processes.

    Attributes:
        word_errors: number of substitutions, deletions and insertions of words.
        words: number of words in the references.
        char_errors: number of substitutions, deletions and insertions of characters, including
            spaces.
        chars: number of characters in the references.
    """

    word_errors: int = 0
    words: int = 0
    char_errors: int = 0
    chars: int = 0

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    @property
    def wer(self) -> float:
        """Word error rate: 0 is perfect, 1 is every word wrong; insertions can push it above 1."""
        return self.word_errors / max(self.words, 1)

    @property
    def cer(self) -> float:
        """Character error rate."""
        return self.char_errors / max(self.chars, 1)


class Hypothesis(msgspec.Struct, frozen=True):
    """Utterance with its transcript and the recognised text.

    Attributes:
        audio: path of the recording.
        reference: transcript.
        hypothesis: recognised text.
        duration_s: duration, in seconds.
        tags: speaker and other tags of the manifest.
    """

    audio: str
    reference: str
    hypothesis: str
    duration_s: float = 0.0
    tags: dict[str, str] = {}


def worst_first(hypotheses: Sequence[Hypothesis]) -> list[tuple[Hypothesis, ErrorCounts]]:
    """Sort the utterances with errors by character error rate, highest first."""
    counted = zip(hypotheses, count_each(hypotheses), strict=True)
    wrong = [pair for pair in counted if pair[1].char_errors]
    return sorted(wrong, key=lambda pair: (-pair[1].cer, pair[0].audio))


def count_each(hypotheses: Sequence[Hypothesis]) -> list[ErrorCounts]:
    """Count the errors of each utterance; the sum is the count for all."""
    return [count_errors([item.reference], [item.hypothesis]) for item in hypotheses]


def count_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Align hypotheses with their references, and count the errors.

    Args:
        references: transcripts; with an empty one, its whole hypothesis counts as insertions.
        hypotheses: recognised texts, one for each reference.
    """
    pairs = list(zip(references, hypotheses, strict=True))
    spoken = [pair for pair in pairs if pair[0]]
    invented = [hypothesis for reference, hypothesis in pairs if not reference]
    counts = ErrorCounts(
        word_errors=sum(len(text.split()) for text in invented),
        char_errors=sum(map(len, invented)),
    )
    return counts + _align(spoken) if spoken else counts


def _align(pairs: list[tuple[str, str]]) -> ErrorCounts:
    references, hypotheses = map(list, zip(*pairs, strict=True))
    counts: list[int] = []
    for found in (
        jiwer.process_words(references, hypotheses),
        jiwer.process_characters(references, hypotheses),
    ):
        wrong = found.substitutions + found.deletions
        counts += wrong + found.insertions, wrong + found.hits
    return ErrorCounts(*counts)
