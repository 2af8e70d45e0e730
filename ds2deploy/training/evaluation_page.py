"""HTML page with the errors of an evaluation, for `evaluate --html`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from ds2deploy.runtimes.files import marked, whole_file
from ds2deploy.training.error_analysis import Comparison, Confusion, Group
from ds2deploy.training.evaluation import Evaluation
from ds2deploy.training.report import page, worst_utterances


def write_page(
    path: Path,
    title: str,
    result: Evaluation,
    groups: Sequence[Group],
    confusions: Sequence[Confusion],
    comparison: Comparison | None,
) -> None:
    """Write the page as a single file without external resources.

    Args:
        path: file to write.
        title: title of the page, with model and manifest.
        result: result of the evaluation.
        groups: error counts by tag, from `error_analysis.groups`.
        confusions: confused words, from `error_analysis.confusions`.
        comparison: comparison with another model, or None.
    """
    low, high = result.interval
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>WER {_percent(result.wer)} (95 % interval {_percent(low)} to {_percent(high)}), "
        f"CER {_percent(result.cer)}; {result.errors.word_errors} of {result.errors.words} words, "
        f"{result.utterances} utterances, {result.audio_s:.0f} s of audio; "
        f"{html.escape(result.runtime)}.</p>",
        "" if comparison is None else f"<p>{html.escape(comparison_line(comparison))}</p>",
    ]
    for by, members in groupby(groups, key=lambda group: group.by):
        parts.append(f"<h2>By {html.escape(by)}</h2>")
        rows = [
            (
                group.value,
                f"{group.utterances}",
                f"{group.errors.words}",
                _percent(group.wer),
                f"{_percent(group.interval[0])} to {_percent(group.interval[1])}",
                _percent(group.cer),
            )
            for group in members
        ]
        parts.append(
            _table((by, "utterances", "words", "WER", "95 % interval of the WER", "CER"), rows)
        )
    if confusions:
        parts.append("<h2>The most confused words</h2>")
        pairs = [
            (item.said or "(nothing)", item.heard or "(nothing)", f"{item.count}")
            for item in confusions
        ]
        parts.append(_table(("said", "heard", "times"), pairs))
    parts.append(worst_utterances(result.hypotheses))
    if result.failed:
        lines = "".join(f"<li>{html.escape(item.error)}</li>" for item in result.failed)
        parts.append(f"<h2>Left out</h2><ul>{lines}</ul>")
    with whole_file(path) as temporary:
        temporary.write_text(marked(page(title, parts)), encoding="utf-8")


def comparison_line(found: Comparison) -> str:
    """Describe the comparison of two models in one sentence."""
    verdicts = {
        "better": "better than",
        "worse": "worse than",
        "cannot be told": "not significantly different from",
    }
    low, high = found.interval
    return (
        f"{verdicts[found.verdict]} {found.against}: WER {_percent(found.wer)} against "
        f"{_percent(found.against_wer)}, gain {100 * found.saved:.2f} points, 95 % interval "
        f"{100 * low:.2f} to {100 * high:.2f} ({found.utterances} utterances)"
    )


def _table(names: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows
    )
    return f"<table><tr>{head}</tr>\n{body}</table>"


def _percent(rate: float) -> str:
    return f"{100 * rate:.2f} %"
