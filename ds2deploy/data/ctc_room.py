"""Checks that CTC can align transcripts with their recordings.

An output frame emits at most one label, and two equal labels need a blank between them. With too
few frames there is no alignment and the loss is infinite. torch replaces it with zero, so that a
training on such transcripts would look perfect without learning anything.
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
"""Maximum number of utterances that one message names."""


def frames_needed(labels: Sequence[int]) -> int:
    """Count the output frames that CTC needs: one per label, and one between equal neighbours."""
    return len(labels) + sum(left == right for left, right in pairwise(labels))


def check_room(labels: Sequence[int], frames: int, name: str) -> None:
    """Check that CTC can align a transcript.

    Args:
        labels: indices of the transcript's labels.
        frames: number of feature frames.
        name: file of the utterance, for the error.

    Raises:
        AudioError: the transcript needs more output frames than there are.
    """
    needed, there = frames_needed(labels), output_length(frames)
    if needed > there:
        raise AudioError(
            f"{name}: too short for its transcript: {len(labels)} characters need {needed} output "
            f"frames, and the recording has {there}; correct the transcript, copy the recording "
            "again, or remove it"
        )


def check_manifest_room(cuts: CutSet, recipe: Recipe, manifest: str, most: float) -> None:
    """Check that few transcripts of a manifest are too long for CTC.

    Args:
        cuts: utterances.
        recipe: recipe with features and labels.
        manifest: name of the manifest, for the error.
        most: maximum share of transcripts that CTC cannot align, 0 to 1.

    Raises:
        ManifestError: the share is larger; the message names the first utterances.
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
        f"{manifest}: {len(found)} of {len(cuts)} recordings are too short for their transcripts "
        f"({most:.0%} may be): {', '.join(found[:NAMED])}{more}; correct them, or make the "
        "manifest without them: ds2deploy prepare --leave-out"
    )
