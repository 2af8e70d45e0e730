"""From audio to text, over any session."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import overload

import numpy.typing as npt

from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.artifact import TIME_STRIDE
from ds2deploy.runtimes.audio import convert_audio, load_audio
from ds2deploy.runtimes.decoding import Transcript, decode_greedy
from ds2deploy.runtimes.errors import AudioError
from ds2deploy.runtimes.features import FeatureExtractor, FloatArray, IntArray, pad_features
from ds2deploy.runtimes.session import Session, beyond_profile, check_batch

Audio = str | Path | FloatArray
"""A path, or (samples,) or (samples, channels) float32 in [-1, 1]."""

BATCH_SIZE = 8
"""Utterances at a time: beyond it, throughput on a CPU no longer grows."""

BATCH_S = 240.0
"""Seconds of audio at a time, padding included: bounds the memory that long recordings take."""


class Recognizer:
    """Recognises speech with one model; a context manager that closes the session at its end.

    Args:
        session: the model on its runtime.

    Attributes:
        session: the same.
        description: of the model: labels, features, shape, precision.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.description = session.description
        self._alphabet = Alphabet(self.description.labels)
        self._extract = FeatureExtractor(self.description.features)

    @overload
    def transcribe(  # type: ignore[overload-overlap]  # a str is also a sequence of str
        self, audio: Audio, sample_rate: int | None = None
    ) -> Transcript: ...
    @overload
    def transcribe(
        self, audio: Sequence[Audio], sample_rate: int | None = None
    ) -> list[Transcript]: ...
    def transcribe(
        self, audio: Audio | Sequence[Audio], sample_rate: int | None = None
    ) -> Transcript | list[Transcript]:
        """Recognise one utterance, or a list of them in batches of similar length.

        Args:
            audio: a path, an array, or a list or tuple of those.
            sample_rate: of the arrays, in Hz.

        Returns:
            A transcript, or a list of them in the order of the input.

        Raises:
            MissingFileError, AudioError: see `load_audio` and `convert_audio`; and audio that
                is longer than an engine takes.
            DeviceError: a GPU failed.
        """
        if not isinstance(audio, (list, tuple)):
            return self.transcribe([audio], sample_rate)[0]  # type: ignore[list-item]
        waveforms = [self._load(item, sample_rate) for item in audio]
        transcripts: dict[int, Transcript] = {}
        rate, profile = self.description.features.sample_rate, self.session.profile
        size = BATCH_SIZE if profile is None else min(BATCH_SIZE, profile.batch[2])
        lengths = [len(waveform) for waveform in waveforms]
        for indices in batches(lengths, int(BATCH_S * rate), size):
            batch = self._recognize([waveforms[i] for i in indices])
            transcripts.update(zip(indices, batch, strict=True))
        return [transcripts[i] for i in range(len(waveforms))]

    def log_probs(
        self, features: npt.ArrayLike, lengths: npt.ArrayLike
    ) -> tuple[FloatArray, IntArray]:
        """Run the network on features of your own.

        Args:
            features: (batch, 1, bins, time) float32; what stands past a length is ignored.
            lengths: (batch,) integers, valid frames, from 1 to time.

        Returns:
            log_probs (batch, time', labels) float32, meaningless past output_lengths, and
            output_lengths (batch,) int64.

        Raises:
            FeaturesError: a shape or a length that the model cannot take.
        """
        return self.session.run(*check_batch(features, lengths, self.description.features.bins))

    def check_length(self, samples: int, name: str) -> None:
        """Refuse audio that is longer than an engine takes.

        Args:
            samples: of one utterance, at the model's sample rate.
            name: of the recording; empty for an array.

        Raises:
            AudioError: says how long it is, what the engine takes, and what to do.
        """
        config, profile = self.description.features, self.session.profile
        if profile is None:
            return
        if problem := beyond_profile(samples / config.sample_rate, profile, config):
            raise AudioError(f"{name}: {problem}" if name else problem)

    def close(self) -> None:
        """Give back what the session holds of a GPU; without need on a CPU."""
        self.session.close()

    def __enter__(self) -> Recognizer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _load(self, audio: Audio, sample_rate: int | None) -> FloatArray:
        rate = self.description.features.sample_rate
        if isinstance(audio, (str, Path)):
            waveform, name = load_audio(audio, rate), str(audio)
        elif sample_rate is None:
            raise AudioError("audio given as an array: say its sample_rate in Hz")
        else:
            waveform, name = convert_audio(audio, sample_rate, rate), ""
        self.check_length(len(waveform), name)
        return waveform

    def _recognize(self, waveforms: list[FloatArray]) -> list[Transcript]:
        config = self.description.features
        features, lengths = pad_features([self._extract(waveform) for waveform in waveforms])
        log_probs, output_lengths = self.session.run(features, lengths)
        return [
            decode_greedy(
                frames[:length],
                self._alphabet,
                frame_s=TIME_STRIDE * config.stride / config.sample_rate,
                duration_s=len(waveform) / config.sample_rate,
            )
            for frames, length, waveform in zip(log_probs, output_lengths, waveforms, strict=True)
        ]


def batches(lengths: Sequence[int], total: int, size: int = BATCH_SIZE) -> Iterator[list[int]]:
    """Group items of similar length.

    Args:
        lengths: of every item.
        total: most that a batch may hold, all items padded to its longest; a single item may
            exceed it.
        size: most items in a batch.

    Yields:
        Indices; every one once, shortest items first.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) == size or (len(batch) + 1) * lengths[i] > total):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
