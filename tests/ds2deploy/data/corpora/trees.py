"""Corpora as they are unpacked: a tiny tree of each layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.ds2deploy.data.recordings import TEXT, record, write


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
        # The corpus as it is distributed has copies of an editor.
        write(root / "etc" / f"an4_{part}.transcription253239", "<s> NOT THIS </s> (nobody)\n")
    return root


def ljspeech(root: Path) -> Path:
    rows = ""
    for i in range(3):
        record(root / "wavs" / f"LJ001-000{i}.wav")
        rows += f"LJ001-000{i}|Some words.|Some words\n"
    write(root / "metadata.csv", rows)
    return root


def folder(root: Path) -> Path:
    for name in ("anna", "ben", "cleo"):
        record(root / name / "a.wav")
        write(root / name / "a.txt", "Some words")
    return root


def fsdd(root: Path) -> Path:
    for name in ("jackson", "theo"):
        for index in (2, 17, 46):
            record(root / f"7_{name}_{index}.wav")
    return root


class Tree(NamedTuple):
    """A corpus, and what `prepare` finds in it.

    Attributes:
        make: writes it.
        counts: utterances of each set.
        text: a transcript.
        speakers: those that may be in `train`; empty if the corpus names none.
        list: a list of transcripts of the training set; empty if the corpus has none.
        row: a row of it, with `{text}` for the transcript.
        number: number of that row, from 0.
        unlisted: recordings without a transcript, which are rejected for it.
        ignored: a recording that the tables leave out, where they choose some of the recordings.
    """

    make: Callable[[Path], Path]
    counts: dict[str, int]
    text: str
    speakers: set[str]
    list: str
    row: str = ""
    number: int = 0
    unlisted: tuple[str, ...] = ()
    ignored: str = ""


TREES = {
    "folder": Tree(
        folder,
        {"train": 2, "valid": 1},
        "SOME WORDS",
        {"anna", "ben", "cleo"},
        "",
        unlisted=("anna/b.wav",),
    ),
    "librispeech": Tree(
        librispeech,
        {"train": 8, "valid": 4, "test": 4},
        f"{TEXT} AND",
        {"19", "26"},
        "train-clean-100/19/198/19-198.trans.txt",
        "19-198-0000 {text}",
        unlisted=("train-clean-100/19/198/19-198-9999.flac",),
    ),
    "commonvoice": Tree(
        commonvoice,
        {"train": 4, "valid": 2, "test": 2},
        "HELLO TRAIN",
        {"a" * 8, "b" * 8},
        "train.tsv",
        f"{'a' * 8}\tcommon_voice_en_traina0.mp3\t{{text}}\t2",
        1,
        ignored="clips/refused.mp3",
    ),
    "tedlium": Tree(
        tedlium,
        {"train": 2, "valid": 2, "test": 2},
        "IT'S THE FIRST",
        {"Speakertrain_2010"},
        "legacy/train/stm/Speakertrain_2010.stm",
        "Speakertrain_2010 1 Speakertrain_2010 1.00 2.50 <NA> {text}",
        1,
        unlisted=("legacy/train/sph/Nobody_2010.sph",),
    ),
    "voxforge": Tree(
        voxforge,
        {"train": 4, "valid": 2},
        "SOME WORDS",
        {"anna", "ben", "anonymous-7"},
        "anna-1/etc/PROMPTS",
        "anna-1/mfc/a01 {text}",
        unlisted=("anna-1/wav/b99.wav", "zoe-1/flac/b99.flac"),  # zoe-1 has no list
    ),
    "an4": Tree(
        an4,
        {"train": 2, "valid": 2, "test": 2},
        "RUBOUT G M",
        {"fash", "mblw"},
        "etc/an4_train.transcription",
        "<s> {text} </s> (an1-fash-b)",
        ignored="wav/an4_clstk/fash/an9-fash-b.wav",
    ),
    "fsdd": Tree(fsdd, {"train": 2, "valid": 2, "test": 2}, "SEVEN", {"jackson", "theo"}, ""),
    "lhotse:ljspeech": Tree(ljspeech, {"train": 3}, "SOME WORDS", set(), ""),
}
"""A tree of every layout of the registry, and of one recipe of lhotse."""


def find_tree(layout: str) -> Tree:
    """Look up a tree; the test fails if a layout of the registry has none."""
    if layout not in TREES:
        pytest.fail(f"--layout {layout}: has no tree; add a row to TREES in {__file__}")
    return TREES[layout]


LISTED = [layout for layout, tree in TREES.items() if tree.list]
"""Layouts with lists of transcripts."""
