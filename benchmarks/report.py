"""Result of a benchmark: goals, tables and plots, with the machine described.

    python benchmarks/report.py [FOLDER]

writes FOLDER/README.md from the results that the other scripts have written there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from ds2deploy.bench.machine import Machine, describe_machine
from ds2deploy.runtimes.errors import Ds2Error
from ds2deploy.runtimes.files import whole_file

RESULTS = Path(__file__).resolve().parent / "results"

ORDER = (
    "latency", "limits", "throughput", "startup", "training", "features", "gpu", "held-out",
    "language-model", "decoding", "server", "server-overload", "server-soak",
)  # fmt: skip
"""Order of the results in the report."""

Status = Literal["met", "not met", "beyond the floor of this machine", "not measured"]


class Goal(msgspec.Struct, frozen=True):
    """Goal with its measurement.

    Attributes:
        name: name of the goal.
        wanted: bound of the goal.
        measured: measured value; None if it could not be measured.
        unit: unit of the bound and of the measured value.
        least: True if the bound is a minimum.
        floor: best value that the machine's rates allow; None if it is not known.
        detail: detail of the measurement, such as its spread.
    """

    name: str
    wanted: float
    measured: float | None
    unit: str = "x"
    least: bool = True
    floor: float | None = None
    detail: str = ""

    @property
    def status(self) -> Status:
        """Status of the goal: met, not met, or out of reach."""
        if self.measured is None:
            return "not measured"
        if self._reaches(self.measured):
            return "met"
        if self.floor is not None and not (self.exceeds_floor or self._reaches(self.floor)):
            return "beyond the floor of this machine"
        return "not met"

    @property
    def exceeds_floor(self) -> bool:
        """True if the measured value is better than `floor`, which is then not a real limit."""
        if self.measured is None or self.floor is None:
            return False
        return self.measured > self.floor if self.least else self.measured < self.floor

    def row(self) -> list[str]:
        """Cells of `GOAL_COLUMNS`."""
        bound = f"{'at least' if self.least else 'at most'} {self._shown(self.wanted)}"
        return [
            self.name,
            bound,
            "-" if self.measured is None else f"{self._shown(self.measured)} {self.detail}".strip(),
            self._floor_shown(),
            self.status,
        ]

    def _floor_shown(self) -> str:
        if self.floor is None:
            return ""
        return "exceeded" if self.exceeds_floor else self._shown(self.floor)

    def _reaches(self, value: float) -> bool:
        return value >= self.wanted if self.least else value <= self.wanted

    def _shown(self, value: float) -> str:
        return f"{value:.3g}{'' if self.unit in ('x', '') else ' '}{self.unit}"


def at_most(
    name: str, wanted: float, measured: float | None, unit: str = "x", detail: str = ""
) -> Goal:
    """Make a goal whose bound is a maximum."""
    return Goal(name, wanted, measured, unit, least=False, detail=detail)


GOAL_COLUMNS = ["goal", "wanted", "measured", "the floor allows", ""]


class Table(msgspec.Struct, frozen=True):
    """Figures under a title; cells are text."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """Format the table as Markdown."""
        return f"**{self.title}**\n\n{markdown_table(self.columns, self.rows)}"


class Plot(msgspec.Struct, frozen=True, kw_only=True):
    """Line plot; `file` is the name of the picture."""

    file: str
    title: str
    x_label: str
    y_label: str
    series: dict[str, list[tuple[float, float]]]
    log: bool = False


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a benchmark.

    Attributes:
        name: name of the script.
        title: subject of the benchmark.
        machine: machine that it ran on.
        quick: True for the sizes of a test, whose figures are not meaningful.
        goals: goals with their measurements.
        tables: tables for the report.
        plots: plots for the report.
        notes: sentences about the figures.
        data: figures by name, for programs.
    """

    name: str
    title: str
    machine: Machine = msgspec.field(default_factory=describe_machine)
    quick: bool = False
    goals: list[Goal] = []
    tables: list[Table] = []
    plots: list[Plot] = []
    notes: list[str] = []
    data: dict[str, object] = {}

    def json(self) -> str:
        """Encode the result as JSON, each goal with its status."""
        plain = msgspec.to_builtins(self)
        for goal, written in zip(self.goals, plain["goals"], strict=True):
            written["status"] = goal.status
        return msgspec.json.format(msgspec.json.encode(plain), indent=1).decode()

    def markdown(self, pictures: bool = True) -> str:
        """Format the result as a page of Markdown."""
        parts = [f"## {self.title}", f"{self.machine}."]
        if self.quick:
            parts.append("*Sizes of a test: these figures say nothing of speed.*")
        if self.goals:
            parts.append(markdown_table(GOAL_COLUMNS, [goal.row() for goal in self.goals]))
        parts += [table.markdown() for table in self.tables]
        parts += self.notes
        parts += [f"![{plot.title}]({plot.file})" for plot in self.plots if pictures]
        return "\n\n".join(parts) + "\n"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table: first column left-aligned, others right-aligned, bars escaped."""
    lines = [columns, [":--", *["--:"] * (len(columns) - 1)], *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def arguments(description: str) -> argparse.ArgumentParser:
    """Make a parser with the options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description.strip().splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument("--quick", action="store_true", help="use small sizes, as the tests do")
    parser.add_argument("--out", type=Path, help="folder for NAME.json, NAME.md and the plots")
    return parser


def progress(message: str) -> None:
    """Print a line of progress on standard error."""
    print(f"  {message}", file=sys.stderr)


def deliver(result: Result, options: argparse.Namespace) -> None:
    """Print a result, and write it to the folder of `--out`."""
    print(result.json() if options.json else result.markdown(pictures=False))
    if options.out is not None:
        write(result, options.out)


def deliver_or_refuse(measure: Callable[[], Result], options: argparse.Namespace) -> int:
    """Measure and deliver; an error of the input is printed in one line.

    Returns:
        the exit code: 0, or 2 after such an error.
    """
    try:
        result = measure()
    except Ds2Error as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 2
    deliver(result, options)
    return 0


def write(result: Result, folder: Path) -> None:
    """Write NAME.json, NAME.md and the plots."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        (f"{result.name}.json", result.json()),
        (f"{result.name}.md", _page(result)),
    ):
        with whole_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for plot in result.plots:
        draw(plot, folder, str(result.machine))


def draw(plot: Plot, folder: Path, note: str) -> None:
    """Write a plot's picture."""
    from ds2deploy.data.plots import line_figure, write_png

    figure = line_figure(plot.title, plot.x_label, plot.y_label, plot.series, plot.log, note)
    write_png(figure, folder / plot.file)


def _page(result: Result) -> str:
    return result.markdown().replace("## ", "# ", 1)


def read_results(folder: Path) -> list[Result]:
    """Read the results in a folder, in the order of the report."""
    found = [folder / f"{name}.json" for name in ORDER]
    return [msgspec.json.decode(path.read_bytes(), type=Result) for path in found if path.is_file()]


def summary(results: Sequence[Result]) -> str:
    """Make one page with the machine, all goals, and each benchmark's tables and plots."""
    rows = [goal.row() for result in results for goal in result.goals]
    missing = [name for name in ORDER[:6] if name not in {result.name for result in results}]
    parts = [
        "# Results",
        "Written by `make bench`. Figures of one table were measured in turns, in one run; a "
        "ratio is the median of the rounds, the middle half of the rounds in brackets. *The floor "
        "allows* is what the machine's own rates of multiplying and reading, measured in the same "
        "run, leave possible: see [limits.md](limits.md). Where it is *exceeded*, a network read "
        "its weights from the cache faster than any probe of ours reads, and no floor is known.",
        markdown_table(GOAL_COLUMNS, rows),
    ]
    if missing:
        parts.append(f"Not measured: {', '.join(missing)}.")
    return "\n\n".join([*parts, *(result.markdown() for result in results)])


def main() -> int:
    """Write the page of all results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=RESULTS)
    folder = parser.parse_args().folder
    results = read_results(folder)
    if not results:
        print(
            f"{folder}: contains no results; run the benchmarks first: make bench RESULTS={folder}",
            file=sys.stderr,
        )
        return 2
    with whole_file(folder / "README.md") as temporary:
        temporary.write_text(summary(results), encoding="utf-8")
    print(f"wrote {folder / 'README.md'} with {len(results)} benchmarks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
