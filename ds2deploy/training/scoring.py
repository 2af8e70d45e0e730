"""Word and character error rates."""

from __future__ import annotations

from collections.abc import Sequence

import jiwer
import msgspec


class ErrorCounts(msgspec.Struct, frozen=True):
    """Errors and reference lengths, which add up over batches and processes.

    Attributes:
        word_errors: substitutions, deletions and insertions of words.
        words: in the references.
        char_errors: the same of characters, spaces included.
        chars: in the references.
    """

    word_errors: int = 0
    words: int = 0
    char_errors: int = 0
    chars: int = 0

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            self.word_errors + other.word_errors,
            self.words + other.words,
            self.char_errors + other.char_errors,
            self.chars + other.chars,
        )

    @property
    def wer(self) -> float:
        """Word error rate: 0 is perfect, 1 is every word wrong; insertions can push it above 1."""
        return self.word_errors / max(self.words, 1)

    @property
    def cer(self) -> float:
        """Character error rate."""
        return self.char_errors / max(self.chars, 1)


class Hypothesis(msgspec.Struct, frozen=True):
    """What a model made of one utterance."""

    audio: str
    reference: str
    hypothesis: str


def worst_first(hypotheses: Sequence[Hypothesis]) -> list[tuple[Hypothesis, ErrorCounts]]:
    """Utterances with an error, the highest character error rate first."""
    counted = [(item, count_errors([item.reference], [item.hypothesis])) for item in hypotheses]
    wrong = [pair for pair in counted if pair[1].char_errors]
    return sorted(wrong, key=lambda pair: (-pair[1].cer, pair[0].audio))


def count_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Align hypotheses with their references.

    Args:
        references: what was said; where nothing was, all of the hypothesis is wrong.
        hypotheses: what was recognised, one for each reference.
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
    references, hypotheses = [r for r, _ in pairs], [h for _, h in pairs]
    words = jiwer.process_words(references, hypotheses)
    chars = jiwer.process_characters(references, hypotheses)
    return ErrorCounts(
        words.substitutions + words.deletions + words.insertions,
        words.hits + words.substitutions + words.deletions,
        chars.substitutions + chars.deletions + chars.insertions,
        chars.hits + chars.substitutions + chars.deletions,
    )
