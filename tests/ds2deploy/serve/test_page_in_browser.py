"""The page in Chromium: spoken words, a recording, the keyboard, and what can go wrong."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

pytest.importorskip("fastapi", reason="the server's extra is not installed")
pytest.importorskip("websockets", reason="the server's extra is not installed")

import ds2deploy
from tests.ds2deploy.serve.chromium import Chromium

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome") or ""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAM, reason="no Chromium here: apt-get install chromium"),
]

ALLOWED = "--use-fake-ui-for-media-stream"
REFUSED = "--deny-permission-prompts"
READY = "document.getElementById('record')?.disabled === false"
LINES = (
    "[...document.querySelectorAll('.line')].map((line) => "
    "[...line.querySelectorAll('.word')].map((one) => one.textContent).join(' '))"
)
FOCUS = "document.activeElement.id"
MESSAGE = "document.getElementById('message').textContent"
SPEAKING = "document.querySelector('#live .word, .line .word') !== null"
IDLE = "document.getElementById('record-text').textContent === 'Start speaking'"


@contextmanager
def serving(model: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start `ds2deploy serve`; yields its URL and its process."""
    command = [sys.executable, "-m", "ds2deploy", "serve", f"digits={model}", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--streams", "4", *options], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        lines = iter(process.stderr)
        url = next(found[0] for line in lines if (found := re.search(r"http://\S+", line)))
        yield url, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def recording(spoken_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Say four digits, and after 2 s three; 48 kHz, as a microphone has it."""
    groups = ("3_jackson_0 1_jackson_1 4_jackson_2 7_jackson_3", "7_theo_3 2_theo_1 9_theo_4")
    sound: list[np.ndarray] = []
    for group in groups:
        for name in group.split():
            clip, rate = soundfile.read(spoken_digits / f"{name}.wav")
            sound += [clip, np.zeros(400)]
        sound.append(np.zeros(2 * rate))
    samples = np.concatenate(sound)
    samples += np.random.default_rng(0).standard_normal(len(samples)) * 3e-4
    path = tmp_path_factory.mktemp("recording") / "digits.wav"
    soundfile.write(path, soxr.resample(samples, rate, 48000), 48000, subtype="PCM_16")
    return path


@pytest.fixture
def browse(tmp_path: Path, recording: Path) -> Callable[..., None]:
    """Runs a test in a browser whose microphone plays the recording once."""

    def run(test: Callable[[Chromium], Awaitable[None]], *flags: str) -> None:
        async def browsing() -> None:
            sound = f"--use-file-for-fake-audio-capture={recording}%noloop"
            async with Chromium(PROGRAM, tmp_path, sound, *flags) as browser:
                await test(browser)

        asyncio.run(browsing())

    return run


async def opened(browser: Chromium, url: str) -> None:
    await browser.call("Page.navigate", url=url)
    await browser.until(READY)


async def focus_by_tab(browser: Chromium, name: str) -> None:
    for _ in range(20):
        await browser.press("Tab")
        if await browser.value(FOCUS) == name:
            return
    raise AssertionError(f"{name}: not reached by the Tab key")


def test_spoken_words_appear_and_the_keyboard_suffices(
    streaming_onnx: Path, browse: Callable[..., None]
):
    async def test(browser: Chromium) -> None:
        await opened(browser, url)
        await focus_by_tab(browser, "record")
        await browser.press("Enter")
        await browser.until(SPEAKING)
        lines = await browser.until(f"{LINES}.length > 1 && {LINES}")
        assert lines[0].split()[:3] == ["THREE", "ONE", "FOUR"]
        assert await browser.value(FOCUS) == "record"
        await browser.press(" ")
        await browser.until(IDLE)
        text = " ".join(await browser.value(LINES))
        assert "SEVEN TWO" in text
        assert await browser.value("document.getElementById('live').hidden")
        await focus_by_tab(browser, "details")
        await browser.press(" ")
        times = await browser.value(
            "[...document.querySelectorAll('.line .detail')].map((one) => one.innerText)"
        )
        assert len(times) == len(text.split())
        assert all(re.fullmatch(r"0:0\d\.\d\d · \d+ %", one) for one in times)
        await focus_by_tab(browser, "copy")
        await browser.press("Enter")
        await browser.until("document.getElementById('copy').textContent === 'Copied'")
        await focus_by_tab(browser, "clear")
        await browser.press("Enter")
        assert await browser.value(LINES) == []
        assert browser.console == []

    with serving(streaming_onnx) as (url, _):
        browse(test, ALLOWED)


def test_escape_stops(streaming_onnx: Path, browse: Callable[..., None]):
    async def test(browser: Chromium) -> None:
        await opened(browser, url)
        await browser.value("document.getElementById('record').click()")
        await browser.until(SPEAKING)
        await browser.press("Escape")
        await browser.until(IDLE)
        assert await browser.value(LINES)
        assert await browser.value(MESSAGE) == ""

    with serving(streaming_onnx) as (url, _):
        browse(test, ALLOWED)


@pytest.mark.parametrize("model", ["streaming_onnx", "digits_onnx"])
def test_a_recording_is_recognised(
    model: str, browse: Callable[..., None], recording: Path, request: pytest.FixtureRequest
):
    path: Path = request.getfixturevalue(model)
    expected = ds2deploy.load(path).transcribe(recording)

    async def test(browser: Chromium) -> None:
        await opened(browser, url)
        await browser.choose_file("#file", recording)
        lines = await browser.until(f"{LINES}.length > 1 && {LINES}")
        assert " ".join(lines) == expected.text
        sure = await browser.value(
            "[...document.querySelectorAll('.line .word')].map((one) => one.dataset.sure)"
        )
        levels = ["low" if w.confidence < 0.6 else "fair" if w.confidence < 0.9 else "high"
                  for w in expected.words]  # fmt: skip
        assert sure == levels
        assert browser.console == []

    with serving(path) as (url, _):
        browse(test)


def test_speech_for_a_model_of_whole_utterances_is_recognised_at_the_stop(
    digits_onnx: Path, browse: Callable[..., None]
):
    async def test(browser: Chromium) -> None:
        await opened(browser, url)
        await browser.value("document.getElementById('record').click()")
        await browser.until("document.getElementById('clock').textContent >= '0:04'")
        await browser.press("Escape")
        lines = await browser.until(f"{LINES}.length && {LINES}")
        assert "THREE" in lines[0]
        assert browser.console == []

    with serving(digits_onnx) as (url, _):
        browse(test, ALLOWED)


def test_damaged_audio_gives_a_message(
    streaming_onnx: Path, browse: Callable[..., None], tmp_path: Path
):
    path = tmp_path / "letter.txt"
    path.write_text("Dear server")

    async def test(browser: Chromium) -> None:
        await opened(browser, url)
        await browser.choose_file("#file", path)
        assert "not audio" in await browser.until(MESSAGE)
        await browser.until(IDLE)

    with serving(streaming_onnx) as (url, _):
        browse(test)


def test_a_refused_microphone_gives_a_message(streaming_onnx: Path, browse: Callable[..., None]):
    async def test(browser: Chromium) -> None:
        await opened(browser, url)
        await browser.value("document.getElementById('record').click()")
        assert "did not allow the microphone" in await browser.until(MESSAGE)
        await browser.until(IDLE)

    with serving(streaming_onnx) as (url, _):
        browse(test, REFUSED)


def test_the_page_asks_for_the_key(streaming_onnx: Path, browse: Callable[..., None]):
    async def give(browser: Chromium, key: str) -> None:
        await browser.until("document.activeElement.id === 'key'")
        await browser.value("document.activeElement.value = ''")
        await browser.call("Input.insertText", text=key)
        await browser.press("Enter")

    async def test(browser: Chromium) -> None:
        await browser.call("Page.navigate", url=url)
        await browser.until("document.getElementById('key-form')?.hidden === false")
        await give(browser, "wrong")
        assert "key" in await browser.until(MESSAGE)
        await give(browser, "a/b=c+d%")
        await browser.until(READY)
        await browser.value("document.getElementById('record').click()")
        await browser.until(SPEAKING)
        assert await browser.value(MESSAGE) == ""

    with serving(streaming_onnx, "--api-key", "a/b=c+d%") as (url, _):
        browse(test, ALLOWED)


@pytest.mark.parametrize(
    ("how", "part"), [(signal.SIGTERM, "shutting down"), (signal.SIGKILL, "connection was lost")]
)
def test_a_server_that_ends_gives_a_message_and_keeps_the_text(
    streaming_onnx: Path, browse: Callable[..., None], how: signal.Signals, part: str
):
    async def test(browser: Chromium) -> None:
        await opened(browser, url)
        await browser.value("document.getElementById('record').click()")
        await browser.until(SPEAKING)
        process.send_signal(how)
        assert part in await browser.until(MESSAGE)
        assert await browser.value(LINES)
        await browser.until("document.getElementById('record').disabled")

    with serving(streaming_onnx) as (url, process):
        browse(test, ALLOWED)
