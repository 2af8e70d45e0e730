"""`prepare`: damaged entries, sets by speaker, labels, and the report."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from ds2deploy.cli.app import app
from ds2deploy.data.cuts import audio_path, speaker, transcript
from ds2deploy.data.manifest import read_manifest
from ds2deploy.data.preparation import PrepareOptions, Report, prepare
from ds2deploy.data.screening import Screening
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.errors import AudioError, ConfigError, Ds2Error, MissingFileError
from tests.conftest import write_corpus
from tests.ds2deploy.data.recordings import RATE, TEXT, record, speech, write


def damaged_manifest(folder: Path) -> tuple[Path, dict[str, str]]:
    """A manifest of deepspeech.pytorch with two good utterances, and words of each other error."""
    entries: list[tuple[str, str]] = []

    def entry(name: str, text: str | bytes | None = TEXT) -> Path:
        entries.append((f"{name}.wav", f"{name}.txt"))
        if text is not None:
            write(folder / f"{name}.txt", text)
        return folder / f"{name}.wav"

    record(entry("good"))
    entry("missing")
    write(entry("empty"), b"")
    write(entry("text file"), b"this is not a recording")
    cut_off = record(entry("cut off"))
    whole = cut_off.read_bytes()
    flac = record(folder / "x.flac").read_bytes()
    cut_off.write_bytes(flac[: len(flac) // 3])
    assert len(whole) > len(flac)
    record(entry("no transcript", None))
    record(entry("blank transcript", " \n"))
    record(entry("latin transcript", b"caf\xe9"))
    record(entry("digits", "ROUTE 66"))
    record(entry("click"), 0.005)
    record(entry("endless"), 40.0)
    record(entry("too fast", TEXT * 12))
    silent = record(entry("silence"))
    soundfile.write(silent, 0 * speech(), RATE)
    broken = record(entry("not a number"))
    soundfile.write(broken, np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    entries.append(entries[0])
    entry("folder").mkdir()
    record(entry("good too"))
    samples = [{"wav_path": audio, "transcript_path": text} for audio, text in entries]
    manifest = write(
        folder / "train.json", json.dumps({"root_path": str(folder), "samples": samples})
    )
    return manifest, {
        "missing": "no such file; copy it, or remove its entry",
        "empty": "empty file",
        "text file": "not readable audio",
        "cut off": ": damaged",
        "no transcript": "no such file; expected the transcript of",
        "blank transcript": "empty; expected the transcript of",
        "latin transcript": "not UTF-8 text",
        "digits": "no label for '6' in 'ROUTE 66'",
        "click": "too short (5 ms)",
        "endless": "40.00 s, longer than --longest 35 s",
        "too fast": "too short for its transcript",
        "silence": "silence; record it again",
        "not a number": "finite",
        "good": "; remove one entry",
        "folder": "no such file",
    }


def test_every_damaged_entry_has_its_line(tmp_path: Path):
    manifest, errors = damaged_manifest(tmp_path / "corpus")
    call = [
        "prepare", str(manifest), str(tmp_path / "out"), "--leave-out", "--read",
        "--longest", "35", "--valid", "0",
    ]  # fmt: skip
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stderr.splitlines() if "left out: " in line]
    assert len(lines) == len(errors) >= 12
    for line, (name, words) in zip(lines, errors.items(), strict=True):
        assert str(tmp_path / "corpus" / name) in line
        assert words in line
    assert f"{len(errors)} of {len(errors) + 2} utterances left out" in done.stdout
    kept = read_manifest(tmp_path / "out" / "train.jsonl.gz")
    assert sorted(Path(audio_path(cut)).stem for cut in kept) == ["good", "good too"]
    report = json.loads((tmp_path / "out" / "report.json").read_bytes())
    assert [f"left out: {error}" for error in report["left_out"]] == [
        line[line.index("left out: ") :] for line in lines
    ]
    assert report["source"] == str(manifest)


def test_without_leave_out_the_first_ends_it(tmp_path: Path):
    manifest, errors = damaged_manifest(tmp_path / "corpus")
    with pytest.raises(
        Ds2Error, match=r"missing.wav: no such file; .* \(and \d+ more of 17 utterances"
    ):
        prepare(manifest, tmp_path / "out", Alphabet(), PrepareOptions())
    assert not (tmp_path / "out").exists()
    assert errors


def test_a_corpus_without_usable_utterances_is_refused(tmp_path: Path):
    record(tmp_path / "corpus" / "a.wav", 0.005)
    write(tmp_path / "corpus" / "a.txt", TEXT)
    with pytest.raises(AudioError, match=r"too short .*\(none of 1 utterances can be used\)"):
        prepare(tmp_path / "corpus", tmp_path / "out", Alphabet(), PrepareOptions(leave_out=True))
    assert not (tmp_path / "out").exists()


def folder_of(root: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        record(root / f"{name}.wav")
        write(root / f"{name}.txt", text)
    return root


def test_characters_are_accounted_for(tmp_path: Path):
    source = folder_of(tmp_path / "corpus", {"a/1": "Caf\u00e9!", "a/2": "twenty-one", "b/1": "7"})
    options = PrepareOptions(leave_out=True, screening=Screening(normalize=True), valid_share=0)
    manifests, report = prepare(source, tmp_path / "out", Alphabet(), options)
    assert [transcript(cut) for cut in manifests["train"]] == ["CAFE", "TWENTY ONE"]
    assert [(c.character, c.became) for c in report.characters] == [
        ("!", ""), ("-", " "), ("7", None), ("\u00e9", "e"),
    ]  # fmt: skip
    (line,) = report.left_out
    assert "no label for '7' in '7'" in line


def test_labels_of_nothing(tmp_path: Path):
    record(tmp_path / "corpus" / "a.wav")
    with pytest.raises(MissingFileError, match=r"a\.txt: no such file; expected the transcript"):
        prepare(tmp_path / "corpus", tmp_path / "out", None, PrepareOptions())


def test_speakers_are_parted(tmp_path: Path):
    names = {f"{who}/{i}": TEXT for who in "abcdefgh" for i in range(3)}
    source = folder_of(tmp_path / "corpus", names)
    options = PrepareOptions(split_by="speaker", valid_share=0.3)
    manifests, report = prepare(source, tmp_path / "out", Alphabet(), options)
    sets = {name: {speaker(cut) for cut in cuts} for name, cuts in manifests.items()}
    assert sets["train"] | sets["valid"] == set("abcdefgh")
    assert not sets["train"] & sets["valid"]
    assert 1 <= len(sets["valid"]) <= 6
    assert [made.speakers for made in report.sets] == [len(sets["train"]), len(sets["valid"])]
    # Nobody moves when somebody comes.
    folder_of(source, {"zz/0": TEXT})
    later, _ = prepare(source, tmp_path / "later", Alphabet(), options)
    moved = {speaker(cut) for cut in later["valid"]} ^ sets["valid"]
    assert moved <= {"zz"}


def test_a_single_speaker_cannot_be_parted(tmp_path: Path):
    source = folder_of(tmp_path / "corpus", {"a/1": TEXT, "a/2": TEXT})
    with pytest.raises(ConfigError, match="has only one speaker, 'a'"):
        prepare(source, tmp_path / "out", Alphabet(), PrepareOptions(split_by="speaker"))


def test_labels_are_found(tmp_path: Path):
    texts = {
        "a/1": "\u043f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440",
        "a/2": "\u0434\u0430",
    }
    source = folder_of(tmp_path / "corpus", texts)
    done = CliRunner().invoke(
        app, ["prepare", str(source), str(tmp_path / "out"), "--labels", "auto"]
    )
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "report.json").read_bytes())
    assert report["labels"] == "_\u0410\u0412\u0414\u0415\u0418\u041c\u041f\u0420\u0422 "
    assert f"labels = {report['labels']!r}" in done.stdout


def test_the_report_can_be_read_again(tmp_path: Path):
    source = folder_of(tmp_path / "corpus", {"a/1": TEXT, "b/2": TEXT})
    _, report = prepare(source, tmp_path / "out", Alphabet(), PrepareOptions())
    written = (tmp_path / "out" / "report.json").read_bytes()
    assert msgspec.json.decode(written, type=Report) == report
    again, _ = prepare(source, tmp_path / "out", Alphabet(), PrepareOptions())
    assert (tmp_path / "out" / "report.json").read_bytes() == written
    assert again


def test_sets_of_an_earlier_preparation_do_not_stay(tmp_path: Path):
    """Its validation set would share utterances with the new training set."""
    source, out = write_corpus(tmp_path / "in", 30, seed=1), tmp_path / "out"
    alphabet = Alphabet("_ABCD ")
    prepare(source, out, alphabet, PrepareOptions(valid_share=0.3))
    assert (out / "valid.jsonl.gz").exists()
    mine = out / "test.jsonl.gz"  # which no preparation has written
    mine.write_bytes(b"kept")
    manifests, _ = prepare(source, out, alphabet, PrepareOptions(valid_share=0.0))
    assert list(manifests) == ["train"]
    assert not (out / "valid.jsonl.gz").exists()
    assert mine.read_bytes() == b"kept"


def test_a_folder_without_a_validation_set_says_so(tmp_path: Path):
    write_corpus(tmp_path / "in", 1, seed=1)
    words = ["prepare", str(tmp_path / "in"), str(tmp_path / "out"), "--labels", "_ABCD "]
    result = CliRunner().invoke(app, [*words, "--valid", "0.01"])
    assert result.exit_code == 0
    assert "--valid" in result.stderr
