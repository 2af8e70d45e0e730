"""Readable lines about parity reports and written artifacts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ds2deploy.export.parity.report import ParityReport
from ds2deploy.export.tensorrt.verified_engine import EngineExport
from ds2deploy.export.triton.repository import TritonExport

if TYPE_CHECKING:  # the module imports torch, which a device that builds an engine lacks
    from ds2deploy.export.verified_onnx import Exported


FEW_WORDS = 200
"""Number of words below which their comparison says little."""


def verdict(report: ParityReport) -> str:
    """Summarise the differences of a parity report in half a line.

    A comparison of few words, such as those of a model that hardly writes any, has a caution.
    """
    words = report.words
    difference = f"log-probabilities within {report.max_difference:.1e}"
    if report.pytorch_difference is not None:
        difference += f" of float64 (PyTorch's float32: {report.pytorch_difference:.1e})"
    if words is None:
        return difference
    difference += f", {words.different} of {words.words} words differ"
    if words.words >= FEW_WORDS:
        return difference
    return f"{difference} (too few words to judge; train further, or give --audio more speech)"


def latency_line(parts: dict[str, float]) -> str:
    """Format the maximum latency of a frame and its parts (milliseconds)."""
    named = ", ".join(f"{name} {ms:g}" for name, ms in parts.items() if name != "total")
    return f"latency: at most {parts['total']:g} ms ({named})"


def report_lines(report: ParityReport) -> Iterator[str]:
    """Format a table with one line for each compared shape, and the verdict."""
    yield (
        f"{'batch':>5}  {'frames':>6}  {'difference':>10}  {'PyTorch':>10}  {'same label':>10}  "
        "same text"
    )
    for case in report.cases:
        yield (
            f"{case.batch:5}  {case.frames:6}  {case.max_difference:10.1e}  "
            f"{'' if case.pytorch_difference is None else f'{case.pytorch_difference:.1e}':>10}  "
            f"{100 * case.argmax_share:8.2f} %  {'yes' if case.same_text else 'no':9}"
            f"{'' if case.passed else '  OVER TOLERANCE'}"
        )
    if report.latency_ms is not None:
        yield latency_line(report.latency_ms)
    yield (
        f"{report.precision} on {report.runtime}, {report.speech} speech: {verdict(report)} "
        f"(allowed: {report.tolerance.log_probs:.2g}): {'passed' if report.passed else 'FAILED'}"
    )


def artifact_lines(item: Exported | EngineExport | TritonExport) -> Iterator[str]:
    """Describe a written artifact in one to four lines."""
    if isinstance(item, TritonExport):
        yield f"{item.path}  {item.artifact} for Triton, {item.device.upper()}"
        yield f"  {item.verification}"
        return
    size = f"{item.path}  {item.size / 1e6:.1f} MB"
    if not isinstance(item, EngineExport):
        yield (
            f"{size}, {item.nodes} nodes, verified on {len(item.report.cases)} shapes: "
            f"{verdict(item.report)}"
        )
        if item.report.latency_ms is not None:
            yield f"  {latency_line(item.report.latency_ms)}"
        return
    build = item.build
    yield (
        f"{size}, for compute capability {', '.join(item.compute_capabilities)}; built in "
        f"{build.build_s:.1f} s and {build.peak_memory_mb:.0f} MB of memory"
    )
    allowed = f"(allowed: {item.network.tolerance.log_probs:.2g})"
    yield f"  parsed network, {len(item.network.cases)} shapes: {verdict(item.network)} {allowed}"
    if item.report is not None:
        yield f"  engine, {len(item.report.cases)} shapes: {verdict(item.report)}"
    yield f"  {item.verification}"
