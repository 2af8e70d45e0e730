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
from ds2deploy.runtimes.alphabet import ENGLISH
from ds2deploy.runtimes.decoding.config import DecoderConfig
from ds2deploy.runtimes.decoding.decoder_file import write_decoder_file
from ds2deploy.training.tuning import Trial, Tuning

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
    settings = DecoderConfig(lm=str(tmp_path / "x.lm"), beam=8)
    write_decoder_file(tmp_path / "tuned.decoder", settings, ENGLISH)
    write_decoder_file(tmp_path / "other.decoder", DecoderConfig(), "_ABC ")
    return tmp_path


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("NINE", ("NINE", 0.8)),
        ("HIGH STREET : 1.5", ("HIGH STREET", 1.5)),
        ("AT 5:30:2", ("AT 5:30", 2.0)),
        ("A:.5", ("A", 0.5)),
        ("A:", ("A:", 0.8)),
        ("ST. JOHN", ("ST. JOHN", 0.8)),
    ],
)
def test_hot_words_have_weights(tmp_path: Path, entry: str, expected: tuple[str, float]):
    path = tmp_path / "names"
    path.write_text(f"{entry}\n\nTWO:1\n")
    for given in (str(path), f"{entry}, TWO:1"):
        settings = choose_decoder(hot_words=given)
        assert isinstance(settings, DecoderConfig)
        assert settings.hot_words == dict([expected, ("TWO", 1.0)])


def test_the_weight_of_a_hot_word_changes_the_text(
    digits_checkpoint: Path, sounds: list[Path], tmp_path: Path
):
    command = ("transcribe", digits_checkpoint, *sounds[:6], "--json", "--hotwords")
    light, heavy = (texts(run(*command, f"NINE:{weight}")) for weight in (0, 9))
    assert "".join(light).count("NINE") < "".join(heavy).count("NINE")


def test_a_decoder_file_takes_other_settings_beside_it(
    digits_checkpoint: Path, sounds: list[Path], files: Path
):
    command = ("transcribe", digits_checkpoint, *sounds[:3], "--json")
    with_file = texts(run(*command, "--decoder", files / "tuned.decoder"))
    assert with_file == texts(run(*command, "--lm", files / "x.lm", "--beam", "8"))
    assert with_file != texts(run(*command, "--decoder", files / "tuned.decoder", "--beam", "1"))


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
        (["--lexicon", "{}/empty"], "/empty: empty; write one entry"),
        (["--phrases", "{}/odd"], "no label for"),
        (["--hotwords", "{}/odd"], "no label for"),
        (["--hotwords", "nofile.txt"], "nofile.txt: no such file"),
        (["--hotwords", "{}/nofile"], "nofile: no such file"),
        (["--hotwords", "NINE:500"], "weight of 'NINE' is 500; expected at least 0, less than 100"),
        (["--hotwords", "NINE:X"], "'NINE:X': no label for ':'; to set a weight, write PHRASE:"),
        (["--nbest", "3"], "--json"),
        (["--nbest", "3", "--stream"], "--json"),
        (["--stream", "--endpoint", "1e9"], "--endpoint 1e+09: expected seconds, more than 0"),
        (["--decoder", "{}/tuned.decoder", "--lm", "{}/x.lm"], "omit --lm"),
        (["--decoder", "{}/other.decoder"], "other.decoder: was tuned for the labels"),
        (["--hotwords", "A" * 1000], "1000 characters"),
        (["--hotwords", ","], "no phrase"),
        (["--lm", "{}/sentences"], "ds2deploy lm TEXT"),
        (["--lm", "{}/abc.lm"], "labels"),
        (["--decoder", "{}/x.lm"], "ds2deploy tune"),
        (["--decoder", "{}/none"], "ds2deploy tune"),
    ],
)
def test_invalid_decoding_options_are_one_line_errors(
    digits_checkpoint: Path, sounds: list[Path], files: Path, options: list[str], told: str
):
    given = [option.format(files) for option in options]
    result = run("transcribe", digits_checkpoint, sounds[0], *given, code=2)
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert told in line


def test_two_language_models_of_two_kinds(digits_checkpoint: Path, sounds: list[Path], files: Path):
    run("lm", files / "sentences", "--out", files / "letters.lm", "--characters")
    command = ("transcribe", digits_checkpoint, *sounds[:2], "--json")
    words, letters = (("--lm", files / name) for name in ("x.lm", "letters.lm"))
    both = texts(run(*command, *words, *letters))
    assert both == texts(run(*command, *letters, *words))
    assert len({tuple(both), *(tuple(texts(run(*command, *one))) for one in (words, letters))}) == 3
    quick = ("--batch", "1", "--seconds", "0.5", "--rounds", "1")
    for call in (command, ("bench", digits_checkpoint, *quick)):
        line = run(*call, *words, *words, code=2).stderr
        assert str(files / "x.lm") in line
        assert "one of words" in line


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
    assert "not significantly better than greedy" in result.stderr.splitlines()[-1]
    assert not out.exists()


@pytest.mark.parametrize("wer", [0.25, 0.35])
def test_tune_says_that_all_settings_are_equal(
    digits_checkpoint: Path,
    manifest: Path,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    wer: float,
):
    trials = (Trial(0.1, 0.0, 0.0, 0.25), Trial(0.1, 0.2, 0.0, wer))
    settings = DecoderConfig(lm_weight=0.1, character_lm_weight=0.0)
    equal = Tuning(
        settings=settings, greedy_wer=0.5, wer=0.5, gain=0.0, interval=(0.0, 0.0), utterances=9,
        tried=trials,
    )  # fmt: skip
    monkeypatch.setattr("ds2deploy.training.tuning.tune", lambda *given: equal)
    command = ("tune", digits_checkpoint, manifest, "--lm", files / "x.lm", "--out", "x.decoder")
    lines = run(*command, code=1).stdout.splitlines()
    if wer == 0.25:
        assert "all 2 settings" in lines[0]
        assert "25.00 %" in lines[0]
        assert "character_lm_weight 0" in lines[1]
        assert not any("omit it" in line for line in lines)
    else:
        assert "character_lm_weight 0" in lines[0]
        assert "character language model" in lines[1]
        assert "omit it" in lines[1]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--lm", "x.lm", "--lm", "x.lm", "--out", "x.decoder"], "one of words"),
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
