"""The whole way on synthetic speech, so that a newcomer sees it work before bringing data."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import soundfile
from lhotse import CutSet
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ds2deploy.config import Recipe, load_recipe
from ds2deploy.data.manifest import make_cuts, read_audio, write_manifest
from ds2deploy.data.sources import Utterance
from ds2deploy.demo.synthesis import TEST_VOICES, TRAIN_VOICES, Voice, digit_strings
from ds2deploy.heartbeat import status
from ds2deploy.loading import load
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.training.evaluation import Evaluation, evaluate
from ds2deploy.training.train import train

MARKER = ".ds2deploy-demo"

LARGEST_WER = 0.10
"""What the demo must reach on voices that it never heard in training."""


class Split(NamedTuple):
    """Part of the demo's speech."""

    name: str
    strings: int
    voices: Sequence[Voice]
    digits: tuple[int, int]


SPLITS = (
    Split("train", 1600, TRAIN_VOICES, (1, 4)),
    Split("valid", 96, TRAIN_VOICES, (2, 5)),
    Split("test", 160, TEST_VOICES, (2, 6)),
)


class DemoRow(msgspec.Struct, frozen=True, kw_only=True):
    """One model file in the final table.

    Attributes:
        model: path.
        runtime: that ran it.
        size: of the file, in bytes.
        wer: on the test voices.
        max_difference: largest difference of log-probabilities from the network in float64; for
            the checkpoint that of PyTorch's float32.
        words_different: of the test words, from the checkpoint's; None for the checkpoint.
        speed: seconds of audio recognised in a second, one clip at a time.
    """

    model: str
    runtime: str
    size: int
    wer: float
    max_difference: float
    words_different: int | None
    speed: float


class DemoResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo found.

    Attributes:
        rows: checkpoint first, then the artifacts.
        words: in the test strings.
        test_voices: never heard in training.
        seconds: of the whole demo.
    """

    rows: tuple[DemoRow, ...]
    words: int
    test_voices: int
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every row reaches the word error rate."""
        return all(row.wer <= LARGEST_WER for row in self.rows)

    def failure(self) -> str:
        """Why not."""
        worst = max(row.wer for row in self.rows)
        return f"word error rate {100 * worst:.1f} %, expected at most {100 * LARGEST_WER:g} %"

    def summary(self) -> dict[str, Any]:
        """As plain data."""
        plain = msgspec.to_builtins(self)
        assert isinstance(plain, dict)
        return {**plain, "passed": self.passed}


def run_demo(
    out: Path,
    export: Callable[..., Sequence[Any]],
    seed: int = 0,
    splits: Sequence[Split] = SPLITS,
    overrides: Sequence[str] = (),
) -> DemoResult:
    """Synthesise, train, evaluate, export, verify, transcribe; report on stderr.

    Args:
        out: folder for audio, training and artifacts; an earlier demo in it is replaced.
        export: `ds2deploy.export.artifacts.export_onnx`.
        seed: of voices, weights and batches.
        splits: how much speech.
        overrides: of the recipe.

    Raises:
        ConfigError: the folder holds files of other work.
        ParityError: an artifact does not compute what was trained.
    """
    console = Console(stderr=True, highlight=False)
    started = time.perf_counter()
    stage = _stages(console)
    _claim(out)

    stage(f"Speaking: {sum(split.strings for split in splits)} strings of digits")
    manifests = {split.name: speak(split, out, seed) for split in splits}

    recipe = demo_recipe(out, manifests, seed, overrides)
    stage(f"Training: {recipe.model.layers} x {recipe.model.rnn} of {recipe.model.hidden}")
    train(recipe)
    checkpoint = out / "run" / "best.ckpt"

    stage("Exporting to ONNX; comparing each artifact with the checkpoint on the test strings")
    test = manifests["test"]
    with status("exporting") as step:
        exported = export(checkpoint, out / "models", ("fp32", "fp16"), test, step)

    stage(f"Recognising {splits[-1].strings} strings by {len(TEST_VOICES)} voices never heard")
    cuts = CutSet.from_jsonl(test).to_eager()
    paths = [checkpoint, *(Path(item.path) for item in exported)]
    evaluations = [_evaluate(path, cuts, str(test)) for path in paths]
    _print_clips(console, evaluations[1])
    result = DemoResult(
        rows=_rows(paths, evaluations, exported, cuts),
        words=evaluations[0].errors.words,
        test_voices=len(TEST_VOICES),
        seconds=round(time.perf_counter() - started, 1),
    )
    _print_table(console, result, evaluations[1])
    return result


def _claim(out: Path) -> None:
    """Remove what an earlier demo left in a folder; refuse one that is somebody's own."""
    mine = [out / name for name in ("audio", "run", "models")]
    if not (out / MARKER).exists() and any(path.exists() for path in mine):
        raise ConfigError(f"{out}: holds files of other work; choose another folder with --out")
    for path in mine:
        shutil.rmtree(path, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()


def speak(split: Split, out: Path, seed: int) -> Path:
    """Write the split's recordings with their transcripts, and its manifest."""
    folder = out / "audio" / split.name
    folder.mkdir(parents=True)
    utterances = []
    offset = [name for name, *_ in SPLITS].index(split.name)
    strings = digit_strings(split.strings, split.voices, 10 * seed + offset, split.digits)
    with status(f"speaking {split.name}") as step:
        for i, spoken in enumerate(strings):
            step(f"{i} of {split.strings} strings")
            audio = folder / f"{i:05}.wav"
            soundfile.write(audio, spoken.samples, spoken.sample_rate, subtype="PCM_16")
            audio.with_suffix(".txt").write_text(f"{spoken.text}\n", encoding="utf-8")
            utterances.append(Utterance(audio, spoken.text, spoken.voice, split.name))
    manifest = out / "audio" / f"{split.name}.jsonl.gz"
    write_manifest(make_cuts(utterances, folder), manifest)
    return manifest


def demo_recipe(
    out: Path, manifests: dict[str, Path], seed: int, overrides: Sequence[str]
) -> Recipe:
    """The built-in recipe `demo` on the speech that was made."""
    return load_recipe(
        "demo",
        [
            f"data.train={manifests['train']}",
            f"data.valid={manifests['valid']}",
            f"training.run={out / 'run'}",
            f"training.seed={seed}",
            *overrides,
        ],
    )


def _evaluate(path: Path, cuts: CutSet, manifest: str) -> Evaluation:
    with status(f"recognising with {path.name}") as step:
        return evaluate(
            load(path),
            cuts,
            manifest,
            lambda done, audio_s: step(f"{done} of {len(cuts)} strings, {audio_s:.0f} s of audio"),
        )


def _rows(
    paths: list[Path], evaluations: list[Evaluation], exported: Sequence[Any], cuts: CutSet
) -> tuple[DemoRow, ...]:
    reports = [None, *(item.report for item in exported)]
    own = exported[0].report.pytorch_difference
    return tuple(
        DemoRow(
            model=str(path),
            runtime=evaluation.runtime,
            size=path.stat().st_size,
            wer=evaluation.wer,
            max_difference=own if report is None else report.max_difference,
            words_different=None if report is None else report.words.different,
            speed=speed,
        )
        for path, evaluation, report, speed in zip(
            paths, evaluations, reports, measure_speed(paths, cuts), strict=True
        )
    )


def measure_speed(paths: Sequence[Path], cuts: CutSet, clips: int = 12) -> list[float]:
    """Seconds of audio recognised in a second, one clip at a time, models in turns."""
    recognizers = [load(path) for path in paths]
    rate = recognizers[0].description.features.sample_rate
    audio = [read_audio(cut, rate) for cut in list(cuts)[:clips]]
    speeds: list[list[float]] = [[] for _ in paths]
    with status("measuring the speed") as step:
        for number, samples in enumerate(audio):
            step(f"{number} of {len(audio)} clips")
            for recognizer, measured in zip(recognizers, speeds, strict=True):
                started = time.perf_counter()
                recognizer.transcribe(samples, rate)
                measured.append(len(samples) / rate / (time.perf_counter() - started))
    # The first clip warms up.
    return [round(statistics.median(measured[1:] or measured), 1) for measured in speeds]


def _stages(console: Console) -> Callable[[str], None]:
    count = iter(range(1, 100))

    def stage(title: str) -> None:
        console.print(f"\n[bold]{next(count)}. {title}[/bold]")

    return stage


def _print_clips(console: Console, evaluation: Evaluation) -> None:
    for item in evaluation.hypotheses[:4]:
        mark = "[green]=[/green]" if item.reference == item.hypothesis else "[red]≠[/red]"
        console.print(f"  {Path(item.audio).name}  said  {item.reference}")
        console.print(f"  {' ' * len(Path(item.audio).name)}  heard {item.hypothesis} {mark}")


def _print_table(console: Console, result: DemoResult, evaluation: Evaluation) -> None:
    table = Table(
        title="What was trained, and what would run on a device", box=SIMPLE_HEAD, pad_edge=False
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
    audio = Path(evaluation.hypotheses[0].audio)
    shown = audio.relative_to(Path.cwd()) if audio.is_relative_to(Path.cwd()) else audio
    console.print(
        f"errors       of {result.words} words by {result.test_voices} voices that training "
        "never heard\n"
        "differs by   the network in float64: largest difference of log-probabilities, other "
        "words\n"
        "speed        seconds of audio recognised in a second, one clip at a time\n\n"
        f"All of it took {result.seconds:.0f} s. Now try:\n"
        f"  ds2deploy transcribe {result.rows[1].model} {shown}",
        soft_wrap=True,
    )
