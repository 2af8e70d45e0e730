"""`transcribe --stream` and `transcribe MODEL -`: partial results, pipes, a terminal."""

from __future__ import annotations

import fcntl
import io
import itertools
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner, Result

import ds2deploy
from ds2deploy.cli import live_display as live
from ds2deploy.cli.app import app
from ds2deploy.cli.live_display import LineDisplay
from ds2deploy.export.parity.speech import synthesize
from ds2deploy.runtimes.decoding.transcript import Span, Transcript, Update

RATE = 16_000
COMMAND = [sys.executable, "-c", "from ds2deploy.cli.app import main; main()"]
SPEECH = synthesize(RATE, 5 * RATE, seed=3)


def pcm(samples: np.ndarray = SPEECH) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


HEARD = np.frombuffer(pcm(), "<i2").astype(np.float32) / 32768
"""What 16 bits leave of it."""


@pytest.fixture(scope="module")
def text(streaming_onnx: Path) -> str:
    """What it says, all at once."""
    found = ds2deploy.load(streaming_onnx, threads=1).transcribe(HEARD, RATE).text
    assert len(found.split()) >= 3
    return found


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "speech.wav"
    soundfile.write(path, HEARD, RATE, subtype="PCM_16")
    return path


def transcribe(*arguments: Any, stdin: bytes | None = None, code: int = 0) -> Result:
    words = ["transcribe", *map(str, arguments)]
    result = CliRunner().invoke(app, words, input=stdin)
    assert result.exit_code == code, (arguments, result.output, result.exception)
    return result


def lines_of(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_raw_audio_on_standard_input(streaming_onnx: Path, text: str):
    assert transcribe(streaming_onnx, "-", stdin=pcm()).stdout == f"{text}\n"
    document = json.loads(transcribe(streaming_onnx, "-", "--json", stdin=pcm()).stdout)
    assert document["transcripts"][0]["text"] == text
    assert document["transcripts"][0]["duration"] == 5
    srt = transcribe(streaming_onnx, "-", "--format", "srt", stdin=pcm()).stdout
    assert srt.startswith("1\n00:00:0")


def test_a_model_of_whole_utterances_reads_to_the_end(digits_onnx: Path, recording: Path):
    expected = transcribe(digits_onnx, recording).stdout
    assert transcribe(digits_onnx, "-", stdin=pcm()).stdout == expected
    assert transcribe(digits_onnx, "-", stdin=recording.read_bytes()).stdout == expected


def test_the_rate_of_raw_audio(streaming_onnx: Path):
    written = pcm(HEARD[::2])
    half = np.frombuffer(written, "<i2").astype(np.float32) / 32768
    expected = ds2deploy.load(streaming_onnx).transcribe(half, 8000).text
    assert transcribe(streaming_onnx, "-", "--rate", 8000, stdin=written).stdout == f"{expected}\n"


def test_words_as_they_come_in_a_pipe(streaming_onnx: Path, recording: Path, text: str):
    assert transcribe(streaming_onnx, recording, "--stream").stdout == f"{text}\n"
    assert transcribe(streaming_onnx, "-", "--stream", stdin=pcm()).stdout == f"{text}\n"
    both = transcribe(streaming_onnx, recording, recording, "--stream").stdout
    assert both == f"{recording}\t{text}\n" * 2


@pytest.mark.parametrize(
    "options",
    [pytest.param([], id="text", marks=pytest.mark.slow), pytest.param(["--json"], id="json")],
)
def test_a_broken_recording_among_others(
    options: list[str], streaming_onnx: Path, recording: Path, tmp_path: Path, text: str
):
    """It is named, what was said in it up to there stands, and the rest goes on."""
    missing, cut = tmp_path / "missing.wav", tmp_path / "cut.flac"
    soundfile.write(cut, np.tile(HEARD, 27), RATE)  # read in blocks of a minute
    whole = cut.read_bytes()
    cut.write_bytes(whole[: 2 * len(whole) // 3])
    files = [missing, cut, recording]
    result = transcribe("--stream", *options, streaming_onnx, *files, code=1)
    complaints = result.stderr.splitlines()
    assert [str(path) in line for path, line in zip(files[:2], complaints, strict=False)] == [
        True
    ] * 2
    if options:
        ends = [line for line in lines_of(result) if line["final"]]
        assert [line["audio"] for line in ends] == list(map(str, files))
        assert ["error" in line for line in ends] == [True, True, False]
        assert ends[1]["error"] == complaints[1].removeprefix("ds2deploy: ")
        assert ends[2]["text"] == text
        words = [
            w["text"]
            for x in lines_of(result)
            if x["audio"] == str(cut)
            for w in x.get("words", [])
        ]
        assert words[:10] == text.split()[:10]  # then the sound is another
    else:
        *before, last = result.stdout.splitlines()
        assert last == f"{recording}\t{text}"
        (broken,) = before
        assert broken.split("\t")[1].split()[:10] == text.split()[:10]  # then the sound is another
    assert transcribe("--stream", streaming_onnx, missing, missing, code=2).stdout == ""


def test_a_recording_that_may_not_be_read(
    streaming_onnx: Path, recording: Path, text: str, monkeypatch: pytest.MonkeyPatch
):
    def refused(path: Path, sample_rate: int) -> Any:
        if path != recording:
            raise PermissionError(13, "Permission denied")
        yield HEARD

    monkeypatch.setattr(live, "read_blocks", refused)
    result = transcribe("--stream", streaming_onnx, "other.wav", recording, code=1)
    assert "other.wav: cannot be read (Permission denied)" in result.stderr
    assert result.stdout == f"{recording}\t{text}\n"


def test_a_live_line_that_breaks_off():
    out = io.StringIO()
    display = LineDisplay(out)
    display.abort()
    assert out.getvalue() == LineDisplay.CLEAR, "nothing was certain"
    display.update(Update("ONE", "TW", (Span("ONE", 0, 0),), ()))
    display.abort()
    assert out.getvalue().endswith(f"{LineDisplay.CLEAR}ONE\n")


def test_an_object_a_line(streaming_onnx: Path, recording: Path, text: str):
    partial = lines_of(transcribe(streaming_onnx, recording, "--stream", "--json"))
    *updates, last = partial
    assert len(updates) > 3
    assert not any(update["final"] for update in updates)
    assert any(update["tail"] for update in updates)
    words = [word for update in updates for word in update["words"]]
    assert words == last["words"][: len(words)]
    assert len(words) >= len(last["words"]) - 3  # those of the last 0.64 s come with the end
    assert last["final"]
    assert (last["text"], last["audio"], last["duration"]) == (text, str(recording), 5)
    # The checkpoint streams as well, and says the same.
    assert (
        lines_of(transcribe(streaming_onnx, recording, "--stream", "--format", "json")) == partial
    )


def test_an_object_for_each_segment_with_its_place(streaming_onnx: Path, tmp_path: Path):
    path = tmp_path / "pauses.wav"
    pause = np.zeros(2 * RATE, np.float32)
    soundfile.write(path, np.concatenate([HEARD, pause, HEARD[:RATE], pause, HEARD]), RATE)
    command = (streaming_onnx, path, "--stream", "--json", "--endpoint", "0.5")
    found = [line for line in lines_of(transcribe(*command)) if line["final"]]
    assert len(found) > 2
    for one in found:
        assert one["end"] == pytest.approx(one["start"] + one["duration"], abs=2e-3)
        for word in one["words"]:
            assert one["start"] <= word["start"] <= word["end"] <= one["end"] + 1e-9
    for one, following in itertools.pairwise(found):
        assert one["end"] <= following["start"] + 1e-9
    assert found[0]["start"] == 0
    assert found[-1]["start"] > 5
    assert found[-1]["end"] == 15
    [whole] = [x for x in lines_of(transcribe(*command[:-2])) if x["final"]]
    assert (whole["start"], whole["end"]) == (0, 15)


def test_a_model_of_whole_utterances_says_how_to_get_text(digits_onnx: Path, recording: Path):
    result = transcribe(digits_onnx, recording, "--stream", code=2)
    [line] = result.stderr.splitlines()
    assert "omit --stream" in line


def test_partial_results_are_there_before_the_end(streaming_onnx: Path, text: str):
    """A word is printed while the pipe is still open."""
    with subprocess.Popen(
        [*COMMAND, "transcribe", str(streaming_onnx), "-", "--stream", "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        process.stdin.write(pcm())
        process.stdin.flush()
        said: list[str] = []
        while len(said) < 2:
            said += [word["text"] for word in json.loads(process.stdout.readline())["words"]]
        assert text.split()[: len(said)] == said
        assert process.poll() is None
        process.stdin.close()
        rest = process.stdout.read().splitlines()
    assert json.loads(rest[-1])["text"] == text
    assert process.returncode == 0


def waits_for_audio(process: subprocess.Popen[bytes]) -> bool:
    """Check that it has read all of its standard input, and that no thread computes."""
    left = fcntl.ioctl(process.stdin, termios.FIONREAD, bytes(4))
    if int.from_bytes(left, sys.byteorder):
        return False
    tasks = list(Path(f"/proc/{process.pid}/task").iterdir())
    return all((task / "stat").read_text().rpartition(")")[2].split()[0] == "S" for task in tasks)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc here")
@pytest.mark.usefixtures("children_hear_ctrl_c")
def test_ctrl_c_ends_the_utterance(
    streaming_onnx: Path, text: str, wait_until: Callable[..., None]
):
    """It stops the recorder and the recogniser at once; what was said is not lost."""
    with subprocess.Popen(
        [*COMMAND, "transcribe", str(streaming_onnx), "-", "--stream"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        process.stdin.write(pcm())
        process.stdin.flush()
        wait_until(lambda: all(waits_for_audio(process) for _ in range(3)))
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        process.stdin.close()
    assert rest.decode() == f"{text}\n"
    assert process.returncode == 0


def test_a_live_line_on_a_terminal(streaming_onnx: Path, recording: Path, text: str):
    """Drawn again and again; when it is done, the words alone stand there."""
    reader, terminal = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "transcribe", str(streaming_onnx), str(recording), "--stream"],
        stdout=terminal,
        env={**os.environ, "COLUMNS": "200"},
    ) as process:
        os.close(terminal)
        shown = b""
        try:
            while piece := os.read(reader, 4096):
                shown += piece
        except OSError:  # the other end is closed
            pass
    os.close(reader)
    drawn = shown.decode().replace("\r\n", "\n").split(LineDisplay.CLEAR)
    assert process.returncode == 0
    assert len(drawn) > 5
    assert drawn[-1] == f"{text}\n"
    assert any(LineDisplay.DIM in state and not state.endswith("\n") for state in drawn)


def test_a_line_that_is_full_goes_on_in_the_next(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "12")
    out = io.StringIO()
    display = LineDisplay(out)
    words = tuple(Span(word, 0, 0) for word in ("ONE", "TWO", "THREE", "FOUR"))
    display.update(Update("ONE TWO", "THREEEEE", words[:2], ()))
    assert out.getvalue().endswith(f"ONE TWO {LineDisplay.DIM}THR{LineDisplay.PLAIN}")
    display.finish(Transcript("", words, (), 0, 0))
    shown = [state for state in out.getvalue().split(LineDisplay.CLEAR) if state.endswith("\n")]
    assert shown == ["ONE TWO\n", "THREE FOUR\n"]


@pytest.mark.parametrize(
    ("options", "stdin", "message"),
    [
        (["-"], b"", "standard input: 0 samples; expected speech"),
        (["-", "--stream"], b"", "standard input: 0 samples; expected speech"),
        (["-", "a.wav"], b"", "standard input cannot be combined with recordings"),
        (["a.wav", "--rate", "8000"], None, "--rate 8000: only for raw audio on standard input"),
        (["a.wav", "--stream", "--format", "srt"], None, "omit --stream"),
        (["no.wav", "--stream"], None, "no.wav: no such file"),
        (["-", "--rate", "5"], b"abcd", "a sample rate of 5 Hz"),
    ],
    ids=["empty", "empty stream", "two", "rate", "subtitles", "missing", "slow"],
)
def test_invalid_stream_options_are_refused(
    streaming_onnx: Path, options: Any, stdin: Any, message: str
):
    result = transcribe(streaming_onnx, *options, stdin=stdin, code=2)
    (line,) = result.stderr.splitlines()
    assert line.startswith("ds2deploy: ")
    assert message in line
    assert result.stdout == ""


def test_a_model_that_cannot_stream(digits_checkpoint: Path, recording: Path):
    result = transcribe(digits_checkpoint, recording, "--stream", code=2)
    assert "bidirectional" in result.stderr
    assert result.stdout == ""


def test_windows_on_the_command_line(digits_onnx: Path, recording: Path):
    """Windows of four seconds say of five what the whole says."""
    assert transcribe(digits_onnx, recording, "--window", 4).exit_code == 0
    result = transcribe(digits_onnx, recording, "--window", 1, code=2)
    assert "--window 1: expected 4 to 600 s" in result.stderr
