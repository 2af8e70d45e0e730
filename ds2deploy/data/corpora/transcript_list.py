"""Lists of transcripts, in which most corpora keep them: a line for each utterance."""

from __future__ import annotations

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
"""Words in the names of the parts of a corpus, in any case."""

Lines = list[tuple[str, str]]
"""Lines of a list: the place of each, such as `a/b.txt: line 3`, and its text."""


def read_lists(
    listings: Sequence[Path], read: Callable[[Path, Lines], Iterator[Utterance]]
) -> Iterator[Utterance]:
    """Read list after list; one that cannot be read is rejected, and does not end the rest.

    Args:
        listings: the lists.
        read: yields the utterances of the lines of a list. It raises ManifestError or
            MissingFileError for a list that it cannot read.
    """
    for listing in listings:
        try:
            yield from read(listing, read_lines(listing))
        except (ManifestError, MissingFileError) as error:
            yield Utterance(listing, "", error=error)


def read_lines(path: Path) -> Lines:
    """Read the lines of a list, without empty ones.

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
    """Make the utterance of a line; one without a transcript is rejected."""
    text = text.strip()
    error = None if text else ManifestError(f"{place}: no transcript of {audio}")
    return Utterance(audio, text, speaker, split, start_s, duration_s, error)


def locked_folders(below: Listing) -> Iterator[Utterance]:
    """Reject the folders of a corpus that cannot be listed."""
    for error in below.errors:
        yield Utterance(Path(), "", error=error, unreadable=True)


def first_file(paths: Sequence[Path]) -> Path:
    """Choose the first path at which there is a file; the first of all if there is none."""
    return next(filter(is_file, paths), paths[0])


def in_part(part: str, utterance: Utterance) -> Utterance:
    """Put an utterance into the set that the name of its part of the corpus tells."""
    split = split_of(part)
    if split is None:
        return utterance._replace(split=TRAIN, unknown_part=part)
    return utterance._replace(split=split)


def split_of(part: str) -> str | None:
    """Choose the set of a part of a corpus by the words of its name: `dev-clean` is validation.

    Returns:
        None if no word tells a set. Of several, a set that is not trained on comes first.
    """
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", part)]
    found = (split for split in WORDS if any(WORDS[split].fullmatch(word) for word in words))
    return next(found, None)


def reject_unlisted(
    recordings: Iterable[Path], listed: Collection[Path], place: Path
) -> Iterator[Utterance]:
    """Reject the recordings that no list names.

    For corpora whose lists stand beside the recordings, each of them complete. Where tables choose
    among recordings, such as those of Common Voice, the others are no part of any set.

    Args:
        recordings: all that are there.
        listed: those with a line.
        place: list, or folder of the lists, that should name them; for the errors.
    """
    for audio in recordings:
        if audio not in listed:
            error = MissingFileError(
                f"{audio}: no transcript of it in {place}; add its line, or take it out"
            )
            yield Utterance(audio, "", error=error)
