"""The proof: a written artifact gives the log-probabilities of the checkpoint it came from.

Every case is a padded batch of ragged lengths through the artifact; through a streaming artifact
block by block, each stream beginning later than the one before. The reference computes each
utterance **alone, whole and without padding** in PyTorch, so one comparison covers the exporter,
the padding and the streams at once. Speech goes in, not noise: a network that answers everything
with blank would agree with anything.

The reference computes in **float64**. PyTorch's own float32 is up to 1.1e-4 away from it on a
trained tanh RNN, and every runtime rounds in another order: a fixed tolerance would refuse an
artifact that is as good as PyTorch. So an fp32 artifact may be up to
`PYTORCH_TIMES` times as far from float64 as PyTorch is, and reports give both distances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ds2deploy.export.parity.reference import (
    BATCHES,
    FRAMES,
    Exact,
    Reference,
    decode_all,
    distance,
    lengths_of,
)
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.artifact import Precision
from ds2deploy.runtimes.decoding.greedy import greedy_text
from ds2deploy.runtimes.errors import NotFiniteError
from ds2deploy.runtimes.features import FloatArray, IntArray, pad_sounds
from ds2deploy.runtimes.geometry import output_length
from ds2deploy.runtimes.session import Session
from ds2deploy.runtimes.streaming.state import run_in_blocks

PYTORCH_TIMES = 4.0
"""Largest ratio of an fp32 artifact's distance from float64 to that of PyTorch's own float32."""

MOST = 1e-2
"""Largest distance of an fp32 artifact in any case. A network in which rounding grows to more
computes chance, and a check of it would pass anything."""


class Tolerance(msgspec.Struct, frozen=True):
    """What an artifact may differ by.

    Attributes:
        log_probs: largest difference of a log-probability above `reference.FLOOR`.
        tie: the best label of a frame must be the reference's, or one that the reference holds
            less likely by no more than this: two labels so close no runtime can order.
        words: share of the words of real audio that may come out differently.
        by_words: whether the words decide, so that there must be some.
    """

    log_probs: float
    tie: float
    words: float
    by_words: bool = False


TOLERANCES: dict[Precision, Tolerance] = {
    # Measured on trained models: up to 3e-5. More where PyTorch's own rounding is more.
    "fp32": Tolerance(log_probs=1e-4, tie=1e-5, words=0.0),
    # Measured on trained models: up to 1e-2 in ONNX Runtime on a CPU, which rounds weights only,
    # and 3e-2 in the network as TensorRT parsed it, rounded after every layer.
    "fp16": Tolerance(log_probs=0.1, tie=0.05, words=0.002),
    # Measured on trained models, in the network as TensorRT parsed it: up to 0.3.
    "bf16": Tolerance(log_probs=0.8, tie=0.4, words=0.02),
    # Judged by the words. What else is in a batch moves the numbers; the rest tells what is broken.
    "int8": Tolerance(log_probs=4.0, tie=2.0, words=0.002, by_words=True),
}


def tolerance_for(precision: Precision, pytorch_difference: float | None) -> Tolerance:
    """The tolerance of an artifact.

    Args:
        precision: the artifact's; `TOLERANCES` has the least that each is allowed.
        pytorch_difference: distance of PyTorch's float32 from float64; None where it is not known.
    """
    least = TOLERANCES[precision]
    if precision != "fp32" or pytorch_difference is None:
        return least
    scaled = min(PYTORCH_TIMES * pytorch_difference, MOST)
    return msgspec.structs.replace(
        least, log_probs=max(least.log_probs, scaled), tie=max(least.tie, scaled)
    )


class CaseResult(msgspec.Struct, frozen=True, kw_only=True):
    """One batch.

    Attributes:
        batch: utterances.
        frames: of the longest one.
        lengths: of each, in frames.
        max_difference: largest difference of log-probabilities above `reference.FLOOR` from the
            reference, on valid frames.
        pytorch_difference: the same difference for PyTorch's own float32; None where it is not
            known.
        argmax_share: share of the valid frames whose best label is the same.
        same_text: whether greedy decoding gives the same text for every utterance.
        passed: within tolerance.
    """

    batch: int
    frames: int
    lengths: tuple[int, ...]
    max_difference: float
    pytorch_difference: float | None = None
    argmax_share: float
    same_text: bool
    passed: bool


class WordsResult(msgspec.Struct, frozen=True, kw_only=True):
    """Decoded text of real audio, against the checkpoint's.

    Attributes:
        utterances: compared.
        words: that the checkpoint recognises in them.
        different: of those, substituted, deleted or inserted by the artifact.
        passed: within tolerance.
    """

    utterances: int
    words: int
    different: int
    passed: bool


class ParityReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was compared.

    Attributes:
        runtime: that ran the artifact.
        precision: of the artifact.
        reference: runtime that computed the truth, such as `torch cpu float64`.
        speech: what went in: `synthetic`, or the manifest's name.
        tolerance: the one that was applied; for fp32 it depends on `pytorch_difference`.
        cases: the shape grid.
        words: on real audio; None without a manifest.
        passed: all of it.
        latency_ms: of a streaming artifact, how long a frame waits at most before it is read,
            without the time that computing takes, and what for; None of an offline one.
        same_checkpoint: whether the checkpoint is the file that the artifact was exported from.
        pytorch_difference: largest distance of PyTorch's own float32 from float64, on the same
            speech; None where it is not known.
    """

    runtime: str
    precision: Precision
    reference: str
    speech: str
    tolerance: Tolerance
    cases: tuple[CaseResult, ...]
    words: WordsResult | None
    passed: bool
    latency_ms: dict[str, float] | None = None
    same_checkpoint: bool = True
    pytorch_difference: float | None = None

    @property
    def max_difference(self) -> float:
        """Largest difference of all cases from the reference."""
        return max(case.max_difference for case in self.cases)

    def summary(self) -> dict[str, Any]:
        """The report as plain data, for a file's description."""
        plain = msgspec.to_builtins(self)
        assert isinstance(plain, dict)
        return plain

    def failure(self) -> str:
        """What is over tolerance, in a line."""
        changed = "the checkpoint is not the file that it was exported from, export it again; "
        return ("" if self.same_checkpoint else changed) + self._disagreement()

    def _disagreement(self) -> str:
        failed = [case for case in self.cases if not case.passed]
        if failed:
            worst = max(failed, key=lambda case: case.max_difference)
            return (
                f"{len(failed)} of {len(self.cases)} shapes over tolerance: log-probabilities "
                f"differ by up to {worst.max_difference:.2g} at batch {worst.batch} x "
                f"{worst.frames} frames, {self.tolerance.log_probs:.2g} is allowed"
                f"{self._own()}; {100 * worst.argmax_share:.2f} % of the frames have the same "
                "best label"
            )
        if self.tolerance.by_words and (self.words is None or not self.words.words):
            return f"{self.speech}: the checkpoint recognises no words in it, to judge by"
        if self.words is not None and not self.words.passed:
            return (
                f"{self.words.different} of {self.words.words} words differ "
                f"(allowed: {100 * self.tolerance.words:g} %)"
            )
        return "none"

    def _own(self) -> str:
        """PyTorch's own distance, as an aside."""
        own = self.pytorch_difference
        return "" if own is None else f" (PyTorch's float32 is {own:.2g} from float64)"


def check_parity(
    artifact: Session,
    reference: Reference,
    progress: Callable[[str], None] = lambda message: None,
    shapes: Iterable[tuple[int, int]] | None = None,
) -> ParityReport:
    """Compare an artifact with what it was made from.

    Args:
        artifact: a session on the written file, or on what a compiler made of it.
        reference: what it should compute, and the speech to compute it on: real speech if it was
            given a manifest, whose words are then compared too.
        progress: told what is being compared.
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
    known = [case.own for case in measured if case.own is not None]
    own = max(known, default=None)
    tolerance = tolerance_for(artifact.description.precision, own)
    cases = [case.judged(tolerance) for case in measured]
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

    `own` is PyTorch's distance from float64, `behind` the most by which the reference holds a label
    that the artifact chose less likely than its own best; the rest is as in `CaseResult`.
    """

    batch: int
    frames: int
    lengths: tuple[int, ...]
    own: float | None
    difference: float = float("inf")
    behind: float = float("inf")
    argmax_share: float = 0.0
    same_text: bool = False

    def judged(self, tolerance: Tolerance) -> CaseResult:
        """The result by a tolerance."""
        return CaseResult(
            batch=self.batch,
            frames=self.frames,
            lengths=self.lengths,
            max_difference=self.difference,
            pytorch_difference=self.own,
            argmax_share=self.argmax_share,
            same_text=self.same_text,
            passed=self.difference <= tolerance.log_probs and self.behind <= tolerance.tie,
        )


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
        unlike = _Measured(batch, frames, lengths, own)
        sound, counts = pad_sounds(
            [self._reference.utterance(i, length) for i, length in enumerate(lengths)]
        )
        try:
            log_probs, output_lengths = self._run(sound, counts)
        except NotFiniteError:
            return unlike
        if output_lengths.tolist() != [output_length(length) for length in lengths]:
            return unlike
        rows = [row[: len(truth)] for truth, row in zip(truths, log_probs, strict=True)]
        expected, actual = np.concatenate(truths), np.concatenate(rows)
        if np.isnan(actual).any():
            return unlike
        best, chosen = expected.max(axis=1), actual.argmax(axis=1)
        taken = np.take_along_axis(expected, chosen[:, None], axis=1)[:, 0]
        return unlike._replace(
            difference=distance(expected, actual),
            behind=float((best - taken).max()),
            argmax_share=float((expected.argmax(axis=1) == chosen).mean()),
            same_text=all(map(self._same_text, truths, rows)),
        )

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
