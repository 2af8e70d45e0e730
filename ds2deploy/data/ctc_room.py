"""Transcripts that CTC can align with their recordings.

An output frame holds one label at most, and a blank must stand between two that are the same. With
fewer frames than that there is no alignment: the loss is infinite, torch makes it zero, and a
training on such transcripts would look perfect without learning a thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from lhotse import CutSet

from ds2deploy.config import Recipe
from ds2deploy.data.cuts import audio_path, transcript
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.errors import AudioError, ManifestError
from ds2deploy.runtimes.geometry import output_length

NAMED = 3
"""Most utterances that one message names."""


def frames_needed(labels: Sequence[int]) -> int:
    """Count the output frames that CTC needs: one for a label, and one between two alike."""
    return len(labels) + sum(left == right for left, right in pairwise(labels))


def check_room(labels: Sequence[int], frames: int, name: str) -> None:
    """Refuse a transcript that CTC cannot align.

    Args:
        labels: numbers of the transcript's labels.
        frames: number of frames of the features.
        name: the utterance's file, for the error.

    Raises:
        AudioError: the transcript needs more output frames than there are.
    """
    needed, there = frames_needed(labels), output_length(frames)
    if needed > there:
        raise AudioError(
            f"{name}: a transcript of {len(labels)} characters takes {needed} output frames, and "
            f"the recording has {there}: CTC cannot align them; it was cut off, or has another "
            "transcript; correct it, or take it out"
        )


def check_manifest_room(cuts: CutSet, recipe: Recipe, manifest: str, most: float) -> None:
    """Refuse a manifest with too many transcripts that do not fit their recordings.

    Args:
        cuts: utterances.
        recipe: recipe with the features and labels that decide what fits.
        manifest: name of the manifest, for the error.
        most: largest share of such utterances.

    Raises:
        ManifestError: more of them; gives their number, and names the first.
    """
    alphabet, rate = Alphabet(recipe.labels), recipe.features.sample_rate
    found = []
    for cut in cuts:
        labels = alphabet.encode(transcript(cut))
        frames = recipe.features.frames(round(float(cut.duration) * rate))
        if frames_needed(labels) > output_length(frames):
            found.append(Path(audio_path(cut)).name)
    if len(found) <= most * len(cuts):
        return
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    raise ManifestError(
        f"{manifest}: {len(found)} of {len(cuts)} transcripts have more characters than CTC can "
        f"align with their recordings ({most:.0%} may): {', '.join(found[:NAMED])}"
        f"{more}; correct them or take them out, or make the manifest with `ds2deploy prepare "
        "--leave-out`"
    )
