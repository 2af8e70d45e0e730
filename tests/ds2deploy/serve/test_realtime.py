"""OpenAI's realtime API: every event is read strictly with the types of the `openai` package."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from ds2deploy.runtimes.decoding.config import DecoderConfig
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.runtimes.streaming.endpoint import Endpoint
from ds2deploy.serve.limits import Limits

openai = pytest.importorskip("openai")
import openai.types.realtime as types  # noqa: E402

EVENTS = {
    "session.created": types.SessionCreatedEvent,
    "session.updated": types.SessionUpdatedEvent,
    "input_audio_buffer.speech_started": types.InputAudioBufferSpeechStartedEvent,
    "input_audio_buffer.speech_stopped": types.InputAudioBufferSpeechStoppedEvent,
    "input_audio_buffer.committed": types.InputAudioBufferCommittedEvent,
    "input_audio_buffer.cleared": types.InputAudioBufferClearedEvent,
    "conversation.item.input_audio_transcription.delta": (
        types.ConversationItemInputAudioTranscriptionDeltaEvent
    ),
    "conversation.item.input_audio_transcription.completed": (
        types.ConversationItemInputAudioTranscriptionCompletedEvent
    ),
    "error": types.RealtimeErrorEvent,
}
DELTA, COMPLETED = (
    f"conversation.item.input_audio_transcription.{x}" for x in ("delta", "completed")
)
COMMIT = {"type": "input_audio_buffer.commit"}
KEY = "secret-key"


@pytest.fixture(scope="module")
def base(serve_models: Callable[..., str], load_streaming: Callable[..., Recognizer]) -> str:
    beam = DecoderConfig(beam=8)
    models = {"digits": load_streaming, "beam": lambda: load_streaming(decoder=beam)}
    return serve_models(models, api_key=KEY)


@pytest.fixture
def client(base: str) -> Iterator[ClientConnection]:
    with opened(base) as connection:
        assert receive(connection).type == "session.created"
        yield connection


@contextlib.contextmanager
def opened(base: str, query: str = "?intent=transcription", **options: Any) -> Iterator[Any]:
    options.setdefault("additional_headers", {"Authorization": f"Bearer {KEY}"})
    with connect(f"{base.replace('http', 'ws')}/v1/realtime{query}", **options) as connection:
        yield connection


def receive(client: ClientConnection) -> Any:
    return read(client.recv(timeout=60))


def read(message: str) -> Any:
    body = json.loads(message)
    found = EVENTS[body["type"]].model_validate(body)
    assert found.event_id
    return found


def receive_until(client: ClientConnection, kind: str, count: int = 1) -> list[Any]:
    found: list[Any] = []
    while sum(one.type == kind for one in found) < count:
        found.append(receive(client))
    return found


def send(client: ClientConnection, **event: object) -> None:
    client.send(json.dumps(event))


def update(client: ClientConnection, **given: object) -> Any:
    send(
        client, type="session.update", session={"type": "transcription", "audio": {"input": given}}
    )
    return receive(client)


def append(client: ClientConnection, content: bytes, size: int = 9600) -> None:
    for start in range(0, len(content), size):
        audio = base64.b64encode(content[start : start + size]).decode()
        send(client, type="input_audio_buffer.append", audio=audio)


def at_24_khz(speech: np.ndarray) -> np.ndarray:
    return np.round(soxr.resample(speech.astype(np.float64), 16_000, 24_000)).astype("<i2")


def test_session_tells_its_settings(base) -> None:
    with opened(base, "?intent=transcription&model=beam") as client:
        session = receive(client).session
    assert session.type == "transcription"
    assert session.audio.input.format.rate == 24_000
    assert session.audio.input.transcription.model == "beam"
    assert session.audio.input.turn_detection.type == "server_vad"


def test_update_keeps_what_it_leaves_out(client) -> None:
    update(client, turn_detection=None)
    session = update(client, transcription={"model": "beam", "language": "en"}).session
    assert session.audio.input.transcription.model == "beam"
    assert session.audio.input.turn_detection is None
    detection = {"type": "server_vad", "silence_duration_ms": 700}
    session = update(client, turn_detection=detection).session
    assert session.audio.input.turn_detection.silence_duration_ms == 700
    assert session.audio.input.transcription.model == "beam"


def test_manual_commits_give_an_item_each(client, recognizer, speech) -> None:
    expected = recognizer.transcribe(at_24_khz(speech).astype(np.float32) / 32768, 24_000)
    update(client, turn_detection=None)
    items = []
    for _ in range(2):
        append(client, at_24_khz(speech).tobytes())
        send(client, **COMMIT)
        found = receive_until(client, COMPLETED)
        assert {one.type for one in found} == {DELTA, COMPLETED, "input_audio_buffer.committed"}
        assert len({one.item_id for one in found}) == 1
        done = found[-1]
        assert done.transcript == expected.text != ""
        assert "".join(one.delta for one in found if one.type == DELTA) == done.transcript
        assert done.usage.seconds == pytest.approx(expected.duration)
        items.append(next(one for one in found if one.type == "input_audio_buffer.committed"))
    assert items[0].item_id != items[1].item_id == found[-1].item_id
    assert (items[0].previous_item_id, items[1].previous_item_id) == (None, items[0].item_id)


def test_words_come_before_the_commit(client, speech) -> None:
    update(client, turn_detection=None)
    append(client, at_24_khz(speech).tobytes())
    delta = receive_until(client, DELTA)[-1]
    send(client, **COMMIT)
    assert receive_until(client, COMPLETED)[-1].transcript.startswith(delta.delta)


def test_server_vad_commits_where_a_segment_ends(client, recognizer, speech) -> None:
    silence_ms = 1200
    audio = at_24_khz(speech)
    stream = recognizer.stream(24_000, endpoint=Endpoint(silence_s=silence_ms / 1000))
    segments = stream.accept(audio.astype(np.float32) / 32768).segments
    rest = stream.finish()
    assert len(segments) > 1
    update(client, turn_detection={"type": "server_vad", "silence_duration_ms": silence_ms})
    append(client, audio.tobytes())
    found = receive_until(client, COMPLETED, len(segments))
    assert [one.transcript for one in found if one.type == COMPLETED] == [
        segment.text for segment in segments
    ]
    send(client, **COMMIT)
    found += receive_until(client, COMPLETED)
    assert found[-1].transcript == rest.text
    for transcript in [*segments, rest]:
        item = [one for one in found if one.item_id == found[0].item_id]
        assert found[: len(item)] == item
        del found[: len(item)]
        kinds = [one.type.rpartition(".")[2] for one in item]
        assert kinds[0] == "speech_started"
        assert kinds.index("speech_stopped") + 1 == kinds.index("committed")
        assert kinds[-1] == "completed"
        assert item[0].audio_start_ms == round(1000 * transcript.words[0].start)
        stopped = item[kinds.index("speech_stopped")]
        assert stopped.audio_end_ms == round(1000 * transcript.words[-1].end)
        assert "".join(one.delta for one in item if one.type == DELTA) == transcript.text
    assert not found


def test_clear_forgets_the_audio(client, recognizer, speech) -> None:
    update(client, turn_detection=None)
    # A rate that OpenAI's own types do not have.
    form = {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16_000}}}}
    send(client, type="session.update", session={"type": "transcription", **form})
    session = json.loads(client.recv(timeout=60))["session"]
    assert session["audio"]["input"]["format"]["rate"] == 16_000
    append(client, speech[: len(speech) // 2].tobytes())
    send(client, type="input_audio_buffer.clear")
    receive_until(client, "input_audio_buffer.cleared")
    append(client, speech.tobytes())
    send(client, **COMMIT)
    expected = recognizer.transcribe(speech.astype(np.float32) / 32768, 16_000)
    assert receive_until(client, COMPLETED)[-1].transcript == expected.text


@pytest.mark.parametrize(("kind", "subtype"), [("audio/pcmu", "ULAW"), ("audio/pcma", "ALAW")])
def test_telephone_audio_is_that_of_libsndfile(client, recognizer, speech, kind, subtype) -> None:
    file = io.BytesIO()
    soundfile.write(file, speech[::2], 8000, format="RAW", subtype=subtype)
    raw = file.getvalue()
    options = {"samplerate": 8000, "channels": 1, "format": "RAW", "subtype": subtype}
    samples, _ = soundfile.read(io.BytesIO(raw), dtype="float32", **options)
    assert update(client, turn_detection=None, format={"type": kind}).type == "session.updated"
    append(client, raw)
    send(client, **COMMIT)
    expected = recognizer.transcribe(samples, 8000)
    assert receive_until(client, COMPLETED)[-1].transcript == expected.text != ""


@pytest.mark.parametrize("subtype", ["ULAW", "ALAW"])
def test_every_byte_of_g711_is_decoded(subtype) -> None:
    from ds2deploy.serve.realtime_events import Format, samples_of

    content = bytes(range(256))
    options = {"samplerate": 8000, "channels": 1, "format": "RAW", "subtype": subtype}
    expected, _ = soundfile.read(io.BytesIO(content), dtype="float32", **options)
    form = Format("audio/pcmu" if subtype == "ULAW" else "audio/pcma")
    found = samples_of(base64.b64encode(content).decode(), form)
    np.testing.assert_allclose(found, expected, atol=1 / 65536)


BAD = [
    ("not json", None),
    ("[1]", None),
    ("[" * 100_000, None),
    ('{"event_id": "mine"}', None),
    ('{"type": "nothing", "event_id": "mine"}', "mine"),
    ('{"type": "response.create", "event_id": "mine"}', "mine"),
    ('{"type": "input_audio_buffer.commit", "event_id": "mine"}', "mine"),
    ('{"type": "input_audio_buffer.append", "event_id": "mine"}', "mine"),
    ('{"type": "input_audio_buffer.append", "event_id": "mine", "audio": "*"}', "mine"),
    ('{"type": "input_audio_buffer.append", "event_id": "mine", "audio": "é"}', "mine"),
    ('{"type": "input_audio_buffer.append", "event_id": "mine", "audio": "YQ=="}', "mine"),
    ('{"type": "session.update", "event_id": "mine"}', "mine"),
    ('{"type": "session.update", "event_id": "mine", "session": {"type": "realtime"}}', "mine"),
]
BAD_INPUTS = [
    {"format": {"type": "audio/pcm", "rate": 1}},
    {"format": {"type": "audio/mp3"}},
    {"transcription": {"model": "whisper-1"}},
    {"transcription": {"keywords": ["one"]}},
    {"transcription": {"model": "beam", "keywords": ["4711"]}},
    {"transcription": {"model": "beam", "keywords": ["one"] * 2000}},
    {"turn_detection": {"type": "semantic_vad"}},
    {"turn_detection": {"type": "server_vad", "silence_duration_ms": 0}},
]


@pytest.mark.parametrize(("message", "event_id"), BAD)
def test_unusable_events_leave_the_session_open(client, message, event_id) -> None:
    client.send(message)
    error = receive(client).error
    assert error.type == "invalid_request_error"
    assert error.event_id == event_id
    assert update(client, turn_detection=None).type == "session.updated"


@pytest.mark.parametrize("given", BAD_INPUTS)
def test_unusable_settings_change_nothing(client, given) -> None:
    before = update(client).session
    assert update(client, **given).type == "error"
    assert update(client).session == before


def test_nan_is_refused_as_a_sample_rate(client) -> None:
    client.send(
        '{"type": "session.update", "session": {"type": "transcription", "audio": {"input": '
        '{"format": {"type": "audio/pcm", "rate": NaN}}}}}'
    )
    assert receive(client).type == "error"


def test_settings_of_audio_in_the_buffer_stay(client) -> None:
    update(client, turn_detection=None)
    append(client, bytes(4800))
    error = update(client, format={"type": "audio/pcmu"}).error
    assert error.code == "audio_in_buffer"
    send(client, type="input_audio_buffer.clear")
    assert receive(client).type == "input_audio_buffer.cleared"
    assert update(client, format={"type": "audio/pcmu"}).type == "session.updated"


def test_keywords_change_while_audio_comes(client, speech) -> None:
    update(client, turn_detection=None, transcription={"model": "beam", "keywords": ["six"]})
    append(client, at_24_khz(speech[:16_000]).tobytes())
    given = {"audio": {"input": {"transcription": {"keywords": []}}}}
    send(client, type="session.update", session={"type": "transcription", **given})
    session = receive_until(client, "session.updated")[-1].session
    assert not session.audio.input.transcription.keywords
    send(client, **COMMIT)
    receive_until(client, COMPLETED)


def test_logprobs_are_listed_where_asked_for(client, speech) -> None:
    include = ["item.input_audio_transcription.logprobs"]
    send(client, type="session.update", session={"type": "transcription", "include": include})
    assert receive(client).session.include == include
    append(client, at_24_khz(speech).tobytes())
    send(client, **COMMIT)
    done = receive_until(client, COMPLETED)[-1]
    assert [one.token for one in done.logprobs] == done.transcript.split()


@pytest.mark.parametrize(
    ("query", "code"),
    [("?intent=conversation", "invalid_value"), ("?model=other", "model_not_found")],
)
def test_unusable_addresses_end_the_session(base, query, code) -> None:
    with opened(base, query) as client:
        assert receive(client).error.code == code
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=60)
    assert closed.value.rcvd.code == 1008


def test_a_browser_sends_its_key_as_a_subprotocol(base) -> None:
    protocols = ["realtime", f"openai-insecure-api-key.{KEY}"]
    with opened(base, subprotocols=protocols, additional_headers={}) as client:
        assert client.subprotocol == "realtime"
        assert receive(client).type == "session.created"


def test_a_wrong_key_is_refused(base) -> None:
    from websockets.exceptions import InvalidStatus

    with (
        pytest.raises(InvalidStatus) as refused,
        opened(base, additional_headers={"Authorization": "Bearer other"}),
    ):
        pass
    assert refused.value.response.status_code == 401


def test_a_full_server_says_when_to_try_again(
    serve_models: Callable[..., str], load_streaming: Callable[..., Recognizer]
) -> None:
    base = serve_models({"digits": load_streaming}, limits=Limits(streams=1))
    with opened(base) as one, opened(base) as other:
        receive(one), receive(other)
        update(one, turn_detection=None)
        append(one, bytes(4800))
        send(one, **COMMIT)
        receive_until(one, COMPLETED)
        append(one, bytes(4800))
        update(one)
        append(other, bytes(4800))
        body = json.loads(other.recv(timeout=60))
        assert EVENTS["error"].model_validate(body).error.code == "overloaded"
        assert body["error"]["retry_after_ms"] > 0
        with pytest.raises(ConnectionClosed) as closed:
            other.recv(timeout=60)
        assert closed.value.rcvd.code == 1013


def test_the_client_of_openai_transcribes(base, recognizer, speech) -> None:
    audio = at_24_khz(speech)
    client = openai.OpenAI(base_url=f"{base}/v1", api_key=KEY)
    with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        assert connection.recv().type == "session.created"
        connection.session.update(
            session={
                "type": "transcription",
                "audio": {
                    "input": {
                        "format": {"type": "audio/pcm", "rate": 24_000},
                        "transcription": {"model": "digits"},
                        "turn_detection": None,
                    }
                },
            }
        )
        assert connection.recv().type == "session.updated"
        connection.input_audio_buffer.append(audio=base64.b64encode(audio.tobytes()).decode())
        connection.input_audio_buffer.commit()
        while (event := connection.recv()).type != COMPLETED:
            assert event.type in (DELTA, "input_audio_buffer.committed")
    expected = recognizer.transcribe(audio.astype(np.float32) / 32768, 24_000)
    assert event.transcript == expected.text


@pytest.mark.parametrize("detection", [None, {"type": "server_vad"}])
def test_a_server_that_ends_sends_the_rest(
    serving, load_streaming, recognizer, speech, detection
) -> None:
    audio = at_24_khz(speech)
    with contextlib.ExitStack() as stack:
        with serving({"digits": load_streaming}) as base:
            client = stack.enter_context(opened(base))
            receive(client)
            update(client, turn_detection=detection)
            append(client, audio.tobytes())
            send(client, type="session.update", session={"type": "transcription"})
            events = receive_until(client, "session.updated")  # the audio has come
        texts = [event.transcript for event in events if event.type == COMPLETED]
        for message in client:
            event = read(message)
            texts += [event.transcript] if event.type == COMPLETED else []
    assert client.close_code == 1001
    expected = recognizer.transcribe(audio.astype(np.float32) / 32768, 24_000)
    assert " ".join(texts) == expected.text
