"""Lists of transcripts with one line for each utterance, which most corpora use."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from ds2deploy.data.listing import Listing, is_file
from ds2deploy.data.utterance import Utterance
from ds2deploy.runtimes.errors import ManifestError, MissingFileError
from ds2deploy.text_files import read_text, text_lines

TEST, VALID, TRAIN = "test", "valid", "train"

WORDS = {
    TEST: re.compile("(test|tst|eval)(s|set|ing|test|uation)?"),
    VALID: re.compile("(dev|val)(set|test|elopment|id|idation)?"),
    TRAIN: re.compile("(train|trn)(s|set|ing)?"),
}
"""Words in the names of corpus parts that identify the sets; case is ignored."""

Lines = list[tuple[str, str]]
"""Lines of a list: the position of each, such as `a/b.txt: line 3`, and its text."""


def read_lists(
    listings: Sequence[Path], read: Callable[[Path, Lines], Iterator[Utterance]]
) -> Iterator[Utterance]:
    """Read several lists; an unreadable one is rejected, and the others are still read.

    Args:
        listings: paths of the lists.
        read: function that yields the utterances of a list's lines. It raises ManifestError or
            MissingFileError for a list that it cannot read.
    """
    for listing in listings:
        try:
            yield from read(listing, read_lines(listing))
        except (ManifestError, MissingFileError) as error:
            yield Utterance(listing, "", error=error)


def read_lines(path: Path) -> Lines:
    """Read the non-empty lines of a list.

    Raises:
        ManifestError: the list cannot be read.
    """
    lines = text_lines(read_text(path, "a list of the corpus; unpack it again"))
    return [(f"{path}: line {i}", line) for i, line in enumerate(lines, start=1) if line.strip()]


def listed_utterance(
    place: str,
    audio: Path,
    text: str,
    speaker: str = "",
    split: str = TRAIN,
    start_s: float = 0.0,
    duration_s: float | None = None,
) -> Utterance:
    """Make the utterance of a line, with an error if the transcript is empty."""
    text = text.strip()
    error = None
    if not text:
        error = ManifestError(f"{place}: no transcript of {audio}; add it, or remove the line")
    return Utterance(audio, text, speaker, split, start_s, duration_s, error)


def locked_folders(below: Listing) -> Iterator[Utterance]:
    """Reject the folders of a corpus that cannot be listed."""
    for error in below.errors:
        yield Utterance(Path(), "", error=error, unreadable=True)


def first_file(paths: Sequence[Path]) -> Path:
    """Return the first path at which a file exists, or the first path if none exists."""
    return next(filter(is_file, paths), paths[0])


def folder_name(folder: Path) -> str:
    """Return the name of a folder, also of `.` and `..`, which SOURCE may be.

    A link keeps its own name: a part may be a link to a folder on another disk.
    """
    return os.path.basename(os.path.abspath(folder))  # noqa: PTH100, PTH119 - resolve() follows links


def in_part(part: str, utterance: Utterance) -> Utterance:
    """Assign an utterance to the set that the name of its corpus part indicates."""
    split = split_of(part)
    if split is None:
        return utterance._replace(split=TRAIN, unknown_part=part)
    return utterance._replace(split=split)


def split_of(part: str) -> str | None:
    """Derive the set of a corpus part from its name: `dev-clean` is validation.

    Returns:
        The set; a held-out set if the name contains several. None if it contains none.
    """
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", part)]
    found = (split for split in WORDS if any(WORDS[split].fullmatch(word) for word in words))
    return next(found, None)


def reject_unlisted(
    recordings: Iterable[Path], listed: Collection[Path], place: Path
) -> Iterator[Utterance]:
    """Reject the recordings that no list names.

    Use it for corpora with complete lists beside the recordings. It does not fit corpora whose
    tables select recordings, such as Common Voice.

    Args:
        recordings: all existing recordings.
        listed: recordings with a line in a list.
        place: list, or folder of the lists, that should name them, for the errors.
    """
    for audio in recordings:
        if audio not in listed:
            error = MissingFileError(
                f"{audio}: no transcript in {place}; add its line, or remove the recording"
            )
            yield Utterance(audio, "", error=error)
