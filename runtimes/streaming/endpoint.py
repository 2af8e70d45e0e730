"""Endpoints: rules that cut a stream into segments where nobody speaks."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ds2deploy.runtimes.alphabet import BLANK
from ds2deploy.runtimes.decoding.transcript import Span, Transcript, Word
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.features import FloatArray

PAUSE_S = 0.2
"""Silence (seconds) that counts as a word boundary once a segment has reached `longest_s`."""

PATIENCE_S = 5.0
"""Time (seconds) after `longest_s` from which any frame without a letter ends the segment."""


LONGEST_S = 3600
"""Limit of all rules (seconds); each must be below it."""


class Endpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Rules for the end of a segment of a stream, as in Kaldi.

    Attributes:
        silence_s: silence after speech that ends a segment, in seconds.
        leading_silence_s: silence that ends a segment without speech, in seconds.
        longest_s: length from which a segment ends at the next word boundary, in seconds.
    """

    silence_s: float = 1.2
    leading_silence_s: float = 2.4
    longest_s: float = 20.0

    def __post_init__(self) -> None:
        for name in ("silence_s", "leading_silence_s", "longest_s"):
            if not 0 < getattr(self, name) < LONGEST_S:
                raise ConfigError(
                    f"endpoint: {name} = {getattr(self, name):g}; expected more than 0 and less "
                    f"than {LONGEST_S} seconds"
                )


class EndpointRule:
    """Finds the ends of one stream's segments, whatever the length of the blocks.

    Args:
        endpoint: the rules.
        frame_s: seconds from one output frame to the next.
        space: label between words; -1 if there is none.

    Attributes:
        begins: True if the frames of the last call ended a segment.
    """

    def __init__(self, endpoint: Endpoint, frame_s: float, space: int) -> None:
        self._silence = endpoint.silence_s / frame_s
        self._leading = endpoint.leading_silence_s / frame_s
        self._longest = endpoint.longest_s / frame_s
        self._pause, self._patience = PAUSE_S / frame_s, PATIENCE_S / frame_s
        self._space = space
        self._frames, self._silent, self._spoken = 0, 0, False
        self.begins = False

    def cut(self, log_probs: FloatArray) -> int | None:
        """Find the first end of a segment in the next frames.

        Args:
            log_probs: (frames, labels) log-probabilities that follow those of the last call.

        Returns:
            The number of these frames that belong to the segment; None if it has not ended. After
            an end, the next frames belong to a new segment.
        """
        self.begins = False
        best = log_probs.argmax(axis=1)
        quiet = (best == BLANK) | (best == self._space)
        for i, (label, is_quiet) in enumerate(zip(best.tolist(), quiet.tolist(), strict=True), 1):
            self._frames += 1
            self._silent = self._silent + 1 if is_quiet else 0
            self._spoken |= not is_quiet
            if is_quiet and self._ends(label):
                self._frames, self._silent, self._spoken = 0, 0, False
                self.begins = True
                return i
        return None

    def _ends(self, label: int) -> bool:
        if self._silent >= (self._silence if self._spoken else self._leading):
            return True
        over = self._frames - self._longest
        between_words = label == self._space or self._silent >= self._pause
        return over >= self._patience or (over >= 0 and between_words)


def shifted(transcript: Transcript, start_s: float) -> Transcript:
    """Change the times of a segment to seconds from the start of its stream.

    Args:
        transcript: transcript with times from the start of the segment.
        start_s: start of the segment in the stream, in seconds.
    """
    words = tuple(shifted_word(word, start_s) for word in transcript.words)
    chars = tuple(
        Span(char.text, round(char.start + start_s, 3), round(char.end + start_s, 3))
        for char in transcript.chars
    )
    return msgspec.structs.replace(transcript, words=words, chars=chars, start=round(start_s, 3))


def joined(segments: Sequence[Transcript]) -> Transcript:
    """Join consecutive segments to one transcript, with the silence between them."""
    first, last = segments[0], segments[-1]
    return Transcript(
        text=" ".join(segment.text for segment in segments if segment.text),
        words=tuple(word for segment in segments for word in segment.words),
        chars=tuple(char for segment in segments for char in segment.chars),
        score=sum(segment.score for segment in segments) / len(segments),
        duration=round(last.end - first.start, 3),
        confidence=min(segment.confidence for segment in segments),
        alternatives=last.alternatives if len(segments) == 1 else (),
        hot_words=tuple(dict.fromkeys(word for one in segments for word in one.hot_words)),
        start=first.start,
    )


def shifted_word(word: Word, start_s: float) -> Word:
    """Change the times of a word to seconds from the start of the stream."""
    return Word(
        word.text, round(word.start + start_s, 3), round(word.end + start_s, 3), word.confidence
    )
