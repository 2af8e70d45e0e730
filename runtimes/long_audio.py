"""Audio of any length through a model of whole utterances: overlapping windows, joined before
decoding.

A window sees enough on both sides that what it says of its middle is what the whole would say; the
log-probabilities of the middles are joined, and decoded as one utterance. Memory does not grow with
the recording. A graph that takes samples normalises each window by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ds2deploy.runtimes.alphabet import BLANK
from ds2deploy.runtimes.decoding.decoder import Decoder
from ds2deploy.runtimes.decoding.transcript import Transcript
from ds2deploy.runtimes.features import FeatureConfig, FeatureExtractor, FloatArray
from ds2deploy.runtimes.geometry import TIME_STRIDE
from ds2deploy.runtimes.session import Session, prepare_sound

CONTEXT_S = 5.0
"""On both sides of what is kept of a window, at most; a short window has an eighth of itself."""


class WindowShape:
    """Positions of windows over a recording; all in samples.

    Args:
        features: feature settings of the model.
        window_s: seconds in a window.

    Attributes:
        size: size of a window.
        hop: distance from one window to the next.
        per_frame: samples from one output frame to the next.
    """

    def __init__(self, features: FeatureConfig, window_s: float) -> None:
        self.per_frame = TIME_STRIDE * features.stride

        def frames(seconds: float) -> int:
            return int(seconds * features.sample_rate + 1e-6) // self.per_frame

        context = frames(min(CONTEXT_S, window_s / 8))
        self.size = frames(window_s) * self.per_frame
        self.hop = self.size - 2 * context * self.per_frame

    def cut(self, pieces: Iterable[FloatArray]) -> Iterator[tuple[FloatArray, bool]]:
        """Windows of a recording, and whether each is the last, which may be shorter.

        Args:
            pieces: the recording, in pieces of any size.
        """
        waiting = np.zeros(0, np.float32)
        for piece in pieces:
            waiting = np.concatenate([waiting, piece])
            while len(waiting) > self.size:
                yield waiting[: self.size], False
                waiting = waiting[self.hop :]
        yield waiting, True


def transcribe_windows(
    session: Session,
    extract: FeatureExtractor,
    decoder: Decoder,
    pieces: Iterable[FloatArray],
    shape: WindowShape,
) -> Transcript:
    """Recognise a recording of any length, one window after the other.

    Two at a time would take twice the memory: measured, 290 MB for another minute of a small model.

    Args:
        session: session of a model of whole utterances.
        extract: the model's feature extractor.
        decoder: the model's decoder.
        pieces: the recording at the model's rate, in pieces of any size.
        shape: shape of the windows.
    """
    config = session.description.features
    joined = _Joined(decoder, shape)
    samples = 0
    for window, last in shape.cut(pieces):
        samples += len(window) if last else shape.hop
        log_probs, lengths = session.run(*prepare_sound(session, extract.of_long_audio, [window]))
        joined.add(log_probs[0, : lengths[0]], last)
    return decoder.finish(joined.state, samples / config.sample_rate)


class _Joined:
    """Reads windows as one utterance.

    Two windows that overlap are joined where both are surest that nothing is being said, in the
    middle half of what they share: a letter that one has a frame earlier than the other is then
    neither lost nor doubled.
    """

    def __init__(self, decoder: Decoder, shape: WindowShape) -> None:
        self._decoder, self.state = decoder, decoder.start()
        self._hop = shape.hop // shape.per_frame
        self._shared: FloatArray | None = None

    def add(self, log_probs: FloatArray, last: bool) -> None:
        """Take the next window's (frames, labels)."""
        first = 0
        if self._shared is not None:
            count = min(len(self._shared), len(log_probs))
            low, high = count // 4, max(count // 4 + 1, count - count // 4)
            blank = self._shared[low:high, BLANK] + log_probs[low:high, BLANK]
            first = low + int(blank.argmax())
            self._take(self._shared[:first])
        self._take(log_probs[first:] if last else log_probs[first : self._hop])
        self._shared = None if last else log_probs[self._hop :].copy()

    def _take(self, log_probs: FloatArray) -> None:
        self._decoder.advance([self.state], [log_probs])
