"""From audio to text, over any session."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property, partial
from typing import cast, overload

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.audio.checks import check_stream_rate
from ds2deploy.runtimes.audio.loading import read_blocks
from ds2deploy.runtimes.audio.samples import convert_audio, mono_pieces, resample_pieces
from ds2deploy.runtimes.audio.source import AudioFile, audio_name, is_audio_file
from ds2deploy.runtimes.decoding.greedy import Transcript, decode_batch
from ds2deploy.runtimes.errors import (
    FILE_ERRORS,
    AudioError,
    ConfigError,
    Ds2Error,
    FeaturesError,
    StreamError,
)
from ds2deploy.runtimes.features import (
    FeatureExtractor,
    FloatArray,
    IntArray,
    pad_sounds,
)
from ds2deploy.runtimes.long_audio import WindowShape, transcribe_windows
from ds2deploy.runtimes.pipeline import (
    AHEAD_S,
    WINDOW_S,
    QueuedRecording,
    Recognized,
    batch_limits,
    run_batches,
)
from ds2deploy.runtimes.preparation import (
    THREADS,
    AudioInput,
    Preparation,
    Prepared,
    readable,
    without_frames,
)
from ds2deploy.runtimes.session import Closing, Session, beyond_profile, check_batch
from ds2deploy.runtimes.streaming.pool import BACKLOG_S, BATCH, STREAMS, StreamPool
from ds2deploy.runtimes.streaming.stream import Channel, Stream, run_channels
from ds2deploy.runtimes.tensors import samples_of

Audio = AudioFile | FloatArray
"""A recording (its path, its bytes, a binary file object; see `load_audio`), or (samples,) or
(samples, channels) float32 in [-1, 1]."""

BATCH_SIZE = 8
"""Recordings at a time through a streaming model: beyond it, a CPU is no faster."""

LONGEST_S = 60.0
"""What is longer is taken in overlapping windows of so many seconds."""

LEAST_WINDOW_S, MOST_WINDOW_S = 4.0, 600.0
"""Shorter windows have no room for words with a context; longer ones fill the memory."""


class Recognizer(Closing):
    """Recognises speech with one model; a context manager that closes the session at its end.

    Several threads may call its methods at the same time, on every runtime; each gets what it would
    get alone. What `transcribe_many` returns is for one thread at a time. After `close`, calls fail
    on a GPU, where those under way are waited for; on a CPU nothing changes.

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
            audio: a path, the bytes of a file, a binary file object, an array, or a list or tuple
                of those.
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
        sources = [self._source(item, sample_rate) for item in audio]
        return self._all(sources, window_s)

    def transcribe_many(
        self,
        audio: Iterable[Audio | AudioInput],
        sample_rate: float | None = None,
        window_s: float | None = None,
        threads: int = THREADS,
    ) -> Generator[Recognized, None, None]:
        """Recognise any number of recordings, which need not fit in memory together.

        Threads read and prepare some minutes of audio while the network runs. Close the generator
        (`contextlib.closing`) where it is not read to its end: the threads end with it.

        Args:
            audio: paths, bytes, file objects, arrays, or sources at the model's rate; asked for as
                they are needed, by a thread, which also reads them: meanwhile nobody else may use
                a file object. A streaming model does both in the caller's thread.
            sample_rate: of the arrays, in Hz.
            window_s: see `transcribe`.
            threads: that read and prepare, at least 1.

        Returns:
            An iterator with every recording once, as they are done and not in order; its `result`
            is a transcript, or the error of a recording that cannot be read or is too long for an
            engine.

        Raises:
            ConfigError: at once; see `transcribe`; or no threads.
            DeviceError: a GPU failed; of no recording.
        """
        if threads < 1:
            raise ConfigError(f"threads {threads}: expected 1 or more")
        sources = (self._source(item, sample_rate) for item in audio)
        if self.description.blocks is not None:
            if window_s is not None:
                raise ConfigError(
                    f"--window {window_s:g}: windows are for models of whole utterances, a "
                    "streaming one needs none; leave it out"
                )
            return self._run_streams(self.session, sources)
        shape, limit = self._windows(window_s)
        return self._run_whole(sources, shape, limit, window_s is None, threads)

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
        return self._all(
            [AudioInput(name, resample_pieces(mono, sample_rate, self._rate))], window_s
        )[0]

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
        if profile is None or self._takes_any_length:
            return
        if problem := beyond_profile(samples / config.sample_rate, profile, config):
            raise AudioError(f"{name}: {problem}" if name else problem)

    def _all(self, sources: list[AudioInput], window_s: float | None) -> list[Transcript]:
        """In the order of the input; raises at the first error."""
        transcripts: dict[int, Transcript] = {}
        threads = max(1, min(THREADS, len(sources)))
        with closing(self.transcribe_many(sources, None, window_s, threads)) as found:
            for item in found:
                if isinstance(item.result, Ds2Error):
                    raise item.result
                transcripts[item.index] = item.result
        return [transcripts[i] for i in range(len(sources))]

    def _run_whole(
        self,
        sources: Iterator[AudioInput],
        shape: WindowShape,
        limit: int,
        exact: bool,
        threads: int,
    ) -> Generator[Recognized, None, None]:
        """A generator, so that no thread begins before the first recording is asked for."""
        yield from run_batches(
            Preparation(
                sources,
                partial(self._prepare, limit=limit),
                int((WINDOW_S + AHEAD_S) * self._rate),
                threads,
            ),
            self._network,
            partial(self._long, shape=shape, exact=exact),
            int(WINDOW_S * self._rate),
            batch_limits(self.session),
        )

    def _source(self, audio: Audio | AudioInput, sample_rate: float | None) -> AudioInput:
        if isinstance(audio, AudioInput):
            return audio
        if is_audio_file(audio):
            return AudioInput(audio_name(audio), read_blocks(audio, self._rate))
        return AudioInput("", self._converted(cast(FloatArray, audio), sample_rate))

    def _converted(self, audio: FloatArray, sample_rate: float | None) -> Iterator[FloatArray]:
        """An array, converted when it is asked for."""
        if sample_rate is None:
            raise AudioError("audio given as an array: say its sample_rate in Hz")
        yield convert_audio(audio, sample_rate, self._rate)

    def _prepare(self, source: AudioInput, limit: int) -> Prepared:
        """Read a recording, all of it where it is not longer than the limit in samples."""
        begun, rest = _begin(source.pieces, limit)
        count = sum(map(len, begun))
        frames = self.description.features.frames(count)
        if rest is not None:
            if not self._takes_any_length:
                self.check_length(count + sum(map(len, rest)), source.name)
            whole = AudioInput(source.name, itertools.chain(begun, rest))
            return Prepared(None, frames, count, long=whole)
        waveform = np.concatenate(begun)
        self.check_length(count, source.name)
        if self.description.input == "waveform":
            return Prepared(waveform, frames, count)
        # Of this thread: the network has the cores beside it.
        started = time.thread_time()
        features = self._extract(waveform)
        return Prepared(features, frames, count, time.thread_time() - started)

    def _long(
        self, items: list[QueuedRecording], shape: WindowShape, exact: bool
    ) -> Generator[Recognized, None, None]:
        """What is too long to be taken whole: exactly, as streams, where the model can."""
        sources = [item.prepared.long for item in items if item.prepared.long is not None]
        session = self._exact_session if exact else None
        if session is not None:
            for found in self._run_streams(session, sources):
                yield replace(found, index=items[found.index].index)
            return
        for item, source in zip(items, sources, strict=True):
            yield self._in_windows(item.index, source, shape)

    def _in_windows(self, index: int, source: AudioInput, shape: WindowShape) -> Recognized:
        pieces = _Clocked(source.pieces)
        started = time.perf_counter()
        try:
            transcript = transcribe_windows(self.session, self._extract, pieces, shape)
        except FILE_ERRORS as error:  # which may come with the last piece
            return Recognized(index, without_frames(error))
        return Recognized(index, transcript, time.perf_counter() - started - pieces.took_s)

    @cached_property
    def _exact_session(self) -> Session | None:
        """Made once: a checkpoint's is a network of its own."""
        return self.session.streaming()

    @property
    def _takes_any_length(self) -> bool:
        """Whether long audio has windows, or needs none; not with an engine of short windows."""
        profile, description = self.session.profile, self.description
        if profile is None or description.blocks is not None:
            return True
        return profile.seconds(description.features)[2] >= LEAST_WINDOW_S

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

    def _network(self, batch: list[QueuedRecording]) -> list[Recognized]:
        started = time.perf_counter()
        sounds = [item.prepared.sound for item in batch if item.prepared.sound is not None]
        log_probs, output_lengths = self.session.run(*pad_sounds(sounds))
        durations_s = [item.prepared.samples / self._rate for item in batch]
        transcripts = decode_batch(
            log_probs, output_lengths, durations_s, self._alphabet, self.description.frame_s
        )
        each_s = (time.perf_counter() - started) / sum(item.prepared.samples for item in batch)
        return [
            Recognized(
                item.index,
                transcript,
                item.prepared.compute_s + each_s * item.prepared.samples,
            )
            for item, transcript in zip(batch, transcripts, strict=True)
        ]

    def _run_streams(
        self, session: Session, sources: Iterable[AudioInput]
    ) -> Generator[Recognized, None, None]:
        """Recordings through a streaming session, some at a time: one ends, the next begins."""
        coming = enumerate(sources)
        size = self._batch(BATCH_SIZE)
        running: list[_Running] = []
        while True:
            for index, source in itertools.islice(coming, size - len(running)):
                channel = Channel(session, self._extract, self._rate)
                running.append(_Running(index, channel, readable(source)))
            if not running:
                return
            for one in list(running):
                if (error := one.read()) is not None:
                    running.remove(one)
                    yield Recognized(one.index, error)
            if not running:
                continue
            started = time.perf_counter()
            run_channels(session, [one.channel for one in running])
            each_s = (time.perf_counter() - started) / len(running)
            for one in list(running):
                one.compute_s += each_s
                if one.channel.done:
                    running.remove(one)
                    yield Recognized(one.index, one.channel.finish(), one.compute_s)

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


class _Running:
    """A recording that goes through a streaming session."""

    def __init__(self, index: int, channel: Channel, pieces: Iterator[FloatArray]) -> None:
        self.index, self.channel, self.compute_s = index, channel, 0.0
        self._pieces = pieces

    def read(self) -> Ds2Error | None:
        """Give the channel what its next step needs; what is wrong with the file, if it is."""
        while not (self.channel.ready or self.channel.done):
            try:
                piece = next(self._pieces, None)
            except FILE_ERRORS as error:
                return without_frames(error)
            if piece is None:
                self.channel.end()
            else:
                self.channel.audio.push(piece)
        return None


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
