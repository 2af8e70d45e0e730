"""Report of a benchmark: tables, plots, and the recommended runtime for this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ds2deploy.bench.measure import Benchmark, Skipped
from ds2deploy.bench.probe import Start
from ds2deploy.bench.stages import Measurement
from ds2deploy.bench.timing import Ratio, ratio
from ds2deploy.data.plots import line_figure, write_png

WIDTH = 150
"""Width of tables that are written to a file, in characters."""

OF_ONNXRUNTIME = ("onnxruntime", "cuda")
OF_TENSORRT = ("tensorrt", "rtx")

Row = Measurement
Shape = tuple[int, float]


def print_report(result: Benchmark, advice: Iterable[str], plots: Iterable[Path]) -> None:
    """Print tables, remarks and advice on standard output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(f"{result.machine}", markup=False)
    threads = f"{result.threads} threads" if result.threads else "each runtime's own threads"
    console.print(f"{threads}; medians of {result.rounds} interleaved rounds; times in ms\n")
    console.print(_starts_table(result.starts))
    console.print(_measurements_table(result))
    for line in [*(_skipped_line(item) for item in result.skipped), *result.remarks]:
        console.print(line, markup=False, soft_wrap=True)
    for line in [*advice, *(f"written: {path}" for path in plots)]:
        console.print(line, markup=False, soft_wrap=True)


def advise(result: Benchmark) -> list[str]:
    """Recommend a runtime for this machine, and list exported models that are slower than torch.

    Recommendations are for the smallest and the largest batch, at every duration.
    """
    batches = sorted({row.batch for row in result.measurements})
    lines: list[str] = []
    if len({row.name for row in result.measurements}) == 1:
        return [f"only {result.measurements[0].name} was measured: no comparison"]
    for batch in dict.fromkeys((batches[0], batches[-1])):
        lines += _fastest_lines(result, batch)
    return [*lines, *_slower_lines(result)]


def write_plots(result: Benchmark, folder: Path) -> list[Path]:
    """Plot latency against duration and throughput against batch size.

    Returns:
        Paths of the plots.

    Raises:
        RuntimeUnavailableError: matplotlib is not installed.
        OSError: a file cannot be written.
    """
    batch = min(row.batch for row in result.measurements)
    longest = max(row.audio_s for row in result.measurements)
    latency_png, throughput_png = folder / "latency.png", folder / "throughput.png"
    note = str(result.machine)
    by_duration = line_figure(
        f"From samples to text, batch {batch}",
        "duration of the utterance (s)",
        "latency, median (ms)",
        _series(result, lambda row: row.batch == batch, lambda row: (row.audio_s, _ms(row))),
        log=True,
        note=note,
    )
    by_batch = line_figure(
        f"Throughput, utterances of {longest:g} s",
        "utterances in a batch",
        "seconds of audio per second",
        _series(
            result, lambda row: row.audio_s == longest, lambda row: (row.batch, row.throughput)
        ),
        note=note,
    )
    write_png(by_duration, latency_png)
    write_png(by_batch, throughput_png)
    return [latency_png, throughput_png]


def _series(
    result: Benchmark,
    wanted: Callable[[Row], bool],
    point: Callable[[Row], tuple[float, float]],
) -> dict[str, list[tuple[float, float]]]:
    series: dict[str, list[tuple[float, float]]] = {}
    for row in filter(wanted, result.measurements):
        series.setdefault(row.name, []).append(point(row))
    return series


def _ms(row: Row) -> float:
    return 1000 * row.total.p50


def _starts_table(starts: Iterable[Start]) -> Table:
    table = Table(box=SIMPLE_HEAD, title="start, in a fresh process", title_justify="left")
    for name in ("model", "runtime"):
        table.add_column(name)
    for name in ("imports", "loading", "first run", "warm run", "memory MiB", "GPU MiB"):
        table.add_column(name, justify="right")
    for start in starts:
        seconds = (start.imports_s, start.loading_s, start.first_run_s, start.warm_run_s)
        memory = (start.peak_memory_mib, start.device_memory_mib)
        table.add_row(
            escape(start.model),
            start.runtime,
            *(_milliseconds(value) for value in seconds),
            *("-" if value is None else f"{value:.0f}" for value in memory),
        )
    return table


def _measurements_table(result: Benchmark) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        title=f"samples to text, greedy decoding; speed relative to {escape(result.reference)}",
        title_justify="left",
    )
    for name in ("batch", "audio s"):
        table.add_column(name, justify="right")
    for name in ("model", "runtime"):
        table.add_column(name)
    for name in ("p50", "p95", "p99", "RTF", "features", "network", "decoding", "beam"):
        table.add_column(name, justify="right")
    table.add_column("relative speed", no_wrap=True)
    before: Shape | None = None
    for row in result.measurements:
        shape = (row.batch, row.audio_s)
        if before not in (None, shape):
            table.add_section()
        first = shape != before
        before = shape
        stages = (row.total.p50, row.total.p95, row.total.p99)
        parts = (row.features.p50, row.network.p50, row.decoding.p50, row.beam_search.p50)
        table.add_row(
            str(row.batch) if first else "",
            f"{row.audio_s:g}" if first else "",
            escape(row.model),
            row.runtime,
            *(_milliseconds(value) for value in stages),
            f"{row.real_time_factor:.4f}",
            *(_milliseconds(value) for value in parts),
            "-" if row.total_ratio is None else str(row.total_ratio),
        )
    return table


def _milliseconds(seconds: float) -> str:
    """Format milliseconds with at least three digits, so that 0.2 ms of decoding is not 0."""
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _skipped_line(item: Skipped) -> str:
    shape = "" if item.batch is None else f" at batch {item.batch}, {item.audio_s:g} s"
    return f"skipped: {item.model} on {item.runtime}{shape}: {item.reason}"


def _fastest_lines(result: Benchmark, batch: int) -> Iterator[str]:
    """Describe the fastest runtime at each duration; equal results share a line."""
    rows = [row for row in result.measurements if row.batch == batch]
    winners: dict[str, list[Row]] = {}
    for audio_s in sorted({row.audio_s for row in rows}):
        best = min((r for r in rows if r.audio_s == audio_s), key=lambda row: row.total.p50)
        winners.setdefault(best.name, []).append(best)
    for name, bests in winners.items():
        equals = dict.fromkeys(
            row.name
            for best in bests
            for row in rows
            if row.audio_s == best.audio_s and row is not best and _compared(row, best).low <= 1
        )
        beside = f"; equally fast, within the noise: {', '.join(equals)}" if equals else ""
        yield f"batch {batch}: use {name}: {_how_fast(bests, result.reference)}{beside}"


def _how_fast(bests: list[Row], reference: str) -> str:
    """Describe how much faster the fastest is than the reference, at each duration."""
    compared = [(row.total_ratio, f"{row.audio_s:g} s") for row in bests]
    faster = [f"{times} at {where}" for times, where in compared if times is not None]
    if bests[0].name == reference or not faster:
        return f"the fastest at {', '.join(where for _, where in compared)}"
    alone = [where for times, where in compared if times is None]
    beyond = f"; no comparison at {', '.join(alone)}" if alone else ""
    first, *others = faster
    first = first.replace(" at ", f" the speed of {reference} at ")
    return f"the fastest, {', '.join([first, *others])}{beyond}"


def _slower_lines(result: Benchmark) -> Iterator[str]:
    """List exported models that are slower than torch, and the slower of two exported ones."""
    slower: dict[str, list[str]] = {}

    def note(row: Row, rival: Row, names: tuple[str, str]) -> None:
        compared = _compared(rival, row)
        if compared.high < 1:
            pair = f"{names[0]} is slower than {names[1]}"
            where = f"batch {row.batch}, {row.audio_s:g} s ({compared} its speed)"
            slower.setdefault(pair, []).append(where)

    for shape in dict.fromkeys((row.batch, row.audio_s) for row in result.measurements):
        rows = [row for row in result.measurements if (row.batch, row.audio_s) == shape]
        torch = _best(row for row in rows if not row.exported)
        for row in rows:
            if row.exported and torch:
                note(row, torch, (row.name, torch.name))
        onnx = _best(row for row in rows if row.runtime in OF_ONNXRUNTIME)
        engine = _best(row for row in rows if row.runtime in OF_TENSORRT)
        if onnx and engine:
            note(onnx, engine, (f"ONNX Runtime ({onnx.name})", f"TensorRT ({engine.name})"))
            note(engine, onnx, (f"TensorRT ({engine.name})", f"ONNX Runtime ({onnx.name})"))
    for pair, shapes in slower.items():
        yield f"{pair}: {'; '.join(shapes)}"


def _best(rows: Iterable[Row]) -> Row | None:
    return min(rows, key=lambda row: row.total.p50, default=None)


def _compared(reference: Row, row: Row) -> Ratio:
    """Compare a row with another one of the same batch, round by round."""
    return ratio(reference.rounds_s["total"], row.rounds_s["total"])
