"""Manifests of deepspeech.pytorch."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ds2deploy.data.utterance import Utterance, with_transcript
from ds2deploy.runtimes.errors import (
    AudioError,
    Ds2Error,
    ManifestError,
    MissingFileError,
    system_reason,
)
from ds2deploy.text_files import read_text, text_lines


def read_deepspeech_pytorch(manifest: Path) -> Iterator[Utterance]:
    """Read a manifest of deepspeech.pytorch: JSON (version 3) or CSV (version 2)."""
    is_json = manifest.suffix.lower() == ".json"
    for pair in _json_pairs(manifest) if is_json else _csv_pairs(manifest):
        if isinstance(pair, Ds2Error):
            yield Utterance(manifest, "", error=pair)
            continue
        audio, text = pair
        try:
            there = audio.is_file()
        except OSError as error:  # no permission for the folder, or the name is too long
            locked = AudioError(
                f"{audio}: cannot be read ({system_reason(error)}), but {manifest} lists it; make "
                "it readable"
            )
            yield Utterance(audio, "", error=locked, unreadable=True)
            continue
        if there:
            yield with_transcript(audio, text)
        else:
            missing = MissingFileError(f"{audio}: no such file, although {manifest} lists it")
            yield Utterance(audio, "", error=missing, unreadable=True)


def _json_pairs(manifest: Path) -> Iterator[tuple[Path, Path] | Ds2Error]:
    """Read JSON with a root path and, relative to it, audio and transcript of each sample."""
    expected = "expected JSON with root_path and samples, each with wav_path and transcript_path"
    text = read_text(manifest, expected.removeprefix("expected "), names=True)
    try:
        document: Any = json.loads(text)
        root, samples = manifest.parent / document["root_path"], list(document["samples"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:120]
        raise ManifestError(f"{manifest}: {expected} ({reason})") from None
    for number, sample in enumerate(samples, start=1):
        try:
            yield root / sample["wav_path"], root / sample["transcript_path"]
        except (KeyError, TypeError):
            yield ManifestError(f"{manifest}: sample {number}: {expected}")


def _csv_pairs(manifest: Path) -> Iterator[tuple[Path, Path] | Ds2Error]:
    """Read CSV with one line for each utterance: audio path and transcript path.

    Each line is parsed separately, so that an unmatched quotation mark does not affect others.
    """
    lines = text_lines(read_text(manifest, "audio,transcript lines", names=True))
    for number, line in enumerate(lines, start=1):
        place = f"{manifest}: line {number}"
        try:
            row = next(csv.reader([line]), [])
        except csv.Error as error:
            yield ManifestError(f"{place} is not CSV ({error}); expected audio,transcript lines")
            continue
        if not any(field.strip() for field in row):
            continue
        if len(row) == 2:
            yield manifest.parent / row[0].strip(), manifest.parent / row[1].strip()
        else:
            yield ManifestError(f"{place} has {len(row)} fields; expected audio,transcript paths")
