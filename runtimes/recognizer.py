"""Recogniser: from audio to text, over any session."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import cast, overload

import numpy.typing as npt

from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.audio.checks import check_stream_rate
from ds2deploy.runtimes.audio.loading import read_blocks
from ds2deploy.runtimes.audio.samples import convert_audio, mono_pieces, resample_pieces
from ds2deploy.runtimes.audio.source import AudioFile, audio_name, is_audio_file
from ds2deploy.runtimes.decoding.decoder import MakeDecoder, Phrases, with_hot_words
from ds2deploy.runtimes.decoding.greedy import GreedyDecoder
from ds2deploy.runtimes.decoding.transcript import Transcript
from ds2deploy.runtimes.errors import AudioError, ConfigError, Ds2Error, FeaturesError, StreamError
from ds2deploy.runtimes.features import FeatureExtractor, FloatArray, IntArray
from ds2deploy.runtimes.pipeline import Recognized
from ds2deploy.runtimes.preparation import THREADS, AudioInput
from ds2deploy.runtimes.session import Closing, Session, check_batch
from ds2deploy.runtimes.streaming.endpoint import Endpoint
from ds2deploy.runtimes.streaming.pool import BACKLOG_S, BATCH, STREAMS, StreamPool
from ds2deploy.runtimes.streaming.recordings import run_recordings
from ds2deploy.runtimes.streaming.stream import Channel, Stream
from ds2deploy.runtimes.utterance_pool import WAITING, UtterancePool
from ds2deploy.runtimes.whole_utterances import WholeUtterances

Audio = AudioFile | FloatArray
"""A recording (path, bytes or binary file object, see `load_audio`), or a float32 array (samples,)
or (samples, channels) in [-1, 1]."""


class Recognizer(Closing):
    """Recognises speech with one model; a context manager that closes the session at its end.

    Several threads may call its methods at the same time, on every runtime (tested on CPUs). The
    results are the same as with one thread. Read the iterator of `transcribe_many` in one thread at
    a time. On a GPU, `close` waits for running calls, and later calls fail. On a CPU, `close` has
    no effect.

    Args:
        session: the model on its runtime.
        decoder: function or class that makes the decoder; greedy by default.

    Attributes:
        session: the model on its runtime.
        description: labels, features, shape and precision of the model.
        decoder: the decoder that was made.
    """

    def __init__(self, session: Session, decoder: MakeDecoder | None = None) -> None:
        self.session = session
        self.description = session.description
        self.decoder = (decoder or GreedyDecoder)(
            Alphabet(self.description.labels), self.description.frame_s
        )
        self._extract = FeatureExtractor(self.description.features)
        self._rate = self.description.features.sample_rate
        self._whole = WholeUtterances(session, self._extract)

    @overload
    def transcribe(  # type: ignore[overload-overlap]  # a str is also a sequence of str
        self,
        audio: Audio,
        sample_rate: float | None = None,
        window_s: float | None = None,
        hot_words: Phrases | None = None,
    ) -> Transcript: ...
    @overload
    def transcribe(
        self,
        audio: Sequence[Audio],
        sample_rate: float | None = None,
        window_s: float | None = None,
        hot_words: Phrases | None = None,
    ) -> list[Transcript]: ...
    def transcribe(
        self,
        audio: Audio | Sequence[Audio],
        sample_rate: float | None = None,
        window_s: float | None = None,
        hot_words: Phrases | None = None,
    ) -> Transcript | list[Transcript]:
        """Recognise one utterance, or a list of them in batches of similar length.

        Args:
            audio: a path, the bytes of a file, a binary file object, an array, or a list or tuple
                of those.
            sample_rate: sample rate of arrays, in Hz; files contain their own.
            window_s: length of the windows, in seconds. A longer recording is recognised in
                overlapping windows, in memory that does not grow with its duration. Default: 60 s,
                or the maximum of the engine. Streaming models use no windows.
            hot_words: phrases to prefer, in place of those of the decoder; a mapping gives each its
                weight, in nats per letter. They need a beam search.

        Returns:
            A transcript, or a list of them in the order of the input.

        Raises:
            MissingFileError: a file does not exist; see `load_audio`.
            AudioError: audio is damaged or unusable, see `load_audio` and `convert_audio`; or it is
                too long for an engine whose maximum is too short for windows.
            ConfigError: the model or the engine does not support `window_s`.
            DeviceError: a GPU failed.
        """
        if not isinstance(audio, (list, tuple)):
            return self.transcribe([audio], sample_rate, window_s, hot_words)[0]  # type: ignore[list-item]
        sources = [self._source(item, sample_rate) for item in audio]
        return self._all(sources, window_s, hot_words)

    def transcribe_many(
        self,
        audio: Iterable[Audio | AudioInput],
        sample_rate: float | None = None,
        window_s: float | None = None,
        threads: int = THREADS,
        hot_words: Phrases | None = None,
    ) -> Generator[Recognized, None, None]:
        """Recognise any number of recordings, which need not fit in memory together.

        Threads read and prepare some minutes of audio while the network runs. If you do not read
        the generator to its end, close it (`contextlib.closing`): this ends the threads.

        Args:
            audio: paths, bytes, file objects, arrays, or sources at the model's rate. A thread
                takes and reads them when they are needed; use a file object nowhere else meanwhile.
                With a streaming model, the caller's thread does this.
            sample_rate: sample rate of arrays, in Hz; files contain their own.
            window_s: see `transcribe`.
            threads: number of threads that read and prepare audio, at least 1.
            hot_words: see `transcribe`.

        Returns:
            An iterator that gives each recording once, in the order in which they are done. The
            `result` of an item is a transcript, or the error if the recording cannot be read or is
            too long for an engine.

        Raises:
            ConfigError: `threads` is below 1, or see `transcribe`; raised before any recording is
                read.
            DeviceError: a GPU failed; this is not the error of a single recording.
        """
        if threads < 1:
            raise ConfigError(f"threads {threads}: expected 1 or more")
        decoder = with_hot_words(self.decoder, hot_words)
        sources = (self._source(item, sample_rate) for item in audio)
        if self.description.blocks is not None:
            if window_s is not None:
                raise ConfigError(
                    f"--window {window_s:g}: a streaming model does not use windows; omit it"
                )
            return run_recordings(
                self.session,
                lambda: Channel(self.session, self._extract, decoder, self._rate),
                sources,
            )
        return self._whole.run(sources, threads, window_s, decoder)

    def transcribe_pieces(
        self,
        pieces: Iterable[npt.ArrayLike],
        sample_rate: float,
        window_s: float | None = None,
        name: str = "audio",
        hot_words: Phrases | None = None,
    ) -> Transcript:
        """Recognise one recording that comes in pieces, and need not fit in memory.

        Args:
            pieces: arrays (samples,) or (samples, channels), float32 in [-1, 1], of any sizes.
            sample_rate: sample rate of the pieces, in Hz.
            window_s: see `transcribe`.
            name: name of the recording in errors.
            hot_words: see `transcribe`.

        Raises:
            AudioError, ConfigError, DeviceError: see `transcribe`.
        """
        check_stream_rate(sample_rate, name)
        mono = mono_pieces(pieces, sample_rate, name)
        return self._all(
            [AudioInput(name, resample_pieces(mono, sample_rate, self._rate))],
            window_s,
            hot_words,
        )[0]

    def stream(
        self,
        sample_rate: float = 16_000,
        name: str = "stream",
        hot_words: Phrases | None = None,
        endpoint: Endpoint | None = None,
    ) -> Stream:
        """Recognise speech while it is spoken.

        Args:
            sample_rate: sample rate of the audio, in Hz; 1,000 to 768,000.
            name: name of the stream in errors.
            hot_words: see `transcribe`.
            endpoint: rules that end a segment and begin the next; None for one transcript at the
                end.

        Returns:
            A context manager with `accept(samples)` and `finish()`.

        Raises:
            AudioError: the sample rate is outside 1,000 to 768,000 Hz.
            StreamError: the model or the artifact cannot stream; the message names the remedy.
        """
        decoder = with_hot_words(self.decoder, hot_words)
        session = self._streaming_session()
        return Stream(session, self._extract, decoder, sample_rate, name, endpoint)

    def pool(
        self, streams: int = STREAMS, backlog_s: float = BACKLOG_S, batch: int = BATCH
    ) -> StreamPool:
        """Recognise many streams at once, in batches; see `StreamPool`.

        Args:
            streams: maximum number of open streams.
            backlog_s: maximum of waiting audio in a stream, in seconds.
            batch: maximum number of streams in a batch.

        Raises:
            StreamError: the model or the artifact cannot stream; the message names the remedy.
        """
        return StreamPool(
            self._streaming_session(), self._extract, self.decoder, streams, backlog_s, batch
        )

    def utterance_pool(self, waiting: int = WAITING) -> UtterancePool:
        """Recognise whole utterances of many callers, in batches; see `UtterancePool`.

        Args:
            waiting: maximum number of utterances that wait.
        """
        return UtterancePool(self.session, self._extract, self.decoder, waiting)

    @property
    def longest_s(self) -> float:
        """Longest audio that is recognised without windows, in seconds."""
        return self._whole.longest_s

    def log_probs(
        self, features: npt.ArrayLike, lengths: npt.ArrayLike
    ) -> tuple[FloatArray, IntArray]:
        """Run the network on features of your own.

        Args:
            features: (batch, 1, bins, time) float32; frames at or after the length are ignored.
            lengths: (batch,) integers, valid frames, from 1 to time.

        Returns:
            log_probs (batch, time', labels) float32, valid up to output_lengths, and
            output_lengths (batch,) int64.

        Raises:
            FeaturesError: a shape or a length does not fit the model, or its input is samples.
        """
        if self.description.input == "waveform":
            raise FeaturesError("this model takes samples, not features: use transcribe")
        return self.session.run(*check_batch(features, lengths, self.description.features.bins))

    def close(self) -> None:
        """Free the GPU memory of the session; not needed on a CPU."""
        self.session.close()

    def check_length(self, samples: int, name: str) -> None:
        """Refuse audio that is too long for an engine, both whole and in windows.

        Args:
            samples: number of samples of the utterance, at the model's sample rate.
            name: name of the recording; empty for an array.

        Raises:
            AudioError: the audio is too long; the message has its duration, the maximum of the
                engine and the remedy.
        """
        self._whole.check_length(samples, name)

    def _all(
        self, sources: list[AudioInput], window_s: float | None, hot_words: Phrases | None
    ) -> list[Transcript]:
        """Recognise all sources in the order of the input; raise the first error."""
        transcripts: dict[int, Transcript] = {}
        threads = max(1, min(THREADS, len(sources)))
        with closing(self.transcribe_many(sources, None, window_s, threads, hot_words)) as found:
            for item in found:
                if isinstance(item.result, Ds2Error):
                    raise item.result
                transcripts[item.index] = item.result
        return [transcripts[i] for i in range(len(sources))]

    def _source(self, audio: Audio | AudioInput, sample_rate: float | None) -> AudioInput:
        if isinstance(audio, AudioInput):
            return audio
        if is_audio_file(audio):
            return AudioInput(audio_name(audio), read_blocks(audio, self._rate))
        return AudioInput("", self._converted(cast(FloatArray, audio), sample_rate))

    def _converted(self, audio: FloatArray, sample_rate: float | None) -> Iterator[FloatArray]:
        """Yield an array, converted when it is asked for."""
        if sample_rate is None:
            raise AudioError("an array of samples without a sample rate: pass sample_rate in Hz")
        yield convert_audio(audio, sample_rate, self._rate)

    def _streaming_session(self) -> Session:
        session = self.session.streaming()
        if session is not None:
            return session
        name = self.description.source.name
        if self.description.model.bidirectional:
            raise StreamError(
                f"{name}: a bidirectional model needs the whole utterance and cannot stream; omit "
                "--stream (in Python: use transcribe), or train a unidirectional model, "
                "such as: ds2deploy train digits-streaming"
            )
        if self.description.features.normalize == "utterance":
            raise StreamError(
                f"{name}: its features are normalised over the whole utterance, which a stream "
                "does not have; export it with --streaming --statistics-from MANIFEST"
            )
        raise StreamError(
            f"{name}: this artifact only processes whole utterances; export the checkpoint with "
            "--streaming"
        )
