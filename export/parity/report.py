"""Tolerances of artifacts, and the report of what was compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ds2deploy.runtimes.artifact import Precision

Progress = Callable[[str], None]
"""Called with a few words on what is being done."""

PYTORCH_TIMES = 4.0
"""Largest ratio of an fp32 artifact's distance from float64 to that of PyTorch's own float32."""

MOST = 1e-2
"""Largest distance of an fp32 artifact in any case. A network in which rounding grows to more
computes chance, and a check of it would pass anything."""


class Tolerance(msgspec.Struct, frozen=True):
    """Largest differences that an artifact may have.

    Attributes:
        log_probs: largest difference of a log-probability above `reference.FLOOR`.
        tie: the best label of a frame must be the reference's, or one that the reference holds
            less likely by no more than this: two labels so close no runtime can order.
        words: share of the words of real audio that may come out differently.
        by_words: True if the words decide; the comparison then needs words.
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
    # Judged by the words: other utterances of a batch move the numbers. The rest shows faults.
    "int8": Tolerance(log_probs=4.0, tie=2.0, words=0.002, by_words=True),
}


def tolerance_for(precision: Precision, pytorch_difference: float | None) -> Tolerance:
    """Return the tolerance of an artifact.

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
        frames: length of the longest one.
        lengths: length of each, in frames.
        max_difference: largest difference of log-probabilities above `reference.FLOOR` from the
            reference, on valid frames.
        pytorch_difference: the same difference for PyTorch's own float32; None where it is not
            known.
        argmax_share: share of the valid frames whose best label is the same.
        same_text: True if greedy decoding gives the same text for every utterance.
        passed: True if the differences are within the tolerance.
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
        words: number of words that the checkpoint recognises in them.
        different: words that the artifact substitutes, deletes or inserts.
        passed: True if the differences are within the tolerance.
    """

    utterances: int
    words: int
    different: int
    passed: bool


class ParityReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was compared.

    Attributes:
        runtime: name of the runtime that ran the artifact.
        precision: number format of the artifact.
        reference: runtime that computed the truth, such as `torch cpu float64`.
        speech: origin of the speech: `synthetic`, or the manifest's name.
        tolerance: tolerance that was applied; for fp32 it depends on `pytorch_difference`.
        cases: results of the shape grid.
        words: result of the words of real speech; None without a manifest.
        passed: True if everything passed.
        latency_ms: longest time that a frame of a streaming artifact waits before it is read,
            without the time that computing takes, and what for; None of an offline one.
        same_checkpoint: True if the artifact was exported from this checkpoint file.
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
        """Return the report as plain data, for a file's description."""
        plain = msgspec.to_builtins(self)
        assert isinstance(plain, dict)
        return plain

    def failure(self) -> str:
        """Explain in one line what is over tolerance."""
        changed = "it was exported from another checkpoint file, export it again; "
        return ("" if self.same_checkpoint else changed) + self._disagreement()

    def _disagreement(self) -> str:
        failed = [case for case in self.cases if not case.passed]
        if failed:
            worst = max(failed, key=lambda case: case.max_difference)
            return (
                f"{len(failed)} of {len(self.cases)} shapes exceed the tolerance: "
                f"log-probabilities differ by up to {worst.max_difference:.2g} at batch "
                f"{worst.batch} x {worst.frames} frames (allowed: "
                f"{self.tolerance.log_probs:.2g}{self._own()}); {100 * worst.argmax_share:.2f} % "
                "of the frames have the same best label"
            )
        if self.tolerance.by_words and (self.words is None or not self.words.words):
            return (
                f"{self.speech}: the checkpoint recognises no words in it, which the check needs; "
                "use other recordings"
            )
        if self.words is not None and not self.words.passed:
            return (
                f"{self.words.different} of {self.words.words} words differ "
                f"(allowed: {100 * self.tolerance.words:g} %)"
            )
        return "none"

    def _own(self) -> str:
        """PyTorch's own distance, as an aside."""
        own = self.pytorch_difference
        return "" if own is None else f"; PyTorch's float32 differs from float64 by {own:.2g}"
