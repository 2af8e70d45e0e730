"""Options of decoding on the command line, and `ds2deploy tune`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
from typer.testing import CliRunner, Result

from ds2deploy.cli.app import app
from ds2deploy.cli.decoding import choose_decoder
from ds2deploy.export.parity.speech import synthesize

RATE = 16_000


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (arguments, result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Utterances with transcripts that the model cannot know."""
    folder = tmp_path_factory.mktemp("sounds")
    paths = [folder / f"{i:02}.wav" for i in range(24)]
    for i, path in enumerate(paths):
        soundfile.write(path, synthesize(RATE, RATE, seed=i), RATE)
        path.with_suffix(".txt").write_text("NINE ONE")
    return paths


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "words").write_text("ZERO\nONE TWO\n")
    (tmp_path / "odd").write_text("ZERO\nCAFÉ 7\n")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "sentences").write_text("ZERO ONE\nTWO ONE ZERO\n" * 5)
    run("lm", tmp_path / "sentences", "--out", tmp_path / "x.lm")
    run("lm", tmp_path / "sentences", "--out", tmp_path / "abc.lm", "--labels", "_ERNOZTW ")
    return tmp_path


def texts(result: Result) -> list[str]:
    return [found["text"] for found in json.loads(result.stdout)["transcripts"]]


def test_a_line_separator_splits_no_phrase(tmp_path: Path):
    path = tmp_path / "phrases"
    path.write_bytes("ONE\u2028TWO\r\nZERO\n".encode())
    assert choose_decoder(phrases=path).phrases == ("ONE\u2028TWO", "ZERO")
    assert list(choose_decoder(hot_words=str(path)).hot_words) == ["ONE\u2028TWO", "ZERO"]


def test_a_lexicon_and_a_closed_list_bound_the_text(
    digits_checkpoint: Path, sounds: list[Path], files: Path
):
    some = sounds[:6]
    command = ("transcribe", digits_checkpoint, *some, "--json")
    free = texts(run(*command))
    assert not {word for text in free for word in text.split()} <= {"ZERO", "ONE", "TWO"}
    known = texts(run(*command, "--lexicon", files / "words"))
    assert {word for text in known for word in text.split()} <= {"ZERO", "ONE", "TWO"}
    assert any(known)
    closed = texts(run(*command, "--phrases", files / "words"))
    assert set(closed) <= {"ZERO", "ONE TWO", ""}
    assert any(closed)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--lexicon", "{}/none"], "No such file"),
        (["--lexicon", "{}/odd"], "no label for"),
        (["--lexicon", "{}/empty"], "no line"),
        (["--phrases", "{}/odd"], "no label for"),
        (["--hotwords", "{}/odd"], "no label for"),
        (["--hotwords", "A" * 1000], "1000 characters"),
        (["--hotwords", ","], "no phrase"),
        (["--lm", "{}/sentences"], "ds2deploy lm TEXT"),
        (["--lm", "{}/abc.lm"], "labels"),
        (["--decoder", "{}/x.lm"], "ds2deploy tune"),
        (["--decoder", "{}/none"], "ds2deploy tune"),
    ],
)
def test_what_cannot_be_is_one_line(
    digits_checkpoint: Path, sounds: list[Path], files: Path, options: list[str], told: str
):
    given = [option.format(files) for option in options]
    result = run("transcribe", digits_checkpoint, sounds[0], *given, code=2)
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert told in line


@pytest.fixture
def manifest(sounds: list[Path], tmp_path: Path) -> Path:
    run("prepare", sounds[0].parent, tmp_path / "data", "--valid", "0.9")
    return tmp_path / "data" / "valid.jsonl.gz"


def test_tune_writes_nothing_that_is_not_better(
    digits_checkpoint: Path, manifest: Path, files: Path
):
    """The network hears noises: no language model makes the transcript of them."""
    out = files / "x.decoder"
    result = run(
        "tune", digits_checkpoint, manifest, "--lm", files / "x.lm", "--out", out,
        "--beam", "4", "--json", code=1,
    )  # fmt: skip
    report: dict[str, Any] = json.loads(result.stdout)
    assert report["written"] is None
    assert not report["better"]
    assert "not better than greedy" in result.stderr.splitlines()[-1]
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--lm", "x.lm", "--out", "x.json"], ".decoder"),
        (["--lm", "none.lm", "--out", "x.decoder"], "none.lm"),
        (["--lm", "abc.lm", "--out", "x.decoder"], "labels"),
    ],
)
def test_tune_refuses(
    digits_checkpoint: Path,
    manifest: Path,
    files: Path,
    options: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(files)
    result = run("tune", digits_checkpoint, manifest, *options, code=2)
    [line] = result.stderr.splitlines()
    assert told in line
