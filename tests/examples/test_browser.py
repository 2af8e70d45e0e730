"""The browser example: onnxruntime-web recognises what the library does."""

from __future__ import annotations

import asyncio
import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("websockets", reason="drives the browser")

import ds2deploy
from ds2deploy.export.parity.speech import synthesize
from tests.ds2deploy.serve.chromium import Chromium

PAGE = Path(__file__).parents[2] / "examples" / "browser"
PACKAGES = Path(os.environ.get("NODE_MODULES", PAGE / "node_modules"))
PROGRAM = shutil.which("chromium") or shutil.which("google-chrome") or ""
RATE = 16_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAM, reason="no Chromium here: apt-get install chromium"),
    pytest.mark.skipif(
        not (PACKAGES / "onnxruntime-web").is_dir(),
        reason="npm install in examples/browser, or NODE_MODULES=FOLDER",
    ),
]


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    for path in PAGE.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    (folder / "node_modules").symlink_to(PACKAGES.resolve())
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Recordings of several lengths, one of whole blocks."""
    folder = tmp_path_factory.mktemp("recordings")
    paths = []
    for seed, count in enumerate((5120 * 6, 33_333, 9_000)):
        paths.append(folder / f"{seed}.wav")
        samples = np.round(synthesize(RATE, count, seed=seed) * 32767).astype("<i2")
        soundfile.write(paths[-1], samples, RATE)
    return paths


def test_texts_are_those_of_the_library(
    url: str, recordings: list[Path], streaming_onnx: Path, tmp_path: Path
) -> None:
    async def scene() -> tuple[list[str], list[str]]:
        async with Chromium(PROGRAM, tmp_path / "profile") as page:
            await page.call("Page.navigate", url=url)
            await page.until("document.getElementById('model')?.disabled === false")
            await page.choose_file("#model", streaming_onnx)
            await page.until("document.getElementById('audio').disabled === false")
            found = []
            for path in recordings:
                await page.value("document.getElementById('state').textContent = ''")
                await page.choose_file("#audio", path)
                await page.until("document.getElementById('state').textContent.startsWith('Done')")
                found.append(await page.value("document.getElementById('text').textContent"))
            return found, page.console

    found, console = asyncio.run(scene())
    recognizer = ds2deploy.load(streaming_onnx, threads=1)
    expected = []
    for path in recordings:
        with recognizer.stream(RATE) as stream:
            stream.accept(soundfile.read(path, dtype="float32")[0])
            expected.append(stream.finish().text)
    assert all(expected)
    assert found == expected
    assert console == []


def test_another_file_is_named(url: str, recordings: list[Path], tmp_path: Path) -> None:
    async def scene() -> str:
        async with Chromium(PROGRAM, tmp_path / "profile") as page:
            await page.call("Page.navigate", url=url)
            await page.until("document.getElementById('model')?.disabled === false")
            await page.choose_file("#model", recordings[0])
            return str(await page.until(
                "(t => t.includes('not an artifact') && t)"
                "(document.getElementById('state').textContent)"
            ))  # fmt: skip

    assert "ds2deploy" in asyncio.run(scene())


def test_microphone_is_recognised_while_it_is_open(
    url: str, spoken_digits: Path, streaming_onnx: Path, tmp_path: Path
) -> None:
    names = ("3_jackson_0", "1_jackson_1", "4_jackson_2", "7_jackson_3")
    clips = [soundfile.read(spoken_digits / f"{name}.wav", dtype="float32")[0] for name in names]
    path = tmp_path / "spoken.wav"
    soundfile.write(path, np.concatenate([*clips, np.zeros(16_000, np.float32)]), 8000)
    flags = (
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={path}%noloop",
    )
    state, text = (f"document.getElementById('{name}').textContent" for name in ("state", "text"))

    async def scene() -> None:
        async with Chromium(PROGRAM, tmp_path / "profile", *flags) as page:
            await page.call("Page.navigate", url=url)
            await page.until("document.getElementById('model')?.disabled === false")
            await page.choose_file("#model", streaming_onnx)
            await page.until("document.getElementById('microphone').disabled === false")
            await page.value("document.getElementById('microphone').click()")
            await page.until(f"{text}.includes('FOUR')")
            assert await page.value(state) == "Listening ..."
            await page.value("document.getElementById('microphone').click()")
            await page.until(f"{state} === 'Done.'")
            assert (await page.value(text)).split()[:3] == ["THREE", "ONE", "FOUR"]
            assert page.console == []

    asyncio.run(scene())
