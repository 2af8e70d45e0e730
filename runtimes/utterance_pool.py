"""Recognition of whole utterances that arrive at any time, in batches of one session."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

import numpy.typing as npt

from ds2deploy.runtimes.audio.samples import convert_audio
from ds2deploy.runtimes.decoding.decoder import Decoder, Phrases, with_hot_words
from ds2deploy.runtimes.decoding.transcript import Transcript
from ds2deploy.runtimes.errors import BackPressureError, StreamError
from ds2deploy.runtimes.features import FeatureExtractor, FloatArray, pad_sounds
from ds2deploy.runtimes.pipeline import batch_limits, batches
from ds2deploy.runtimes.session import Closing, Session

if TYPE_CHECKING:
    from concurrent.futures import Future

WAITING = 1024
"""Maximum number of waiting utterances."""


class QueuedUtterance:
    """An utterance that waits for a batch.

    Attributes:
        sound: features (bins, frames), or samples for a model that takes those.
        samples: length of the utterance, at the model's rate.
        frames: length of its features.
        decoder: decoder of the model, with the hot words of this utterance.
        transcript: receives the transcript, or the error of the batch.
    """

    def __init__(self, sound: FloatArray, samples: int, frames: int, decoder: Decoder) -> None:
        from concurrent.futures import Future

        self.sound, self.samples, self.frames, self.decoder = sound, samples, frames, decoder
        self.transcript: Future[Transcript] = Future()


class UtterancePool(Closing):
    """Recognises utterances of many callers with one session; a context manager.

    Batches start as in the DeepSpeech 2 paper (Batch Dispatch, section 7.1): the next one starts
    when the last one ends, with utterances that wait by then. Any number of threads may submit
    utterances; one thread calls `tick` repeatedly. A batch holds the oldest utterance and those of
    similar length.

    Args:
        session: session of a model of whole utterances.
        extract: the model's feature extractor.
        decoder: the model's decoder.
        waiting: maximum number of waiting utterances.
    """

    def __init__(
        self,
        session: Session,
        extract: FeatureExtractor,
        decoder: Decoder,
        waiting: int = WAITING,
    ) -> None:
        self._session, self._extract, self._decoder = session, extract, decoder
        self._config = session.description.features
        self._rate = self._config.sample_rate
        self._most = waiting
        self._limits = batch_limits(session)
        self._waiting: deque[QueuedUtterance] = deque()
        self._closed = False
        self._news = threading.Event()
        self._lock = threading.Lock()
        self._ticking = threading.Lock()

    def __len__(self) -> int:
        """Count the utterances that wait."""
        return len(self._waiting)

    @property
    def waiting_s(self) -> float:
        """Seconds of audio that wait."""
        with self._lock:
            return sum(item.samples for item in self._waiting) / self._rate

    def submit(
        self, samples: npt.ArrayLike, hot_words: Phrases | None = None, name: str = "audio"
    ) -> Future[Transcript]:
        """Compute the features of an utterance, and put it into the queue.

        Args:
            samples: (samples,) float32 in [-1, 1], at the model's sample rate.
            hot_words: see `Recognizer.transcribe`.
            name: name of the utterance, for errors.

        Returns:
            A future with the transcript; cancelling it removes the utterance from the queue.

        Raises:
            BackPressureError: the maximum number of utterances waits.
            AudioError: there are no samples, or they are not finite.
            StreamError: the pool is closed.
            AlphabetError, ConfigError: a phrase cannot be used, see `HotWords`; or the decoder is
                greedy.
        """
        self._check_room()
        waveform = convert_audio(samples, self._rate, self._rate, name)
        decoder = with_hot_words(self._decoder, hot_words)
        sound = waveform
        if self._session.description.input == "features":
            sound = self._extract(waveform)
        item = QueuedUtterance(sound, len(waveform), self._config.frames(len(waveform)), decoder)
        with self._lock:
            self._check_room()
            self._waiting.append(item)
        self._news.set()
        return item.transcript

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for an utterance or the timeout (seconds); False after it and on a closed pool."""
        return self._news.wait(timeout_s) and not self._closed

    def tick(self) -> int:
        """Recognise the next batch, and set its transcripts.

        Returns:
            The number of utterances in the batch.

        Raises:
            DeviceError: the session failed; the futures of the batch get the same error.
            StreamError: the pool is closed.
        """
        with self._ticking:
            if self._closed:
                raise StreamError("the pool is closed; make another")
            batch = self._take()
            if batch:
                self._recognize(batch)
            return len(batch)

    def fail(self, error: Exception) -> None:
        """Set an error for all waiting utterances, and close the pool."""
        with self._ticking, self._lock:
            for item in self._waiting:
                if item.transcript.set_running_or_notify_cancel():
                    item.transcript.set_exception(error)
            self._waiting.clear()
        self.close()

    def close(self) -> None:
        """Cancel the waiting utterances after the current batch; the session stays open."""
        with self._ticking, self._lock:
            self._closed = True
            for item in self._waiting:
                item.transcript.cancel()
            self._waiting.clear()
        self._news.set()

    def _take(self) -> list[QueuedUtterance]:
        """Take the batch of the oldest utterance; cancelled ones are dropped."""
        with self._lock:
            self._news.clear()
            live = [item for item in self._waiting if not item.transcript.cancelled()]
            lengths = [item.frames for item in live]
            made = batches(lengths, *self._limits)
            chosen = next((set(batch) for batch in made if 0 in batch), set())
            batch = [
                live[i] for i in sorted(chosen) if live[i].transcript.set_running_or_notify_cancel()
            ]
            self._waiting = deque(item for i, item in enumerate(live) if i not in chosen)
            if self._waiting:
                self._news.set()
        return batch

    def _recognize(self, batch: list[QueuedUtterance]) -> None:
        try:
            log_probs, lengths = self._session.run(*pad_sounds([item.sound for item in batch]))
            states = [item.decoder.start() for item in batch]
            blocks = [rows[:length] for rows, length in zip(log_probs, lengths, strict=True)]
            # Decoders that differ in hot words alone advance each other's states.
            batch[0].decoder.advance(states, blocks)
            found = [
                item.decoder.finish(state, item.samples / self._rate)
                for item, state in zip(batch, states, strict=True)
            ]
        except BaseException as error:
            for item in batch:
                item.transcript.set_exception(error)
            raise
        for item, transcript in zip(batch, found, strict=True):
            item.transcript.set_result(transcript)

    def _check_room(self) -> None:
        if self._closed:
            raise StreamError("the pool is closed; make another")
        if len(self._waiting) >= self._most:
            raise BackPressureError(
                f"the limit of {self._most} waiting utterances of this pool is reached: send it "
                "again later, or make a larger pool"
            )
