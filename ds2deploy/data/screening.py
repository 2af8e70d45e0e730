"""What is wrong with the utterances of a corpus: each is looked at, and none goes unnamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np
from lhotse.cut import Cut

from ds2deploy.data.ctc_room import frames_needed
from ds2deploy.data.manifest import audio_path, make_cut, read_audio, transcript
from ds2deploy.data.sources import Utterance
from ds2deploy.data.text_normalization import TextNormalizer
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.artifact import output_length
from ds2deploy.runtimes.errors import (
    AlphabetError,
    AudioError,
    Ds2Error,
    ManifestError,
    system_reason,
)
from ds2deploy.runtimes.features import FeatureConfig

SILENCE = 1e-4
"""Largest sample of a recording in which nobody can be heard: -80 dB."""


class Screening(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of an utterance.

    Attributes:
        shortest_s: of audio.
        longest_s: of audio; None for any length.
        normalize: whether transcripts are spelled with the labels as far as possible, see
            `TextNormalizer`; else a character without a label is a fault.
        read: whether recordings are read to their end; their headers do not tell of a file that
            was cut off, of silence, or of samples that are no numbers.
        features: settings of the model's features, which decide how many frames there are for the
            characters of a transcript. The default is 16 kHz, a frame every 10 ms.
    """

    shortest_s: float = 0.0
    longest_s: float | None = None
    normalize: bool = False
    read: bool = False
    features: FeatureConfig = FeatureConfig()


class RejectedUtterance(msgspec.Struct, frozen=True):
    """An utterance that cannot be used.

    Attributes:
        error: what is wrong and what to do, in one line that names the file.
        unreadable: whether the recording, or its folder, cannot be read.
    """

    error: Ds2Error
    unreadable: bool = False


class Screened(msgspec.Struct, frozen=True):
    """An utterance that can be used, and the set that it belongs to."""

    cut: Cut
    split: str


class Screener:
    """Looks at utterances one by one.

    Args:
        source: that they are from, for errors.
        alphabet: of the model.
        wanted: of an utterance.
        progress: told how many were looked at.
    """

    def __init__(
        self,
        source: Path,
        alphabet: Alphabet,
        wanted: Screening,
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        self._source, self._alphabet, self._wanted = source, alphabet, wanted
        self._progress = progress
        self._features = wanted.features
        self._seen: set[tuple[Path, float]] = set()
        self.spelling = TextNormalizer(alphabet)

    def screen(self, utterances: Iterable[Utterance]) -> Iterator[Screened | RejectedUtterance]:
        """Every utterance once, in order: as a cut, or with what is wrong with it."""
        for done, utterance in enumerate(utterances, start=1):
            try:
                cut = self._opened(utterance)
            except Ds2Error as error:
                yield RejectedUtterance(
                    error, unreadable=utterance.fault is None or utterance.unreadable
                )
            else:
                yield self._screened(cut, utterance)
            self._progress(done)

    def _opened(self, utterance: Utterance) -> Cut:
        """The cut of a recording whose header can be read."""
        try:
            return make_cut(utterance, self._source)
        except OSError as error:
            if isinstance(error, Ds2Error):
                raise
            reason = system_reason(error)
            raise AudioError(
                f"{utterance.audio}: cannot be read ({reason}); make it readable, or take it out"
            ) from None

    def _screened(self, cut: Cut, utterance: Utterance) -> Screened | RejectedUtterance:
        try:
            return Screened(self._check(cut, utterance), utterance.split)
        except Ds2Error as error:
            return RejectedUtterance(error)

    def _check(self, cut: Cut, utterance: Utterance) -> Cut:
        place = (utterance.audio.resolve(), utterance.start_s)
        if place in self._seen:
            raise ManifestError(
                f"{utterance.audio}: stands in {self._source} a second time; take one out"
            )
        cut.supervisions[0].text = self._spelled(utterance)
        self._check_length(cut)
        if self._wanted.read:  # first: where the end of a recording is missing, words do not fit
            self._check_samples(cut)
        self._check_transcript(cut)
        self._seen.add(place)
        return cut

    def _spelled(self, utterance: Utterance) -> str:
        if not self._wanted.normalize:
            return utterance.text
        spelled = self.spelling.spell(utterance.text)
        if not spelled:
            raise ManifestError(
                f"{utterance.audio}: nothing of its transcript {utterance.text!r} has a label; "
                "correct it"
            )
        return spelled

    def _check_length(self, cut: Cut) -> None:
        seconds, wanted = float(cut.duration), self._wanted
        if seconds < wanted.shortest_s:
            raise AudioError(
                f"{audio_path(cut)}: {seconds:.2f} s, shorter than the {wanted.shortest_s:g} s "
                "that are asked for"
            )
        if wanted.longest_s is not None and seconds > wanted.longest_s:
            raise AudioError(
                f"{audio_path(cut)}: {seconds:.2f} s, longer than the {wanted.longest_s:g} s "
                "that are asked for"
            )

    def _check_transcript(self, cut: Cut) -> None:
        """It has labels, and no more of them than CTC can place."""
        path = audio_path(cut)
        text = transcript(cut)
        if unknown := self._alphabet.unknown(text):
            raise AlphabetError(
                f"{path}: no label for {', '.join(map(repr, unknown))} in {text!r}; correct the "
                f"transcript, spell it with the labels {self._alphabet.labels[1:]!r} by "
                "--normalize, or find others with --labels auto"
            )
        labels = self._alphabet.encode(text)
        there = output_length(
            self._features.frames(round(cut.duration * self._features.sample_rate))
        )
        if frames_needed(labels) > there:
            raise AudioError(
                f"{path}: {len(labels)} characters in {cut.duration:.2f} s, which has room for "
                f"{there}: CTC cannot align them; the transcript is of another recording, or the "
                "recording was cut off"
            )

    def _check_samples(self, cut: Cut) -> None:
        samples = read_audio(cut, self._features.sample_rate)
        seconds = len(samples) / self._features.sample_rate
        if seconds < 0.99 * cut.duration - 0.05:
            raise AudioError(
                f"{audio_path(cut)}: ends after {seconds:.2f} of {cut.duration:.2f} s; copy it "
                "again"
            )
        if float(np.abs(samples).max(initial=0.0)) < SILENCE:
            raise AudioError(f"{audio_path(cut)}: silence, but {self._source} has words for it")
