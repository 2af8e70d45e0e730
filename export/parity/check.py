"""The proof: a written artifact gives the log-probabilities of the checkpoint it came from.

Every case is a padded batch of ragged lengths through the artifact; through a streaming artifact
block by block, each stream beginning later than the one before. The reference computes each
utterance **alone, whole and without padding** in PyTorch, so one comparison covers the exporter,
the padding and the streams at once. Speech goes in, not noise: a network that answers everything
with blank would agree with anything.

The reference computes in **float64**. PyTorch's own float32 is up to 1.1e-4 away from it on a
trained tanh RNN, and every runtime rounds in another order: a fixed tolerance would refuse an
artifact that is as good as PyTorch. So an fp32 artifact may be up to
`report.PYTORCH_TIMES` times as far from float64 as PyTorch is, and reports give both distances.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec
import numpy as np

from ds2deploy.export.parity.reference import (
    BATCHES,
    FRAMES,
    Exact,
    Reference,
    behind_best,
    decode_all,
    distance,
    lengths_of,
)
from ds2deploy.export.parity.report import (
    CaseResult,
    ParityReport,
    Progress,
    Tolerance,
    WordsResult,
    tolerance_for,
)
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.greedy import greedy_text
from ds2deploy.runtimes.errors import NotFiniteError
from ds2deploy.runtimes.features import FloatArray, IntArray, pad_sounds
from ds2deploy.runtimes.geometry import output_length
from ds2deploy.runtimes.session import Session
from ds2deploy.runtimes.streaming.state import run_in_blocks


def check_parity(
    artifact: Session,
    reference: Reference,
    progress: Progress = lambda message: None,
    shapes: Iterable[tuple[int, int]] | None = None,
) -> ParityReport:
    """Compare an artifact with what it was made from.

    Args:
        artifact: a session on the written file, or on what a compiler made of it.
        reference: trusted model with the speech for the comparison. If it was made with a
            manifest, this is real speech, and its words are compared too.
        progress: function that receives the current comparison, as text.
        shapes: batches and frames; all of `BATCHES` and `FRAMES` by default.

    Returns:
        The report; whether a disagreement is an error is the caller's decision.

    Raises:
        AudioError: a recording of the manifest cannot be read.
    """
    grid = shapes or [(batch, frames) for frames in FRAMES for batch in BATCHES]
    comparison = _Comparison(artifact, reference)
    measured = []
    for batch, frames in grid:
        progress(f"batch {batch} x {frames} frames")
        measured.append(comparison.measure(batch, frames))
    owns = (one.case.pytorch_difference for one in measured)
    own = max((one for one in owns if one is not None), default=None)
    tolerance = tolerance_for(artifact.description.precision, own)
    cases = [one.judged(tolerance) for one in measured]
    words, blocks = None, artifact.description.blocks
    if reference.recordings:
        progress(f"words of {len(reference.recordings)} utterances")
        words = _compare_words(artifact, reference, tolerance)
    return ParityReport(
        runtime=artifact.runtime,
        precision=artifact.description.precision,
        reference=reference.runtime,
        speech=reference.speech,
        tolerance=tolerance,
        cases=tuple(cases),
        words=words,
        passed=all(case.passed for case in cases)
        and (not tolerance.by_words if words is None else words.passed),
        latency_ms=None if blocks is None else blocks.parts(),
        pytorch_difference=own,
    )


class _Measured(NamedTuple):
    """One batch before it is judged.

    `behind` is the most by which the reference holds a label that the artifact chose less likely
    than its own best.
    """

    case: CaseResult
    behind: float = float("inf")

    def judged(self, tolerance: Tolerance) -> CaseResult:
        """Judge the result by a tolerance."""
        close = self.case.max_difference <= tolerance.log_probs and self.behind <= tolerance.tie
        return msgspec.structs.replace(self.case, passed=close)


class _Comparison:
    def __init__(self, artifact: Session, reference: Reference) -> None:
        self._artifact, self._reference = artifact, reference
        self._alphabet = Alphabet(reference.description.labels)

    def measure(self, batch: int, frames: int) -> _Measured:
        """Compare one batch; other output lengths, or NaN, are an infinite difference."""
        lengths = lengths_of(batch, frames)
        truths = [self._reference.log_probs(i, length) for i, length in enumerate(lengths)]
        owns = [self._reference.pytorch_difference(i, length) for i, length in enumerate(lengths)]
        own = max((own for own in owns if own is not None), default=None)
        unlike = CaseResult(
            batch=batch,
            frames=frames,
            lengths=lengths,
            max_difference=float("inf"),
            pytorch_difference=own,
            argmax_share=0.0,
            same_text=False,
            passed=False,
        )
        sound, counts = pad_sounds(
            [self._reference.utterance(i, length) for i, length in enumerate(lengths)]
        )
        try:
            log_probs, output_lengths = self._run(sound, counts)
        except NotFiniteError:
            return _Measured(unlike)
        if output_lengths.tolist() != [output_length(length) for length in lengths]:
            return _Measured(unlike)
        rows = [row[: len(truth)] for truth, row in zip(truths, log_probs, strict=True)]
        expected, actual = np.concatenate(truths), np.concatenate(rows)
        if np.isnan(actual).any():
            return _Measured(unlike)
        case = msgspec.structs.replace(
            unlike,
            max_difference=distance(expected, actual),
            argmax_share=float((expected.argmax(axis=1) == actual.argmax(axis=1)).mean()),
            same_text=all(map(self._same_text, truths, rows)),
        )
        return _Measured(case, behind_best(expected, actual))

    def _run(self, sound: FloatArray, lengths: IntArray) -> tuple[FloatArray, IntArray]:
        """Streams begin one after the other, so that a batch holds them at different places."""
        if self._artifact.description.blocks is None:
            return self._artifact.run(sound, lengths)
        return run_in_blocks(self._artifact, sound, lengths, stagger=1)

    def _same_text(self, truth: Exact, row: FloatArray) -> bool:
        return greedy_text(truth, self._alphabet) == greedy_text(row, self._alphabet)


def _compare_words(artifact: Session, reference: Reference, tolerance: Tolerance) -> WordsResult:
    from ds2deploy.training.scoring import count_errors

    try:
        texts = decode_all(artifact, reference.recordings)
    except NotFiniteError:
        texts = [""] * len(reference.recordings)
    errors = count_errors(reference.texts, texts)
    return WordsResult(
        utterances=len(reference.recordings),
        words=errors.words,
        different=errors.word_errors,
        passed=errors.word_errors <= tolerance.words * errors.words
        and (errors.words > 0 or not tolerance.by_words),
    )
