"""What artifacts are compared with: a model that is trusted, and the speech that it is asked about.

One reference serves all the artifacts of an export: speech is made, and each utterance computed,
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ds2deploy.export.speech import speech_features
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding import greedy_text
from ds2deploy.runtimes.features import FeatureExtractor, FloatArray, pad_features
from ds2deploy.runtimes.recognizer import batches
from ds2deploy.runtimes.session import Session

if TYPE_CHECKING:
    import lhotse

BATCHES = (1, 3, 8)
FRAMES = (40, 457, 2000)
SHORTEST = 1
"""Frames of the shortest utterance that the model accepts."""

LENGTHS = (max(FRAMES), SHORTEST, 457, 700, 170, 300, 90, 13)
"""Frames of each utterance, if the batch is that long. The first is always as long as the batch;
the others are the same in every batch, so that the reference computes each once."""


def lengths_of(batch: int, frames: int) -> tuple[int, ...]:
    """Ragged lengths of so many utterances, the first as long as the batch."""
    return (
        frames,
        *(min(LENGTHS[i % len(LENGTHS)], frames) for i in range(1, batch)),
    )


class Reference:
    """A trusted model and its answers.

    Args:
        session: computes what artifacts should compute; fp32.
        audio: name and utterances of a manifest; synthetic speech without one.
        frames: of the longest utterance that will be asked for.
        name: of the file; else that of the checkpoint behind it.

    Attributes:
        description: of the model.
        name: of the model's file.
        runtime: that computes it.
        speech: what is asked about: `synthetic`, or the manifest's name.
        recordings: features (bins, frames) of all utterances of the manifest; else empty.

    Raises:
        AudioError: a recording of the manifest cannot be read.
    """

    def __init__(
        self,
        session: Session,
        audio: tuple[str, lhotse.CutSet] | None = None,
        frames: int = max(FRAMES),
        name: str = "",
    ) -> None:
        self._session = session
        self.name = name or session.description.source.name
        self.runtime = session.runtime
        self._frames = max(frames, max(FRAMES))
        self._known: dict[tuple[int, int], FloatArray] = {}
        self.description = session.description
        self.speech = "synthetic" if audio is None else audio[0]
        self.recordings: list[FloatArray] = []
        if audio is not None:
            self.recordings = _recordings(audio[1], FeatureExtractor(self.description.features))

    def utterance(self, index: int, frames: int) -> FloatArray:
        """Features (bins, frames) of an utterance of the grid; the index may be any number."""
        return self._speech[index % len(self._speech)][:, :frames]

    def log_probs(self, index: int, frames: int) -> FloatArray:
        """(time', labels) of that utterance, computed alone and without padding."""
        key = (index % len(self._speech), frames)
        if key not in self._known:
            features, lengths = pad_features([self.utterance(*key)])
            self._known[key] = self._session.run(features, lengths)[0][0]
        return self._known[key]

    @cached_property
    def texts(self) -> list[str]:
        """Greedy text of every recording."""
        return decode_all(self._session, self.recordings)

    @cached_property
    def _speech(self) -> list[FloatArray]:
        if self.recordings:
            return _grid_speech(self.recordings, self._frames)
        return speech_features(self.description.features, max(BATCHES), self._frames)


def decode_all(session: Session, recordings: Sequence[FloatArray]) -> list[str]:
    """Greedy text of every recording (bins, time), in batches of similar length."""
    alphabet = Alphabet(session.description.labels)
    texts = [""] * len(recordings)
    size = 8 if session.profile is None else min(8, session.profile.batch[2])
    lengths = [features.shape[1] for features in recordings]
    for chosen in batches(lengths, 8 * max(FRAMES), size):
        features, counts = pad_features([recordings[i] for i in chosen])
        log_probs, output_lengths = session.run(features, counts)
        for i, rows, length in zip(chosen, log_probs, output_lengths, strict=True):
            texts[i] = greedy_text(rows[:length], alphabet)
    return texts


def _recordings(cuts: lhotse.CutSet, extract: FeatureExtractor) -> list[FloatArray]:
    from ds2deploy.manifest import read_audio

    return [extract(read_audio(cut, extract.config.sample_rate)) for cut in cuts]


def _grid_speech(recordings: Sequence[FloatArray], frames: int) -> list[FloatArray]:
    """As many long utterances as the grid needs: recordings one after the other."""
    speech = []
    for i in range(max(BATCHES)):
        pieces: list[FloatArray] = []
        while sum(piece.shape[1] for piece in pieces) < frames:
            pieces.append(recordings[(i * 7 + len(pieces)) % len(recordings)])
        speech.append(np.concatenate(pieces, axis=1)[:, :frames])
    return speech
