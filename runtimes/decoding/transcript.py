"""What decoding gives: transcripts, and the partial results of streams."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ds2deploy.runtimes.alphabet import Alphabet


class Span(msgspec.Struct, frozen=True):
    """A character or a word and when it was spoken.

    Attributes:
        text: the character or word.
        start: in seconds from the beginning of the audio.
        end: in seconds.
    """

    text: str
    start: float
    end: float


class Transcript(msgspec.Struct, frozen=True):
    """What was recognised in one utterance.

    Attributes:
        text: the words.
        words: each word with its time.
        chars: each character, spaces included, with its time.
        score: mean log-probability of the best label of each frame; 0 is certain.
        duration: of the audio, in seconds.
    """

    text: str
    words: tuple[Span, ...]
    chars: tuple[Span, ...]
    score: float
    duration: float


class Update(msgspec.Struct, frozen=True):
    """Partial result of a stream.

    Attributes:
        stable: all words so far that nothing can change any more.
        tail: text after them that may still change.
        words: the stable words that are new since the last update, with their times.
        tail_words: the words of the tail, with their times.
    """

    stable: str
    tail: str
    words: tuple[Span, ...]
    tail_words: tuple[Span, ...]

    @property
    def text(self) -> str:
        """All that was heard so far."""
        return " ".join(part for part in (self.stable, self.tail) if part)


Labels = Sequence[tuple[int, int, int]]
"""(label, first frame, last frame) of each character, without blanks and repeats."""


def make_transcript(
    labels: Labels, alphabet: Alphabet, frame_s: float, duration_s: float, score: float
) -> Transcript:
    """Make a transcript of labels and their frames.

    Args:
        labels: characters of the utterance.
        alphabet: labels of the model.
        frame_s: seconds from one output frame to the next.
        duration_s: duration of the utterance; no time goes past it.
        score: score of the transcript.

    Returns:
        The transcript. Leading, trailing and repeated spaces are not part of its text.
    """
    chars = _chars(labels, alphabet, frame_s, duration_s)
    words = _words(chars)
    return Transcript(
        text=" ".join(word.text for word in words),
        words=tuple(words),
        chars=tuple(chars),
        score=score,
        duration=round(duration_s, 3),
    )


def words_of(
    labels: Labels, alphabet: Alphabet, frame_s: float, duration_s: float
) -> tuple[Span, ...]:
    """Join labels to words; the arguments are those of `make_transcript`."""
    return tuple(_words(_chars(labels, alphabet, frame_s, duration_s)))


def _chars(labels: Labels, alphabet: Alphabet, frame_s: float, duration_s: float) -> list[Span]:
    return [
        Span(
            alphabet.labels[label],
            round(min(first * frame_s, duration_s), 3),
            round(min((last + 1) * frame_s, duration_s), 3),
        )
        for label, first, last in labels
    ]


def _words(chars: list[Span]) -> list[Span]:
    words: list[Span] = []
    letters: list[Span] = []
    for char in [*chars, Span(" ", 0.0, 0.0)]:
        if char.text != " ":
            letters.append(char)
        elif letters:
            text = "".join(letter.text for letter in letters)
            words.append(Span(text, letters[0].start, letters[-1].end))
            letters = []
    return words
