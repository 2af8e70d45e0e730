"""Events and session settings of OpenAI's realtime API for transcription."""

from __future__ import annotations

import base64
import binascii
import re
import uuid
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from ds2deploy.runtimes.audio.checks import check_stream_rate
from ds2deploy.runtimes.decoding.decoder import with_hot_words
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.runtimes.streaming.endpoint import Endpoint
from ds2deploy.serve.hot_words import check_hot_words, naming
from ds2deploy.serve.limits import RefusedError
from ds2deploy.serve.live import whole_samples
from ds2deploy.serve.server import Server
from ds2deploy.serve.streaming_model import StreamingModel

LOGPROBS = "item.input_audio_transcription.logprobs"

TELEPHONE_RATE = 8_000
"""Sample rate of G.711, in Hz."""

Decoded = TypeVar("Decoded")


class Event(msgspec.Struct, frozen=True):
    """Fields that every client event has."""

    type: str
    event_id: str | None = None


class Append(msgspec.Struct, frozen=True):
    """Event `input_audio_buffer.append`, with audio in base64."""

    audio: str


class Format(msgspec.Struct, frozen=True):
    """Format of the audio; G.711 has a fixed sample rate."""

    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: float = 24_000

    @property
    def sample_rate(self) -> float:
        """Sample rate in Hz."""
        return self.rate if self.type == "audio/pcm" else TELEPHONE_RATE


class Transcription(msgspec.Struct, frozen=True):
    """Settings of the recognition; other settings of OpenAI are accepted and ignored."""

    model: str | None = None
    keywords: list[str] | None = None


class TurnDetection(msgspec.Struct, frozen=True):
    """Settings of automatic commits; `threshold` and `prefix_padding_ms` are ignored."""

    type: Literal["server_vad"]
    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500


class Input(msgspec.Struct, frozen=True):
    """Settings of the input audio."""

    format: Format | UnsetType | None = UNSET
    transcription: Transcription | UnsetType | None = UNSET
    turn_detection: TurnDetection | UnsetType | None = UNSET


class Audio(msgspec.Struct, frozen=True):
    """Settings of audio."""

    input: Input = Input()


class Session(msgspec.Struct, frozen=True):
    """Session in an event `session.update`."""

    type: Literal["transcription"]
    audio: Audio = Audio()
    include: list[str] | UnsetType | None = UNSET


class Update(msgspec.Struct, frozen=True):
    """Event `session.update`; settings that it omits stay unchanged."""

    session: Session


class Settings(msgspec.Struct, frozen=True):
    """Settings of a session.

    Attributes:
        model: name of the model.
        format: format of the audio.
        turn_detection: settings of automatic commits; None leaves commits to the client.
        keywords: hot words.
        logprobs: list the confidence of the words in completed items.
    """

    model: str
    format: Format = Format()
    turn_detection: TurnDetection | None = TurnDetection("server_vad")
    keywords: tuple[str, ...] = ()
    logprobs: bool = False

    def updated(self, session: Session) -> Settings:
        """Replace the settings that an update contains, and keep the others.

        Raises:
            RefusedError: it includes data that no item has.
        """
        given = session.audio.input
        changes: dict[str, Any] = {}
        if given.format is not UNSET:
            changes["format"] = given.format or Format()
        if given.turn_detection is not UNSET:
            changes["turn_detection"] = given.turn_detection
        transcription = given.transcription
        if isinstance(transcription, Transcription):
            if transcription.model:
                changes["model"] = transcription.model
            if transcription.keywords is not None:
                changes["keywords"] = tuple(transcription.keywords)
        if session.include is not UNSET:
            include = session.include or ()
            if unknown := [name for name in include if name != LOGPROBS]:
                raise RefusedError(
                    400, f"session.include: {unknown[0][:60]!r}; expected {LOGPROBS}",
                    "invalid_value", "session.include",
                )  # fmt: skip
            changes["logprobs"] = LOGPROBS in include
        return msgspec.structs.replace(self, **changes)

    def check(self, server: Server) -> StreamingModel:
        """Find the model, and check the settings against it.

        Raises:
            RefusedError: there is no such model, or it cannot look for the keywords.
            AudioError: the sample rate cannot be used.
            ConfigError: the silence of turn detection is out of range.
        """
        model = server.streaming_model(self.model)
        check_stream_rate(self.format.sample_rate, "session.audio.input.format.rate")
        check_hot_words(self.keywords, "keywords", model)
        with naming("keywords", self.keywords):
            with_hot_words(model.recognizer.decoder, self.keywords or None)
        self.endpoint(server.endpoint)
        return model

    def endpoint(self, rules: Endpoint) -> Endpoint | None:
        """Make the rules that end an item.

        Args:
            rules: rules of the server; only the silence after speech is replaced.
        """
        if self.turn_detection is None:
            return None
        silence_s = self.turn_detection.silence_duration_ms / 1000
        return msgspec.structs.replace(
            rules,
            silence_s=silence_s,
            leading_silence_s=max(silence_s, rules.leading_silence_s),
        )

    def session(self, session_id: str) -> dict[str, Any]:
        """Describe the session, as `session.created` and `session.updated` do."""
        form: dict[str, Any] = {"type": self.format.type}
        if self.format.type == "audio/pcm":
            rate = self.format.rate
            form["rate"] = int(rate) if rate == int(rate) else rate
        transcription: dict[str, Any] = {"model": self.model}
        if self.keywords:
            transcription["keywords"] = self.keywords
        return {
            "type": "transcription",
            "object": "realtime.transcription_session",
            "id": session_id,
            "audio": {
                "input": {
                    "format": form,
                    "transcription": transcription,
                    "noise_reduction": None,
                    "turn_detection": msgspec.to_builtins(self.turn_detection),
                }
            },
            "include": [LOGPROBS] if self.logprobs else None,
        }


def decode(message: str | bytes, kind: type[Decoded]) -> Decoded:
    """Decode an event of a client.

    Args:
        message: event as JSON.
        kind: expected type.

    Raises:
        RefusedError: the message is not JSON or does not have the expected type.
    """
    try:
        return msgspec.json.decode(message, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        place = re.search(r"`\$\.?([\w.\[\]]*)`", reason)
        raise RefusedError(
            400, f"event: {reason}; see OpenAI's realtime API for its form", "invalid_value",
            (place.group(1) or None) if place else None,
        ) from None  # fmt: skip


def samples_of(audio: str, form: Format) -> FloatArray:
    """Decode the audio of an event.

    Args:
        audio: audio in base64.
        form: audio format of the session.

    Returns:
        (samples,) float32 in [-1, 1].

    Raises:
        RefusedError: the audio is not base64, or ends within a sample.
    """
    try:
        content = base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(
            400, "audio: not base64; encode the samples", "invalid_value", "audio"
        ) from None
    if form.type == "audio/pcm":
        return whole_samples(content)
    table = _MU_LAW if form.type == "audio/pcmu" else _A_LAW
    return table[np.frombuffer(content, np.uint8)]


def event(kind: str, **fields: Any) -> str:
    """Make a server event as JSON."""
    body = {"type": kind, "event_id": f"event_{uuid.uuid4().hex}", **fields}
    return msgspec.json.encode(body).decode()


def error_event(error: RefusedError, event_id: str | None = None) -> str:
    """Make an error event.

    Args:
        error: the error.
        event_id: the client's id of the event that caused it.
    """
    body = {
        "type": error.type,
        "code": error.code,
        "message": error.message,
        "param": error.param,
        "event_id": event_id,
        **error.retry,
    }
    return event("error", error=body)


def _mu_law() -> FloatArray:
    """Make the table of samples for the 256 codes of mu-law (ITU-T G.711)."""
    code = ~np.arange(256, dtype=np.uint8).astype(np.int32) & 0xFF
    size = (((code & 15) << 3) + 132 << (code >> 4 & 7)) - 132
    return (np.where(code & 128, -size, size) / 32768).astype(np.float32)


def _a_law() -> FloatArray:
    """Make the table of samples for the 256 codes of A-law (ITU-T G.711)."""
    code = np.arange(256, dtype=np.int32) ^ 0x55
    chord, step = code >> 4 & 7, ((code & 15) << 4) + 8
    size = np.where(chord == 0, step, step + 256 << np.maximum(chord - 1, 0))
    return (np.where(code & 128, size, -size) / 32768).astype(np.float32)


_MU_LAW, _A_LAW = _mu_law(), _a_law()
