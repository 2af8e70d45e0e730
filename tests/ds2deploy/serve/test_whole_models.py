"""Models of whole utterances: long recordings beside short ones, and engines that fail."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import ds2deploy
from ds2deploy.runtimes.errors import DeviceError
from ds2deploy.runtimes.features import FloatArray, IntArray
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.serve.limits import Limits
from tests.ds2deploy.serve.serving import RATE, pcm, served, wait_for, wav

LONG_S, SHORT_S = 62, 2
"""More than a model takes whole, and less."""


class Watched:
    """Opens a model whose runs can be counted, checked and made to fail.

    Attributes:
        failures: number of runs that fail next.
        opened: how often the model was opened.
        at_once: most runs that were under way at a time.
    """

    def __init__(self, model: Path) -> None:
        self._model = model
        self.failures = self.opened = self.at_once = self._running = 0
        self._lock = threading.Lock()

    def __call__(self) -> Recognizer:
        """Open the model."""
        found = ds2deploy.load(self._model, threads=1)
        self.opened += 1
        run = found.session.run

        def watched(sound: FloatArray, lengths: IntArray) -> tuple[FloatArray, IntArray]:
            with self._run():
                return run(sound, lengths)

        found.session.run = watched  # type: ignore[method-assign]
        return found

    @contextlib.contextmanager
    def _run(self) -> Iterator[None]:
        with self._lock:
            self._running += 1
            self.at_once = max(self.at_once, self._running)
            failing, self.failures = self.failures > 0, max(0, self.failures - 1)
        try:
            if failing:
                raise DeviceError("out of memory")
            yield
        finally:
            with self._lock:
                self._running -= 1


@pytest.fixture
def watched(whole_onnx: Path) -> Watched:
    return Watched(whole_onnx)


@pytest.fixture(scope="module")
def text(whole_onnx: Path) -> Callable[[bytes], str]:
    """Text that the library makes of PCM, without a server."""
    recognizer = ds2deploy.load(whole_onnx, threads=1)
    return functools.cache(
        lambda content: (
            recognizer.transcribe(
                np.frombuffer(content, "<i2").astype(np.float32) / 32768, RATE
            ).text
        )
    )


def test_long_and_short_recordings_compute_in_turn(
    watched: Watched, text: Callable[[bytes], str]
) -> None:
    contents = [pcm(LONG_S), *(pcm(SHORT_S, voice) for voice in range(8))]
    with served(watched) as server, ThreadPoolExecutor(len(contents)) as threads:
        answers = list(threads.map(lambda content: server.transcribe(wav(content)), contents))
        assert [answer.status_code for answer in answers] == [200] * len(contents)
        assert [answer.json()["text"] for answer in answers] == [text(one) for one in contents]
    assert watched.at_once == 1


def test_engine_that_fails_in_a_long_recording_is_opened_again(
    watched: Watched, text: Callable[[bytes], str]
) -> None:
    with served(watched) as server:
        watched.failures = 1
        answer = server.transcribe(wav(pcm(LONG_S)))
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_failed"
        wait_for(lambda: server.metric("ds2deploy_engine_restarts_total") == 1)
        wait_for(lambda: server.http.get("/ready").status_code == 200)
        assert watched.opened == 2
        assert server.transcribe(wav(pcm(LONG_S))).json()["text"] == text(pcm(LONG_S))


def test_refusals_are_counted_with_their_reason_and_model(watched: Watched) -> None:
    limits = Limits(upload_mb=0.5, audio_s=5.0)
    with served(watched, limits, api_key="k") as server:
        server.transcribe(wav(pcm(1)))
        server.http.headers["authorization"] = "Bearer k"
        server.transcribe(b"0" * 2_000_000)
        server.transcribe(wav(pcm(6)))
        server.transcribe(b"no audio")
        server.transcribe(wav(pcm(1)), model="other")
        server.transcribe(wav(pcm(1)), response_format="other")
        refused = {
            (reason, model): server.metric("ds2deploy_refused_total", reason=reason, model=model)
            for reason, model in (
                ("invalid_api_key", ""), ("upload_too_large", ""), ("audio_too_long", "m"),
                ("invalid_audio", "m"), ("model_not_found", ""), ("invalid_value", ""),
            )
        }  # fmt: skip
        assert set(refused.values()) == {1.0}, refused
