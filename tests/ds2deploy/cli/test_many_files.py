"""`transcribe` and `evaluate` on many files, of which some are broken."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner, Result

import ds2deploy
from ds2deploy.cli import transcribe as command
from ds2deploy.cli.app import app
from ds2deploy.data.preparation import PrepareOptions, prepare
from ds2deploy.runtimes.alphabet import Alphabet

RATE = 8000
PATIENCE_S = 600
"""No machine needs as long."""
ENGLISH = Alphabet("_'ABCDEFGHIJKLMNOPQRSTUVWXYZ ")


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def good(tmp_path: Path) -> list[Path]:
    """Six recordings, with what is said beside each; the longest first."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    paths = [folder / f"{i}.wav" for i in range(6)]
    for i, path in enumerate(paths):
        random = np.random.default_rng(i)
        soundfile.write(path, random.uniform(-0.3, 0.3, RATE * (7 - i) // 4), RATE)
        path.with_suffix(".txt").write_text("ONE TWO")
    return paths


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.wav"
    path.write_text("one two three")
    return path


@pytest.fixture
def manifest(good: list[Path], tmp_path: Path) -> Path:
    prepare(good[0].parent, tmp_path / "data", Alphabet(), PrepareOptions(valid_share=0.0))
    return tmp_path / "data" / "train.jsonl.gz"


def test_transcribe_prints_in_the_order_of_the_input(small_onnx: Path, good: list[Path]):
    with ds2deploy.load(small_onnx) as recognizer:
        texts = [recognizer.transcribe(path).text for path in good]
    assert len(set(texts)) > 1
    result = run("transcribe", small_onnx, *good)
    lines = [f"{path}\t{text}" for path, text in zip(good, texts, strict=True)]
    assert (result.exit_code, result.stdout.splitlines()) == (0, lines)
    assert result.stderr == ""


def test_transcribe_leaves_out_what_is_broken(small_onnx: Path, good: list[Path], broken: Path):
    missing = broken.with_name("missing.wav")
    result = run("transcribe", small_onnx, *good[:2], broken, missing, *good[2:])
    assert result.exit_code == 1
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == list(map(str, good))
    unreadable, lost, total = result.stderr.splitlines()
    assert unreadable.startswith(f"ds2deploy: {broken}: damaged, or not audio ")
    assert lost == f"ds2deploy: {missing}: no such file; expected an audio file"
    assert "6 of 8 recordings" in total


def test_transcribe_tells_a_program_what_is_broken(
    small_onnx: Path, good: list[Path], broken: Path
):
    result = run("transcribe", small_onnx, broken, *good, "--json")
    assert result.exit_code == 1
    bad, *others = json.loads(result.stdout)["transcripts"]
    assert bad == {"audio": str(broken), "error": result.stderr.splitlines()[0].split(": ", 1)[1]}
    assert [item["audio"] for item in others] == list(map(str, good))
    assert all("text" in item and "error" not in item for item in others)


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_transcribe_fails_where_all_are_broken(options, small_onnx: Path, broken: Path):
    result = run("transcribe", small_onnx, broken, broken.with_name("missing.wav"), *options)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 3
    if not options:
        assert result.stdout == ""


def test_texts_are_printed_before_the_last_is_done(
    small_onnx: Path, good: list[Path], monkeypatch: pytest.MonkeyPatch
):
    """As early as the order allows: a program behind a pipe need not wait for the end."""
    monkeypatch.setattr("ds2deploy.runtimes.whole_utterances.WINDOW_S", 1.0)
    events: list[str] = []
    show = command.print_line
    monkeypatch.setattr(command, "print_line", lambda line: (events.append("text"), show(line)))
    from ds2deploy.runtimes.onnx.session import OnnxSession

    compute = OnnxSession.compute
    monkeypatch.setattr(
        OnnxSession, "compute", lambda *a: (events.append("network"), compute(*a))[1]
    )
    assert run("transcribe", small_onnx, *good).exit_code == 0
    assert events.index("text") < len(events) - 1 - events[::-1].index("network")


def test_evaluate_leaves_out_what_is_broken(small_onnx: Path, good: list[Path], manifest: Path):
    whole = json.loads(run("evaluate", small_onnx, manifest, "--json").stdout)
    assert (whole["utterances"], whole["failed"]) == (6, [])
    good[2].write_bytes(good[2].read_bytes()[:-900])
    result = run("evaluate", small_onnx, manifest, "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    (failed,) = document["failed"]
    assert failed["audio"] == str(good[2])
    assert "truncated" in failed["error"]
    assert result.stderr == f"ds2deploy: {failed['error']}\n"
    assert document["utterances"] == 5
    assert document["errors"]["words"] == 10
    assert document["audio_s"] == pytest.approx(whole["audio_s"] - 5 / 4)
    expected = [item for item in whole["hypotheses"] if item["audio"] != str(good[2])]
    assert document["hypotheses"] == expected
    assert document["compute_s"] > 0
    assert document["elapsed_s"] > 0
    text = run("evaluate", small_onnx, manifest)
    assert text.exit_code == 1
    assert "5 utterances" in text.stdout
    assert "1 broken recording left out" in text.stdout


def test_evaluate_fails_where_all_are_broken(small_onnx: Path, good: list[Path], manifest: Path):
    for path in good:
        path.write_bytes(path.read_bytes()[:-900])
    result = run("evaluate", small_onnx, manifest)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "truncated" in result.stderr
    assert "none of the other 5 utterances" in result.stderr


def test_a_log_is_told_now_and_then(
    small_onnx: Path, good: list[Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ds2deploy.heartbeat.SILENCE_S", 0.0)
    monkeypatch.setattr("ds2deploy.heartbeat.MOST_LINES", float("inf"))
    lines = run("transcribe", small_onnx, *good).stderr.splitlines()
    pattern = r"transcribing: 6 of 6 files, 7 s of audio, [\d.e+]+x"
    assert re.match(pattern, lines[-1])


def on_a_terminal(*arguments: object, both: bool) -> tuple[int, str, str]:
    """The exit code, what the terminal of stderr got without its codes, and stdout if a pipe."""
    import pty

    reader, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "ds2deploy", *map(str, arguments)],
        stdout=terminal if both else subprocess.PIPE, stderr=terminal, text=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "300"},
    ) as process:  # fmt: skip
        os.close(terminal)
        shown = b""
        try:
            while chunk := os.read(reader, 65536):
                shown += chunk
        except OSError:  # a terminal that nobody writes to any more
            pass
        finally:
            os.close(reader)
        out = process.stdout.read() if process.stdout else ""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    return process.returncode, plain, out


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("both", [False, True], ids=["stdout is a pipe", "both a terminal"])
def test_a_bar_on_a_terminal(both: bool, small_onnx: Path, good: list[Path], broken: Path):
    """Files, seconds and speed; texts and errors stand in lines of their own, above it."""
    code, shown, out = on_a_terminal("transcribe", small_onnx, *good, broken, both=both)
    assert code == 1
    assert "7/7 files" in shown
    assert re.search(r"7 s of audio, \S+x", shown)
    lines = re.split(r"[\r\n]+", shown)
    assert sum(line.startswith(f"ds2deploy: {broken}: damaged") for line in lines) == 1
    texts = lines if both else out.splitlines()
    for path in good:
        assert sum(line.startswith(str(path)) for line in texts) == 1
    if not both:
        assert len(texts) == len(good)
        assert str(good[0]) not in shown


@pytest.mark.usefixtures("children_hear_ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_it_is_told_to(number: signal.Signals, small_onnx: Path, good: list[Path]):
    """Among thousands of files: at once, and without a word of threads."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ds2deploy", "transcribe", small_onnx, *good * 1000],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(number)
    rest, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert len(rest.splitlines()) < 1000 * len(good) / 2  # far from its end
    assert "Traceback" not in stderr
    assert "Thread" not in stderr
