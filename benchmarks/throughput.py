"""A folder of files through `transcribe`: one by one, and all at once.

    python benchmarks/throughput.py [--files 200] [--quick] [--json] [--out DIR]

200 files of 1 to 15 s, as 16-bit WAV. All at once means batches of similar length. One by one is
measured in one process, which has the model already; and, for every fifth file, as a loop of a
shell would do it, a `ds2deploy transcribe` for each against one for all of them. In fp32 the texts
must be identical: what else is in a batch changes nothing. In int8 the activations' scale is taken
over the batch, so that a text may differ; how many do is counted.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from counting import least_time, network_stages
from models import DIGITS, LARGE, TINY, make_checkpoint, shape_name, speech, write_onnx
from probes import machine_probes, rates
from report import Goal, Result, Table, arguments, deliver, progress
from startup import COMMAND, process

import ds2deploy
from ds2deploy.machine import describe_machine
from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.features import FeatureConfig
from ds2deploy.runtimes.recognizer import BATCH_SIZE, Recognizer
from ds2deploy.timing import take_turns

SHORTEST_S, LONGEST_S = 1.0, 15.0
SPEED_GOAL = 2.0
SAMPLE_RATE = 16_000
LABELS = 29

PROCESS_EVERY = 5
"""File that is also given to a process of its own."""


class Passes(NamedTuple):
    """Of the files through one model: seconds of either way, and how many texts were the same."""

    alone_s: float
    together_s: float
    same: int
    distinct: int


def write_files(folder: Path, count: int, longest_s: float) -> tuple[list[Path], list[float]]:
    """Synthetic speech of uniformly distributed durations; paths and seconds of each."""
    random = np.random.default_rng(0)
    durations = random.uniform(SHORTEST_S, longest_s, count).round(2).tolist()
    paths = []
    for i, seconds in enumerate(durations):
        samples = speech(SAMPLE_RATE, longest_s, voice=i % 16)
        start = int(random.integers(0, 1 + len(samples) - int(seconds * SAMPLE_RATE)))
        paths.append(folder / f"{i:03}.wav")
        soundfile.write(paths[-1], samples[start : start + int(seconds * SAMPLE_RATE)], SAMPLE_RATE)
    return paths, durations


def pass_through(recognizer: Recognizer, paths: Sequence[Path]) -> Passes:
    """All at once between the two halves of one by one, so that a slow while hits both."""
    files = list(paths)
    half = len(files) // 2
    texts: dict[str, list[str]] = {}

    def case(name: str, call: Callable[[], list[str]]) -> Callable[[], None]:
        return lambda: texts.update({name: call()})

    def alone(chosen: Sequence[Path]) -> list[str]:
        return [recognizer.transcribe(path).text for path in chosen]

    recognizer.transcribe(files[:2])  # claims memory
    took = take_turns(
        {
            "first half, one by one": case("first", lambda: alone(files[:half])),
            "all at once": case(
                "together", lambda: [found.text for found in recognizer.transcribe(files)]
            ),
            "second half, one by one": case("second", lambda: alone(files[half:])),
        },
        rounds=1,
        warm_up=0,
        progress=progress,
    )
    pairs = list(zip(texts["first"] + texts["second"], texts["together"], strict=True))
    return Passes(
        alone_s=took["first half, one by one"][0] + took["second half, one by one"][0],
        together_s=took["all at once"][0],
        same=sum(left == right for left, right in pairs),
        distinct=len({left for left, _ in pairs}),
    )


def commands(model: Path, paths: Sequence[Path]) -> tuple[float, float]:
    """Seconds of `ds2deploy transcribe` for every file, and of one for all of them."""

    def run(files: Sequence[Path]) -> None:
        process(COMMAND, "transcribe", str(model), *map(str, files))

    half = len(paths) // 2
    took = take_turns(
        {
            "first half, a process each": lambda: [run([path]) for path in paths[:half]],
            "one process": lambda: run(paths),
            "second half, a process each": lambda: [run([path]) for path in paths[half:]],
        },
        rounds=1,
        warm_up=0,
        progress=progress,
    )
    first, together, second = (seconds[0] for seconds in took.values())
    return first + second, together


def measure(shape: ModelShape, count: int, longest_s: float, quick: bool = False) -> Result:
    """The large network in both precisions, and the trained model of digits.

    Args:
        shape: of the large network.
        count: of files.
        longest_s: of a file.
        quick: whether the machine's rates are taken at the sizes of a test.
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
                found[model] = pass_through(recognizer, paths)
        each_s, single_s = commands(models[f"{title}, fp32"], paths[::PROCESS_EVERY])
        floor_s = least_together(shape, durations, quick)
    fp32 = found[f"{title}, fp32"]
    return Result(
        name="throughput",
        title=f"Throughput: {count} files of {SHORTEST_S:g} to {longest_s:g} s",
        machine=describe_machine(),
        quick=quick,
        goals=[
            Goal(
                name=f"{count} files through transcribe against one by one ({title} fp32)",
                wanted=SPEED_GOAL,
                measured=fp32.alone_s / fp32.together_s,
                floor=fp32.alone_s / floor_s,
            ),
            Goal(
                name=f"{len(paths[::PROCESS_EVERY])} of them through the command, one process "
                "against one for each",
                wanted=SPEED_GOAL,
                measured=each_s / single_s,
            ),
            Goal(name="the same text", wanted=count, measured=fp32.same, unit=f"of {count} files"),
        ],
        tables=[result_table(found, sum(durations))],
        notes=[
            f"{sum(durations):.0f} s of audio; all at once takes at least {floor_s:.1f} s by the "
            "machine's own rates, padding not counted."
        ],
        data={
            "audio_s": sum(durations),
            "least_together_s": floor_s,
            "process_each_s": each_s,
            "one_process_s": single_s,
            "passes": {model: passes._asdict() for model, passes in found.items()},
        },
    )


def least_together(shape: ModelShape, durations: Sequence[float], quick: bool) -> float:
    """Least seconds of all files in fp32, each in a batch of its own length."""
    probes = machine_probes(quick)
    best = rates(probes, take_turns({n: probe.call for n, probe in probes.items()}, 3))
    features = FeatureConfig()
    return sum(
        least_time(
            network_stages(
                shape,
                features.bins,
                LABELS,
                BATCH_SIZE,
                features.frames(int(seconds * features.sample_rate)),
            ),
            best,
        )
        / BATCH_SIZE
        for seconds in durations
    )


def result_table(found: dict[str, Passes], audio_s: float) -> Table:
    """Either way, their ratio, and what is recognised in a second."""
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
    return Table(title="One pass through the files", columns=columns, rows=rows)


def main() -> int:
    """Measure, and print or write."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--files", type=int, default=200)
    options = parser.parse_args()
    if options.quick:
        deliver(measure(TINY, 12, 1.5, quick=True), options)
    else:
        deliver(measure(LARGE, options.files, LONGEST_S), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
