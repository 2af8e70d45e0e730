"""From audio to text, over any session."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.audio import (
    check_stream_rate,
    convert_audio,
    mono_pieces,
    read_blocks,
    resample_pieces,
)
from ds2deploy.runtimes.closing import Closing
from ds2deploy.runtimes.decoding import Transcript, decode_greedy
from ds2deploy.runtimes.errors import AudioError, ConfigError, FeaturesError, StreamError
from ds2deploy.runtimes.features import FeatureExtractor, FloatArray, IntArray
from ds2deploy.runtimes.long_audio import WindowShape, transcribe_windows
from ds2deploy.runtimes.session import Session, beyond_profile, check_batch, prepare_sound
from ds2deploy.runtimes.stream import Channel, Stream, run_channels
from ds2deploy.runtimes.stream_pool import BACKLOG_S, BATCH, STREAMS, StreamPool
from ds2deploy.runtimes.tensors import samples_of

Audio = str | Path | FloatArray
"""A path, or (samples,) or (samples, channels) float32 in [-1, 1]."""

BATCH_SIZE = 8
"""Utterances at a time: beyond it, throughput on a CPU no longer grows."""

BATCH_S = 240.0
"""Seconds of audio at a time, padding included: bounds the memory that long recordings take."""

LONGEST_S = 60.0
"""What is longer is taken in overlapping windows of so many seconds."""

LEAST_WINDOW_S, MOST_WINDOW_S = 4.0, 600.0
"""Shorter windows have no room for words with a context; longer ones fill the memory."""


class Recognizer(Closing):
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
        self._rate = self.description.features.sample_rate

    @overload
    def transcribe(  # type: ignore[overload-overlap]  # a str is also a sequence of str
        self, audio: Audio, sample_rate: float | None = None, window_s: float | None = None
    ) -> Transcript: ...
    @overload
    def transcribe(
        self,
        audio: Sequence[Audio],
        sample_rate: float | None = None,
        window_s: float | None = None,
    ) -> list[Transcript]: ...
    def transcribe(
        self,
        audio: Audio | Sequence[Audio],
        sample_rate: float | None = None,
        window_s: float | None = None,
    ) -> Transcript | list[Transcript]:
        """Recognise one utterance, or a list of them in batches of similar length.

        Args:
            audio: a path, an array, or a list or tuple of those.
            sample_rate: of the arrays, in Hz.
            window_s: what is longer is recognised in overlapping windows of so many seconds, in
                memory that does not grow with the recording; by default 60 s, or the most that an
                engine takes. A streaming model has no need of it.

        Returns:
            A transcript, or a list of them in the order of the input.

        Raises:
            MissingFileError, AudioError: see `load_audio` and `convert_audio`; and audio that
                is longer than an engine takes whose windows would be too short.
            ConfigError: windows that the model, or the engine, does not take.
            DeviceError: a GPU failed.
        """
        if not isinstance(audio, (list, tuple)):
            return self.transcribe([audio], sample_rate, window_s)[0]  # type: ignore[list-item]
        return self._transcribe([self._source(item, sample_rate) for item in audio], window_s)

    def transcribe_pieces(
        self,
        pieces: Iterable[npt.ArrayLike],
        sample_rate: float,
        window_s: float | None = None,
        name: str = "audio",
    ) -> Transcript:
        """Recognise one recording that comes in pieces, and need not fit in memory.

        Args:
            pieces: (samples,) or (samples, channels) float32 in [-1, 1], of any sizes.
            sample_rate: of them, in Hz.
            window_s: see `transcribe`.
            name: of the recording, for errors.

        Raises:
            AudioError, ConfigError, DeviceError: see `transcribe`.
        """
        check_stream_rate(sample_rate, name)
        mono = mono_pieces(pieces, sample_rate, name)
        source = _Source(name, resample_pieces(mono, sample_rate, self._rate))
        return self._transcribe([source], window_s)[0]

    def stream(self, sample_rate: float = 16_000, name: str = "stream") -> Stream:
        """Recognise speech while it is spoken.

        Args:
            sample_rate: of the audio that will come, in Hz; any.
            name: for errors.

        Returns:
            A context manager with `accept(samples)` and `finish()`.

        Raises:
            AudioError: a rate that is none.
            StreamError: the model, or the artifact, is one of whole utterances; says what to do.
        """
        return Stream(self._streaming_session(), self._extract, sample_rate, name)

    def pool(
        self, streams: int = STREAMS, backlog_s: float = BACKLOG_S, batch: int = BATCH
    ) -> StreamPool:
        """Recognise many streams at once, in batches; see `StreamPool`.

        Args:
            streams: that may be open at the same time.
            backlog_s: seconds of audio that may wait in a stream.
            batch: streams that are run at a time, at most.

        Raises:
            StreamError: the model, or the artifact, is one of whole utterances; says what to do.
        """
        return StreamPool(self._streaming_session(), self._extract, streams, backlog_s, batch)

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
            FeaturesError: a shape or a length that the model cannot take, or a model that takes
                samples.
        """
        if self.description.input == "waveform":
            raise FeaturesError("this model takes samples, not features: use transcribe")
        return self.session.run(*check_batch(features, lengths, self.description.features.bins))

    def close(self) -> None:
        """Give back what the session holds of a GPU; without need on a CPU."""
        self.session.close()

    def check_length(self, samples: int, name: str) -> None:
        """Refuse audio that an engine takes neither whole nor in windows.

        Args:
            samples: of one utterance, at the model's sample rate.
            name: of the recording; empty for an array.

        Raises:
            AudioError: says how long it is, what the engine takes, and what to do.
        """
        config, profile = self.description.features, self.session.profile
        if profile is None or self.description.blocks is not None:
            return
        if profile.seconds(config)[2] >= LEAST_WINDOW_S:
            return
        if problem := beyond_profile(samples / config.sample_rate, profile, config):
            raise AudioError(f"{name}: {problem}" if name else problem)

    def _source(self, audio: Audio, sample_rate: float | None) -> _Source:
        if isinstance(audio, (str, Path)):
            return _Source(str(audio), read_blocks(audio, self._rate))
        if sample_rate is None:
            raise AudioError("audio given as an array: say its sample_rate in Hz")
        return _Source("", iter([convert_audio(audio, sample_rate, self._rate)]))

    def _transcribe(self, sources: list[_Source], window_s: float | None) -> list[Transcript]:
        """Short recordings in batches, long ones in windows; or all of them as streams."""
        if self.description.blocks is not None:
            if window_s is not None:
                raise ConfigError(
                    f"--window {window_s:g}: windows are for models of whole utterances, a "
                    "streaming one needs none; leave it out"
                )
            return self._transcribe_streams(self.session, sources)
        shape, limit = self._windows(window_s)
        short: dict[int, FloatArray] = {}
        long: dict[int, _Source] = {}
        for i, source in enumerate(sources):
            begun, rest = _begin(source.pieces, limit)
            if rest is None:
                short[i] = np.concatenate(begun)
                self.check_length(len(short[i]), source.name)
                continue
            if self.session.profile is not None:
                self._refuse_long(source.name, begun, rest)
            long[i] = _Source(source.name, itertools.chain(begun, rest))
        transcripts = self._transcribe_long(long, shape, exact=window_s is None)
        indices = list(short)
        lengths = [len(short[i]) for i in indices]
        for chosen in batches(lengths, int(BATCH_S * self._rate), self._batch(BATCH_SIZE)):
            batch = self._recognize([short[indices[i]] for i in chosen])
            transcripts.update(zip((indices[i] for i in chosen), batch, strict=True))
        return [transcripts[i] for i in range(len(sources))]

    def _transcribe_long(
        self, sources: dict[int, _Source], shape: WindowShape, exact: bool
    ) -> dict[int, Transcript]:
        """What is too long to be taken whole: exactly, as streams, where the model can."""
        session = self.session.streaming() if exact and sources else None
        if session is not None:
            texts = self._transcribe_streams(session, list(sources.values()))
            return dict(zip(sources, texts, strict=True))
        return {
            i: transcribe_windows(self.session, self._extract, source.pieces, shape)
            for i, source in sources.items()
        }

    def _refuse_long(self, name: str, begun: list[FloatArray], rest: Iterator[FloatArray]) -> None:
        """Of an engine whose windows would be too short to be joined."""
        assert self.session.profile is not None
        if self.session.profile.seconds(self.description.features)[2] < LEAST_WINDOW_S:
            self.check_length(sum(map(len, begun)) + sum(map(len, rest)), name)

    def _batch(self, size: int) -> int:
        """So many utterances at a time, or the most that an engine takes."""
        profile = self.session.profile
        return size if profile is None else min(size, profile.batch[2])

    def _windows(self, window_s: float | None) -> tuple[WindowShape, int]:
        """Of what is too long to be taken whole, and the most samples that are not."""
        config, profile = self.description.features, self.session.profile
        most = int(LONGEST_S * self._rate)
        longest_s = LONGEST_S
        if profile is not None:
            most = min(most, samples_of(profile.frames[2], config))
            longest_s = min(longest_s, profile.seconds(config)[2])
        if window_s is None:
            return WindowShape(config, longest_s), most
        if profile is not None and window_s > profile.seconds(config)[2]:
            raise ConfigError(
                f"--window {window_s:g}: this engine takes up to "
                f"{profile.seconds(config)[2]:g} s; ask for less"
            )
        if not LEAST_WINDOW_S <= window_s <= MOST_WINDOW_S:
            raise ConfigError(
                f"--window {window_s:g}: expected {LEAST_WINDOW_S:g} to {MOST_WINDOW_S:g} s"
            )
        return WindowShape(config, window_s), int(window_s * self._rate)

    def _recognize(self, waveforms: list[FloatArray]) -> list[Transcript]:
        sound, lengths = prepare_sound(self.session, self._extract, waveforms)
        log_probs, output_lengths = self.session.run(sound, lengths)
        return [
            decode_greedy(
                frames[:length],
                self._alphabet,
                frame_s=self.description.frame_s,
                duration_s=len(waveform) / self._rate,
            )
            for frames, length, waveform in zip(log_probs, output_lengths, waveforms, strict=True)
        ]

    def _transcribe_streams(self, session: Session, sources: list[_Source]) -> list[Transcript]:
        """Whole recordings through a streaming session, some at a time."""
        transcripts: list[Transcript] = []
        size = self._batch(BATCH_SIZE)
        for start in range(0, len(sources), size):
            chosen = [
                (Channel(session, self._extract, self._rate), source.pieces)
                for source in sources[start : start + size]
            ]
            while waiting := [item for item in chosen if not item[0].done]:
                for channel, pieces in waiting:
                    while not channel.ready:
                        piece = next(pieces, None)
                        if piece is None:
                            channel.end()
                        else:
                            channel.audio.push(piece)
                run_channels(session, [channel for channel, _ in waiting])
            transcripts += [channel.finish() for channel, _ in chosen]
        return transcripts

    def _streaming_session(self) -> Session:
        session = self.session.streaming()
        if session is not None:
            return session
        name = self.description.source.name
        if self.description.model.bidirectional:
            raise StreamError(
                f"{name}: a bidirectional model hears the end of an utterance before it reads the "
                "beginning, and cannot stream; train a unidirectional one: ds2deploy train "
                "digits-streaming is an example (model.bidirectional = false, "
                'features.normalize = "global")'
            )
        if self.description.features.normalize == "utterance":
            raise StreamError(
                f"{name}: its features are normalised over whole utterances, which a stream does "
                "not have: export it with --streaming --statistics-from MANIFEST"
            )
        raise StreamError(
            f"{name}: this artifact takes whole utterances; export the checkpoint with --streaming"
        )


class _Source(NamedTuple):
    """Audio that is about to be read.

    Attributes:
        name: of the recording; empty for an array.
        pieces: (samples,) float32 at the model's rate.
    """

    name: str
    pieces: Iterator[FloatArray]


def _begin(
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
