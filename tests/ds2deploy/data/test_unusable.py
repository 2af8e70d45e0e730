"""Manifests with utterances that cannot be used: `evaluate` and `inspect` name them, and go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds2deploy.data.manifest import read_usable
from ds2deploy.loading import load
from ds2deploy.training.evaluation import evaluate
from tests.ds2deploy.data.recordings import run, write_utterance


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A list with two good utterances among five."""
    names = ("a", "gone", "digits", "blank", "b")
    for name in names:
        write_utterance(tmp_path / f"{name}.wav")
    (tmp_path / "gone.wav").unlink()
    (tmp_path / "digits.txt").write_text("ROUTE 66")
    (tmp_path / "blank.txt").write_text("\n")
    manifest = tmp_path / "m.csv"
    manifest.write_text("".join(f"{name}.wav,{name}.txt\n" for name in names))
    return manifest


def test_evaluate_leaves_out_what_cannot_be_used(mixed: Path, small_onnx: Path):
    result = run("evaluate", small_onnx, mixed, "--json", code=1)
    document = json.loads(result.stdout)
    assert document["utterances"] == 2
    found = {Path(item["audio"]).stem: item["of"] for item in document["failed"]}
    assert found == {"gone": "recording", "blank": "transcript", "digits": "transcript"}
    assert len(result.stderr.splitlines()) == 3
    assert "'6'" in result.stderr
    text = run("evaluate", small_onnx, mixed, code=1).stdout
    assert "1 broken recording left out; 2 unusable transcripts left out" in text


def test_evaluate_fails_where_nothing_can_be_used(mixed: Path, small_onnx: Path):
    mixed.write_text("gone.wav,gone.txt\ndigits.wav,digits.txt\n")
    result = run("evaluate", small_onnx, mixed, code=2)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert "gone.wav" in line
    assert "none of the other 1 utterances" in line


def test_evaluate_in_python_leaves_out_the_same(mixed: Path, small_onnx: Path):
    cuts, unusable = read_usable(mixed)
    with load(small_onnx) as recognizer:
        result = evaluate(recognizer, cuts, str(mixed), unusable=unusable)
    assert (result.utterances, len(result.failed)) == (2, 3)


def test_inspect_counts_what_cannot_be_used(mixed: Path):
    result = run("inspect", mixed, "--json", code=1)
    details = json.loads(result.stdout)["details"]
    assert (details["utterances"], len(details["left_out"])) == (3, 2)
    assert len(result.stderr.splitlines()) == 2
    assert "2 unusable utterances" in run("inspect", mixed, code=1).stdout


def test_inspect_of_several_files_goes_on(mixed: Path, small_onnx: Path):
    text = mixed.with_name("a.txt")
    result = run("inspect", mixed.with_name("a.wav"), text, small_onnx, code=1)
    assert "recording" in result.stdout
    assert "ONNX artifact" in result.stdout
    (line,) = result.stderr.splitlines()
    assert str(text) in line
    result = run("inspect", mixed.with_name("a.wav"), text, "--json", code=1)
    first, second = json.loads(result.stdout)["files"]
    assert first["details"]["kind"] == "recording"
    assert second["file"] == str(text)
    assert str(text) in second["error"]
    run("inspect", text, mixed.with_name("no.wav"), code=2)
