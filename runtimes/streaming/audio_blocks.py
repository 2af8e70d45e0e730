"""Conversion of audio in pieces of any size to the blocks of a streaming network."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.audio.checks import check_stream_rate
from ds2deploy.runtimes.audio.levels import Levels
from ds2deploy.runtimes.audio.samples import mix_down
from ds2deploy.runtimes.features import FeatureExtractor, FloatArray
from ds2deploy.runtimes.geometry import window_delay, window_history


class SampleQueue:
    """Queue of samples, which are taken from the front in blocks.

    Attributes:
        count: number of samples in the queue.
    """

    def __init__(self) -> None:
        self.count = 0
        self._pieces: deque[FloatArray] = deque()

    def push(self, samples: FloatArray) -> None:
        """Add samples at the end; the array must not be changed afterwards."""
        if len(samples):
            self._pieces.append(samples)
            self.count += len(samples)

    def front(self, count: int) -> FloatArray:
        """Return the first `count` samples without removing them, padded with zeros."""
        block = np.zeros(count, np.float32)
        filled = 0
        for piece in self._pieces:
            part = piece[: count - filled]
            block[filled : filled + len(part)] = part
            filled += len(part)
            if filled == count:
                break
        return block

    def drop(self, count: int) -> None:
        """Remove the first `count` samples, or all if there are fewer."""
        self.count = max(0, self.count - count)
        while count and self._pieces:
            piece = self._pieces.popleft()
            if len(piece) > count:
                self._pieces.appendleft(piece[count:])
            count -= min(count, len(piece))


class StreamAudio:
    """One stream's audio on its way to the network.

    Args:
        description: description of a streaming model.
        extract: the model's feature extractor; unused if the input of the model is samples.
        sample_rate: sample rate of the audio, in Hz; 1,000 to 768,000.
        name: name of the stream in errors.

    Attributes:
        sample_rate: sample rate of the audio, in Hz.
        total: number of samples at the model's rate after the end of the stream; None before.

    Raises:
        AudioError: the sample rate is outside 1,000 to 768,000 Hz.
    """

    def __init__(
        self,
        description: ArtifactDescription,
        extract: FeatureExtractor,
        sample_rate: float,
        name: str = "stream",
    ) -> None:
        assert description.blocks is not None
        config = description.features
        check_stream_rate(sample_rate, name)
        self._name, self._levels = name, Levels(name)
        self.sample_rate = float(sample_rate)
        self.total: int | None = None
        self._block = description.blocks.frames * config.stride
        self._frames = description.blocks.frames
        self._rate = config.sample_rate
        self._extract = None if description.input == "waveform" else extract
        self._history = self._heard = np.zeros(window_history(config), np.float32)
        self._behind = 0 if self._extract is None else window_delay(config)
        self._queue = SampleQueue()
        self._lock = threading.Lock()  # one thread feeds, another takes
        self._received = 0
        self._resampler = None
        if sample_rate != self._rate:
            import soxr

            self._resampler = soxr.ResampleStream(sample_rate, self._rate, 1, dtype="float32")

    @property
    def first_frame(self) -> int:
        """Feature frame that the first block begins with."""
        return -self._behind

    @property
    def waiting_s(self) -> float:
        """Duration of the waiting audio, in seconds."""
        return self._queue.count / self._rate

    @property
    def full(self) -> bool:
        """True if a whole block waits."""
        return self._queue.count >= self._block

    def push(self, samples: npt.ArrayLike) -> None:
        """Add audio.

        Args:
            samples: (samples,) or (samples, channels) float32 in [-1, 1]; any number, or none.

        Raises:
            AudioError: not such an array, or not finite; no audio was accepted.
        """
        mono = mix_down(samples, self._name, self._levels)
        if self._resampler is None:
            mono = mono.copy()  # the owner of the buffer may fill it again
        else:
            mono = self._resampler.resample_chunk(np.ascontiguousarray(mono))
        self._append(mono)

    def end(self) -> None:
        """End the audio, and add the samples that the resampler still holds.

        Warns:
            AudioWarning: see `convert_audio`.
        """
        self._levels.warn()
        if self._resampler is not None:
            rest = self._resampler.resample_chunk(np.zeros(0, np.float32), last=True)
            self._append(rest)
            self._resampler = None
        self.total = self._received

    def block(self) -> FloatArray:
        """Return the next block for the network, padded with zeros; `drop` removes it.

        Returns:
            Samples (samples,), or features (1, bins, frames), float32.
        """
        samples = self._front()
        if self._extract is None:
            return samples
        self._heard = np.concatenate([self._history, samples])
        return self._extract.block(self._heard, self._frames)[None]

    def drop(self) -> None:
        """Go to the next block."""
        self._history = self._heard[-len(self._history) :].copy()
        with self._lock:
            self._queue.drop(self._block)

    def _front(self) -> FloatArray:
        with self._lock:
            return self._queue.front(self._block)

    def _append(self, samples: FloatArray) -> None:
        with self._lock:
            self._received += len(samples)
            self._queue.push(samples)
