"""Recognition while somebody speaks: audio in pieces of any size, text as soon as it is certain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy.typing as npt

from ds2deploy.runtimes.decoding.decoder import Decoder, HotWordDecoder, Phrases, with_hot_words
from ds2deploy.runtimes.decoding.transcript import Transcript, Update
from ds2deploy.runtimes.errors import StreamError
from ds2deploy.runtimes.features import FeatureExtractor, FloatArray
from ds2deploy.runtimes.session import Closing, Session
from ds2deploy.runtimes.streaming.audio_blocks import StreamAudio
from ds2deploy.runtimes.streaming.endpoint import (
    Endpoint,
    EndpointRule,
    joined,
    shifted,
    shifted_word,
)
from ds2deploy.runtimes.streaming.state import StreamState, step


class Channel:
    """One stream from samples to text, without the run of the network.

    Args:
        session: session of a streaming model.
        extract: the model's feature extractor.
        decoder: the model's decoder.
        sample_rate: sample rate of the audio, in Hz.
        name: name of the stream in errors.
        live: True if words are shown while somebody speaks, see `Decoder.start`.
        endpoint: rules that end a segment; None for a stream of one segment.

    Attributes:
        audio: audio that waits.
        state: state of the stream in the network.
        decoder: the model's decoder.
        decoding: state of the segment in the decoder.

    Raises:
        AudioError: the sample rate is outside 1,000 to 768,000 Hz.
    """

    def __init__(
        self,
        session: Session,
        extract: FeatureExtractor,
        decoder: Decoder,
        sample_rate: float,
        name: str = "stream",
        live: bool = False,
        endpoint: Endpoint | None = None,
    ) -> None:
        description = session.description
        config = description.features
        self.audio = StreamAudio(description, extract, sample_rate, name)
        self.state = StreamState(description, self.audio.first_frame)
        self.decoder, self.decoding = decoder, decoder.start(live)
        self._live, self._frame_s = live, description.frame_s
        space = description.labels.find(" ")
        self._rule = None if endpoint is None else EndpointRule(endpoint, self._frame_s, space)
        self._first_frame, self._read_frames = 0, 0
        self._segments: list[Transcript] = []
        self._rate = config.sample_rate
        self._samples = description.input == "waveform"
        self._frames = config.frames

    @property
    def ready(self) -> bool:
        """True if a block can be run: a full one, or one of the last after the end."""
        if self.audio.total is None:
            return self.audio.full
        return not self.done

    @property
    def done(self) -> bool:
        """True if the stream has ended and all of it was processed."""
        return self.audio.total == 0 or self.state.done

    @property
    def duration_s(self) -> float:
        """Duration of the stream in seconds; infinite until it ends."""
        return float("inf") if self.audio.total is None else self.audio.total / self._rate

    def end(self) -> None:
        """End the audio of this stream."""
        self.audio.end()
        if total := self.audio.total:
            self.state.total = total if self._samples else self._frames(total)

    def set_hot_words(self, hot_words: Phrases) -> None:
        """Replace the hot words, from the next block on."""
        decoder = with_hot_words(self.decoder, hot_words)
        assert isinstance(decoder, HotWordDecoder)
        decoder.take_hot_words(self.decoding)
        self.decoder = decoder

    def update(self) -> Update:
        """Return the new words since the last update."""
        found = self.decoder.update(self.decoding, self.duration_s - self._start_s)
        if self._rule is None:
            return found
        segments, self._segments = tuple(self._segments), []
        words, tail = (
            tuple(shifted_word(word, self._start_s) for word in part)
            for part in (found.words, found.tail_words)
        )
        return Update(found.stable, found.tail, words, tail, segments)

    def finish(self) -> Transcript:
        """Return the transcript of the whole utterance; with endpoints, of the unreported rest."""
        # The last frame may begin after the last sample.
        length_s = max(0.0, self.duration_s - self._start_s)
        found = self.decoder.finish(self.decoding, length_s)
        if self._start_s:
            found = shifted(found, self._start_s)
        segments, self._segments = self._segments, []
        return joined([*segments, found]) if segments else found

    def cut(self, log_probs: FloatArray) -> int:
        """Return the number of frames of a block that belong to the current segment."""
        end = None if self._rule is None else self._rule.cut(log_probs)
        return len(log_probs) if end is None else end

    def end_segment(self, frames: int) -> None:
        """Count frames that were decoded, and begin a new segment if one ended there."""
        self._read_frames += frames
        if self._rule is None or not self._rule.begins:
            return
        length_s = (self._read_frames - self._first_frame) * self._frame_s
        found = self.decoder.finish(self.decoding, length_s)
        if found.text:
            self._segments.append(shifted(found, self._start_s))
        self.decoding = self.decoder.start(self._live)
        self._first_frame = self._read_frames

    @property
    def _start_s(self) -> float:
        """Beginning of the segment, in seconds."""
        return self._first_frame * self._frame_s


def run_channels(session: Session, channels: Sequence[Channel]) -> None:
    """Run one block of each of these ready channels, in one batch.

    Args:
        session: session of a streaming model.
        channels: at least one channel, all with the same decoder.

    Raises:
        DeviceError: the session failed; the channels are unchanged.
    """
    blocks = [channel.audio.block() for channel in channels]
    results = step(session, [channel.state for channel in channels], blocks)
    for channel in channels:
        channel.audio.drop()
    rest = list(zip(channels, results, strict=True))
    while rest:
        counts = [channel.cut(log_probs) for channel, log_probs in rest]
        channels[0].decoder.advance(
            [channel.decoding for channel, _ in rest],
            [log_probs[:count] for (_, log_probs), count in zip(rest, counts, strict=True)],
        )
        for (channel, _), count in zip(rest, counts, strict=True):
            channel.end_segment(count)
        rest = [
            (channel, log_probs[count:])
            for (channel, log_probs), count in zip(rest, counts, strict=True)
            if count < len(log_probs)
        ]


class Stream(Closing):
    """One stream; a context manager that discards the rest if `finish` was not called.

    `Recognizer.stream` makes it. Only one thread at a time may use a stream; different streams of a
    session may run in different threads. `close` may also be called while another thread uses the
    stream: that thread's current call ends normally, later calls raise StreamError.

    Args:
        session: session of a streaming model.
        extract: the model's feature extractor.
        decoder: the model's decoder.
        sample_rate: sample rate of the audio, in Hz; 1,000 to 768,000.
        name: name of the stream in errors.
        endpoint: rules that end a segment; None for a stream of one segment.
    """

    def __init__(
        self,
        session: Session,
        extract: FeatureExtractor,
        decoder: Decoder,
        sample_rate: float,
        name: str = "stream",
        endpoint: Endpoint | None = None,
    ) -> None:
        self._session = session
        self._channel: Channel | None = Channel(
            session, extract, decoder, sample_rate, name, live=True, endpoint=endpoint
        )

    def accept(self, samples: npt.ArrayLike) -> Update:
        """Add audio and run all full blocks.

        Args:
            samples: (samples,) or (samples, channels) float32 in [-1, 1] at the stream's rate; any
                number of samples, or none.

        Returns:
            All final words, the new ones among them, and the tail, which may still change.

        Raises:
            AudioError: not such an array, or not finite; no audio was accepted, and the stream can
                be used as before.
            StreamError: the stream has finished.
            DeviceError: a GPU failed; the audio is kept, and the next call tries again.
        """
        channel = self._open()
        if channel.audio.total is not None:
            raise StreamError(
                "this stream was finished and accepts no more audio; call finish() again for its "
                "transcript"
            )
        channel.audio.push(samples)
        while channel.ready:
            run_channels(self._session, [channel])
        return channel.update()

    def set_hot_words(self, hot_words: Phrases) -> None:
        """Replace the hot words, from the next block on.

        Args:
            hot_words: phrases, or a mapping to their weights (nats per letter); empty for none.

        Raises:
            StreamError: the stream has finished already.
            AlphabetError, ConfigError: a phrase cannot be used, see `HotWords`; or the decoder is
                greedy.
        """
        self._open().set_hot_words(hot_words)

    def finish(self) -> Transcript:
        """End the stream and process the rest of its audio.

        Returns:
            The transcript of the whole utterance, equal to that of `Recognizer.transcribe` for the
            same audio; empty without audio. With endpoints, the transcript of everything after the
            last segment that an update gave.

        Raises:
            StreamError: the stream has finished already.
            DeviceError: a GPU failed; another call tries again.
        """
        channel = self._open()
        if channel.audio.total is None:
            channel.end()
        while channel.ready:
            run_channels(self._session, [channel])
        transcript = channel.finish()
        self._channel = None
        return transcript

    def close(self) -> None:
        """End the stream and discard the rest; later calls raise StreamError."""
        self._channel = None

    def _open(self) -> Channel:
        if self._channel is None:
            raise StreamError("this stream has finished; open another with stream()")
        return self._channel
