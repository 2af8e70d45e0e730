"""Lists of corpora with odd characters and damaged rows: every text belongs to its recording."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from lhotse import recipes

from ds2deploy.data.corpora.registry import LAYOUTS
from ds2deploy.data.corpora.transcript_list import split_of
from ds2deploy.data.cuts import audio_path, transcript
from ds2deploy.data.preparation import PrepareOptions, Report, prepare
from ds2deploy.data.screening import Screening
from ds2deploy.runtimes.alphabet import Alphabet
from tests.ds2deploy.data.corpora.trees import LISTED, TREES, commonvoice, find_tree, ljspeech
from tests.ds2deploy.data.recordings import record, run, write

NO_LINE_ENDS = "\v\f\x1c\x1d\x1e\x85\u2028\u2029"
"""Characters at which `str.splitlines` splits, and that end no line of a list."""

LONG = "A" * 200_000
"""More than the csv module reads as one field."""


def texts_of(source: Path, layout: str) -> tuple[dict[str, str], Report]:
    """Transcripts of a corpus by their recordings, and the report."""
    options = PrepareOptions(layout=layout, leave_out=True, screening=Screening(normalize=True))
    manifests, report = prepare(source, source.parent / "out", Alphabet(), options)
    cuts = [cut for manifest in manifests.values() for cut in manifest]
    return {f"{audio_path(cut)}@{cut.start:g}": transcript(cut) for cut in cuts}, report


def replace_row(source: Path, layout: str, text: str, end: str = "\n") -> str:
    """Give a recording of a corpus another transcript; returns what errors call the row."""
    tree = TREES[layout]
    path = source / tree.list
    lines = path.read_text().split("\n")
    lines[tree.number] = tree.row.format(text=text)
    write(path, end.join(lines))
    return f"{path}: line {tree.number + 1}"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CR LF", "CR"])
@pytest.mark.parametrize("layout", LISTED)
def test_characters_that_end_no_line_stay_in_their_transcript(
    layout: str, end: str, tmp_path: Path
):
    source = TREES[layout].make(tmp_path / "corpus")
    replace_row(source, layout, "MANY AND MORE", end)
    expected, report = texts_of(source, layout)
    assert "MANY AND MORE" in expected.values()
    assert report.left_out == []
    for character in NO_LINE_ENDS:
        replace_row(source, layout, f"MANY{character}AND MORE")
        assert texts_of(source, layout)[0] == expected, ascii(character)


@pytest.mark.parametrize("layout", LISTED)
def test_a_line_end_that_is_no_label_rejects_its_own_row_alone(layout: str, tmp_path: Path):
    source = TREES[layout].make(tmp_path / "corpus")
    before, _ = texts_of(source, layout)
    replace_row(source, layout, "MANY\u202899 MORE")
    after, report = texts_of(source, layout)
    (line,) = report.left_out
    assert "'9'" in line
    (lost,) = before.keys() - after.keys()
    assert line.startswith(f"{lost.partition('@')[0]}: ")
    assert after.items() < before.items()


@pytest.mark.parametrize("column", ["path", "sentence"])
def test_a_field_that_is_too_long_rejects_its_row_alone(column: str, tmp_path: Path):
    source = commonvoice(tmp_path / "corpus")
    before, _ = texts_of(source, "commonvoice")
    fields = {"client_id": "a" * 8, "path": "common_voice_en_traina0.mp3", "sentence": "ONE"}
    rows = (source / "train.tsv").read_text().split("\n")
    rows[1] = "\t".join((*(fields | {column: LONG}).values(), "2"))
    write(source / "train.tsv", "\n".join(rows))
    after, report = texts_of(source, "commonvoice")
    (line,) = report.left_out
    assert line.startswith(f"{source / 'train.tsv'}: line 2: ")
    assert len(line) < 500
    assert after.items() < before.items()
    assert len(after) == len(before) - 1


def test_a_transcript_that_is_too_long_is_not_written_out(tmp_path: Path):
    source = TREES["librispeech"].make(tmp_path / "corpus")
    replace_row(source, "librispeech", f"9{LONG}")
    (line,) = texts_of(source, "librispeech")[1].left_out
    assert "19-198-0000.flac: " in line
    assert len(line) < 1000


@pytest.mark.parametrize("row", ["me\tclip.mp3\tONE", "me\tclip.mp3\tONE\tTWO\t2"])
def test_a_row_with_other_columns_than_the_header_is_named(row: str, tmp_path: Path):
    """A tab or a line break inside a sentence would cut it."""
    source = commonvoice(tmp_path / "corpus")
    before, _ = texts_of(source, "commonvoice")
    write(source / "train.tsv", (source / "train.tsv").read_text() + row)
    result = run(
        "prepare", source, tmp_path / "out", "--layout", "commonvoice", "--normalize", code=2
    )
    assert f"{source / 'train.tsv'}: line 6: " in result.stderr
    after, report = texts_of(source, "commonvoice")
    assert after == before
    assert len(report.left_out) == 1


def test_a_table_with_another_header_is_named_and_the_rest_is_used(tmp_path: Path):
    source = commonvoice(tmp_path / "corpus")
    wrong = write(source / "dev.tsv", "speaker,file,text\na,b,c\n")
    result = run(
        "prepare", source, tmp_path / "out", "--layout", "commonvoice", "--normalize", code=2
    )
    assert f"{wrong}: expected the columns client_id, path, sentence" in result.stderr
    after, report = texts_of(source, "commonvoice")
    assert [line.partition(": ")[0] for line in report.left_out] == [str(wrong)]
    assert len(after) == 6


@pytest.mark.parametrize("damaged", ["an4_train.fileids", "an4_train.transcription"])
def test_half_a_set_of_an4_is_named_and_the_other_set_is_used(damaged: str, tmp_path: Path):
    source = TREES["an4"].make(tmp_path / "corpus")
    path = source / "etc" / damaged
    write(path, path.read_text().partition("\n")[0] + "\n")
    after, report = texts_of(source, "an4")
    (line,) = report.left_out
    assert "an4_train.transcription: " in line
    assert len(after) == 2


def test_tables_with_headers_alone_say_what_the_layout_expects(tmp_path: Path):
    source = commonvoice(tmp_path / "corpus")
    for name in ("train.tsv", "dev.tsv", "test.tsv"):
        write(source / name, "client_id\tpath\tsentence\tup_votes\n")
    result = run("prepare", source, tmp_path / "out", "--layout", "commonvoice", code=2)
    assert LAYOUTS["commonvoice"].expected in result.stderr
    assert ".txt" not in result.stderr


@pytest.mark.parametrize("layout", ["commonvoice", "folder"])
def test_a_validation_set_that_stays_empty_is_told(layout: str, tmp_path: Path):
    source = TREES[layout].make(tmp_path / "corpus")
    if layout == "folder":
        shutil.rmtree(source / "ben")
        shutil.rmtree(source / "cleo")
    else:
        (source / "dev.tsv").unlink()
        rows = (source / "train.tsv").read_text().split("\n")
        write(source / "train.tsv", "\n".join(rows[:2]))
    call = ("prepare", source, tmp_path / "out", "--layout", layout, "--normalize")
    assert "--valid 0.1" in run(*call).stderr
    assert run(*call, "--valid", 0).stderr == ""


def test_a_set_to_test_with_needs_no_validation_set(tmp_path: Path):
    source = TREES["librispeech"].make(tmp_path / "corpus") / "test-clean"
    assert run("prepare", source, tmp_path / "out", "--layout", "librispeech").stderr == ""


WITH_TRANSCRIPTS = [layout for layout in LAYOUTS if layout != "fsdd"]
"""Layouts whose transcripts are not the names of their recordings."""


@pytest.mark.parametrize("layout", WITH_TRANSCRIPTS)
def test_a_recording_without_a_transcript_is_named_or_may_be_there(layout: str, tmp_path: Path):
    tree = find_tree(layout)
    assert bool(tree.unlisted) != bool(tree.ignored), (
        f"--layout {layout}: its row of TREES needs `unlisted`, or `ignored`, a recording without "
        "a transcript"
    )
    source = tree.make(tmp_path / "corpus")
    before, _ = texts_of(source, layout)
    for name in filter(None, (*tree.unlisted, tree.ignored)):
        record(source / name, **({"format": "NIST"} if name.endswith(".sph") else {}))
    after, report = texts_of(source, layout)
    assert after == before
    assert len(report.left_out) == len(tree.unlisted)
    for name in tree.unlisted:
        assert any(str(source / name) in line for line in report.left_out)


def test_a_recording_in_two_formats_has_its_line(tmp_path: Path):
    source = TREES["voxforge"].make(tmp_path / "corpus")
    record(source / "anna-1" / "flac" / "a01.flac")
    assert texts_of(source, "voxforge")[1].left_out == []


@pytest.mark.parametrize(
    ("names", "split"),
    [
        ("train-clean-100 train_L Train training main1_train 92_clean_train trn", "train"),
        ("dev-clean dev DEV val valid validation devtest cv/dev_oov", "valid"),
        ("test-other TEST test1 eval eval2000 evaltest tst-COMMON cw_test dev_test", "test"),
        ("test/room/single_channel en/test test_dev93", "test"),
        ("XL core noncore other validated invalidated mine latest devices", None),
    ],
)
def test_the_words_of_a_name_tell_the_set(names: str, split: str | None):
    for name in names.split():
        assert split_of(name) == split, name


@pytest.mark.parametrize("layout", ["librispeech", "tedlium"])
def test_a_part_whose_name_tells_no_set_is_told(layout: str, tmp_path: Path):
    source = TREES[layout].make(tmp_path / "corpus")
    known = source / TREES[layout].list.partition("/stm")[0].partition("/19")[0]
    known.rename(known.with_name("mine"))
    call = ("prepare", source, tmp_path / "out", "--layout", layout, "--normalize")
    (line,) = run(*call).stderr.splitlines()
    assert "'mine'" in line
    _, report = texts_of(source, layout)
    count = {"librispeech": 8, "tedlium": 2}[layout]
    assert report.unknown_parts == {"mine": count}
    assert sum(made.utterances for made in report.sets if "train" in made.manifest) == count
    (source / "mine" if layout == "librispeech" else known.with_name("mine")).rename(known)
    assert run(*call).stderr == ""


def test_sets_of_a_recipe_of_lhotse_by_all_their_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The innermost key may name microphones, and some recipes write in capitals."""

    def recipe(folder: Path) -> dict[str, Any]:
        made = [ljspeech(folder / name) for name in "abcd"]
        dev, test, large, train = map(recipes.prepare_ljspeech, made)
        return {"DEV": dev, "test": {"near": {"one": test}}, "XL": large, "train": train}

    monkeypatch.setattr(recipes, "prepare_made_up", recipe, raising=False)
    source = tmp_path / "corpus"
    source.mkdir()
    _, report = texts_of(source, "lhotse:made_up")
    found = {Path(made.manifest).name.partition(".")[0]: made.utterances for made in report.sets}
    assert found == {"train": 6, "valid": 3, "test": 3}
    assert report.unknown_parts == {"XL": 3}
