"""Plots as PNG files, drawn without a display; the extra `bench` installs matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ds2deploy.runtimes.errors import require
from ds2deploy.runtimes.features import FeatureConfig, FloatArray
from ds2deploy.runtimes.files import whole_file

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Colours for colour-blind readers (Okabe and Ito, 2008)."""

MARKERS = "osD^vPX*"
"""Markers; their number differs from that of the colours, so that 56 series look different."""

SIZE_INCHES = (8.0, 5.0)
DPI = 120
FEW_TICKS = 12
"""Maximum number of x values that all get a tick label."""


def write_png(figure: Any, path: Path) -> None:
    """Write a figure as PNG, atomically.

    Args:
        figure: figure from `line_figure` or `spectrogram_figure`.
        path: path of the PNG.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with whole_file(path) as temporary:
        FigureCanvasAgg(figure).print_figure(str(temporary), format="png")


def line_figure(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    log: bool = False,
    note: str = "",
    marks: bool = True,
) -> Any:
    """Draw one line per series.

    Args:
        title: title above the axes.
        x_label: label of the x axis, with its unit.
        y_label: label of the y axis, with its unit.
        series: points (x, y) of each line, by the name for the legend.
        log: make both axes logarithmic; otherwise they are linear and the y axis begins at 0.
        note: small text below the axes, such as the machine.
        marks: mark every point.

    Returns:
        A `matplotlib.figure.Figure`, for any canvas.

    Raises:
        RuntimeUnavailableError: matplotlib is not installed.
    """
    figure, axes = _empty_figure(title, x_label, y_label)
    for i, (name, points) in enumerate(series.items()):
        xs, ys = zip(*sorted(points), strict=True) if points else ((), ())
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)] if marks else ""
        axes.plot(xs, ys, label=name, color=colour, marker=marker, linewidth=1.8)
    _scale(axes, sorted({x for points in series.values() for x, _ in points}), log)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    if series:
        axes.legend(frameon=False, fontsize="small")
    if note:
        figure.supxlabel(
            textwrap.fill(note, 120), x=0.01, ha="left", fontsize="x-small", color="0.35"
        )
    return figure


def spectrogram_figure(title: str, features: FloatArray, config: FeatureConfig) -> Any:
    """Draw the features of an utterance as a spectrogram.

    Args:
        title: title above the axes.
        features: (bins, time), float32.
        config: settings of the features, for the axes.

    Returns:
        A `matplotlib.figure.Figure`, for any canvas.

    Raises:
        RuntimeUnavailableError: matplotlib is not installed.
    """
    figure, axes = _empty_figure(title, "time (s)", "frequency (kHz)")
    seconds = features.shape[1] * config.stride_ms / 1000
    extent = (0.0, seconds, 0.0, config.sample_rate / 2000)
    axes.imshow(features, origin="lower", aspect="auto", extent=extent, interpolation="nearest")
    return figure


def _empty_figure(title: str, x_label: str, y_label: str) -> tuple[Any, Any]:
    """Make a figure and its axes without pyplot, which would change global state."""
    require("matplotlib", "bench")
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def _scale(axes: Any, xs: list[float], log: bool) -> None:
    """Scale the axes, and label the measured values of x with plain numbers."""
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
