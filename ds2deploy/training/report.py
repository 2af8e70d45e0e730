"""HTML page `report.html` with the curves of a training and its worst utterances."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ds2deploy.config import Recipe
from ds2deploy.data.plots import line_figure
from ds2deploy.runtimes.files import json_text, marked, whole_file
from ds2deploy.training.run_folder import RunFolder
from ds2deploy.training.scoring import Hypothesis, worst_first

REPORT = "report.html"

WORST = 50
"""Number of utterances that are listed."""

CURVES = (
    ("Training loss", "train", ("loss",)),
    ("Validation loss", "valid", ("valid_loss",)),
    ("Error rates", "valid", ("wer", "cer")),
    ("Learning rate", "train", ("learning_rate",)),
    ("Norm of the gradients", "train", ("gradient_norm",)),
)

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 1rem }
table { border-collapse: collapse; width: 100% }
td, th { border-bottom: 1px solid #ddd; padding: .3rem; text-align: left; vertical-align: top }
svg { height: auto; max-width: 100% }
pre { background: #f6f6f6; overflow-x: auto; padding: 1rem }
.number { text-align: right }
"""


def write_report(folder: RunFolder, recipe: Recipe) -> Path:
    """Write the page as a single file without external resources.

    Args:
        folder: folder of a training that has metrics.
        recipe: recipe of the training.

    Returns:
        The path of the page.

    Raises:
        RuntimeUnavailableError: matplotlib is not installed.
    """
    lines = folder.metrics()
    best = folder.best_metrics()
    parts = [
        f"<h1>{html.escape(folder.path.name)}</h1>",
        _summary(folder, lines, best),
        *(_curve(title, lines, kind, names) for title, kind, names in CURVES),
        worst_utterances(folder.hypotheses()),
        _broken(folder),
        "<h2>Recipe</h2>",
        f"<pre>{html.escape(_recipe_text(recipe))}</pre>",
    ]
    path = folder.path / REPORT
    with whole_file(path) as temporary:
        temporary.write_text(marked(page(folder.path.name, parts)), encoding="utf-8")
    return path


def page(title: str, parts: Sequence[str]) -> str:
    """Make a page from parts in HTML; empty parts are left out."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>"
        f"<body>\n{chr(10).join(part for part in parts if part)}\n</body></html>\n"
    )


def _summary(folder: RunFolder, lines: Sequence[dict[str, Any]], best: dict[str, float]) -> str:
    steps = max((line["step"] for line in lines), default=0)
    epochs = max((line["epoch"] for line in lines), default=0)
    text = f"{steps} steps in {epochs} epochs."
    if folder.stage is not None:
        text = f"{str(folder.stage).capitalize()}: {text}"
    if best:
        text += (
            f" Best validation, after epoch {best['epoch']:g}: WER {100 * best['wer']:.2f} %, "
            f"CER {100 * best['cer']:.2f} %."
        )
    return f"<p>{text}</p>"


def _curve(title: str, lines: Iterable[dict[str, Any]], kind: str, names: Sequence[str]) -> str:
    """Draw curves as HTML with an SVG; return an empty text if there are no points."""
    chosen = [line for line in lines if line["kind"] == kind]
    series = {
        name: [
            (float(line["step"]), float(line[name])) for line in chosen if _is_number(line, name)
        ]
        for name in names
    }
    if not any(series.values()):
        return ""
    figure = line_figure(title, "step", "", series, marks=kind == "valid")
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    drawn = io.StringIO()
    FigureCanvasSVG(figure).print_svg(drawn, metadata={"Date": None})  # type: ignore[no-untyped-call]
    _, _, drawing = drawn.getvalue().partition("<svg")
    return f"<h2>{html.escape(title)}</h2>\n<svg{drawing}"


def _is_number(line: dict[str, Any], name: str) -> bool:
    return line.get(name) is not None and math.isfinite(line[name])


def worst_utterances(hypotheses: Sequence[Hypothesis]) -> str:
    """List the utterances with the most errors, as HTML."""
    wrong = worst_first(hypotheses)
    rows = "".join(
        f'<tr><td class="number">{100 * counts.cer:.0f} %</td>'
        f"<td>{html.escape(item.reference)}<br>{html.escape(item.hypothesis) or '(nothing)'}</td>"
        f"<td>{html.escape(item.audio)}</td></tr>"
        for item, counts in wrong[:WORST]
    )
    said = f"{len(wrong)} of {len(hypotheses)} utterances have an error."
    table = (
        f"<table><tr><th>CER</th><th>spoken, recognised</th><th>audio</th></tr>{rows}</table>"
        if rows
        else ""
    )
    return f"<h2>The worst utterances</h2><p>{said}</p>{table}"


def _broken(folder: RunFolder) -> str:
    lines = sorted({line["error"] for line in folder.broken()})
    if not lines:
        return ""
    rows = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<h2>Recordings that could not be read</h2><ul>{rows}</ul>"


def _recipe_text(recipe: Recipe) -> str:
    document = msgspec.to_builtins(recipe)
    features = document["features"]
    for name in ("mean", "deviation"):  # one number for every bin
        if features.get(name):
            features[name] = f"({len(features[name])} numbers)"
    return msgspec.json.format(json_text(document), indent=2)
