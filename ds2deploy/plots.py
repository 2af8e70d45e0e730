"""Plots as PNG files, drawn without a display: the extra `bench` brings matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ds2deploy.extras import require
from ds2deploy.files import whole_file

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Told apart by the colour-blind as well (Okabe and Ito, 2008)."""

MARKERS = "osD^vPX*"
"""Of another count than the colours: 56 series differ from each other, in grey print too."""

SIZE_INCHES = (8.0, 5.0)
DPI = 120
FEW_TICKS = 12
"""Values on the x axis up to which each is named."""


def line_plot(
    path: Path,
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    log: bool = False,
    note: str = "",
) -> None:
    """Draw one line for every series.

    Args:
        path: of the PNG; it appears whole or not at all.
        title: above the axes.
        x_label: with its unit.
        y_label: with its unit.
        series: points (x, y) of each line by the name that the legend shows.
        log: whether both axes are logarithmic; otherwise the y axis begins at 0.
        note: small print below, such as the machine.

    Raises:
        RuntimeUnavailableError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    require("matplotlib", "bench")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)  # no pyplot: nothing global is changed
    axes = figure.add_subplot()
    for i, (name, points) in enumerate(series.items()):
        xs, ys = zip(*sorted(points), strict=True) if points else ((), ())
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        axes.plot(xs, ys, label=name, color=colour, marker=marker, linewidth=1.8)
    axes.set_title(title, loc="left")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _scale(axes, sorted({x for points in series.values() for x, _ in points}), log)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    if series:
        axes.legend(frameon=False, fontsize="small")
    if note:
        figure.supxlabel(_wrapped(note), x=0.01, ha="left", fontsize="x-small", color="0.35")
    with whole_file(path) as temporary:
        canvas.print_figure(str(temporary), format="png")


def _scale(axes: Any, xs: list[float], log: bool) -> None:
    """Axes that name the measured values of x, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    plain = FuncFormatter(lambda value, _: f"{value:g}")
    if log:
        axes.set(xscale="log", yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(plain)
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
    if log and 0 < len(xs) <= FEW_TICKS:
        axes.set_xticks(xs)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(plain)


def _wrapped(note: str, width: int = 120) -> str:
    return "\n".join(textwrap.wrap(note, width))
