"""Registry of the layouts of `ds2deploy prepare --layout`.

To add the layout NAME:

- write `read_NAME(folder)` in `NAME.py` in this folder;
- add a row to `LAYOUTS`, which the help text, the check of `--layout` and error messages use;
- add a tree to `TREES` in `tests/ds2deploy/data/corpora/trees.py`: the tests of all layouts use
  this table, and fail for a layout without a tree, or without a recording that has no transcript;
- add a row to the table of corpora in `docs/training.md`.

A reader yields an `Utterance` for each transcript, in any order. It contains the path of the
recording, which need not exist; the text as written in the corpus; the speaker; and the set, which
`in_part` derives from the name of a part of the corpus. An unusable entry (a bad line, an
unreadable list) is yielded too, as an utterance with its error, so that `--leave-out` can report
it and continue. An error names the file, the line if there is one, and the remedy. In a folder of
another layout the reader finds nothing: `prepare` then raises the error, with the files that the
layout expects. `transcript_list` contains code that several readers share.

A reader checks nothing else. `Screener` opens the recordings and rejects duplicates, missing or
damaged audio, and transcripts that have no labels or that CTC cannot align.

A recording without a transcript is also rejected if the list beside the recordings should name all
of them (`folder`, `librispeech`, `tedlium`, `voxforge`). It is ignored if tables select the
recordings (`an4`, and `commonvoice`, whose clips/ also contains clips that were voted down).
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ds2deploy.runtimes.errors import ConfigError

if TYPE_CHECKING:
    from ds2deploy.data.utterance import Utterance

LHOTSE = "lhotse:"
"""Prefix of layouts that lhotse's recipes read."""


class Layout(NamedTuple):
    """Layout of a folder of recordings.

    Attributes:
        content: contents of the folder, for help texts.
        expected: files that the reader looks for, for the error if it finds none.
        origin: page and licence of the corpus; empty if it has no page.
    """

    content: str
    expected: str
    origin: str = ""


LAYOUTS = {
    "folder": Layout("recordings with a .txt beside each", "a recording with a .txt beside it"),
    "librispeech": Layout(
        "LibriSpeech",
        "PART/SPEAKER/CHAPTER/*.trans.txt with a line for each .flac beside it",
        "https://www.openslr.org/12, CC BY 4.0",
    ),
    "commonvoice": Layout(
        "a language of Common Voice",
        "train.tsv, dev.tsv or test.tsv with a row for each recording that is used of clips/",
        "https://commonvoice.mozilla.org/datasets, CC0 1.0",
    ),
    "tedlium": Layout(
        "TED-LIUM",
        "PART/stm/*.stm with a line for each utterance of the talk in PART/sph/, or one PART alone",
        "https://www.openslr.org/51, CC BY-NC-ND 3.0",
    ),
    "voxforge": Layout(
        "VoxForge",
        "VISIT/etc/PROMPTS with a line for each recording in VISIT/wav/ or VISIT/flac/",
        "http://www.voxforge.org, GPL 3",
    ),
    "an4": Layout(
        "CMU AN4",
        "etc/an4_train.transcription with a line for each line of etc/an4_train.fileids",
        "http://www.speech.cs.cmu.edu/databases/an4",
    ),
    "fsdd": Layout(
        "Free Spoken Digit Dataset",
        "recordings with names such as 7_jackson_32.wav",
        "https://github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0",
    ),
}


def find_layout(name: str) -> Layout:
    """Look up a layout by the value of `--layout`.

    Raises:
        ConfigError: there is no such layout.
    """
    if name.startswith(LHOTSE):
        content = f"a corpus for lhotse's recipe {name.removeprefix(LHOTSE)}"
        return Layout(content, content)
    if name not in LAYOUTS:
        raise ConfigError(f"--layout {name}: expected one of {', '.join(LAYOUTS)} or {LHOTSE}NAME")
    return LAYOUTS[name]


def read_layout(name: str, folder: Path) -> Iterator[Utterance]:
    """Read every utterance of a folder; rejected ones contain their errors.

    The reader is imported here, so that the command line can load the table quickly.

    Raises:
        ConfigError: there is no such layout.
        ManifestError: a recipe of lhotse cannot read the corpus.
    """
    find_layout(name)
    if name.startswith(LHOTSE):
        from ds2deploy.data.corpora.lhotse_recipe import read_with_lhotse

        return read_with_lhotse(name.removeprefix(LHOTSE), folder)
    reader = getattr(import_module(f"{__package__}.{name}"), f"read_{name}")
    utterances: Iterator[Utterance] = reader(folder)
    return utterances


def layout_help() -> str:
    """Make the help text of `--layout`."""
    layouts = "; ".join(f"{name}: {layout.content}" for name, layout in LAYOUTS.items())
    return f"Layout of the SOURCE folder. {layouts}; {LHOTSE}NAME: a recipe of lhotse."
