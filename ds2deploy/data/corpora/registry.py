"""The layouts of `ds2deploy prepare --layout`.

To add one: write its reader in a file beside this one, and give it a row in `LAYOUTS`. The help
text, the check of `--layout` and the error messages read the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ds2deploy.data.corpora.an4 import read_an4
from ds2deploy.data.corpora.commonvoice import read_commonvoice
from ds2deploy.data.corpora.folder import read_folder
from ds2deploy.data.corpora.fsdd import read_fsdd
from ds2deploy.data.corpora.librispeech import read_librispeech
from ds2deploy.data.corpora.tedlium import read_tedlium
from ds2deploy.data.corpora.voxforge import read_voxforge
from ds2deploy.data.utterance import Utterance
from ds2deploy.runtimes.errors import ConfigError

LHOTSE = "lhotse:"
"""Prefix of a layout that a recipe of lhotse reads."""


class Layout(NamedTuple):
    """A layout of a folder of recordings.

    Attributes:
        read: reader that yields every utterance of the folder, rejected ones with their errors.
        content: contents of the folder, for help texts.
        origin: page and license of the corpus; empty if it has no page.
    """

    read: Callable[[Path], Iterator[Utterance]]
    content: str
    origin: str = ""


COMMONVOICE = "https://commonvoice.mozilla.org/datasets, CC0 1.0"
FSDD = "https://github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0"

LAYOUTS = {
    "folder": Layout(read_folder, "recordings with a .txt beside each"),
    "librispeech": Layout(read_librispeech, "LibriSpeech", "https://www.openslr.org/12, CC BY 4.0"),
    "commonvoice": Layout(read_commonvoice, "a language of Common Voice", COMMONVOICE),
    "tedlium": Layout(read_tedlium, "TED-LIUM", "https://www.openslr.org/51, CC BY-NC-ND 3.0"),
    "voxforge": Layout(read_voxforge, "VoxForge", "http://www.voxforge.org, GPL 3"),
    "an4": Layout(read_an4, "CMU AN4", "http://www.speech.cs.cmu.edu/databases/an4"),
    "fsdd": Layout(read_fsdd, "Free Spoken Digit Dataset", FSDD),
}


def find_layout(name: str) -> Layout:
    """Look up a layout by the value of `--layout`.

    Raises:
        ConfigError: no such layout.
    """
    if name.startswith(LHOTSE):
        recipe = name.removeprefix(LHOTSE)
        return Layout(partial(_read_with_lhotse, recipe), f"a corpus for lhotse's recipe {recipe}")
    if name not in LAYOUTS:
        raise ConfigError(f"--layout {name}: expected one of {', '.join(LAYOUTS)}, {LHOTSE}NAME")
    return LAYOUTS[name]


def layout_help() -> str:
    """Help text of `--layout`."""
    layouts = "; ".join(f"{name}: {layout.content}" for name, layout in LAYOUTS.items())
    return f"{layouts}; {LHOTSE}NAME: a recipe of lhotse."


def _read_with_lhotse(recipe: str, folder: Path) -> Iterator[Utterance]:
    from ds2deploy.data.corpora.lhotse_recipe import read_with_lhotse  # imports torch

    return read_with_lhotse(recipe, folder)
