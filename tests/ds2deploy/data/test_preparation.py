"""`prepare`: public corpora, damaged entries, sets by speaker, and the report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from ds2deploy.cli.app import app
from ds2deploy.data.manifest import audio_path, read_audio, read_manifest, speaker, transcript
from ds2deploy.data.preparation import PrepareOptions, Report, prepare
from ds2deploy.data.screening import Screening
from ds2deploy.model.load import load_checkpoint
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.errors import (
    AudioError,
    ConfigError,
    Ds2Error,
    ManifestError,
    MissingFileError,
)
from tests.conftest import write_corpus

RATE = 16_000
TEXT = "CHAPTER ONE"


def speech(seconds: float = 1.5, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (0.1 * random.standard_normal(int(RATE * seconds))).astype(np.float32)


def record(path: Path, seconds: float = 1.5, seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, speech(seconds, seed), RATE, **options)
    return path


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# Corpora: a tiny tree of each layout -------------------------------------------------------------


def librispeech(root: Path) -> Path:
    """Two readers to train on, one each to validate and to test with."""
    parts = (("train-clean-100", (19, 26)), ("dev-clean", (84,)), ("test-clean", (61,)))
    for part, readers in parts:
        for reader in readers:
            folder = root / part / str(reader) / "198"
            names = [f"{reader}-198-{i:04}" for i in range(4)]
            for i, name in enumerate(names):
                record(folder / f"{name}.flac", 1.5 + 0.1 * i, seed=reader + i)
            lines = "".join(
                f"{name} {TEXT} {'AND' if i else 'OR'}\n" for i, name in enumerate(names)
            )
            write(folder / f"{reader}-198.trans.txt", lines)
    return root


def commonvoice(root: Path) -> Path:
    columns = "client_id\tpath\tsentence\tup_votes\n"
    for part, clients in (("train", "ab"), ("dev", "c"), ("test", "d")):
        rows = ""
        for client in clients:
            for i in range(2):
                name = f"common_voice_en_{part}{client}{i}.mp3"
                record(root / "clips" / name, seed=i)
                rows += f'{client * 8}\t{name}\t"Hello, {part}\t2\n'
        write(root / f"{part}.tsv", columns + rows)
    return root


def tedlium(root: Path) -> Path:
    for part in ("train", "dev", "test"):
        folder = root / "legacy" / part
        talk = f"Speaker{part}_2010"
        record(folder / "sph" / f"{talk}.sph", 6.0, format="NIST")
        lines = [
            f"{talk} 1 {talk} 0.00 1.00 <NA> ignore_time_segment_in_scoring",
            f"{talk} 1 {talk} 1.00 2.50 <o,f0,male> it 's the <unk> first(2)",
            f"{talk} 1 {talk} 2.50 4.75 <o,f0,male> and {{NOISE}} the second",
        ]
        write(folder / "stm" / f"{talk}.stm", "\n".join(lines) + "\n")
    return root


def tedlium_as_shipped(root: Path) -> Path:
    """Release 3: the training talks of `legacy` are those of `data`, by links."""
    tedlium(root)
    (root / "data").mkdir()
    for kind in ("stm", "sph"):
        (root / "legacy" / "train" / kind).rename(root / "data" / kind)
        (root / "legacy" / "train" / kind).symlink_to(root / "data" / kind)
    return root


def voxforge(root: Path) -> Path:
    for visit, kind in (("anna-1", "wav"), ("ben-1", "flac"), ("anonymous-7", "wav")):
        for name in ("a01", "a02"):
            record(root / visit / kind / f"{name}.{kind}", seed=len(visit))
        prompts = f"{visit}/mfc/a01 SOME WORDS\n{visit}/mfc/a02 OTHER WORDS\n"
        write(root / visit / "etc" / "PROMPTS", prompts)
    return root


def an4(root: Path) -> Path:
    for part, speakers in (("train", ("fash", "mblw")), ("test", ("fcaw",))):
        ids, lines = "", ""
        for name in speakers:
            for i in (1, 2):
                utterance = f"an{i}-{name}-b"
                record(root / "wav" / f"an4_clstk/{name}/{utterance}.wav")
                ids += f"an4_clstk/{name}/{utterance}\n"
                lines += f"<s> RUBOUT G M </s> ({utterance})\n"
        write(root / "etc" / f"an4_{part}.fileids", ids)
        write(root / "etc" / f"an4_{part}.transcription", lines)
    return root


def ljspeech(root: Path) -> Path:
    rows = ""
    for i in range(3):
        record(root / "wavs" / f"LJ001-000{i}.wav")
        rows += f"LJ001-000{i}|Some words.|Some words\n"
    write(root / "metadata.csv", rows)
    return root


CORPORA: dict[str, tuple[Callable[[Path], Path], dict[str, int], str, set[str]]] = {
    "librispeech": (librispeech, {"train": 8, "valid": 4, "test": 4}, f"{TEXT} AND", {"19", "26"}),
    "commonvoice": (
        commonvoice, {"train": 4, "valid": 2, "test": 2}, "HELLO TRAIN", {"a" * 8, "b" * 8},
    ),
    "tedlium": (
        tedlium, {"train": 2, "valid": 2, "test": 2}, "IT'S THE FIRST", {"Speakertrain_2010"},
    ),
    "voxforge": (
        voxforge, {"train": 4, "valid": 2}, "SOME WORDS", {"anna", "ben", "anonymous-7"},
    ),
    "an4": (an4, {"train": 2, "valid": 2, "test": 2}, "RUBOUT G M", {"fash", "mblw"}),
    "lhotse:ljspeech": (ljspeech, {"train": 3}, "SOME WORDS", set()),
}  # fmt: skip


@pytest.mark.parametrize("layout", CORPORA)
def test_a_corpus(layout: str, tmp_path: Path):
    make, counts, text, speakers = CORPORA[layout]
    source = make(tmp_path / "corpus")
    choices = PrepareOptions(
        layout=layout,
        split_by="speaker",
        valid_share=0.1 if speakers else 0.0,
        screening=Screening(normalize=True, read=True),
    )
    manifests, report = prepare(source, tmp_path / "out", Alphabet(), choices)
    assert {name: len(cuts) for name, cuts in manifests.items()} == counts
    assert report.listed == sum(counts.values())
    assert report.left_out == []
    everything = [
        cut for name in manifests for cut in read_manifest(tmp_path / "out" / f"{name}.jsonl.gz")
    ]
    assert text in {transcript(cut) for cut in everything}
    if speakers:
        trained = {speaker(cut) for cut in manifests["train"]}
        assert trained <= speakers
        assert not trained & {speaker(cut) for cut in manifests["valid"]}
    for cut in everything:
        assert len(read_audio(cut, RATE)) == pytest.approx(RATE * cut.duration, abs=RATE * 0.1)
        assert cut.custom == {"source": str(source)}


def test_a_part_of_a_talk_is_that_part(tmp_path: Path):
    manifests, _ = prepare(
        tedlium(tmp_path / "corpus"), tmp_path / "out", Alphabet(),
        PrepareOptions(layout="tedlium", screening=Screening(normalize=True)),
    )  # fmt: skip
    cut = next(iter(manifests["train"]))
    whole, _ = soundfile.read(audio_path(cut), dtype="float32")
    np.testing.assert_allclose(read_audio(cut, RATE), whole[RATE : RATE * 5 // 2], atol=1e-6)


def test_talks_that_lie_there_twice_are_listed_once(tmp_path: Path):
    choices = PrepareOptions(layout="tedlium", screening=Screening(normalize=True))
    source = tedlium_as_shipped(tmp_path / "corpus")
    manifests, report = prepare(source, tmp_path / "out", Alphabet(), choices)
    assert {name: len(cuts) for name, cuts in manifests.items()} == dict.fromkeys(
        ("train", "valid", "test"), 2
    )
    assert report.listed == 6


def test_a_corpus_one_level_down_keeps_its_sets(tmp_path: Path):
    librispeech(tmp_path / "corpus" / "LibriSpeech")
    choices = PrepareOptions(layout="librispeech")
    manifests, _ = prepare(tmp_path / "corpus", tmp_path / "out", Alphabet(), choices)
    assert {name: len(cuts) for name, cuts in manifests.items()} == {
        "train": 8, "valid": 4, "test": 4,
    }  # fmt: skip


def test_a_set_alone(tmp_path: Path):
    """Nothing to part by speaker."""
    source = librispeech(tmp_path / "corpus") / "test-clean"
    choices = PrepareOptions(layout="librispeech", split_by="speaker")
    manifests, _ = prepare(source, tmp_path / "out", Alphabet(), choices)
    assert {name: len(cuts) for name, cuts in manifests.items()} == {"test": 4}


def test_labels_of_nothing(tmp_path: Path):
    record(tmp_path / "corpus" / "a.wav")
    with pytest.raises(MissingFileError, match=r"a\.txt: no such file; expected the transcript"):
        prepare(tmp_path / "corpus", tmp_path / "out", None, PrepareOptions())


def test_two_voices_in_two_channels(tmp_path: Path):
    source = ljspeech(tmp_path / "corpus")
    both = np.stack([speech()] * 2, axis=1)
    soundfile.write(source / "wavs" / "LJ001-0001.wav", both, RATE)
    normalize = Screening(normalize=True)
    choices = PrepareOptions(layout="lhotse:ljspeech", leave_out=True, screening=normalize)
    _, report = prepare(source, tmp_path / "out", Alphabet(), choices)
    (line,) = report.left_out
    assert "LJ001-0001.wav: 2 channels, each with words of its own" in line


@pytest.mark.parametrize("layout", [name for name in CORPORA if ":" not in name])
def test_a_folder_that_is_no_such_corpus(layout: str, tmp_path: Path):
    record(tmp_path / "corpus" / "a.wav")
    with pytest.raises(ManifestError, match=r"corpus: holds no"):
        prepare(tmp_path / "corpus", tmp_path / "out", Alphabet(), PrepareOptions(layout=layout))
    assert not (tmp_path / "out").exists()


def test_lhotse_has_no_such_recipe(tmp_path: Path):
    tmp_path.joinpath("corpus").mkdir()
    with pytest.raises(ConfigError, match=r"lhotse has .*librispeech"):
        prepare(
            tmp_path / "corpus",
            tmp_path / "out",
            Alphabet(),
            PrepareOptions(layout="lhotse:nothing"),
        )


def test_what_lhotse_cannot_read(tmp_path: Path):
    source = ljspeech(tmp_path / "corpus")
    write(source / "wavs" / "LJ001-0001.wav", b"no audio")
    with pytest.raises(ManifestError, match="lhotse's recipe ljspeech ends with"):
        prepare(source, tmp_path / "out", Alphabet(), PrepareOptions(layout="lhotse:ljspeech"))


# Damaged entries ---------------------------------------------------------------------------------


def damaged_manifest(folder: Path) -> tuple[Path, dict[str, str]]:
    """A manifest of deepspeech.pytorch with two good utterances, and the words of each fault."""
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
        "missing": "no such file, but",
        "empty": "empty file",
        "text file": "not audio that can be read",
        "cut off": "or damaged",
        "no transcript": "no such file; expected the transcript of",
        "blank transcript": "empty; expected the transcript of",
        "latin transcript": "not UTF-8 text",
        "digits": "no label for '6' in 'ROUTE 66'",
        "click": "too short (5 ms)",
        "endless": "40.00 s, longer than the 35 s",
        "too fast": "CTC cannot align them",
        "silence": "silence, but",
        "not a number": "finite",
        "good": "a second time; take one out",
        "folder": "no such file",
    }


def test_every_damaged_entry_has_its_line(tmp_path: Path):
    manifest, faults = damaged_manifest(tmp_path / "corpus")
    call = [
        "prepare", str(manifest), str(tmp_path / "out"), "--leave-out", "--read",
        "--longest", "35", "--valid", "0",
    ]  # fmt: skip
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stderr.splitlines() if "left out: " in line]
    assert len(lines) == len(faults) >= 12
    for line, (name, words) in zip(lines, faults.items(), strict=True):
        assert str(tmp_path / "corpus" / name) in line
        assert words in line
    assert f"{len(faults)} of {len(faults) + 2} utterances left out" in done.stdout
    kept = read_manifest(tmp_path / "out" / "train.jsonl.gz")
    assert sorted(Path(audio_path(cut)).stem for cut in kept) == ["good", "good too"]
    report = json.loads((tmp_path / "out" / "report.json").read_bytes())
    assert [f"left out: {error}" for error in report["left_out"]] == [
        line[line.index("left out: ") :] for line in lines
    ]
    assert report["source"] == str(manifest)


def test_without_leave_out_the_first_ends_it(tmp_path: Path):
    manifest, faults = damaged_manifest(tmp_path / "corpus")
    with pytest.raises(
        Ds2Error, match=r"missing.wav: no such file, but .* \(and \d+ more of 17 utterances"
    ):
        prepare(manifest, tmp_path / "out", Alphabet(), PrepareOptions())
    assert not (tmp_path / "out").exists()
    assert faults


def test_where_nothing_is_left(tmp_path: Path):
    record(tmp_path / "corpus" / "a.wav", 0.005)
    write(tmp_path / "corpus" / "a.txt", TEXT)
    with pytest.raises(AudioError, match=r"too short .*\(none of 1 utterances can be used\)"):
        prepare(tmp_path / "corpus", tmp_path / "out", Alphabet(), PrepareOptions(leave_out=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["librispeech", "commonvoice", "tedlium", "voxforge", "an4"])
def test_a_recording_of_a_corpus_that_is_gone_is_named(layout: str, tmp_path: Path):
    source = CORPORA[layout][0](tmp_path / "corpus")
    gone = sorted(path for path in source.rglob("*") if path.suffix[1:] in AUDIO)[0]
    gone.unlink()
    choices = PrepareOptions(layout=layout, leave_out=True, screening=Screening(normalize=True))
    _, report = prepare(source, tmp_path / "out", Alphabet(), choices)
    assert report.left_out
    assert all(str(gone) in line for line in report.left_out)
    assert sum(made.utterances for made in report.sets) == report.listed - len(report.left_out)


AUDIO = ("wav", "flac", "mp3", "sph")


def test_half_of_an4(tmp_path: Path):
    source = an4(tmp_path / "corpus")
    (source / "etc" / "an4_train.fileids").unlink()
    with pytest.raises(MissingFileError, match=r"an4_train\.fileids: no such file, but"):
        prepare(source, tmp_path / "out", Alphabet(), PrepareOptions(layout="an4"))


def test_a_recording_without_a_line_is_named(tmp_path: Path):
    source = librispeech(tmp_path / "corpus")
    extra = record(source / "train-clean-100" / "19" / "198" / "19-198-9999.flac")
    choices = PrepareOptions(layout="librispeech", leave_out=True)
    _, report = prepare(source, tmp_path / "out", Alphabet(), choices)
    assert report.left_out == [f"{extra}: no transcript of it in {extra.parent}"]


# The report, sets and labels ---------------------------------------------------------------------


def folder_of(root: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        record(root / f"{name}.wav")
        write(root / f"{name}.txt", text)
    return root


def test_characters_are_accounted_for(tmp_path: Path):
    source = folder_of(tmp_path / "corpus", {"a/1": "Caf\u00e9!", "a/2": "twenty-one", "b/1": "7"})
    choices = PrepareOptions(leave_out=True, screening=Screening(normalize=True), valid_share=0)
    manifests, report = prepare(source, tmp_path / "out", Alphabet(), choices)
    assert [transcript(cut) for cut in manifests["train"]] == ["CAFE", "TWENTY ONE"]
    assert [(c.character, c.became) for c in report.characters] == [
        ("!", ""), ("-", " "), ("7", None), ("\u00e9", "e"),
    ]  # fmt: skip
    (line,) = report.left_out
    assert "no label for '7' in '7'" in line


def test_speakers_are_parted(tmp_path: Path):
    names = {f"{who}/{i}": TEXT for who in "abcdefgh" for i in range(3)}
    source = folder_of(tmp_path / "corpus", names)
    choices = PrepareOptions(split_by="speaker", valid_share=0.3)
    manifests, report = prepare(source, tmp_path / "out", Alphabet(), choices)
    sets = {name: {speaker(cut) for cut in cuts} for name, cuts in manifests.items()}
    assert sets["train"] | sets["valid"] == set("abcdefgh")
    assert not sets["train"] & sets["valid"]
    assert 1 <= len(sets["valid"]) <= 6
    assert [made.speakers for made in report.sets] == [len(sets["train"]), len(sets["valid"])]
    # Nobody moves when somebody comes.
    folder_of(source, {"zz/0": TEXT})
    later, _ = prepare(source, tmp_path / "later", Alphabet(), choices)
    moved = {speaker(cut) for cut in later["valid"]} ^ sets["valid"]
    assert moved <= {"zz"}


def test_a_single_speaker_cannot_be_parted(tmp_path: Path):
    source = folder_of(tmp_path / "corpus", {"a/1": TEXT, "a/2": TEXT})
    with pytest.raises(ConfigError, match="has a single one, 'a'"):
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
    import msgspec

    source = folder_of(tmp_path / "corpus", {"a/1": TEXT, "b/2": TEXT})
    _, report = prepare(source, tmp_path / "out", Alphabet(), PrepareOptions())
    written = (tmp_path / "out" / "report.json").read_bytes()
    assert msgspec.json.decode(written, type=Report) == report
    again, _ = prepare(source, tmp_path / "out", Alphabet(), PrepareOptions())
    assert (tmp_path / "out" / "report.json").read_bytes() == written
    assert again


# A recipe for LibriSpeech -------------------------------------------------------------------------


@pytest.mark.slow
def test_the_recipe_for_librispeech_begins(tmp_path: Path):
    """deepspeech.pytorch's settings, but for the size of the network: two steps, and a score."""
    out = tmp_path / "out"
    prepare(librispeech(tmp_path / "corpus"), out, Alphabet(), PrepareOptions(layout="librispeech"))
    run = tmp_path / "run"
    settings = [
        f"data.train={out / 'train.jsonl.gz'}", f"data.valid={out / 'valid.jsonl.gz'}",
        f"training.run={run}", "training.max_steps=2", "training.accelerator=cpu",
        "training.precision=32-true", "model.hidden=32", "data.batch_size=4", "data.workers=0",
    ]  # fmt: skip
    call = ["train", "librispeech", *(part for s in settings for part in ("--set", s))]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    kept = load_checkpoint(run / "last.ckpt").recipe
    assert kept.model.layers == 5
    done = CliRunner().invoke(
        app, ["evaluate", str(run / "best.ckpt"), str(out / "test.jsonl.gz"), "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["utterances"] == 4
    shutil.rmtree(run)


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
