"""Reader of the Free Spoken Digit Dataset, whose file names contain all labels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ds2deploy.data.utterance import Utterance
from ds2deploy.runtimes.errors import ManifestError

DIGITS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")

TEST_INDICES = range(5)
"""Recordings 0 to 4 of every digit and speaker: the corpus' own test set."""

VALID_INDICES = range(45, 50)
"""Recordings held out from training, to choose the best checkpoint."""


def read_fsdd(folder: Path) -> Iterator[Utterance]:
    """Read the folder `recordings` of the Free Spoken Digit Dataset."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() != ".wav":
            continue
        match = re.fullmatch(r"([0-9])_([a-z]+)_([0-9]+)", path.stem)
        if match is None:
            error = ManifestError(f"{path}: expected a name such as 7_jackson_32.wav; rename it")
            yield Utterance(path, "", error=error)
            continue
        digit, speaker, index = match.groups()
        split = "test" if int(index) in TEST_INDICES else "train"
        split = "valid" if int(index) in VALID_INDICES else split
        yield Utterance(path, DIGITS[int(digit)], speaker, split)
