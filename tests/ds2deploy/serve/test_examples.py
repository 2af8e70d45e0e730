"""The examples run, and the configurations around the server fit it."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ds2deploy
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.serve.limits import Limits
from ds2deploy.serve.live import pcm16
from ds2deploy.serve.metrics import Metrics
from tests.ds2deploy.serve.serving import PATIENCE_S, RATE, Served, pcm, served, wait_for, wav

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples"
GUIDE = [
    ROOT / "docs" / f"{name}.md" for name in ("serving", "serving-protocols", "serving-operations")
]


@pytest.fixture(scope="module")
def recognizer(streaming_onnx: Path) -> Recognizer:
    return ds2deploy.load(streaming_onnx, threads=1)


@pytest.fixture(scope="module")
def server(streaming_onnx: Path) -> Iterator[Served]:
    with served(lambda: ds2deploy.load(streaming_onnx, threads=1), Limits(streams=1)) as found:
        yield found


@pytest.fixture
def run_client(server: Served, tmp_path: Path) -> Callable[[], subprocess.CompletedProcess[str]]:
    path = tmp_path / "speech.wav"
    path.write_bytes(wav(pcm(2)))
    url = server.url.replace("http", "ws", 1) + "/stream"
    command = [sys.executable, str(EXAMPLES / "stream_client.py"), url, str(path)]
    return lambda: subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)


def test_client_prints_the_transcript(
    run_client: Callable[[], subprocess.CompletedProcess[str]], recognizer: Recognizer
) -> None:
    done = run_client()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == recognizer.transcribe(pcm16(pcm(2)), RATE).text
    assert "... " in done.stderr


def test_client_reports_a_refusal(
    server: Served, run_client: Callable[[], subprocess.CompletedProcess[str]]
) -> None:
    with server.stream() as stream:
        stream.send(pcm(0.5))
        wait_for(lambda: server.live_streams() == 1)
        done = run_client()
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("overloaded: ")


def test_service_waits_for_the_drain_and_starts_the_command() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(EXAMPLES / "ds2deploy.service")
    service = parser["Service"]
    assert int(service["TimeoutStopSec"]) > Limits().drain_s
    assert " serve " in service["ExecStart"]


def test_proxy_upgrades_sockets_and_lets_uploads_through() -> None:
    text = (EXAMPLES / "nginx.conf").read_text()
    assert re.search(r"proxy_set_header Upgrade \$http_upgrade;", text)
    assert "proxy_set_header Host $http_host;" in text
    found = re.search(r"client_max_body_size (\d+)m;", text)
    assert found is not None
    assert int(found[1]) * 2**20 > Limits().upload_mb * 1e6
    found = re.search(r"proxy_read_timeout (\d+)s;", text)
    assert found is not None
    assert int(found[1]) > Limits().idle_s
    assert text.count("{") == text.count("}")


def guide() -> str:
    """Text of the guide's pages."""
    return "\n".join(path.read_text() for path in GUIDE)


def metric_names() -> set[str]:
    """Names of the server's own metrics, counters with their ending."""
    found = set()
    for metric in Metrics().registry.collect():
        if metric.name.startswith("ds2deploy_"):
            found.add(metric.name + ("_total" if metric.type == "counter" else ""))
    return found


def test_guide_lists_every_metric() -> None:
    listed = set(re.findall(r"^\| `(ds2deploy_\w+)`", guide(), re.M))
    assert listed == metric_names()


def test_guide_states_the_defaults(server: Served) -> None:
    text, limits = guide(), Limits()
    row = {found[1]: found[0] for found in re.findall(r"^(\| [^|]+ \| `(--\S+)` .*)$", text, re.M)}
    expected = {
        "--uploads": limits.uploads, "--upload-mb": limits.upload_mb, "--audio": limits.audio_s,
        "--idle": limits.idle_s, "--drain": limits.drain_s,
    }  # fmt: skip
    for option, value in expected.items():
        assert f"| {value:,g}" in row[option], option
    paths = server.http.get("/openapi.json").json()["paths"]
    assert [path for path in paths if path.split("/{")[0] not in text] == []
