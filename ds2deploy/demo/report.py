"""Result of the demo, and its table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ds2deploy.training.evaluation import Evaluation

LARGEST_WER = 0.10
"""Maximum word error rate of a demo that passes, on voices that are not in the training set."""


class DemoRow(msgspec.Struct, frozen=True, kw_only=True):
    """Row of the final table, for one model file.

    Attributes:
        model: path of the file.
        runtime: runtime that ran it.
        size: size of the file, in bytes.
        wer: word error rate on the test voices.
        max_difference: maximum difference of log-probabilities from the network in float64; for
            the checkpoint, that of PyTorch's float32.
        words_different: number of test words that differ from the checkpoint's; None for the
            checkpoint.
        speed: seconds of audio recognised per second, one clip at a time.
    """

    model: str
    runtime: str
    size: int
    wer: float
    max_difference: float
    words_different: int | None
    speed: float


class DemoResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of the demo.

    Attributes:
        rows: row of the checkpoint, followed by those of the artifacts.
        words: number of words in the test strings.
        test_voices: number of voices that only occur in the test strings.
        seconds: duration of the demo, in seconds.
    """

    rows: tuple[DemoRow, ...]
    words: int
    test_voices: int
    seconds: float

    @property
    def passed(self) -> bool:
        """Return True if no row exceeds the maximum word error rate."""
        return all(row.wer <= LARGEST_WER for row in self.rows)

    def failure(self) -> str:
        """Reason why the demo failed."""
        worst = max(row.wer for row in self.rows)
        return f"word error rate {100 * worst:.1f} %, expected at most {100 * LARGEST_WER:g} %"

    def summary(self) -> dict[str, Any]:
        """Convert to plain data, for JSON."""
        return {**msgspec.to_builtins(self), "passed": self.passed}


def print_clips(console: Console, evaluation: Evaluation) -> None:
    """Print what was spoken and what was recognised, of the first clips."""
    for item in evaluation.hypotheses[:4]:
        mark = "[green]=[/green]" if item.reference == item.hypothesis else "[red]≠[/red]"
        console.print(f"  {Path(item.audio).name}  reference  {item.reference}")
        console.print(f"  {' ' * len(Path(item.audio).name)}  hypothesis {item.hypothesis} {mark}")


def print_table(console: Console, result: DemoResult, clip: Path) -> None:
    """Print the final table, and a command that transcribes a clip."""
    table = Table(
        title="The trained network, and its artifacts for devices", box=SIMPLE_HEAD, pad_edge=False
    )
    for heading in ("model", "runs on", "size", "errors", "differs by", "speed"):
        table.add_column(
            heading, justify="left" if heading in ("model", "runs on") else "right", no_wrap=True
        )
    for row in result.rows:
        parity = f"{row.max_difference:.0e}"
        if row.words_different is not None:
            parity += f", {row.words_different} words"
        table.add_row(
            Path(row.model).name,
            row.runtime,
            f"{row.size / 1e6:.1f} MB",
            f"{100 * row.wer:.1f} %",
            parity,
            f"{row.speed:.0f} x",
        )
    console.print()
    console.print(table)
    shown = clip.relative_to(Path.cwd()) if clip.is_relative_to(Path.cwd()) else clip
    console.print(
        f"errors       word error rate on {result.words} words by {result.test_voices} voices that "
        "are not in the training set\n"
        "differs by   largest difference of log-probabilities from the network in float64; words "
        "that differ\n"
        "speed        seconds of audio recognised per second, one clip at a time\n\n"
        f"The demo took {result.seconds:.0f} s. Now try:\n"
        f"  ds2deploy transcribe {result.rows[1].model} {shown}",
        soft_wrap=True,
    )
