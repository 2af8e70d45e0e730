"""Public corpora as they are unpacked: a tiny tree of each layout, whole and damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from ds2deploy.cli.app import app
from ds2deploy.data.corpora.registry import LAYOUTS
from ds2deploy.data.cuts import audio_path, read_audio, speaker, transcript
from ds2deploy.data.manifest import read_manifest
from ds2deploy.data.preparation import PrepareOptions, prepare
from ds2deploy.data.screening import Screening
from ds2deploy.model.load import load_checkpoint
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.errors import ConfigError, ManifestError, MissingFileError
from tests.ds2deploy.data.corpora.trees import (
    LISTED,
    TREES,
    an4,
    find_tree,
    folder,
    librispeech,
    ljspeech,
    tedlium,
    tedlium_as_shipped,
    voxforge,
)
from tests.ds2deploy.data.recordings import RATE, record, speech, write

AUDIO = ("wav", "flac", "mp3", "sph")


@pytest.mark.parametrize("layout", [*LAYOUTS, "lhotse:ljspeech"])
def test_a_corpus(layout: str, tmp_path: Path):
    tree = find_tree(layout)
    source = tree.make(tmp_path / "corpus")
    options = PrepareOptions(
        layout=layout,
        split_by="speaker",
        valid_share=0.1 if tree.speakers else 0.0,
        screening=Screening(normalize=True, read=True),
    )
    manifests, report = prepare(source, tmp_path / "out", Alphabet(), options)
    assert {name: len(cuts) for name, cuts in manifests.items()} == tree.counts
    assert report.listed == sum(tree.counts.values())
    assert report.left_out == []
    everything = [
        cut for name in manifests for cut in read_manifest(tmp_path / "out" / f"{name}.jsonl.gz")
    ]
    assert tree.text in {transcript(cut) for cut in everything}
    if tree.speakers:
        trained = {speaker(cut) for cut in manifests["train"]}
        assert trained <= tree.speakers
        if layout != "fsdd":  # whose own sets share their speakers
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
    options = PrepareOptions(layout="tedlium", screening=Screening(normalize=True))
    source = tedlium_as_shipped(tmp_path / "corpus")
    manifests, report = prepare(source, tmp_path / "out", Alphabet(), options)
    assert {name: len(cuts) for name, cuts in manifests.items()} == dict.fromkeys(
        ("train", "valid", "test"), 2
    )
    assert report.listed == 6


@pytest.mark.parametrize(
    ("part", "split"), [("train", "train"), ("dev", "valid"), ("test", "test")]
)
@pytest.mark.parametrize("source", [".", "..", "absolute"])
def test_a_part_of_tedlium_alone(
    source: str, part: str, split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its name decides the set, also where the command is run inside it."""
    alone = tedlium(tmp_path / "corpus") / "legacy" / part
    shutil.copy(alone / "sph" / f"Speaker{part}_2010.sph", alone / "sph" / "Unlisted_2010.sph")
    monkeypatch.chdir(alone / "sph" if source == ".." else alone)
    options = PrepareOptions(
        layout="tedlium", valid_share=0.0, leave_out=True, screening=Screening(normalize=True)
    )
    place = alone if source == "absolute" else Path(source)
    manifests, report = prepare(place, tmp_path / "out", Alphabet(), options)
    assert {name: [(transcript(cut), cut.start, cut.duration) for cut in cuts]
            for name, cuts in manifests.items()} == {
        split: [("IT'S THE FIRST", 1.0, 1.5), ("AND THE SECOND", 2.5, 2.25)]
    }  # fmt: skip
    assert report.unknown_parts == {}
    (line,) = report.left_out
    assert "Unlisted_2010.sph: no transcript in " in line


def test_a_corpus_one_level_down_keeps_its_sets(tmp_path: Path):
    librispeech(tmp_path / "corpus" / "LibriSpeech")
    options = PrepareOptions(layout="librispeech")
    manifests, _ = prepare(tmp_path / "corpus", tmp_path / "out", Alphabet(), options)
    assert {name: len(cuts) for name, cuts in manifests.items()} == {
        "train": 8, "valid": 4, "test": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "inside", "above"),
    [
        ("folder", "anna", "."),
        ("folder", ".", "a/b"),
        ("librispeech", ".", "a/b"),
        ("librispeech", "train-clean-100/19", "."),
        ("tedlium", ".", "a"),
        ("tedlium", "legacy", "."),
        ("tedlium", "legacy/train", "."),
        ("voxforge", ".", "a/b"),
        ("voxforge", "anna-1", "."),
    ],
)
def test_source_may_be_above_a_corpus_or_in_it(
    layout: str, inside: str, above: str, tmp_path: Path
):
    """The table in `docs/training.md` says which folders SOURCE may be."""
    find_tree(layout).make(tmp_path / "data" / above)
    options = PrepareOptions(layout=layout, valid_share=0.0, screening=Screening(normalize=True))
    manifests, report = prepare(tmp_path / "data" / inside, tmp_path / "out", Alphabet(), options)
    assert find_tree(layout).text in {transcript(cut) for cut in manifests["train"]}
    assert report.unknown_parts == {}


def test_a_set_alone(tmp_path: Path):
    """Nothing to part by speaker."""
    source = librispeech(tmp_path / "corpus") / "test-clean"
    options = PrepareOptions(layout="librispeech", split_by="speaker")
    manifests, _ = prepare(source, tmp_path / "out", Alphabet(), options)
    assert {name: len(cuts) for name, cuts in manifests.items()} == {"test": 4}


@pytest.mark.parametrize(
    ("inside", "source"),
    [
        (".", "."),
        ("84", ".."),
        ("84", "."),
        ("84/198", "../.."),
        ("84/198", "."),
        ("../train-clean-100/19", "../../dev-clean"),
    ],
)
def test_a_part_of_librispeech_is_known_from_inside(
    inside: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """SOURCE names no part; its place does."""
    monkeypatch.chdir(librispeech(tmp_path / "corpus") / "dev-clean" / inside)
    options = PrepareOptions(layout="librispeech", valid_share=0.5)
    manifests, report = prepare(Path(source), tmp_path / "out", Alphabet(), options)
    assert {name: len(cuts) for name, cuts in manifests.items()} == {"valid": 4}
    assert report.unknown_parts == {}


def test_a_part_that_is_a_link_has_the_name_of_the_link(tmp_path: Path):
    corpus = librispeech(tmp_path / "corpus")
    (corpus / "dev-clean").rename(tmp_path / "disk2")
    (corpus / "dev-clean").symlink_to(tmp_path / "disk2")
    options = PrepareOptions(layout="librispeech")
    manifests, report = prepare(corpus, tmp_path / "out", Alphabet(), options)
    assert len(manifests["valid"]) == 4
    assert report.unknown_parts == {}


@pytest.mark.parametrize(("source", "inside"), [(".", "anna-1"), ("..", "anna-1/etc")])
def test_a_visit_of_voxforge_keeps_its_speaker(
    source: str, inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(voxforge(tmp_path / "corpus") / inside)
    options = PrepareOptions(layout="voxforge", valid_share=0.0)
    manifests, _ = prepare(Path(source), tmp_path / "out", Alphabet(), options)
    assert [speaker(cut) for cut in manifests["train"]] == ["anna", "anna"]


@pytest.mark.parametrize(("source", "inside"), [(".", "anna"), ("..", "anna/notes")])
def test_a_folder_of_recordings_names_their_speaker(
    source: str, inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place = folder(tmp_path / "corpus") / inside
    place.mkdir(exist_ok=True)
    monkeypatch.chdir(place)
    manifests, _ = prepare(
        Path(source), tmp_path / "out", Alphabet(),
        PrepareOptions(valid_share=0.0, screening=Screening(normalize=True)),
    )  # fmt: skip
    assert [speaker(cut) for cut in manifests["train"]] == ["anna"]


def test_two_voices_in_two_channels(tmp_path: Path):
    source = ljspeech(tmp_path / "corpus")
    both = np.stack([speech()] * 2, axis=1)
    soundfile.write(source / "wavs" / "LJ001-0001.wav", both, RATE)
    normalize = Screening(normalize=True)
    options = PrepareOptions(layout="lhotse:ljspeech", leave_out=True, screening=normalize)
    _, report = prepare(source, tmp_path / "out", Alphabet(), options)
    (line,) = report.left_out
    assert "LJ001-0001.wav: 2 channels with different words" in line


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_that_is_no_such_corpus(layout: str, tmp_path: Path):
    write(tmp_path / "corpus" / "notes.md", "No recordings.")
    if layout != "folder":
        record(tmp_path / "corpus" / "flac" / "a.flac")
    with pytest.raises(ManifestError) as raised:
        prepare(tmp_path / "corpus", tmp_path / "out", Alphabet(), PrepareOptions(layout=layout))
    assert str(raised.value).startswith(f"{tmp_path / 'corpus'}: contains no ")
    assert str(raised.value).endswith(f"--layout {layout} expects {LAYOUTS[layout].expected}")
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


def test_a_corpus_that_lhotse_cannot_read_is_refused(tmp_path: Path):
    source = ljspeech(tmp_path / "corpus")
    write(source / "wavs" / "LJ001-0001.wav", b"no audio")
    with pytest.raises(ManifestError, match="lhotse's recipe ljspeech failed"):
        prepare(source, tmp_path / "out", Alphabet(), PrepareOptions(layout="lhotse:ljspeech"))


@pytest.mark.parametrize("layout", LISTED)
def test_a_recording_of_a_corpus_that_is_gone_is_named(layout: str, tmp_path: Path):
    source = TREES[layout].make(tmp_path / "corpus")
    gone = sorted(path for path in source.rglob("*") if path.suffix[1:] in AUDIO)[0]
    gone.unlink()
    options = PrepareOptions(layout=layout, leave_out=True, screening=Screening(normalize=True))
    _, report = prepare(source, tmp_path / "out", Alphabet(), options)
    assert report.left_out
    assert all(str(gone) in line for line in report.left_out)
    assert sum(made.utterances for made in report.sets) == report.listed - len(report.left_out)


@pytest.mark.parametrize("layout", LISTED)
def test_a_damaged_list_of_a_corpus_is_named_and_the_rest_is_used(layout: str, tmp_path: Path):
    source = TREES[layout].make(tmp_path / "corpus")
    damaged = write(source / TREES[layout].list, b"\xff\xfe\xff")
    options = PrepareOptions(layout=layout, leave_out=True, screening=Screening(normalize=True))
    _, report = prepare(source, tmp_path / "out", Alphabet(), options)
    (line,) = report.left_out
    assert line.startswith(f"{damaged}: ")
    assert report.used > 0


def test_half_of_an4(tmp_path: Path):
    source = an4(tmp_path / "corpus")
    (source / "etc" / "an4_train.fileids").unlink()
    with pytest.raises(MissingFileError, match=r"an4_train\.fileids: no such file, although"):
        prepare(source, tmp_path / "out", Alphabet(), PrepareOptions(layout="an4"))


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
