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
from ds2deploy.runtimes.errors import (
    AudioError,
    ConfigError,
    Ds2Error,
    FeaturesError,
    StreamError,
)
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
"""A recording (its path, its bytes, a binary file object; see `load_audio`), or (samples,) or
(samples, channels) float32 in [-1, 1]."""


class Recognizer(Closing):
    """Recognises speech with one model; a context manager that closes the session at its end.

    Several threads may call its methods at the same time, on every runtime (tested on CPUs); each
    gets what it would get alone. What `transcribe_many` returns is for one thread at a time. After
    `close`, calls fail on a GPU, where those under way are waited for; on a CPU nothing changes.

    Args:
        session: the model on its runtime.
        decoder: makes the decoder; greedy by default.

    Attributes:
        session: the same.
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
            sample_rate: of the arrays, in Hz.
            window_s: what is longer is recognised in overlapping windows of so many seconds, in
                memory that does not grow with the recording; by default 60 s, or the most that an
                engine takes. A streaming model has no need of it.
            hot_words: phrases that are looked for, instead of the decoder's, each with nats for
                every letter if it is a mapping; for beam search.

        Returns:
            A transcript, or a list of them in the order of the input.

        Raises:
            MissingFileError, AudioError: see `load_audio` and `convert_audio`; and audio that
                is longer than an engine takes whose windows would be too short.
            ConfigError: windows that the model, or the engine, does not take.
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

        Threads read and prepare some minutes of audio while the network runs. Close the generator
        (`contextlib.closing`) where it is not read to its end: the threads end with it.

        Args:
            audio: paths, bytes, file objects, arrays, or sources at the model's rate; asked for as
                they are needed, by a thread, which also reads them: meanwhile nobody else may use
                a file object. A streaming model does both in the caller's thread.
            sample_rate: of the arrays, in Hz.
            window_s: see `transcribe`.
            threads: that read and prepare, at least 1.
            hot_words: see `transcribe`.

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
        decoder = with_hot_words(self.decoder, hot_words)
        sources = (self._source(item, sample_rate) for item in audio)
        if self.description.blocks is not None:
            if window_s is not None:
                raise ConfigError(
                    f"--window {window_s:g}: windows are for models of whole utterances, a "
                    "streaming one needs none; leave it out"
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
            pieces: (samples,) or (samples, channels) float32 in [-1, 1], of any sizes.
            sample_rate: of them, in Hz.
            window_s: see `transcribe`.
            name: of the recording, for errors.
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
            sample_rate: of the audio that will come, in Hz; any.
            name: for errors.
            hot_words: see `transcribe`.
            endpoint: when a segment ends and another begins; None for one transcript at the end.

        Returns:
            A context manager with `accept(samples)` and `finish()`.

        Raises:
            AudioError: a rate that is none.
            StreamError: the model, or the artifact, is one of whole utterances; says what to do.
        """
        decoder = with_hot_words(self.decoder, hot_words)
        session = self._streaming_session()
        return Stream(session, self._extract, decoder, sample_rate, name, endpoint)

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
        return StreamPool(
            self._streaming_session(), self._extract, self.decoder, streams, backlog_s, batch
        )

    def utterance_pool(self, waiting: int = WAITING) -> UtterancePool:
        """Recognise whole utterances of many callers, in batches; see `UtterancePool`.

        Args:
            waiting: maximum of utterances that may wait.
        """
        return UtterancePool(self.session, self._extract, self.decoder, waiting)

    @property
    def longest_s(self) -> float:
        """Seconds of audio that are recognised whole; longer audio is taken in windows."""
        return self._whole.longest_s

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
            raise AudioError("audio given as an array: say its sample_rate in Hz")
        yield convert_audio(audio, sample_rate, self._rate)

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
                'features.normalize = "global"); this model gives the text of whole recordings: '
                "leave out --stream (in Python: transcribe)"
            )
        if self.description.features.normalize == "utterance":
            raise StreamError(
                f"{name}: its features are normalised over whole utterances, which a stream does "
                "not have: export it with --streaming --statistics-from MANIFEST"
            )
        raise StreamError(
            f"{name}: this artifact takes whole utterances; export the checkpoint with --streaming"
        )
