"""Tables of recordings and their transcripts: CSV, or TSV with tabs between the fields.

deepspeech.pytorch's CSV names a transcript file in the second field of each line. Tables that
people write themselves often contain the transcript itself there, below a line of column names.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ds2deploy.data.listing import is_file
from ds2deploy.runtimes.errors import Ds2Error, ManifestError
from ds2deploy.text_files import read_text, text_lines

TABLE_SUFFIXES = (".csv", ".tsv")

AUDIO_NAMES = {
    "audio", "audio_file", "audio_path", "file", "file_name", "file_path", "filename", "path",
    "recording", "wav", "wav_file", "wav_filename", "wav_path",
}  # fmt: skip
"""Column names of recordings, in lower case."""

TEXT_NAMES = {
    "sentence", "text", "transcript", "transcript_path", "transcription", "transcripts", "txt",
    "txt_path", "words",
}  # fmt: skip
"""Column names of transcripts or of their files, in lower case."""

PATH_LIKE = re.compile(r".*\.txt|\S+\.\w{1,10}|.*[/\\].*", re.IGNORECASE | re.DOTALL)
"""Fields that are the path of a transcript file, never its text: `a b.txt`, `a.lab`, `texts/a`."""


class Row(NamedTuple):
    """Line of a table.

    Attributes:
        place: manifest and line number, for errors.
        audio: path of the recording.
        transcript: second field, the path of a transcript file or the transcript itself.
    """

    place: str
    audio: Path
    transcript: str


def table_pairs(manifest: Path) -> Iterator[tuple[Path, Path | str] | Ds2Error]:
    """Read a table with a recording and a transcript in each line, and perhaps a header.

    If the second field of any line is an existing file, the table lists files, and a missing one is
    an error. In any other table, a field is the transcript itself unless it looks like a path (see
    `PATH_LIKE`), so that a missing file is never read as text.

    Args:
        manifest: CSV file, or TSV file by its suffix; UTF-8, with or without a byte order mark.

    Returns:
        For each line the recording and its transcript: a path, or the text. A line that cannot be
        used is an error in its place.
    """
    rows = [row for row in _rows(manifest) if row is not None]
    if rows and isinstance(rows[0], Row) and _is_header(rows[0]):
        del rows[0]
    folder = manifest.parent
    found = any(isinstance(row, Row) and _names_file(folder, row.transcript) for row in rows)
    for row in rows:
        if isinstance(row, Ds2Error):
            yield row
        elif not row.transcript:
            yield ManifestError(f"{row.place} has no transcript; {expected_lines(manifest)}")
        elif found or PATH_LIKE.fullmatch(row.transcript):
            yield row.audio, folder / row.transcript
        elif any("\ud800" <= character <= "\udfff" for character in row.transcript):
            yield ManifestError(f"{row.place}: the transcript is not UTF-8 text; save it as UTF-8")
        else:
            yield row.audio, " ".join(row.transcript.split())


def expected_lines(manifest: Path) -> str:
    """Describe the lines of a table, for errors."""
    return f"expected audio,transcript lines such as {_forms(manifest)}"


def path_rule(manifest: Path) -> str:
    """Explain why a field was read as a path, for the error of a missing file."""
    return f"lines are {_forms(manifest)}; a field with a slash or a suffix is a path"


def _rows(manifest: Path) -> Iterator[Row | Ds2Error | None]:
    """Parse each line separately, so that an unmatched quotation mark does not affect others."""
    lines = text_lines(read_text(manifest, "audio,transcript lines", names=True))
    for number, line in enumerate(lines, start=1):
        place = f"{manifest}: line {number}"
        try:
            fields = next(csv.reader([line], delimiter=_delimiter(manifest)), [])
        except csv.Error as error:
            yield ManifestError(f"{place} cannot be parsed ({error}); {expected_lines(manifest)}")
            continue
        fields = [field.strip() for field in fields]
        if not any(fields):
            yield None
        elif len(fields) == 2 and fields[0]:
            yield Row(place, manifest.parent / fields[0], fields[1])
        elif len(fields) == 2:
            yield ManifestError(f"{place} names no recording; {expected_lines(manifest)}")
        else:
            count = f"{len(fields)} field{'s' if len(fields) > 1 else ''}"
            yield ManifestError(f"{place} has {count}; {expected_lines(manifest)}")


def _is_header(row: Row) -> bool:
    names = row.audio.name.lower(), row.transcript.lower()
    return names[0] in AUDIO_NAMES and names[1] in TEXT_NAMES and not is_file(row.audio)


def _names_file(folder: Path, field: str) -> bool:
    return bool(field) and is_file(folder / field)


def _delimiter(manifest: Path) -> str:
    return "\t" if manifest.suffix.lower() == ".tsv" else ","


def _line(manifest: Path, audio: str, transcript: str) -> str:
    return f"{audio}{'<tab>' if _delimiter(manifest) != ',' else ','}{transcript}"


def _forms(manifest: Path) -> str:
    file, text = _line(manifest, "a.wav", "a.txt"), _line(manifest, "a.wav", '"the text, quoted"')
    return f"`{file}` or `{text}`, below an optional header `{_line(manifest, 'file', 'text')}`"
