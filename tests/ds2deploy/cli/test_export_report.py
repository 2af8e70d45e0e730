"""Lines about parity reports."""

from __future__ import annotations

import pytest

from ds2deploy.cli.export_report import FEW_WORDS, report_lines, verdict
from ds2deploy.export.parity.report import CaseResult, ParityReport, Tolerance, WordsResult


def report(words: int | None) -> ParityReport:
    case = CaseResult(
        batch=1, frames=40, lengths=(40,), max_difference=1e-5, argmax_share=1.0,
        same_text=True, passed=True,
    )  # fmt: skip
    result = None
    if words is not None:
        result = WordsResult(utterances=9, words=words, different=0, passed=True)
    return ParityReport(
        runtime="onnxruntime cpu", precision="fp32", reference="torch cpu float64", speech="mine",
        tolerance=Tolerance(log_probs=1e-4, tie=1e-5, words=0.0), cases=(case,), words=result,
        passed=True,
    )  # fmt: skip


@pytest.mark.parametrize(("words", "caution"), [
    (27, True), (0, True), (FEW_WORDS - 1, True), (FEW_WORDS, False), (None, False),
])  # fmt: skip
def test_a_comparison_of_few_words_has_a_caution(words: int | None, caution: bool):
    line = verdict(report(words))
    assert "\n" not in line
    assert ("too few" in line) == caution
    assert ("--audio" in line) == caution
    assert (f"0 of {words} words differ" in line) == (words is not None)
    assert line in list(report_lines(report(words)))[-1]
