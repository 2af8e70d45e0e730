"""Output of commands into closed pipes, full disks, and other encodings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from ds2deploy.cli.app import app
from ds2deploy.output import escape_control
from ds2deploy.runtimes.files import json_text, manifest_line
from ds2deploy.runtimes.session import usable_cores

LATIN_1 = os.fsdecode(b"caf\xe9.wav")
FULL = Path("/dev/full")


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "a.wav"
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, 4000)
    soundfile.write(path, sound, 8000)
    return path


def shell(line: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run `ds2deploy` with arguments and a redirection, in a shell."""
    return subprocess.run(
        ["/bin/sh", "-c", f'"$0" -m ds2deploy "$@" {line}', sys.executable, *map(str, arguments)],
        capture_output=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )


CALLS = {
    "version": ("--version",),
    "help": ("--help",),
    "one": ("transcribe", "MODEL", "AUDIO"),
    "several": ("transcribe", "MODEL", "AUDIO", "AUDIO"),
    "json": ("transcribe", "MODEL", "AUDIO", "--json"),
    "inspect": ("inspect", "AUDIO"),
}


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("case", CALLS)
def test_a_full_disk_is_one_line(case: str, unbuffered: str, small_onnx: Path, recording: Path):
    if not FULL.exists():
        pytest.skip("no /dev/full")
    given = {"MODEL": small_onnx, "AUDIO": recording}
    call = [given.get(argument, argument) for argument in CALLS[case]]
    done = shell(f">{FULL}", *call, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("ds2deploy: standard output: ")


@pytest.mark.parametrize("case", CALLS)
def test_a_closed_output_is_one_line(case: str, small_onnx: Path, recording: Path):
    given = {"MODEL": small_onnx, "AUDIO": recording}
    done = shell(">&-", *[given.get(argument, argument) for argument in CALLS[case]])
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("ds2deploy: standard output: closed; ")
    assert "/dev/null" in line


def test_a_reader_that_is_gone_is_no_error(small_onnx: Path, recording: Path):
    done = shell("| true", "transcribe", small_onnx, recording, recording)
    assert done.stderr == b""


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_a_standard_error_that_is_lost_changes_nothing(
    redirection: str, small_onnx: Path, recording: Path
):
    done = shell(redirection, "transcribe", small_onnx, recording, recording.with_name("no.wav"))
    assert done.returncode == 1
    assert done.stdout.decode().startswith(f"{recording}\t")


@pytest.mark.parametrize(("call", "code"), [("", 120), ("give_up_unwritten()", 3)])
def test_a_full_standard_error_does_not_change_the_exit_code(call: str, code: int):
    program = f"""
import io, sys
from ds2deploy.output import give_up_unwritten
sys.stderr = io.TextIOWrapper(io.BufferedWriter(io.FileIO("/dev/full", "wb")))
print("lost", file=sys.stderr)
{call}
sys.exit(3)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == code


def test_a_closed_standard_input_is_named(small_onnx: Path):
    done = shell("<&-", "transcribe", small_onnx, "-")
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert "standard input: closed" in line


def test_names_that_are_not_utf8_are_printed_as_they_are(small_onnx: Path, recording: Path):
    odd = recording.rename(recording.with_name(LATIN_1))
    done = shell("", "transcribe", small_onnx, odd, odd.with_name(f"no{LATIN_1}"))
    assert done.returncode == 1
    assert done.stdout.startswith(os.fsencode(odd) + b"\t")
    assert b"nocaf\xe9.wav: no such file" in done.stderr
    done = shell("", "transcribe", small_onnx, odd, "--json")
    document = json.loads(done.stdout.decode())
    assert document["transcripts"][0]["audio"].endswith(r"caf\xe9.wav")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_encoding_that_lacks_characters(encoding: str, small_onnx: Path, recording: Path):
    other = recording.rename(recording.with_name("日.wav"))
    call = ("transcribe", small_onnx, other, other)
    done = shell("", *call, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\u65e5.wav" in done.stdout
    done = shell("", *call, "--json", PYTHONIOENCODING=encoding)
    document = json.loads(done.stdout.decode("ascii"))
    assert document["transcripts"][0]["audio"] == str(other)


def test_a_name_with_a_line_break_stays_in_its_line(small_onnx: Path, recording: Path):
    odd = recording.rename(recording.with_name("a\n\x1b[31mb.wav"))
    call = ["transcribe", str(small_onnx), str(odd), str(odd.with_name("no\n.wav"))]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 1
    (line,) = result.stdout.splitlines()
    assert line.split("\t")[0].endswith(r"a\n\x1b[31mb.wav")
    assert len(result.stderr.splitlines()) == 2  # the broken one, and the total


def test_json_of_any_name_can_be_parsed():
    text = json_text({"audio": [LATIN_1, "naïve", 'a"b\\c']})
    assert json.loads(text) == {"audio": [r"caf\xe9.wav", "naïve", 'a"b\\c']}
    text.encode()


def test_a_manifest_line_keeps_the_bytes_of_a_name():
    line = manifest_line({"audio": LATIN_1, "text": "naïve"})
    assert os.fsencode(json.loads(line.encode())["audio"]) == b"caf\xe9.wav"
    assert "naïve" in line


def test_control_characters_are_escaped():
    assert escape_control("a\nb\x1b\u2028c é") == "a\\nb\\x1b\\u2028c é"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (("transcribe",), "transcribe: missing argument"),
        (("transcribe", "m.onnx", "a.wav", "--threads", "x"), "--threads"),
        (("transcribe", "m.onnx", "a.wav", "--threads", "-1"), "--threads"),
        (("transcribe", "m.onnx", "a.wav", "--beam", "0"), "'--beam': expected at least 1;"),
        (("transcribe", "m.onnx", "--nonsense"), "--nonsense"),
        (("transcribe", "m.onnx", "-dash.wav"), "./-name"),
        (("nonsense",), "nonsense"),
        (("verify", "a", "b", "c"), "(c)"),
        (("--nonsense",), "--nonsense"),
    ],
)
def test_a_wrong_call_is_one_line_with_the_remedy(call: tuple[str, ...], words: str):
    result = CliRunner().invoke(app, list(call))
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("ds2deploy: ")
    assert words in line
    assert "--help" in line


def test_threads_are_bounded_by_the_cores(
    small_onnx: Path, recording: Path, monkeypatch: pytest.MonkeyPatch
):
    from ds2deploy.runtimes.onnx import session as onnx_session

    asked: list[int] = []
    opened = onnx_session._open
    monkeypatch.setattr(
        onnx_session, "_open", lambda *a, **k: (asked.append(a[3]), opened(*a, **k))[1]
    )
    call = ["transcribe", str(small_onnx), str(recording), "--threads"]
    result = CliRunner().invoke(app, [*call, "100000"])
    assert result.exit_code == 0
    (line,) = result.stderr.splitlines()
    assert "--threads 100000" in line
    assert f" {usable_cores()} " in line
    assert CliRunner().invoke(app, [*call, "1"]).stderr == ""
    assert asked == [usable_cores(), 1]
