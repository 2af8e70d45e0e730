"""Recordings through a model of whole utterances: short ones in batches, long ones in windows."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import cached_property

import numpy as np

from ds2deploy.runtimes.decoding.decoder import Decoder, decode_batch
from ds2deploy.runtimes.errors import FILE_ERRORS, AudioError, ConfigError
from ds2deploy.runtimes.features import FeatureExtractor, FloatArray, pad_sounds
from ds2deploy.runtimes.long_audio import WindowShape, transcribe_windows
from ds2deploy.runtimes.pipeline import (
    AHEAD_S,
    WINDOW_S,
    QueuedRecording,
    Recognized,
    batch_limits,
    run_batches,
)
from ds2deploy.runtimes.preparation import AudioInput, Preparation, Prepared, without_frames
from ds2deploy.runtimes.session import Session, beyond_profile
from ds2deploy.runtimes.streaming.recordings import run_recordings
from ds2deploy.runtimes.streaming.stream import Channel
from ds2deploy.runtimes.tensors import samples_of

LONGEST_S = 60.0
"""Longer recordings are processed in overlapping windows of so many seconds."""

LEAST_WINDOW_S, MOST_WINDOW_S = 4.0, 600.0
"""Shorter windows have no room for words with a context; longer ones fill the memory."""


class WholeUtterances:
    """Runs recordings through a session of whole utterances.

    Args:
        session: the model on its runtime.
        extract: the model's feature extractor.
    """

    def __init__(self, session: Session, extract: FeatureExtractor) -> None:
        self._session, self._extract = session, extract
        self._description = session.description
        self._rate = self._description.features.sample_rate

    def run(
        self,
        sources: Iterator[AudioInput],
        threads: int,
        window_s: float | None,
        decoder: Decoder,
    ) -> Generator[Recognized, None, None]:
        """Recognise any number of recordings; see `Recognizer.transcribe_many`."""
        shape, limit = self._windows(window_s)
        return self._run(sources, threads, shape, limit, window_s is None, decoder)

    @property
    def longest_s(self) -> float:
        """Seconds of audio that are taken whole."""
        return self._windows(None)[1] / self._rate

    def check_length(self, samples: int, name: str) -> None:
        """Refuse audio that an engine takes neither whole nor in windows.

        Args:
            samples: length of one utterance, at the model's sample rate.
            name: name of the recording; empty for an array.

        Raises:
            AudioError: says how long it is, what the engine takes, and what to do.
        """
        config, profile = self._description.features, self._session.profile
        if profile is None or self._takes_any_length:
            return
        if problem := beyond_profile(samples / config.sample_rate, profile, config):
            raise AudioError(f"{name}: {problem}" if name else problem)

    def _run(
        self,
        sources: Iterator[AudioInput],
        threads: int,
        shape: WindowShape,
        limit: int,
        exact: bool,
        decoder: Decoder,
    ) -> Generator[Recognized, None, None]:
        """Recognise recordings, as a generator: no thread begins before the first is asked for."""
        yield from run_batches(
            Preparation(
                sources,
                lambda source: self._prepare(source, limit),
                int((WINDOW_S + AHEAD_S) * self._rate),
                threads,
            ),
            lambda batch: self._network(batch, decoder),
            lambda items: self._long(items, shape, exact, decoder),
            int(WINDOW_S * self._rate),
            batch_limits(self._session),
        )

    def _windows(self, window_s: float | None) -> tuple[WindowShape, int]:
        """Shape of the windows, and the most samples that are taken whole."""
        config, profile = self._description.features, self._session.profile
        most = int(LONGEST_S * self._rate)
        longest_s = LONGEST_S
        if profile is not None:
            most = min(most, samples_of(profile.frames[2], config))
            longest_s = min(longest_s, profile.seconds(config)[2])
        if window_s is None:
            return WindowShape(config, longest_s), most
        if profile is not None and window_s > profile.seconds(config)[2]:
            raise ConfigError(
                f"--window {window_s:g}: this engine accepts at most "
                f"{profile.seconds(config)[2]:g} s; use a smaller window"
            )
        if not LEAST_WINDOW_S <= window_s <= MOST_WINDOW_S:
            raise ConfigError(
                f"--window {window_s:g}: expected {LEAST_WINDOW_S:g} to {MOST_WINDOW_S:g} s"
            )
        return WindowShape(config, window_s), int(window_s * self._rate)

    def _prepare(self, source: AudioInput, limit: int) -> Prepared:
        """Read a recording, all of it where it is not longer than the limit in samples."""
        begun, rest = begin_reading(source.pieces, limit)
        count = sum(map(len, begun))
        frames = self._description.features.frames(count)
        if rest is not None:
            if not self._takes_any_length:
                self.check_length(count + sum(map(len, rest)), source.name)
            whole = AudioInput(source.name, itertools.chain(begun, rest))
            return Prepared(None, frames, count, long=whole)
        waveform = np.concatenate(begun)
        self.check_length(count, source.name)
        if self._description.input == "waveform":
            return Prepared(waveform, frames, count)
        # Of this thread: the network has the cores beside it.
        started = time.thread_time()
        features = self._extract(waveform)
        return Prepared(features, frames, count, time.thread_time() - started)

    def _network(self, batch: list[QueuedRecording], decoder: Decoder) -> list[Recognized]:
        started = time.perf_counter()
        sounds = [item.prepared.sound for item in batch if item.prepared.sound is not None]
        log_probs, output_lengths = self._session.run(*pad_sounds(sounds))
        durations_s = [item.prepared.samples / self._rate for item in batch]
        transcripts = decode_batch(decoder, log_probs, output_lengths, durations_s)
        each_s = (time.perf_counter() - started) / sum(item.prepared.samples for item in batch)
        return [
            Recognized(
                item.index,
                transcript,
                item.prepared.compute_s + each_s * item.prepared.samples,
            )
            for item, transcript in zip(batch, transcripts, strict=True)
        ]

    def _long(
        self, items: list[QueuedRecording], shape: WindowShape, exact: bool, decoder: Decoder
    ) -> Generator[Recognized, None, None]:
        """Recognise what is too long to be taken whole; exactly, as streams, where that can be."""
        sources = [item.prepared.long for item in items if item.prepared.long is not None]
        session = self._exact_session if exact else None
        if session is not None:

            def channel() -> Channel:
                return Channel(session, self._extract, decoder, self._rate)

            for found in run_recordings(session, channel, sources):
                yield replace(found, index=items[found.index].index)
            return
        for item, source in zip(items, sources, strict=True):
            yield self._in_windows(item.index, source, shape, decoder)

    def _in_windows(
        self, index: int, source: AudioInput, shape: WindowShape, decoder: Decoder
    ) -> Recognized:
        pieces = _Clocked(source.pieces)
        started = time.perf_counter()
        try:
            transcript = transcribe_windows(self._session, self._extract, decoder, pieces, shape)
        except FILE_ERRORS as error:  # which may come with the last piece
            return Recognized(index, without_frames(error))
        return Recognized(index, transcript, time.perf_counter() - started - pieces.took_s)

    @cached_property
    def _exact_session(self) -> Session | None:
        """Made once: a checkpoint's is a network of its own."""
        return self._session.streaming()

    @property
    def _takes_any_length(self) -> bool:
        """True if audio of any length is taken; False for an engine of too short windows."""
        profile, description = self._session.profile, self._description
        if profile is None or description.blocks is not None:
            return True
        return profile.seconds(description.features)[2] >= LEAST_WINDOW_S


class _Clocked(Iterator[FloatArray]):
    """Pieces of a recording, and the seconds that reading them took."""

    def __init__(self, pieces: Iterator[FloatArray]) -> None:
        self._pieces, self.took_s = pieces, 0.0

    def __next__(self) -> FloatArray:
        started = time.perf_counter()
        try:
            return next(self._pieces)
        finally:
            self.took_s += time.perf_counter() - started


def begin_reading(
    pieces: Iterator[FloatArray], limit: int
) -> tuple[list[FloatArray], Iterator[FloatArray] | None]:
    """Read until there is more than the limit; the rest is None where there is not."""
    read: list[FloatArray] = []
    count = 0
    for piece in pieces:
        read.append(piece)
        count += len(piece)
        if count > limit:
            return read, pieces
    return read, None
