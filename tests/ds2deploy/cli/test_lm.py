"""`ds2deploy lm`, and `inspect` of what it makes."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ds2deploy.cli.app import app
from ds2deploy.runtimes.decoding.language_model import read_language_model
from ds2deploy.runtimes.files import file_sha256
from tests.ds2deploy.language_models.models import LICENSE, SMALL, arpa_text, ngrams_of


def run(*arguments: str | Path, code: int = 0, stdin: bytes | None = None) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    assert result.exit_code == code, (arguments, result.output, result.exception)
    return result


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(SMALL + "ROUTE 66\nété,\n")
    return path


def test_a_report_for_a_person(text: Path, tmp_path: Path):
    result = run("lm", text, "--out", tmp_path / "x.lm", "--order", "2")
    lines = result.stdout.splitlines()
    assert lines[0] == "4 sentences, 15 words"
    assert "'é'  2 times: e" in lines
    assert "','  1 times: dropped" in lines
    assert "'6'  2 times: no label" in lines
    assert lines[-1].startswith(f"{tmp_path / 'x.lm'}  0.0 MB, words, 10 1-grams, ")
    assert result.stderr.splitlines() == [
        "ds2deploy: 1 line left out because of characters without a label; first: "
        f"{text}: line 4: no label for '6'"
    ]


def test_a_report_for_a_program(text: Path, tmp_path: Path):
    out = tmp_path / "new" / "x.lm"
    report = json.loads(run("lm", text, LICENSE, "--out", out, "--characters", "--json").stdout)
    assert report["size"] == out.stat().st_size
    assert len(report["header"]["counts"]) == 6
    assert report["header"]["kind"] == "characters"
    assert report["header"]["sources"] == [
        {"name": path.name, "sha256": file_sha256(path)} for path in (text, LICENSE)
    ]
    assert report["text"]["left_out"] == 15
    model = read_language_model(out)
    assert "<space>" in model.words


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("kind", ["text", "arpa"])
def test_text_and_arpa_by_content_from_files_and_pipes(tmp_path: Path, kind: str, pack: Any):
    content = SMALL if kind == "text" else arpa_text(ngrams_of(SMALL, 4))
    path = tmp_path / "anything"
    path.write_bytes(pack(content.encode()))
    reports = [
        json.loads(run("lm", source, "--out", tmp_path / "x.lm", "--json", stdin=stdin).stdout)
        for source, stdin in ((path, None), ("-", path.read_bytes()))
    ]
    assert reports[0]["header"]["counts"] == reports[1]["header"]["counts"] == [9, 13, 13, 11]
    assert (reports[0]["text"] is None) == (kind == "arpa")
    digests = {report["header"]["sources"][0]["sha256"] for report in reports}
    assert digests == {file_sha256(path)}
    assert reports[1]["header"]["sources"][0]["name"] == "standard input"


def test_labels_of_a_model_of_a_language_model_and_in_letters(tmp_path: Path, small_onnx: Path):
    text = tmp_path / "text.txt"
    text.write_text("ab ba\nabba")
    first, second = tmp_path / "1.lm", tmp_path / "2.lm"
    run("lm", text, "--out", first, "--labels", "_ab ")
    run("lm", text, "--out", second, "--labels", first)
    assert read_language_model(second).header.labels == "_ab "
    run("lm", text, "--out", second, "--labels", small_onnx)
    assert "ABBA" in read_language_model(second).words
    run("lm", text, "--out", second, "--labels", "no.onnx", code=2)


def test_inspect_describes_a_language_model(text: Path, tmp_path: Path):
    out = tmp_path / "x.lm"
    run("lm", text, "--out", out, "--order", "3", "--prune", "0,0,1")
    lines = run("inspect", out).stdout
    assert "language model of words, order 3" in lines
    assert "pruned 0,0,1" in lines
    facts = json.loads(run("inspect", out, "--json").stdout)["details"]
    assert facts["kind"] == "language model"
    assert facts["labels"].startswith("_'ABC")
    assert facts["sources"][0]["sha256"] == file_sha256(text)
    out.write_bytes(out.read_bytes()[:-1])
    assert str(out) in run("inspect", out, code=2).stderr


BAD = [
    (("no.txt",), "no.txt"),
    ((".",), "."),
    (("text.txt", "--order", "0"), "--order"),
    (("text.txt", "--order", "99"), "--order"),
    (("text.txt", "--prune", "1"), "--prune"),
    (("text.txt", "--prune", "0,2,1"), "--prune"),
    (("text.txt", "--prune", "0,x"), "--prune"),
    (("text.txt", "--prune", "0,0,0,0,1"), "--prune"),
    (("text.txt", "--labels", "_AA "), "occurs more than once"),
    (("text.txt", "--labels", "_A"), "--characters"),
    (("text.txt", "--labels", "_кот "), "--labels"),
    (("empty.txt",), "empty.txt"),
    (("binary",), "binary"),
    (("half.gz",), "half.gz"),
    (("damaged.arpa",), "line 8"),
    (("damaged.arpa", "text.txt"), "alone"),
]


@pytest.mark.parametrize(("arguments", "named"), BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, named: str
):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").touch()
    Path("binary").write_bytes(bytes(99))
    Path("half.gz").write_bytes(gzip.compress(os.urandom(9999))[:5000])
    Path("damaged.arpa").write_text(arpa_text(ngrams_of(SMALL, 2)).replace("\t<unk>", "x\t<unk>"))
    before = sorted(tmp_path.rglob("*"))
    result = run("lm", *arguments, "--out", "new/x.lm", code=2)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert named in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_another_suffix_is_refused_so_that_no_text_is_overwritten(text: Path):
    assert ".lm" in run("lm", text, "--out", text, code=2).stderr


def test_nothing_heavy_is_loaded(text: Path, tmp_path: Path):
    code = f"""
import sys
from ds2deploy.cli.app import main
sys.argv = ["ds2deploy", "lm", {str(text)!r}, "--out", {str(tmp_path / "x.lm")!r}]
try:
    main()
except SystemExit:
    print(*{{"torch", "lightning", "lhotse", "onnx", "onnxruntime", "scipy"}} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
