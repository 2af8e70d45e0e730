"""The guide to the server prints the files of examples/, and its clients run, with a key too."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ds2deploy
from ds2deploy.serve.live import pcm16
from tests.ds2deploy.serve.serving import PATIENCE_S, RATE, Served, pcm, served, wav

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
DOCS = ROOT / "docs"
KEY = "a-key"
VARIABLE = "DS2DEPLOY_API_KEY"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def clients(page: str) -> list[str]:
    """Find the programs of a page; a block that only shows a call is none."""
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)
    return [block for block in blocks if "import" in block]


@pytest.fixture(scope="module")
def text(streaming_onnx: Path) -> str:
    found = ds2deploy.load(streaming_onnx, threads=1).transcribe(pcm16(pcm(2)), RATE).text
    assert found
    return found


@pytest.fixture(scope="module")
def server(streaming_onnx: Path) -> Iterator[Served]:
    with served(lambda: ds2deploy.load(streaming_onnx, threads=1), api_key=KEY) as found:
        yield found


@pytest.fixture
def run(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs Python with arguments in a folder that has the recordings of the guide."""
    for name in ("speech.wav", "call.wav"):
        (tmp_path / name).write_bytes(wav(pcm(2)))
    (tmp_path / "speech.24k.s16le").write_bytes(pcm(2))
    monkeypatch.delenv(VARIABLE, raising=False)

    def call(*arguments: str, key: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True,
            timeout=PATIENCE_S, env={**os.environ, **({} if key is None else {VARIABLE: key})},
        )  # fmt: skip

    return call


@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize("page", ["serving.md", "serving-protocols.md"])
def test_client_of_the_guide_prints_the_transcript(
    server: Served, run: Run, text: str, page: str, number: int
) -> None:
    programs = clients(page)
    assert len(programs) == 2
    # The recording of the last one is said to have 24 kHz; here it has the model's rate.
    program = programs[number].replace("24000", str(RATE))
    assert "127.0.0.1:8000/" in program
    done = run("-c", program.replace("127.0.0.1:8000", server.url.split("//")[1]), key=KEY)
    assert done.returncode == 0, done.stderr
    assert text in done.stdout


def test_stream_client_takes_the_key_from_variable_or_option(
    server: Served, run: Run, text: str
) -> None:
    command = (
        str(EXAMPLES / "stream_client.py"),
        server.url.replace("http", "ws", 1) + "/stream",
        "speech.wav",
    )
    for done in (run(*command, key=KEY), run(*command, "--api-key", KEY, key="another")):
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == text
    done = run(*command)
    assert done.returncode == 1
    assert VARIABLE in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "name", ["ds2deploy.service", "ds2deploy-watch.service", "ds2deploy-watch.timer", "nginx.conf"]
)
def test_guide_prints_the_file(name: str) -> None:
    printed = re.findall(
        r"^```\w+\n(.*?)^```", (DOCS / "serving-operations.md").read_text(), re.M | re.S
    )
    assert (EXAMPLES / name).read_text() in printed


def unit(name: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(EXAMPLES / name)
    return parser["Service"]


def test_service_does_not_start_without_the_file_of_its_key() -> None:
    assert unit("ds2deploy.service")["EnvironmentFile"].startswith("/")  # "-" would ignore it


@pytest.mark.parametrize(("status", "restarts"), [("200", False), ("000", False), ("503", True)])
def test_watch_restarts_a_server_that_is_not_ready(
    tmp_path: Path, status: str, restarts: bool
) -> None:
    for name, line in {"curl": f"printf {status}", "systemctl": 'echo "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    command = unit("ds2deploy-watch.service")["ExecStart"]
    command = command.replace("$$", "$").replace("%%", "%")  # as systemd reads it
    done = subprocess.run(
        shlex.split(command), capture_output=True, text=True, check=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stdout == ("try-restart ds2deploy\n" if restarts else "")
