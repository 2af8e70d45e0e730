"""Steps of `ds2deploy demo`, which needs no data because it synthesises speech."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import soundfile
from lhotse import CutSet
from rich.console import Console

from ds2deploy.config import Recipe
from ds2deploy.data.cuts import make_cut, read_audio
from ds2deploy.data.manifest import write_manifest
from ds2deploy.data.utterance import Utterance
from ds2deploy.demo.espeak import Voice
from ds2deploy.demo.report import DemoResult, DemoRow, print_clips, print_table
from ds2deploy.demo.synthesis import TEST_VOICES, TRAIN_VOICES, digit_strings
from ds2deploy.export.artifacts import export_onnx
from ds2deploy.export.verified_onnx import Exported
from ds2deploy.heartbeat import status
from ds2deploy.loading import load
from ds2deploy.recipes import load_recipe
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.training.evaluation import Evaluation, evaluate
from ds2deploy.training.train import train

MARKER = ".ds2deploy-demo"


class Split(NamedTuple):
    """Part of the demo's speech: a number of strings with a number of digits each."""

    name: str
    strings: int
    voices: Sequence[Voice]
    digits: tuple[int, int]


SPLITS = (
    Split("train", 1600, TRAIN_VOICES, (1, 4)),
    Split("valid", 96, TRAIN_VOICES, (2, 5)),
    Split("test", 160, TEST_VOICES, (2, 6)),
)


def run_demo(
    out: Path,
    seed: int = 0,
    splits: Sequence[Split] = SPLITS,
    overrides: Sequence[str] = (),
) -> DemoResult:
    """Run all steps (synthesise, train, evaluate, export, verify, transcribe); report on stderr.

    Args:
        out: folder for audio, training and artifacts; an earlier demo in it is replaced.
        seed: seed of voices, weights and batches.
        splits: training, validation and test strings.
        overrides: changes of the recipe of the form `section.key=value`.

    Raises:
        ConfigError: the folder contains files of other work.
        ParityError: the results of an artifact differ from those of the trained network.
    """
    console = Console(stderr=True, highlight=False)
    started = time.perf_counter()
    stage = _stages(console)
    _claim(out)

    stage(f"Synthesising {sum(split.strings for split in splits)} strings of digits")
    manifests = {split.name: speak(split, out, seed) for split in splits}

    recipe = demo_recipe(out, manifests, seed, overrides)
    stage(f"Training {recipe.model.layers} x {recipe.model.rnn} of {recipe.model.hidden} units")
    train(recipe)
    checkpoint = out / "run" / "best.ckpt"

    stage("Exporting to ONNX; comparing each artifact with the checkpoint on the test strings")
    test = manifests["test"]
    with status("exporting") as step:
        exported = export_onnx(checkpoint, out / "models", ("fp32", "fp16"), test, step)

    stage(f"Recognising {splits[-1].strings} strings by {len(TEST_VOICES)} new voices")
    cuts = CutSet.from_jsonl(test).to_eager()
    paths = [checkpoint, *(Path(item.path) for item in exported)]
    evaluations = [_evaluate(path, cuts, str(test)) for path in paths]
    print_clips(console, evaluations[1])
    result = DemoResult(
        rows=_rows(paths, evaluations, exported, cuts),
        words=evaluations[0].errors.words,
        test_voices=len(TEST_VOICES),
        seconds=round(time.perf_counter() - started, 1),
    )
    print_table(console, result, Path(evaluations[1].hypotheses[0].audio))
    return result


def _claim(out: Path) -> None:
    """Remove the files of an earlier demo from a folder; refuse a folder with other files."""
    mine = [out / name for name in ("audio", "run", "models")]
    if not (out / MARKER).exists() and any(path.exists() for path in mine):
        raise ConfigError(f"{out}: contains other files; choose another folder with --out")
    for path in mine:
        shutil.rmtree(path, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()


def speak(split: Split, out: Path, seed: int) -> Path:
    """Write the recordings, transcripts and manifest of a split."""
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
    write_manifest(CutSet.from_cuts(make_cut(item, folder) for item in utterances), manifest)
    return manifest


def demo_recipe(
    out: Path, manifests: dict[str, Path], seed: int, overrides: Sequence[str]
) -> Recipe:
    """Load the built-in recipe `demo` with the paths of the synthetic speech."""
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
    paths: list[Path], evaluations: list[Evaluation], exported: list[Exported], cuts: CutSet
) -> tuple[DemoRow, ...]:
    reports = [item.report for item in exported]
    own = reports[0].pytorch_difference
    assert own is not None
    differences = [own, *(report.max_difference for report in reports)]
    words = [None, *(report.words.different if report.words else None for report in reports)]
    speeds = measure_speed(paths, cuts)
    return tuple(
        DemoRow(
            model=str(path),
            runtime=evaluation.runtime,
            size=path.stat().st_size,
            wer=evaluation.wer,
            max_difference=difference,
            words_different=different,
            speed=speed,
        )
        for path, evaluation, difference, different, speed in zip(
            paths, evaluations, differences, words, speeds, strict=True
        )
    )


def measure_speed(paths: Sequence[Path], cuts: CutSet, clips: int = 12) -> list[float]:
    """Measure the speed of models in turns: seconds of audio per second, one clip at a time."""
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
    # The first clip is a warm-up.
    return [round(statistics.median(measured[1:] or measured), 1) for measured in speeds]


def _stages(console: Console) -> Callable[[str], None]:
    count = iter(range(1, 100))

    def stage(title: str) -> None:
        console.print(f"\n[bold]{next(count)}. {title}[/bold]")

    return stage
