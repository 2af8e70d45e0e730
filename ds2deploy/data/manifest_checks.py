"""Checks of a manifest's utterances, which lhotse does not check itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from lhotse.cut import Cut, PaddingCut

from ds2deploy.data.cuts import audio_path, recordings, transcript
from ds2deploy.data.listing import is_file, missing_recording
from ds2deploy.runtimes.audio.checks import LOWEST_RATE
from ds2deploy.runtimes.errors import Ds2Error, ManifestError
from ds2deploy.runtimes.features import HIGHEST_RATE

LONGEST_S = 7 * 86_400.0
"""Maximum duration of a recording or utterance in a manifest, in seconds: a week."""

LONGEST_JOINED_S = 3_600.0
"""Maximum duration of a joined utterance, in seconds; it is made in memory."""


class Unusable(NamedTuple):
    """Utterance of a manifest that cannot be used.

    Attributes:
        audio: file of the utterance, or the manifest if the utterance names none.
        error: reason and remedy.
    """

    audio: str
    error: Ds2Error


def find_unusable(cut: Cut, manifest: Path) -> Unusable | None:
    """Reject an utterance without a recording, file or transcript; None if it has all three."""
    sources = [source for recording in recordings(cut) for source in recording.sources]
    if not sources:
        error = ManifestError(f"{manifest}: utterance {cut.id!r} has no recording; remove it")
        return Unusable(str(manifest), error)
    for source in sources:
        if not is_file(Path(source.source)):
            missing = missing_recording(source.source, manifest)
            return Unusable(str(source.source), missing)
    if not transcript(cut).strip():
        error = ManifestError(
            f"{manifest}: {audio_path(cut)} has no transcript; add it, or remove the utterance"
        )
        return Unusable(audio_path(cut), error)
    return None


def check_values(cut: Cut) -> None:
    """Check the types and ranges of a cut's values.

    Raises:
        TypeError, ValueError: a value is wrong; the message names it.
    """
    tracks = getattr(cut, "tracks", ())
    for track in tracks:
        _check_number("offset", track.offset, 0, LONGEST_JOINED_S)
        _check_number("snr", track.snr or 0, -1000, 1000)
    for part in [track.cut for track in tracks] or [cut]:
        _check_number("start", getattr(part, "start", 0), 0, LONGEST_S)
        _check_number("duration", part.duration, 0, LONGEST_JOINED_S if tracks else LONGEST_S)
        if isinstance(part, PaddingCut):
            _check_number("sampling_rate", part.sampling_rate, LOWEST_RATE, HIGHEST_RATE)
    for spoken in cut.supervisions:
        for name in ("text", "speaker"):
            if not isinstance(getattr(spoken, name), (str, type(None))):
                raise TypeError(f"{name}: expected text")
    transcript(cut)
    for recording in recordings(cut):
        _check_number("duration", recording.duration, 0, LONGEST_S)
        _check_number("sampling_rate", recording.sampling_rate, LOWEST_RATE, HIGHEST_RATE)
        if not recording.sources:
            raise TypeError("a recording without a file")
        for source in recording.sources:
            if source.type != "file":  # lhotse would run a "command", and fetch a "url"
                raise TypeError(f"audio of type {source.type!r}; expected a file")
            Path(source.source)


def _check_number(name: str, value: Any, least: float, most: float) -> None:
    """Check that a value is a number within a range."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number")
    if not least <= value <= most:
        raise ValueError(f"{name} {value:g}: expected {least:g} to {most:g}")
