"""What the command line says of reports and artifacts, in lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ds2deploy.export.parity.report import ParityReport
from ds2deploy.export.tensorrt.verified_engine import EngineExport
from ds2deploy.export.triton.repository import TritonExport

if TYPE_CHECKING:  # it needs torch, which a device that builds its engine has not
    from ds2deploy.export.verified_onnx import Exported


def verdict(report: ParityReport) -> str:
    """How far apart, in half a line."""
    words = report.words
    difference = f"log-probabilities within {report.max_difference:.1e}"
    if report.pytorch_difference is not None:
        difference += f" of float64 (PyTorch's float32: {report.pytorch_difference:.1e})"
    if words is None:
        return difference
    return f"{difference}, {words.different} of {words.words} words differ"


def latency_line(parts: dict[str, float]) -> str:
    """How long a frame waits at most, and what for."""
    named = ", ".join(f"{name} {ms:g}" for name, ms in parts.items() if name != "total")
    return f"latency: at most {parts['total']:g} ms ({named})"


def report_lines(report: ParityReport) -> Iterator[str]:
    """A table of all that was compared, and the verdict."""
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
    """What was written: an ONNX file in a line, a model of Triton in two, an engine in three."""
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
