"""Throughput of `transcribe` on a folder of files: one by one, and all at once.

    python benchmarks/throughput.py [--files 200] [--quick] [--json] [--out DIR]

The input is 200 files of 1 to 15 s, as 16-bit WAV. "All at once" uses batches of similar length.
Two ways are measured: commands, with a `ds2deploy transcribe` for each file compared with one for
all of them; and calls in one process with an open model, which show the effect of batching alone.
In fp32 the texts must be identical, because other utterances in a batch do not change a result. In
int8 the scale of activations depends on the batch; texts that differ are counted.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from counting import least_time, stages_of_speech
from models import DIGITS, LARGE, TINY, make_checkpoint, shape_name, speech, write_onnx
from probes import machine_probes, rates, run_probes
from report import Goal, Result, Table, arguments, deliver, progress
from startup import COMMAND, process

import ds2deploy
from ds2deploy.bench.timing import take_turns
from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.runtimes.streaming.recordings import BATCH_SIZE

SHORTEST_S, LONGEST_S = 1.0, 15.0
SPEED_GOAL = 2.0
SAMPLE_RATE = 16_000

BY_COMMAND = "the first, through the command"
"""Name of the case whose times include the start of each process."""


class Passes(NamedTuple):
    """Result of a pass through the files: seconds of both ways, and number of equal texts."""

    alone_s: float
    together_s: float
    same: int
    distinct: int


def write_files(folder: Path, count: int, longest_s: float) -> tuple[list[Path], list[float]]:
    """Write synthetic speech of uniformly distributed durations; return paths and seconds."""
    random = np.random.default_rng(0)
    durations = random.uniform(SHORTEST_S, longest_s, count).round(2).tolist()
    paths = []
    for i, seconds in enumerate(durations):
        samples = speech(SAMPLE_RATE, longest_s, voice=i % 16)
        start = int(random.integers(0, 1 + len(samples) - int(seconds * SAMPLE_RATE)))
        paths.append(folder / f"{i:03}.wav")
        soundfile.write(paths[-1], samples[start : start + int(seconds * SAMPLE_RATE)], SAMPLE_RATE)
    return paths, durations


def pass_through(
    paths: Sequence[Path], transcribe: Callable[[Sequence[Path]], list[str]]
) -> Passes:
    """Run all files at once, between two halves one by one, so that slow periods affect both.

    Args:
        paths: paths of the files.
        transcribe: function that returns the texts of files.
    """
    half = len(paths) // 2
    texts: dict[str, list[str]] = {}

    def case(name: str, chosen: Sequence[Sequence[Path]]) -> Callable[[], None]:
        return lambda: texts.update({name: [text for some in chosen for text in transcribe(some)]})

    single = [[path] for path in paths]
    cases = {
        name: case(name, chosen)
        for name, chosen in (
            ("first half, one by one", single[:half]),
            ("all at once", [paths]),
            ("second half, one by one", single[half:]),
        )
    }
    took = take_turns(cases, rounds=1, warm_up=0, progress=progress)
    (first_s,), (together_s,), (second_s,) = took.values()
    first, together, second = texts.values()
    pairs = list(zip(first + second, together, strict=True))
    return Passes(
        alone_s=first_s + second_s,
        together_s=together_s,
        same=sum(left == right for left, right in pairs),
        distinct=len({left for left, _ in pairs}),
    )


def in_this_process(recognizer: Recognizer) -> Callable[[Sequence[Path]], list[str]]:
    """Make a function that transcribes files with an open model."""
    return lambda paths: [found.text for found in recognizer.transcribe(list(paths))]


def by_command(model: Path) -> Callable[[Sequence[Path]], list[str]]:
    """Make a function that transcribes files with the command `ds2deploy transcribe`."""

    def transcribe(paths: Sequence[Path]) -> list[str]:
        done = process(COMMAND, "transcribe", str(model), *map(str, paths), "--json")
        return [found["text"] for found in json.loads(done.stdout)["transcripts"]]

    return transcribe


def measure(shape: ModelShape, count: int, longest_s: float, quick: bool = False) -> Result:
    """Measure the large network in both precisions, and the trained model of digits.

    Args:
        shape: shape of the large network.
        count: number of files.
        longest_s: duration of the longest file, in seconds.
        quick: True measures the machine's rates at the sizes of a test.
    """
    with tempfile.TemporaryDirectory(prefix="ds2deploy-") as name:
        folder = Path(name)
        paths, durations = write_files(folder, count, longest_s)
        checkpoint = make_checkpoint(shape, folder)
        title = shape_name(shape)
        models = {
            f"{title}, fp32": write_onnx(checkpoint, folder),
            f"{title}, int8": write_onnx(checkpoint, folder, "int8"),
            "digits, fp32": write_onnx(DIGITS, folder),
        }
        found: dict[str, Passes] = {}
        for model, path in models.items():
            progress(model)
            with ds2deploy.load(path) as recognizer:
                recognizer.transcribe(list(paths[:2]))  # allocates memory
                found[model] = pass_through(paths, in_this_process(recognizer))
        progress(BY_COMMAND)
        found[BY_COMMAND] = pass_through(paths, by_command(models[f"{title}, fp32"]))
        floor_s = least_together(shape, durations, quick)
    fp32, command = found[f"{title}, fp32"], found[BY_COMMAND]
    return Result(
        name="throughput",
        title=f"Throughput: {count} files of {SHORTEST_S:g} to {longest_s:g} s",
        quick=quick,
        goals=[
            Goal(
                f"{count} files through the command, one process for all against one for each",
                SPEED_GOAL,
                command.alone_s / command.together_s,
            ),
            Goal(
                "the same in one process that has the model, all at once against one by one",
                SPEED_GOAL,
                fp32.alone_s / fp32.together_s,
                floor=fp32.alone_s / floor_s,
            ),
            Goal(
                "the same text, in both", count, min(fp32.same, command.same), f"of {count} files"
            ),
        ],
        tables=[result_table(found, sum(durations))],
        notes=[
            f"{sum(durations):.0f} s of audio; all at once takes at least {floor_s:.1f} s by the "
            "machine's own rates, padding not counted."
        ],
        data={
            "audio_s": sum(durations),
            "least_together_s": floor_s,
            "passes": {model: passes._asdict() for model, passes in found.items()},
        },
    )


def least_together(shape: ModelShape, durations: Sequence[float], quick: bool) -> float:
    """Compute the lower bound of the seconds for all files in fp32, without padding."""
    probes = machine_probes(quick)
    best = rates(probes, run_probes(probes, 3))
    each = (stages_of_speech(shape, BATCH_SIZE, seconds) for seconds in durations)
    return sum(least_time(stages, best) for stages in each) / BATCH_SIZE


def result_table(found: dict[str, Passes], audio_s: float) -> Table:
    """Make a table of both ways, their ratio, and the seconds of audio per second."""
    rows = [
        [
            model,
            f"{passes.alone_s:.1f}",
            f"{passes.together_s:.1f}",
            f"{passes.alone_s / passes.together_s:.2f}x",
            f"{audio_s / passes.together_s:.1f}",
            f"{passes.same} ({passes.distinct} distinct)",
        ]
        for model, passes in found.items()
    ]
    columns = ["", "one by one (s)", "all at once (s)", "ratio", "s of audio per s", "same text"]
    return Table("One pass through the files", columns, rows)


def main() -> None:
    """Measure, and print or write the result."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--files", type=int, default=200)
    options = parser.parse_args()
    if options.quick:
        deliver(measure(TINY, 12, 1.5, quick=True), options)
    else:
        deliver(measure(LARGE, options.files, LONGEST_S), options)


if __name__ == "__main__":
    main()
