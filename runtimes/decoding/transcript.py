"""Results of decoding: transcripts, and the partial results of streams."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ds2deploy.runtimes.alphabet import Alphabet


class Span(msgspec.Struct, frozen=True):
    """A character or a word and when it was spoken.

    Attributes:
        text: the character or word.
        start: start in seconds from the beginning of the audio.
        end: end in seconds from the beginning of the audio.
    """

    text: str
    start: float
    end: float


class Word(Span, frozen=True):
    """A word, when it was spoken, and how sure the decoder is.

    Attributes:
        confidence: confidence from 0 to 1. With greedy decoding, it is the lowest probability of a
            letter; with a beam search, the share of the hypotheses that have the word at this
            place.
    """

    confidence: float = 1.0


class Alternative(msgspec.Struct, frozen=True):
    """One of the best texts of a beam search.

    Attributes:
        text: the words.
        score: sum of the scores of network, language model and hot words (natural logarithms).
        confidence: share of the hypotheses that have this text.
    """

    text: str
    score: float
    confidence: float


class Transcript(msgspec.Struct, frozen=True):
    """Transcript of one utterance.

    Attributes:
        text: the words.
        words: each word with its time.
        chars: each character, spaces included, with its time.
        score: mean log-probability of the best label of each frame, 0 is certain; with a beam
            search, its score divided by the number of frames.
        duration: duration of the audio, in seconds.
        confidence: lowest confidence of a word, 0 to 1; 1 without words. See `Word`.
        alternatives: the best texts, this one first, if more than one was requested (`nbest`).
        hot_words: hot words that occur in the text.
        start: start of the audio in the recording, in seconds; above 0 only for segments of a
            stream.
    """

    text: str
    words: tuple[Word, ...]
    chars: tuple[Span, ...]
    score: float
    duration: float
    confidence: float = 1.0
    alternatives: tuple[Alternative, ...] = ()
    hot_words: tuple[str, ...] = ()
    start: float = 0.0

    @property
    def end(self) -> float:
        """End of the audio in the recording, in seconds."""
        return round(self.start + self.duration, 3)


class Update(msgspec.Struct, frozen=True):
    """Partial result of a stream.

    Attributes:
        stable: all final words so far, as text.
        tail: text after the final words; it may still change.
        words: final words since the last update, with their times.
        tail_words: words of the tail, with their times. The confidence of a beam search counts only
            the letters that are final.
        segments: transcripts of the segments that ended since the last update, if the stream has
            endpoints. The other attributes then describe the current segment.
    """

    stable: str
    tail: str
    words: tuple[Word, ...]
    tail_words: tuple[Word, ...]
    segments: tuple[Transcript, ...] = ()

    @property
    def text(self) -> str:
        """Final words and tail as one text."""
        return " ".join(part for part in (self.stable, self.tail) if part)


Labels = Sequence[tuple[int, int, int]]
"""(label, first frame, last frame) of each character, without blanks and repeats."""


def make_transcript(
    labels: Labels,
    alphabet: Alphabet,
    frame_s: float,
    duration_s: float,
    score: float,
    confidence: Sequence[float] | None = None,
) -> Transcript:
    """Make a transcript of labels and their frames.

    Args:
        labels: characters of the utterance.
        alphabet: labels of the model.
        frame_s: seconds from one output frame to the next.
        duration_s: duration of the utterance; no time goes past it.
        score: score of the transcript.
        confidence: confidence of each label. That of a word is the lowest of its letters, and that
            of the transcript is the lowest of its words.

    Returns:
        The transcript. Leading, trailing and repeated spaces are not part of its text.
    """
    words = words_of(labels, alphabet, frame_s, duration_s, confidence)
    return Transcript(
        text=" ".join(word.text for word in words),
        words=words,
        chars=tuple(_chars(labels, alphabet, frame_s, duration_s)),
        score=score,
        duration=round(duration_s, 3),
        confidence=min((word.confidence for word in words), default=1.0),
    )


def words_of(
    labels: Labels,
    alphabet: Alphabet,
    frame_s: float,
    duration_s: float,
    confidence: Sequence[float] | None = None,
) -> tuple[Word, ...]:
    """Join labels to words; the arguments are those of `make_transcript`."""
    words: list[Word] = []
    start = 0
    texts = [alphabet.labels[label] for label, _, _ in labels]
    for i in range(len(texts) + 1):
        if i == len(texts) or texts[i] == " ":
            if i > start:
                sure = 1.0 if confidence is None else round(min(confidence[start:i]), 4)
                begin = _time(labels[start][1], frame_s, duration_s)
                end = _time(labels[i - 1][2] + 1, frame_s, duration_s)
                words.append(Word("".join(texts[start:i]), begin, end, sure))
            start = i + 1
    return tuple(words)


def _time(frame: int, frame_s: float, duration_s: float) -> float:
    return round(min(frame * frame_s, duration_s), 3)


def _chars(labels: Labels, alphabet: Alphabet, frame_s: float, duration_s: float) -> list[Span]:
    return [
        Span(
            alphabet.labels[label],
            _time(first, frame_s, duration_s),
            _time(last + 1, frame_s, duration_s),
        )
        for label, first, last in labels
    ]
