"""Transcripts as subtitles: SubRip and WebVTT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from ds2deploy.runtimes.decoding.transcript import Span, Transcript

Format = Literal["text", "json", "srt", "vtt"]

LONGEST_CUE_S = 5.0
LONGEST_PAUSE_S = 0.8
MOST_CHARACTERS = 42
"""Maximum number of characters in a line of subtitles (the BBC's guidelines: 37 to 42)."""


def to_srt(transcript: Transcript) -> str:
    """Write SubRip: numbered cues, times with a comma."""
    return "\n".join(
        f"{number}\n{_times(cue, ',')}\n{_text(cue)}\n"
        for number, cue in enumerate(cues(transcript.words), start=1)
    )


def to_vtt(transcript: Transcript) -> str:
    """Write WebVTT: a header, then cues with a point in their times."""
    return "WEBVTT\n" + "".join(
        f"\n{_times(cue, '.')}\n{_text(cue)}\n" for cue in cues(transcript.words)
    )


def cues(words: Sequence[Span]) -> Iterator[list[Span]]:
    """Group words into cues, which end at pauses and have a maximum length and duration."""
    cue: list[Span] = []
    for word in words:
        if cue and (
            word.start - cue[-1].end > LONGEST_PAUSE_S
            or word.end - cue[0].start > LONGEST_CUE_S
            or len(_text([*cue, word])) > MOST_CHARACTERS
        ):
            yield cue
            cue = []
        cue.append(word)
    if cue:
        yield cue


def _text(cue: Sequence[Span]) -> str:
    return " ".join(word.text for word in cue)


def _times(cue: Sequence[Span], point: str) -> str:
    # A word in the last frame may end where it starts, which WebVTT does not allow.
    end = max(cue[-1].end, cue[0].start + 0.001)
    return f"{_time(cue[0].start, point)} --> {_time(end, point)}"


def _time(seconds: float, point: str) -> str:
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    whole, milliseconds = divmod(milliseconds, 1000)
    return f"{hours:02}:{minutes:02}:{whole:02}{point}{milliseconds:03}"
