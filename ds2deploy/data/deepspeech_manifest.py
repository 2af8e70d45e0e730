"""Manifests of deepspeech.pytorch, and tables with the transcripts themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ds2deploy.data.listing import missing_recording, unreadable
from ds2deploy.data.transcript_table import path_rule, table_pairs
from ds2deploy.data.utterance import Utterance, with_transcript
from ds2deploy.runtimes.errors import Ds2Error, ManifestError
from ds2deploy.text_files import read_text


def read_deepspeech_pytorch(manifest: Path) -> Iterator[Utterance]:
    """Read a manifest of deepspeech.pytorch: JSON (version 3) or CSV (version 2).

    The second field of a CSV or TSV line may also be the transcript itself; see `table_pairs`.
    """
    is_json = manifest.suffix.lower() == ".json"
    form = "" if is_json else f"; {path_rule(manifest)}"
    for pair in _json_pairs(manifest) if is_json else table_pairs(manifest):
        if isinstance(pair, Ds2Error):
            yield Utterance(manifest, "", error=pair)
            continue
        audio, text = pair
        try:
            there = audio.is_file()
        except OSError as error:  # no permission for the folder, or the name is too long
            yield Utterance(audio, "", error=unreadable(audio, error), unreadable=True)
            continue
        if not there:
            hint = "" if audio.suffix else form  # it may be an unknown header
            missing = missing_recording(audio, manifest, hint)
            yield Utterance(audio, "", error=missing, unreadable=True)
        elif isinstance(text, str):
            yield Utterance(audio, text)
        else:
            yield with_transcript(audio, text, form=form)


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
