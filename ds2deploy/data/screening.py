"""Screening of a corpus: each utterance is accepted, or rejected with an error that names it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from lhotse.cut import Cut

from ds2deploy.data.ctc_room import check_room
from ds2deploy.data.cuts import audio_path, make_cut, read_audio, transcript
from ds2deploy.data.listing import unreadable
from ds2deploy.data.text_normalization import TextNormalizer, find_labels
from ds2deploy.data.utterance import Utterance
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.errors import AlphabetError, AudioError, Ds2Error, ManifestError
from ds2deploy.runtimes.features import FeatureConfig

SILENCE = 1e-4
"""Maximum absolute sample of a silent recording: -80 dB."""


SHOWN = 200
"""Maximum number of characters of a transcript in an error."""


class Screening(msgspec.Struct, frozen=True, kw_only=True):
    """Requirements of a usable utterance.

    Attributes:
        shortest_s: minimum duration, in seconds.
        longest_s: maximum duration, in seconds; None sets no limit.
        normalize: replace characters without a label, see `TextNormalizer`; otherwise their
            utterance is rejected.
        read: read recordings to their end, to detect truncated files, silence, and samples that
            are not numbers.
        features: settings of the model's features, which determine the number of frames for the
            characters of a transcript. The default is 16 kHz and one frame every 10 ms.
    """

    shortest_s: float = 0.0
    longest_s: float | None = None
    normalize: bool = False
    read: bool = False
    features: FeatureConfig = FeatureConfig()


class RejectedUtterance(msgspec.Struct, frozen=True):
    """Utterance that cannot be used.

    Attributes:
        error: reason and remedy, in one line that names the file.
        unreadable: True if the recording, or its folder, cannot be read.
    """

    error: Ds2Error
    unreadable: bool = False


class Screened(msgspec.Struct, frozen=True):
    """Usable utterance, and the set that it belongs to."""

    cut: Cut
    split: str


class Screener:
    """Screener that accepts or rejects utterances one by one.

    Args:
        source: folder or manifest that lists them, for errors.
        alphabet: labels of the model.
        screening: requirements.
        labels_found: True if the labels were taken from the transcripts, see `find_labels`.
    """

    def __init__(
        self, source: Path, alphabet: Alphabet, screening: Screening, labels_found: bool = False
    ) -> None:
        self._source, self._alphabet, self._screening = source, alphabet, screening
        self._labels_found = labels_found
        self._features = screening.features
        self._seen: set[tuple[Path, float]] = set()
        self.normalizer = TextNormalizer(alphabet)

    def screen(self, utterances: Iterable[Utterance]) -> Iterator[Screened | RejectedUtterance]:
        """Screen every utterance once, in order."""
        for utterance in utterances:
            try:
                cut = self._open(utterance)
            except Ds2Error as error:
                unreadable = utterance.error is None or utterance.unreadable
                yield RejectedUtterance(error, unreadable)
            else:
                try:
                    yield Screened(self._check(cut, utterance), utterance.split)
                except Ds2Error as error:
                    yield RejectedUtterance(error)

    def _open(self, utterance: Utterance) -> Cut:
        """Make the cut of an utterance from the header of its recording."""
        try:
            return make_cut(utterance, self._source)
        except Ds2Error:
            raise
        except OSError as error:
            raise unreadable(utterance.audio, error) from None

    def _check(self, cut: Cut, utterance: Utterance) -> Cut:
        place = (utterance.audio.resolve(), utterance.start_s)
        if place in self._seen:
            raise ManifestError(
                f"{utterance.audio}: listed twice in {self._source}; remove one entry"
            )
        cut.supervisions[0].text = self._normalized(utterance)
        self._check_length(cut)
        # Before the transcript check, which a truncated recording would fail as well.
        if self._screening.read:
            self._check_samples(cut)
        self._check_transcript(cut)
        self._seen.add(place)
        return cut

    def _normalized(self, utterance: Utterance) -> str:
        if not self._screening.normalize:
            return utterance.text
        text = self.normalizer.normalize(utterance.text)
        if not text:
            raise ManifestError(
                f"{utterance.audio}: no character of its transcript {_shown(utterance.text)} has a "
                "label; correct the transcript"
            )
        return text

    def _check_length(self, cut: Cut) -> None:
        seconds, wanted = float(cut.duration), self._screening
        if seconds < wanted.shortest_s:
            limit = f"shorter than --shortest {wanted.shortest_s:g} s"
        elif wanted.longest_s is not None and seconds > wanted.longest_s:
            limit = f"longer than --longest {wanted.longest_s:g} s"
        else:
            return
        raise AudioError(f"{audio_path(cut)}: {seconds:.2f} s, {limit}; remove it")

    def _check_transcript(self, cut: Cut) -> None:
        """Check that all characters have labels, and that CTC can align them."""
        path = audio_path(cut)
        text = transcript(cut)
        if unknown := self._alphabet.unknown(text):
            raise AlphabetError(
                f"{path}: no label for {', '.join(map(repr, unknown))} in {_shown(text)}; correct "
                f"the transcript{self._remedy(text, unknown)}"
            )
        frames = self._features.frames(round(cut.duration * self._features.sample_rate))
        check_room(self._alphabet.encode(text), frames, path)

    def _remedy(self, text: str, unknown: Sequence[str]) -> str:
        """List only the options that help with these characters."""
        letters = all(find_labels(character)[1:] for character in unknown)
        if letters and self._labels_found:
            return (
                ", or give all labels, because these letters are too rare to get their own: "
                "--labels CHARACTERS"
            )
        options = ["--labels auto, which adds labels for them"] if letters else []
        if not (
            self._screening.normalize
            or self._alphabet.unknown(TextNormalizer(self._alphabet).normalize(text))
        ):
            options.insert(0, "--normalize, which replaces or drops them")
        return (
            f", or add {', or '.join(options)}" if options else ": write words as they are spoken"
        )

    def _check_samples(self, cut: Cut) -> None:
        samples = read_audio(cut, self._features.sample_rate)
        seconds = len(samples) / self._features.sample_rate
        if seconds < 0.99 * cut.duration - 0.05:
            raise AudioError(
                f"{audio_path(cut)}: truncated, ends after {seconds:.2f} of {cut.duration:.2f} s; "
                "copy it again"
            )
        if float(np.abs(samples).max(initial=0.0)) < SILENCE:
            raise AudioError(
                f"{audio_path(cut)}: silence; record it again, or remove it from {self._source}"
            )


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
