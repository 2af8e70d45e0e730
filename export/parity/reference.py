"""Reference of the parity checks: a trusted model, and the speech that goes in.

PyTorch in float32 is not the truth: it rounds after every step, and a recurrent network may amplify
that. So the truth is the same network in float64, and PyTorch's own distance from it is known too.

One reference serves all the artifacts of an export: speech is made, and each utterance computed,
once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ds2deploy.export.parity.speech import speech_waveforms
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.artifact import Input
from ds2deploy.runtimes.decoding.greedy import greedy_text
from ds2deploy.runtimes.features import FeatureExtractor, FloatArray, pad_sounds
from ds2deploy.runtimes.pipeline import batches
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


FLOOR = -10.0
"""Log-probabilities under this decide nothing: e^-10 is a chance of 1 in 22,000."""

Exact = npt.NDArray[np.float64]


def distance(exact: Exact, found: FloatArray) -> float:
    """Largest difference of two arrays of log-probabilities, where one of them is above `FLOOR`.

    Far below it a device may give log(0); above it that is an infinite difference.
    """
    decisive = np.maximum(exact, found) > FLOOR
    return float(np.abs(exact[decisive] - found[decisive]).max(initial=0.0))


def behind_best(exact: Exact, found: FloatArray) -> float:
    """Most by which the labels that `found` has best are behind the best ones of `exact`."""
    chosen = np.take_along_axis(exact, found.argmax(axis=1)[:, None], axis=1)[:, 0]
    return float((exact.max(axis=1) - chosen).max(initial=0.0))


class Reference:
    """A trusted model and its log-probabilities.

    Args:
        session: session of the trusted model in float32.
        audio: name and utterances of a manifest; synthetic speech without one.
        frames: length of the longest utterance that will be asked for.
        name: name of the file; else that of the checkpoint behind it.
        sound: input of the artifacts; by default that of the session.
        exact: the session's model in float64, which artifacts are then compared with. Without it
            they are compared with the session, as on a device that has no PyTorch.
        pytorch_difference: distance of PyTorch's float32 from float64, where an export measured
            it; None where `exact` gives it, or it is not known.

    Attributes:
        description: metadata of the model.
        name: name of the model's file.
        runtime: name of the runtime that computes the truth.
        speech: origin of the speech: `synthetic`, or the manifest's name.
        sound: input of the artifacts.
        recordings: all utterances of the manifest as the artifacts take them, features
            (bins, frames) or samples (samples,); else empty.

    Raises:
        AudioError: a recording of the manifest cannot be read.
    """

    def __init__(
        self,
        session: Session,
        audio: tuple[str, lhotse.CutSet] | None = None,
        frames: int = max(FRAMES),
        name: str = "",
        sound: Input | None = None,
        exact: Session | None = None,
        pytorch_difference: float | None = None,
    ) -> None:
        self._session, self._exact = session, exact
        self._trusted = exact or session
        self._pytorch_difference = pytorch_difference
        self.name = name or session.description.source.name
        self.runtime = self._trusted.runtime
        self._frames = max(frames, max(FRAMES))
        self._known: dict[tuple[int, int], tuple[Exact, float | None]] = {}
        self.description = session.description
        self.sound: Input = sound or session.description.input
        self.speech = "synthetic" if audio is None else audio[0]
        self._extract = FeatureExtractor(self.description.features)
        self.recordings: list[FloatArray] = []
        if audio is not None:
            self.recordings = [self._taken(samples) for samples in self._read(audio[1])]

    def utterance(self, index: int, frames: int) -> FloatArray:
        """Return an utterance of the grid as the artifacts take it; the index may be any number.

        Samples end in the middle of a stride, as recordings do.
        """
        index %= len(self._speech)
        if self.sound == "features":
            return self._speech[index][:, :frames]
        stride = self.description.features.stride
        return self._speech[index][: (frames - 1) * stride + 1 + 37 * index % (stride - 1)]

    def log_probs(self, index: int, frames: int) -> Exact:
        """(time', labels) float64 of that utterance, computed alone and without padding."""
        return self._computed(index, frames)[0]

    def pytorch_difference(self, index: int, frames: int) -> float | None:
        """Distance of PyTorch's float32 from `log_probs`; None where it is not known."""
        return self._computed(index, frames)[1]

    def _computed(self, index: int, frames: int) -> tuple[Exact, float | None]:
        key = (index % len(self._speech), frames)
        if key not in self._known:
            batch = pad_sounds([self._given(self.utterance(*key))])
            truth = np.asarray(self._trusted.run(*batch)[0][0], np.float64)
            own = self._pytorch_difference
            if self._exact is not None:
                own = distance(truth, self._session.run(*batch)[0][0])
            self._known[key] = truth, own
        return self._known[key]

    @cached_property
    def texts(self) -> list[str]:
        """Greedy text of every recording."""
        return decode_all(self._trusted, [self._given(sound) for sound in self.recordings])

    @cached_property
    def _speech(self) -> list[FloatArray]:
        if self.recordings:
            stride = 1 if self.sound == "features" else self.description.features.stride
            return _grid_speech(self.recordings, self._frames * stride)
        waveforms = speech_waveforms(self.description.features, max(BATCHES), self._frames)
        return [self._taken(samples) for samples in waveforms]

    def _taken(self, samples: FloatArray) -> FloatArray:
        """Return samples as the artifacts take them."""
        return samples if self.sound == "waveform" else self._extract(samples)

    def _given(self, sound: FloatArray) -> FloatArray:
        """Convert what the artifacts take to what the session takes."""
        if sound.ndim == 1 and self._session.description.input == "features":
            return self._extract(sound)
        return sound

    def _read(self, cuts: lhotse.CutSet) -> Iterator[FloatArray]:
        from ds2deploy.data.cuts import read_audio

        return (read_audio(cut, self._extract.config.sample_rate) for cut in cuts)


def decode_all(session: Session, recordings: Sequence[FloatArray]) -> list[str]:
    """Greedy text of every recording, as the session takes it, in batches of similar length."""
    alphabet, features = Alphabet(session.description.labels), session.description.features
    texts = [""] * len(recordings)
    size = 8 if session.profile is None else min(8, session.profile.batch[2])
    lengths = [sound.shape[-1] for sound in recordings]
    longest = max(FRAMES) * (1 if recordings[0].ndim > 1 else features.stride)
    for chosen in batches(lengths, 8 * longest, size):
        log_probs, output_lengths = session.run(*pad_sounds([recordings[i] for i in chosen]))
        for i, rows, length in zip(chosen, log_probs, output_lengths, strict=True):
            texts[i] = greedy_text(rows[:length], alphabet)
    return texts


def _grid_speech(recordings: Sequence[FloatArray], length: int) -> list[FloatArray]:
    """Join recordings to as many long utterances as the grid needs."""
    speech = []
    for i in range(max(BATCHES)):
        pieces: list[FloatArray] = []
        while sum(piece.shape[-1] for piece in pieces) < length:
            pieces.append(recordings[(i * 7 + len(pieces)) % len(recordings)])
        speech.append(np.concatenate(pieces, axis=-1)[..., :length])
    return speech
