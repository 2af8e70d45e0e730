"""The page that runs a model by itself, in Chromium: its text is that of `Recognizer.stream`."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("websockets", reason="Chromium is driven with websockets: the extra serve")

import ds2deploy
from ds2deploy.export.parity.speech import synthesize
from tests.ds2deploy.serve.chromium import Chromium

PAGE = Path(__file__).parents[2] / "examples" / "browser"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
PACKAGES = Path(os.environ.get("DS2DEPLOY_NODE_MODULES", PAGE / "node_modules"))
RATE, BLOCK = 16_000, 5120

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install chromium"),
    pytest.mark.skipif(
        not (PACKAGES / "onnxruntime-web").is_dir(),
        reason=f"{PACKAGES}: no onnxruntime-web; npm install --prefix examples/browser",
    ),
]

READY = "document.getElementById('file')?.disabled === false"
STATUS = "(document.getElementById('status')?.textContent ?? '')"
TEXT = "document.getElementById('text').textContent"
DONE = f"{STATUS}.startsWith('Done')"

Visit = Callable[..., None]


@pytest.fixture(scope="module")
def address(streaming_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the page, the package and a model with Python's own server."""
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(PAGE, site, dirs_exist_ok=True, ignore=lambda *_: {"node_modules", "models"})
    (site / "node_modules").symlink_to(PACKAGES.resolve())
    (site / "models").symlink_to(streaming_onnx.parent)
    command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0"]
    with subprocess.Popen(
        command, cwd=site, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as server:
        assert server.stdout is not None
        found = re.search(r"http://[\d.:]+", server.stdout.readline())
        assert found
        yield found[0]
        server.terminate()


@pytest.fixture
def visit(address: str, tmp_path: Path) -> Visit:
    """Opens the page in a browser and runs a test there."""

    def run(test: Callable[[Chromium], Awaitable[None]], query: str = "", *flags: str) -> None:
        async def browsing() -> None:
            async with Chromium(CHROMIUM, tmp_path / "profile", *flags) as browser:
                await browser.call("Page.navigate", url=f"{address}/{query}")
                await test(browser)

        asyncio.run(browsing())

    return run


def write(path: Path, samples: np.ndarray) -> Path:
    soundfile.write(path, np.round(samples * 32767).astype("<i2"), RATE)
    return path


def streamed(model: Path, path: Path) -> str:
    """Return the text of `Recognizer.stream`, fed in pieces."""
    samples, rate = soundfile.read(path, dtype="float32")
    with ds2deploy.load(model, threads=1).stream(rate) as stream:
        for start in range(0, len(samples), 1600):
            stream.accept(samples[start : start + 1600])
        return stream.finish().text


def test_text_of_recordings_equals_that_of_a_stream(
    streaming_onnx: Path, visit: Visit, tmp_path: Path
) -> None:
    lengths = (2.7 * RATE, 6 * BLOCK, 1.1 * RATE, 100)  # one is a whole number of blocks
    paths = [
        write(tmp_path / f"{i}.wav", synthesize(RATE, int(length), seed=i))
        for i, length in enumerate(lengths)
    ]
    expected = [streamed(streaming_onnx, path) for path in paths]
    assert len(set(expected)) == len(paths)

    async def test(browser: Chromium) -> None:
        await browser.until(READY)
        found = []
        for path in paths:
            await browser.value("document.getElementById('status').textContent = ''")
            await browser.choose_file("#file", path)
            await browser.until(DONE)
            found.append(await browser.value(TEXT))
        assert found == expected
        assert browser.console == []

    visit(test)


def test_microphone_is_recognised_while_it_is_open(
    visit: Visit, spoken_digits: Path, tmp_path: Path
) -> None:
    names = ("3_jackson_0", "1_jackson_1", "4_jackson_2", "7_jackson_3")
    clips = [soundfile.read(spoken_digits / f"{name}.wav", dtype="float32")[0] for name in names]
    path = tmp_path / "spoken.wav"
    soundfile.write(path, np.concatenate([*clips, np.zeros(16_000, np.float32)]), 8000)

    async def test(browser: Chromium) -> None:
        await browser.until(READY)
        await browser.value("document.getElementById('microphone').click()")
        await browser.until(f"{TEXT}.includes('FOUR')")
        assert await browser.value(STATUS) == "Listening"
        await browser.value("document.getElementById('microphone').click()")
        await browser.until(DONE)
        assert (await browser.value(TEXT)).split()[:3] == ["THREE", "ONE", "FOUR"]
        assert browser.console == []

    visit(
        test,
        "",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={path}%noloop",
    )


def test_missing_model_is_named(visit: Visit) -> None:
    async def test(browser: Chromium) -> None:
        message = await browser.until(f"{STATUS}.includes('404') && {STATUS}")
        assert "models/none.onnx" in message
        assert not await browser.value(READY)

    visit(test, "?model=models/none.onnx")


def test_other_kind_of_file_names_the_remedy(visit: Visit) -> None:
    async def test(browser: Chromium) -> None:
        message = await browser.until(f"{STATUS}.includes('page.js') && {STATUS}")
        assert "ds2deploy export --streaming --waveform" in message

    visit(test, "?model=page.js")
