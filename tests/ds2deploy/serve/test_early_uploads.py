"""Uploads that are recognised while they arrive."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pytest
import soundfile

from ds2deploy.runtimes.audio import arriving
from ds2deploy.runtimes.decoding.config import DecoderConfig
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.serve.limits import Limits
from tests.ds2deploy.serve.serving import RATE, Served, pcm, served, wait_for, wav

BOUNDARY = "a-boundary"
TYPE = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
PATH = "/v1/audio/transcriptions"
SPEECH = wav(pcm(12.0))


@pytest.fixture(scope="module")
def server(load_streaming: Callable[..., Recognizer]) -> Iterator[Served]:
    with served(
        lambda: load_streaming(decoder=DecoderConfig(beam=8)), Limits(streams=4, uploads=4)
    ) as found:
        yield found


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    shown = f'; filename="{filename}"' if filename else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{shown}\r\n\r\n'
    return head.encode() + content + b"\r\n"


class SlowUpload:
    """Upload that stops after its beginning until it is released; its response is in `response`."""

    def __init__(self, server: Served, content: bytes, share: float, after: bytes = b"") -> None:
        self._body = part("file", content, "a.wav")
        self._cut = int(share * len(content))
        self._after = after + f"--{BOUNDARY}--\r\n".encode()
        self._released = threading.Event()
        self.left = False
        self.response: httpx.Response | None = None
        self._server = server
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def release(self) -> httpx.Response:
        self._end()
        assert self.response is not None
        return self.response

    def leave(self) -> None:
        self.left = True
        self._end()

    def _end(self) -> None:
        self._released.set()
        self._thread.join(120)
        assert not self._thread.is_alive()

    def _pieces(self) -> Iterator[bytes]:
        yield self._body[: self._cut]
        assert self._released.wait(120)
        if self.left:
            raise ConnectionError
        yield self._body[self._cut :]
        yield self._after

    def _send(self) -> None:
        try:
            with httpx.Client(base_url=self._server.url, timeout=120) as client:
                self.response = client.post(PATH, headers=TYPE, content=self._pieces())
        except ConnectionError:
            pass


def recognised_s(server: Served) -> float:
    """Seconds of audio that the model has processed."""
    return server.metric("ds2deploy_audio_seconds_total")


def test_audio_is_recognised_before_the_upload_is_complete(server: Served) -> None:
    expected = server.transcribe(SPEECH).json()["text"]
    before = recognised_s(server)
    upload = SlowUpload(server, SPEECH, 0.75)
    wait_for(lambda: recognised_s(server) > before + 6)
    response = upload.release()
    assert response.json()["text"] == expected
    assert expected


def test_fields_after_the_recording_count(server: Served) -> None:
    before = recognised_s(server)
    upload = SlowUpload(server, SPEECH, 0.75, part("keywords[]", b"seven one seven"))
    wait_for(lambda: recognised_s(server) > before + 6)
    response = upload.release()
    assert recognised_s(server) > before + 15  # 12 s again, with the hot words
    expected = server.http.post(
        PATH, files={"file": ("a.wav", SPEECH)}, data={"keywords[]": "seven one seven"}
    )
    assert response.json() == expected.json()
    upload = SlowUpload(server, SPEECH, 0.75, part("model", b"another"))
    response = upload.release()
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


def test_events_of_an_early_recognition_are_all_sent(server: Served) -> None:
    before = recognised_s(server)
    upload = SlowUpload(server, SPEECH, 0.75, part("stream", b"true"))
    wait_for(lambda: recognised_s(server) > before + 6)
    response = upload.release()
    expected = server.http.post(PATH, files={"file": ("a.wav", SPEECH)}, data={"stream": "true"})
    assert _text(response) == _text(expected)


def _text(response: httpx.Response) -> tuple[str, str]:
    """Texts of the events: of all deltas joined, and of the last one."""
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line]
    deltas = "".join(event["delta"] for event in events if event["type"].endswith("delta"))
    return deltas, events[-1]["text"]


def test_slow_uploads_leave_places_for_others(server: Served) -> None:
    slow = [SlowUpload(server, SPEECH, 0.75) for _ in range(4)]
    try:
        assert server.transcribe(SPEECH).status_code == 200
    finally:
        responses = [one.release() for one in slow]
    assert [one.status_code for one in responses] == [200] * 4


def test_a_client_that_leaves_frees_its_place(server: Served) -> None:
    for _ in range(6):  # more than there are places
        before = recognised_s(server)
        upload = SlowUpload(server, SPEECH, 0.75)
        wait_for(lambda before=before: recognised_s(server) > before + 6)
        upload.leave()
    assert server.transcribe(SPEECH).status_code == 200


def test_a_recording_that_turns_out_different_is_recognised_again(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = server.transcribe(SPEECH).json()["text"]
    monkeypatch.setattr(arriving._Digest, "value", property(lambda _: object()))
    before = recognised_s(server)
    upload = SlowUpload(server, SPEECH, 0.75)
    wait_for(lambda: recognised_s(server) > before + 6)
    response = upload.release()
    assert response.json()["text"] == expected
    assert recognised_s(server) > before + 15  # 12 s twice, but for the end


def test_audio_that_cannot_be_read_is_refused_at_the_end(server: Served) -> None:
    buffer = io.BytesIO()
    samples = np.frombuffer(pcm(12.0), "<i2") / np.float32(32768)
    samples = samples.astype(np.float32)
    samples[-3:] = np.nan
    soundfile.write(buffer, samples, RATE, format="WAV", subtype="FLOAT")
    upload = SlowUpload(server, buffer.getvalue(), 0.75)
    response = upload.release()
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("a.wav: ")
