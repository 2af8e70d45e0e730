"""Servers on free ports of this machine, each in a thread, and audio for them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import ds2deploy
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.serve.app import make_app
from ds2deploy.serve.limits import Limits
from ds2deploy.serve.run import Address, _config, _listen, _Runner, _url
from ds2deploy.serve.server import Server

PATIENCE_S = 600

ServeModels = Callable[..., str]


@contextlib.contextmanager
def served(models: Mapping[str, Callable[[], Recognizer]], **options: Any) -> Iterator[str]:
    """Serve models in a thread until the end; the URL."""
    options.setdefault("limits", Limits(streams=8))
    app = make_app(lambda: Server(models, **options))
    server, address, ready = app.state.server, Address(port=0), threading.Event()
    listening = _listen(address.host, address.port, "--port")
    runner = _Runner(_config(app, server, address), server)
    runner.on_start = ready.set
    thread = threading.Thread(target=lambda: asyncio.run(runner.serve([listening])))
    with contextlib.closing(listening):
        thread.start()
        try:
            assert ready.wait(PATIENCE_S)
            yield _url(address, listening)
        finally:
            runner.handle_exit(signal.SIGTERM, None)
            thread.join(PATIENCE_S)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def serve_models() -> Iterator[ServeModels]:
    """Starts servers, which end with the module: `serve_models({name: load}, **of Server)`."""
    with contextlib.ExitStack() as stack:
        yield lambda models, **options: stack.enter_context(served(models, **options))


@pytest.fixture(scope="session")
def serving() -> Callable[..., contextlib.AbstractContextManager[str]]:
    """Serves until the end of a `with`; the arguments are those of `serve_models`."""
    return served


@pytest.fixture(scope="session")
def load_streaming(streaming_onnx: Path) -> Callable[..., Recognizer]:
    """Opens the streaming model of digits; takes the options of `ds2deploy.load`."""
    return lambda **options: ds2deploy.load(streaming_onnx, threads=1, **options)


@pytest.fixture(scope="session")
def whole_onnx(tmp_path_factory: pytest.TempPathFactory, digits_checkpoint: Path) -> Path:
    """Write the trained model of whole utterances as an ONNX file, without its check."""
    import onnx

    from ds2deploy.export.onnx.graph import build_graph
    from ds2deploy.export.onnx.lowering import lower
    from ds2deploy.export.verified_onnx import append_description
    from ds2deploy.model.load import load_checkpoint

    loaded = load_checkpoint(digits_checkpoint)
    path = tmp_path_factory.mktemp("whole") / "digits.onnx"
    onnx.save(build_graph(lower(loaded.network), loaded.description()), path)
    append_description(path, loaded.description())
    return path


@pytest.fixture(scope="session")
def recognizer(load_streaming: Callable[..., Recognizer]) -> Recognizer:
    """The same model without a server, for the texts to expect."""
    return load_streaming()


@pytest.fixture(scope="session")
def speech() -> np.ndarray:
    """Digits that espeak-ng speaks, as int16 at 16 kHz: 'one two three', a pause, 'four five'."""
    pytest.importorskip("espeakng_loader")
    import soxr

    from ds2deploy.demo.espeak import Synthesizer, Voice

    synthesizer = Synthesizer()
    parts = []
    for text in ("one two three", "four five"):
        samples, rate = synthesizer.speak(text, Voice("en-us"), 120)
        parts += [soxr.resample(samples, rate, 16_000), np.zeros(32_000, np.float32)]
    return np.round(32767 * np.clip(np.concatenate(parts), -1, 1)).astype("<i2")


@pytest.fixture(scope="session")
def speech_wav(speech: np.ndarray) -> bytes:
    """It as a WAV file."""
    file = io.BytesIO()
    soundfile.write(file, speech, 16_000, format="WAV", subtype="PCM_16")
    return file.getvalue()
