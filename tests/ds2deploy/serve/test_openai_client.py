"""The transcription API, called by the `openai` package."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from ds2deploy.runtimes.decoding.config import DecoderConfig
from ds2deploy.runtimes.decoding.subtitles import to_srt, to_vtt
from ds2deploy.runtimes.decoding.transcript import Transcript
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.serve.limits import Limits

openai = pytest.importorskip("openai")
from openai.types import audio as types  # noqa: E402

KEY = "secret-key"

PATIENCE_S = 600


@pytest.fixture(scope="module")
def base(serve_models: Callable[..., str], load_streaming: Callable[..., Recognizer]) -> str:
    beam = DecoderConfig(beam=8)
    models = {"digits": load_streaming, "beam": lambda: load_streaming(decoder=beam)}
    limits = Limits(streams=8, upload_mb=2, audio_s=30)
    return serve_models(models, limits=limits, api_key=KEY)


@pytest.fixture(scope="module")
def client(base: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{base}/v1", api_key=KEY) as found:
        yield found


@pytest.fixture(scope="module")
def expected(recognizer: Recognizer, speech_wav: bytes) -> Transcript:
    found = recognizer.transcribe(speech_wav)
    assert len(found.words) > 3
    return found


@pytest.fixture
def transcribe(client: Any, speech_wav: bytes) -> Callable[..., Any]:
    def call(**options: Any) -> Any:
        given = {"model": "digits", "file": ("speech.wav", speech_wav), **options}
        return client.audio.transcriptions.create(**given)

    return call


def metrics(base: str) -> str:
    return httpx.get(f"{base}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text


def strict(found: Any, kind: Any) -> Any:
    """The client constructs what it receives without checks; these are the checks."""
    return kind.model_validate(found.model_dump(exclude_unset=True))


def test_json_has_the_text(transcribe, expected) -> None:
    found = strict(transcribe(), types.Transcription)
    assert found.text == expected.text
    assert found.usage.type == "duration"


@pytest.mark.parametrize(
    ("form", "body"),
    [("text", lambda found: found.text + "\n"), ("srt", to_srt), ("vtt", to_vtt)],
)
def test_plain_formats_are_strings(transcribe, expected, form, body) -> None:
    assert transcribe(response_format=form) == body(expected)


@pytest.mark.parametrize("granularities", [None, ["word"], ["segment"], ["word", "segment"]])
def test_verbose_json_has_the_granularities_asked_for(transcribe, expected, granularities) -> None:
    options = {} if granularities is None else {"timestamp_granularities": granularities}
    found = strict(
        transcribe(response_format="verbose_json", **options), types.TranscriptionVerbose
    )
    assert found.text == expected.text
    assert found.duration == pytest.approx(expected.duration)
    wanted = granularities or ["segment"]
    assert (found.words is not None) == ("word" in wanted)
    assert (found.segments is not None) == ("segment" in wanted)
    if found.words is not None:
        assert [(word.word, word.start, word.end) for word in found.words] == [
            (word.text, word.start, word.end) for word in expected.words
        ]
    if found.segments is not None:
        assert " ".join(segment.text for segment in found.segments) == expected.text
        assert [segment.id for segment in found.segments] == list(range(len(found.segments)))


@pytest.mark.parametrize("logprobs", [False, True])
def test_a_stream_ends_with_the_whole_text(transcribe, expected, logprobs) -> None:
    include = {"include": ["logprobs"]} if logprobs else {}
    *deltas, done = transcribe(stream=True, **include)
    deltas = [strict(one, types.TranscriptionTextDeltaEvent) for one in deltas]
    done = strict(done, types.TranscriptionTextDoneEvent)
    assert len(deltas) > 1
    assert "".join(one.delta for one in deltas) == done.text == expected.text
    tokens = None if done.logprobs is None else [one.token for one in done.logprobs]
    assert tokens == (expected.text.split() if logprobs else None)


def test_logprobs_are_the_words(transcribe, expected) -> None:
    found = strict(transcribe(include=["logprobs"]), types.Transcription)
    assert [one.token for one in found.logprobs] == expected.text.split()
    assert all(one.logprob <= 0 for one in found.logprobs)


def test_keywords_are_hot_words_of_a_beam_search(transcribe) -> None:
    assert transcribe(model="beam", keywords=["zero"]).text
    with pytest.raises(openai.BadRequestError):
        transcribe(model="digits", keywords=["zero"])


def test_another_format_and_no_name(transcribe, expected, speech) -> None:
    file = io.BytesIO()
    soundfile.write(file, speech, 16_000, format="FLAC")
    assert transcribe(file=file.getvalue()).text == expected.text


def test_models_are_listed(client) -> None:
    assert [model.id for model in client.models.list()] == ["digits", "beam"]
    assert client.models.retrieve("beam").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


LONG = np.zeros(31 * 16_000, np.int16)


def wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV", subtype="PCM_16")
    return file.getvalue()


@pytest.mark.parametrize(
    ("options", "error", "param"),
    [
        ({"model": "other"}, openai.NotFoundError, "model"),
        ({"response_format": "xml"}, openai.BadRequestError, "response_format"),
        ({"file": ("a.wav", b"not audio" * 100)}, openai.BadRequestError, "file"),
        ({"file": ("a.wav", b"")}, openai.BadRequestError, "file"),
        ({"file": ("a.wav", wav(LONG))}, openai.APIStatusError, "file"),
        ({"file": ("a.wav", bytes(4_000_000))}, openai.APIStatusError, "file"),
        ({"file": ("a.wav", bytes(60_000_000))}, openai.APIStatusError, "file"),
        (
            {"timestamp_granularities": ["word"]},
            openai.BadRequestError,
            "timestamp_granularities",
        ),
        (
            {"timestamp_granularities": ["letter"], "response_format": "verbose_json"},
            openai.BadRequestError,
            "timestamp_granularities",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_unusable_requests_are_refused(transcribe, options, error, param, stream) -> None:
    with pytest.raises(error) as found:
        list(transcribe(stream=stream, **options))
    assert found.value.status_code == (413 if error is openai.APIStatusError else error.status_code)
    assert found.value.param == param
    assert found.value.type == "invalid_request_error"
    assert found.value.code
    assert found.value.response.headers["x-should-retry"] == "false"


def test_a_wrong_key_is_refused(base, speech_wav) -> None:
    with openai.OpenAI(base_url=f"{base}/v1", api_key="other") as client:
        with pytest.raises(openai.AuthenticationError):
            client.audio.transcriptions.create(model="digits", file=speech_wav)
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


class Gate:
    """A session that waits until it may compute.

    Attributes:
        opened: set once it may.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self.opened = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def streaming(self) -> Any:
        return self

    def compute(self, tensors: Any) -> Any:
        assert self.opened.wait(PATIENCE_S)
        return self._session.compute(tensors)


def test_a_full_server_is_tried_three_times(
    serve_models: Callable[..., str],
    load_streaming: Callable[..., Recognizer],
    speech_wav: bytes,
    expected: Transcript,
    wait_until: Callable[[Callable[[], object]], None],
) -> None:
    gates: list[Gate] = []

    def load() -> Recognizer:
        gates.append(Gate(load_streaming().session))
        return Recognizer(gates[-1])

    base = serve_models({"digits": load}, limits=Limits(streams=1, uploads=1, waiting=1))
    client = openai.OpenAI(base_url=f"{base}/v1", api_key=KEY)

    def call(_: int = 0) -> str:
        return client.audio.transcriptions.create(model="digits", file=speech_wav).text

    def refused() -> int:
        found = re.findall(r'^ds2deploy_refused_total.*"overloaded".* (\S+)$', metrics(base), re.M)
        return int(sum(map(float, found)))

    with ThreadPoolExecutor(3) as threads:
        # One is under way, one waits, and a third is refused at once and three times.
        first = [threads.submit(call) for _ in range(3)]
        wait_until(lambda: any(future.done() for future in first))
        assert refused() == 3
        failed = next(future for future in first if future.done())
        assert isinstance(failed.exception(PATIENCE_S), openai.RateLimitError)
        gates[0].opened.set()
        first.remove(failed)
        assert [future.result(PATIENCE_S) for future in first] == [expected.text] * 2
    assert refused() == 3
    response = failed.exception().response
    assert float(response.headers["retry-after"]) > 0
    assert response.headers["x-should-retry"] == "true"
