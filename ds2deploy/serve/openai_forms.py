"""Transcripts in the response formats of OpenAI's transcription API."""

from __future__ import annotations

import math
import zlib
from typing import Any

from ds2deploy.runtimes.decoding.subtitles import cues, to_srt, to_vtt
from ds2deploy.runtimes.decoding.transcript import Transcript, Word
from ds2deploy.serve.limits import RefusedError

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")

MEDIA_TYPES = {"text": "text/plain", "srt": "application/x-subrip", "vtt": "text/vtt"}


def plain_body(transcript: Transcript, form: str) -> str:
    """Format a transcript as text, SubRip or WebVTT."""
    if form == "srt":
        return to_srt(transcript)
    if form == "vtt":
        return to_vtt(transcript)
    return transcript.text + "\n"


def json_body(transcript: Transcript, logprobs: bool = False) -> dict[str, Any]:
    """Make the body of `response_format=json`."""
    body: dict[str, Any] = {
        "text": transcript.text,
        "usage": {"type": "duration", "seconds": math.ceil(transcript.duration)},
    }
    if logprobs:
        body["logprobs"] = token_logprobs(transcript)
    return body


def verbose_body(transcript: Transcript, granularities: tuple[str, ...]) -> dict[str, Any]:
    """Make the body of `response_format=verbose_json`.

    Args:
        transcript: transcript of the recording.
        granularities: `word`, `segment` or both; empty means segments.
    """
    body: dict[str, Any] = {
        "task": "transcribe",
        "language": "english",
        "duration": transcript.duration,
        "text": transcript.text,
        "usage": {"type": "duration", "seconds": math.ceil(transcript.duration)},
    }
    if "word" in granularities:
        body["words"] = [
            {
                "word": word.text,
                "start": word.start,
                "end": word.end,
                "confidence": round(word.confidence, 4),
            }
            for word in transcript.words
        ]
    if "segment" in granularities or not granularities:
        groups = list(cues(transcript.words))
        body["segments"] = [segment(i, group) for i, group in enumerate(groups)]
    return body


def segment(number: int, words: list[Any]) -> dict[str, Any]:
    """Make a segment from words that follow each other closely."""
    text = " ".join(word.text for word in words)
    raw = text.encode()
    logs = [math.log(max(word.confidence, 1e-10)) for word in words]
    return {
        "id": number,
        "seek": round(100 * words[0].start),
        "start": words[0].start,
        "end": words[-1].end,
        "text": text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": round(sum(logs) / len(logs), 4),
        "compression_ratio": round(len(raw) / len(zlib.compress(raw)), 4),
        "no_speech_prob": 0.0,
    }


def token_logprobs(transcript: Transcript) -> list[dict[str, Any]]:
    """List the words as tokens, each with the logarithm of its confidence."""
    words: tuple[Word, ...] = transcript.words
    return [
        {
            "token": word.text,
            "bytes": list(word.text.encode()),
            "logprob": round(math.log(max(word.confidence, 1e-10)), 4),
        }
        for word in words
    ]


def list_field(form: Any, name: str) -> tuple[str, ...]:
    """Read all values of a field, which may be sent with or without brackets.

    Raises:
        RefusedError: the field is a mapping or a file.
    """
    values = [*form.getlist(f"{name}[]"), *form.getlist(name)]
    mapped = any(key.startswith(f"{name}[") and key != f"{name}[]" for key in form)
    if mapped or not all(isinstance(value, str) for value in values):
        raise RefusedError(
            400, f"{name}: expected a list of texts, sent as {name}[]", "invalid_value", name
        )
    return tuple(filter(None, values))
