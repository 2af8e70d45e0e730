"""Audio as it comes, in pieces of any size, to the blocks that a streaming network takes."""

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
    """Samples that wait; taken from the front in blocks.

    Attributes:
        count: of the samples.
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
        """Return the first so many samples, which stay; zeros in the place of missing ones."""
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
        """Take away the first so many samples, or all."""
        self.count = max(0, self.count - count)
        while count and self._pieces:
            piece = self._pieces.popleft()
            if len(piece) > count:
                self._pieces.appendleft(piece[count:])
            count -= min(count, len(piece))


class StreamAudio:
    """One stream's audio on its way to the network.

    Args:
        description: of a streaming model.
        extract: the model's feature extractor, for a model that takes features.
        sample_rate: of the audio, in Hz; any.
        name: of the stream, for errors.

    Attributes:
        sample_rate: of the audio, in Hz.
        total: samples at the model's rate, once the stream has ended; None before.

    Raises:
        AudioError: a rate that is none.
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
        """Seconds of audio that wait."""
        return self._queue.count / self._rate

    @property
    def full(self) -> bool:
        """True if a whole block waits."""
        return self._queue.count >= self._block

    def push(self, samples: npt.ArrayLike) -> None:
        """Take more audio.

        Args:
            samples: (samples,) or (samples, channels) float32 in [-1, 1]; any number, none too.

        Raises:
            AudioError: not such an array, or not finite; nothing of it is taken.
        """
        mono = mix_down(samples, self._name, self._levels)
        if self._resampler is None:
            mono = mono.copy()  # the owner of the buffer may fill it again
        else:
            mono = self._resampler.resample_chunk(np.ascontiguousarray(mono))
        self._append(mono)

    def end(self) -> None:
        """No more audio comes; what the resampler holds back is added.

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
        """Return the next block as the network takes it, zeros past the end; it stays until `drop`.

        Returns:
            Samples (samples,), or features (1, bins, frames), float32.
        """
        samples = self._front()
        if self._extract is None:
            return samples
        self._heard = np.concatenate([self._history, samples])
        return self._extract.block(self._heard, self._frames)[None]

    def drop(self) -> None:
        """Move from the block that was taken last to the next."""
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
