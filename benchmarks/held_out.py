"""Effect of augmentation on speakers who are not in the training set.

    python benchmarks/held_out.py FOLDER [--runs DIR] [--jobs 2] [--quick] [--json] [--out DIR]

FOLDER contains the recordings of the Free Spoken Digit Dataset, as for `ds2deploy prepare --layout
fsdd`. Each speaker is held out once. The recipe `digits`, at the 8 kHz of the recordings, is
trained on the other speakers with and without `AUGMENT`; everything else is the same (network,
steps, seed, order of the data). The best checkpoint of each training then recognises strings of all
recordings of the held-out speaker. The best checkpoint is chosen on strings of the training
speakers.

When the script is started again, it resumes an interrupted training, and skips finished ones.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import msgspec
from lhotse import CutSet
from report import Goal, Result, Table, arguments, deliver_or_refuse, progress

import ds2deploy
from ds2deploy.config import AugmentConfig, Recipe
from ds2deploy.data.corpora.fsdd import read_fsdd
from ds2deploy.data.cuts import join_utterances, make_cut
from ds2deploy.data.manifest import read_manifest, write_manifest
from ds2deploy.data.preparation import JOIN_PAUSE_S
from ds2deploy.model.checkpoint import read_document, read_recipe
from ds2deploy.recipes import load_recipe
from ds2deploy.runtimes.errors import ConfigError, ManifestError, MissingFileError
from ds2deploy.training.evaluation import evaluate
from ds2deploy.training.run_folder import LAST, RunFolder
from ds2deploy.training.scoring import ErrorCounts
from ds2deploy.training.train import train

WORDS = (2, 6)
"""Minimum and maximum number of recordings in a test string; each recording is in one string."""

SAMPLE_RATE = 8000
"""Sample rate of the recordings, in Hz."""

AUGMENT = AugmentConfig(
    speed=(0.92, 1.08),
    gain_db=(-25.0, 25.0),
    noise_snr_db=(5.0, 40.0),
    noise_share=0.8,
    frequency_masks=1,
    frequency_mask_bins=8,
)
"""Augmentation; the gain is large because the median levels of two speakers differ by 23 dB."""

GOAL = 25.0
"""Goal for the reduction of the mean word error rate by augmentation, in percent."""

PLAIN, AUGMENTED = "without", "with"
WAYS = (PLAIN, AUGMENTED)


class Sizes(NamedTuple):
    """Sizes of the trainings: epochs (None for the recipe's), hidden units, recordings of a set."""

    epochs: int | None = None
    hidden: int | None = None
    recordings: int | None = None


FULL, QUICK = Sizes(), Sizes(epochs=2, hidden=16, recordings=30)


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a training: errors of its best checkpoint on the held-out speaker.

    Attributes:
        speaker: held-out speaker.
        augment: `with` or `without` augmentation.
        errors: error counts on the test strings.
        known_wer: word error rate on the training speakers, by which the checkpoint was chosen.
        train_s: duration of the training, in seconds.
    """

    speaker: str
    augment: str
    errors: ErrorCounts
    known_wer: float
    train_s: float


class Case(NamedTuple):
    """Training to run: held-out speaker, augmentation, recipe, and the test manifest."""

    speaker: str
    augment: str
    recipe: Recipe
    test: Path


def write_sets(source: Path, speaker: str, folder: Path, sizes: Sizes) -> None:
    """Write the manifests of a training without one speaker, and of that speaker's test strings.

    Args:
        source: folder of all recordings.
        speaker: held-out speaker, who is only in `test`, not in `train` and `valid`.
        folder: folder for the three manifests.
        sizes: numbers of recordings in each manifest.
    """
    listed = list(read_fsdd(source))
    others = [utterance for utterance in listed if utterance.speaker != speaker]
    chosen = {
        "train": [utterance for utterance in others if utterance.split == "train"],
        "valid": [utterance for utterance in others if utterance.split == "valid"],
        "test": [utterance for utterance in listed if utterance.speaker == speaker],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, utterances in chosen.items():
        step = 1 if sizes.recordings is None else max(1, len(utterances) // sizes.recordings)
        cuts = CutSet.from_cuts(make_cut(item, source) for item in utterances[::step])
        if name != "train":
            cuts = join_utterances(cuts, WORDS, JOIN_PAUSE_S, seed=0)
        write_manifest(cuts, folder / f"{name}.jsonl.gz")


def recipe_for(augment: str, sets: Path, run: Path, sizes: Sizes) -> Recipe:
    """Make the recipe of a training: `digits` with or without augmentation.

    Args:
        augment: one of `WAYS`.
        sets: folder of the manifests.
        run: folder of the training.
        sizes: settings that are smaller in a test.
    """
    recipe = load_recipe("digits").changed("training", run=str(run), threads=1)
    recipe = recipe.changed("features", sample_rate=SAMPLE_RATE)
    manifests = {name: str(sets / f"{name}.jsonl.gz") for name in ("train", "valid")}
    recipe = recipe.changed("data", workers=0, **manifests)
    chosen = AUGMENT if augment == AUGMENTED else AugmentConfig()
    recipe = msgspec.structs.replace(recipe, augment=chosen)
    if sizes.hidden is not None:
        recipe = recipe.changed("model", hidden=sizes.hidden)
    if sizes.epochs is not None:
        recipe = recipe.changed("training", epochs=sizes.epochs, validate_every=1)
    return recipe


def run_case(case: Case) -> Score:
    """Train or resume, and recognise the test strings; runs in a separate process."""
    run = Path(case.recipe.training.run)
    folder = RunFolder(run)
    run.mkdir(parents=True, exist_ok=True)
    check_begun(run / LAST, case.recipe)
    with (run / "log.txt").open("a") as log, redirect_stderr(log):
        if not is_finished(folder, case.recipe.training.epochs):
            train(case.recipe, resume=folder.holds_training())
        with ds2deploy.load(run / "best.ckpt", threads=1) as recognizer:
            errors = evaluate(recognizer, read_manifest(case.test), str(case.test)).errors
    lines = folder.metrics()
    validations = [line["wer"] for line in lines if line["kind"] == "valid"]
    return Score(
        speaker=case.speaker,
        augment=case.augment,
        errors=errors,
        known_wer=float(min(validations)),
        train_s=float(lines[-1]["elapsed_s"]),
    )


def check_begun(last: Path, recipe: Recipe) -> None:
    """Check that a checkpoint belongs to a training with this recipe.

    Raises:
        ConfigError: the checkpoint is from another training.
    """
    document = read_document(last) if last.is_file() else None
    begun = recipe if document is None else read_recipe(document, last)
    if (begun.model, begun.augment) != (recipe.model, recipe.augment):
        raise ConfigError(
            f"{last}: belongs to a training with another network or augmentation; choose another "
            "--runs"
        )


def is_finished(folder: RunFolder, epochs: int) -> bool:
    """Return True if a training has reached its end."""
    return any(line["kind"] == "valid" and line["epoch"] == epochs for line in folder.metrics())


def measure(folder: Path, runs: Path, jobs: int, sizes: Sizes) -> Result:
    """Run all trainings, several at a time, with one thread each.

    Args:
        folder: folder of the recordings.
        runs: folder for manifests and trainings.
        jobs: number of simultaneous trainings.
        sizes: sizes of the trainings.

    Raises:
        Ds2Error: the recordings cannot be used.
    """
    if not folder.is_dir():
        raise MissingFileError(
            f"{folder}: no such folder; expected the recordings of the Free Spoken Digit Dataset"
        )
    speakers = sorted({utterance.speaker for utterance in read_fsdd(folder)})
    if len(speakers) < 2:
        raise ManifestError(
            f"{folder}: recordings of {len(speakers)} speaker; expected at least 2 speakers: "
            "add the recordings of another one"
        )
    cases = []
    for speaker in speakers:
        sets = runs / speaker / "data"
        write_sets(folder, speaker, sets, sizes)
        for way in WAYS:
            recipe = recipe_for(way, sets, runs / speaker / way, sizes)
            cases.append(Case(speaker, way, recipe, sets / "test.jsonl.gz"))
    scores: list[Score] = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for score in pool.map(run_case, cases):
            progress(
                f"{score.speaker} held out, {score.augment} augmentation: WER "
                f"{100 * score.errors.wer:.1f} %, trained in {score.train_s:.0f} s"
            )
            scores.append(score)
    return report(scores, AUGMENT, sizes is not FULL)


def report(scores: Sequence[Score], augment: AugmentConfig, quick: bool) -> Result:
    """Make a table with a row for each speaker, and the mean.

    Args:
        scores: two results for each speaker.
        augment: augmentation of the training audio.
        quick: True for the sizes of a test.
    """
    found = {(score.speaker, score.augment): score for score in scores}
    speakers = sorted({score.speaker for score in scores})
    means = {
        way: statistics.mean(found[speaker, way].errors.wer for speaker in speakers) for way in WAYS
    }
    lowered = 100 * (1 - means[AUGMENTED] / means[PLAIN]) if means[PLAIN] else 0.0
    rows = []
    for speaker in speakers:
        before, after = (found[speaker, way] for way in WAYS)
        rows.append(
            [
                speaker,
                str(before.errors.words),
                *(f"{100 * score.errors.wer:.1f} %" for score in (before, after)),
                *(f"{100 * score.known_wer:.1f} %" for score in (before, after)),
            ]
        )
    rows.append(["mean", "", *(f"{100 * means[way]:.1f} %" for way in WAYS), "", ""])
    settings = {
        name: value
        for name, value in msgspec.to_builtins(augment).items()
        if value != msgspec.to_builtins(AugmentConfig())[name]
    }
    return Result(
        name="held-out",
        title="A speaker that training never heard, with augmentation and without",
        quick=quick,
        goals=[
            Goal(
                "augmentation lowers the mean word error rate of held-out speakers by",
                GOAL,
                lowered,
                "%",
            )
        ],
        tables=[
            Table(
                "Word error rate; each speaker held out of a training of its own",
                [
                    "held out",
                    "words",
                    "without augmentation",
                    "with",
                    "speakers trained on: without",
                    "with",
                ],
                rows,
            )
        ],
        notes=[
            f"Recipe `digits` at {SAMPLE_RATE / 1000:g} kHz; augmentation: "
            + ", ".join(f"{name} {value}" for name, value in settings.items())
            + ". Data: the Free Spoken Digit Dataset, CC BY-SA 4.0."
        ],
        data={"scores": [msgspec.to_builtins(score) for score in scores]},
    )


def main() -> int:
    """Train and compare, and print or write."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "folder", type=Path, help="folder of the recordings, with names such as 7_jackson_32.wav"
    )
    parser.add_argument(
        "--runs", type=Path, help="folder for the trainings; default: runs/held-out"
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="number of simultaneous trainings, one core each"
    )
    options: argparse.Namespace = parser.parse_args()
    sizes = QUICK if options.quick else FULL
    runs = options.runs or Path("runs/held-out-quick" if options.quick else "runs/held-out")
    return deliver_or_refuse(lambda: measure(options.folder, runs, options.jobs, sizes), options)


if __name__ == "__main__":
    sys.exit(main())
