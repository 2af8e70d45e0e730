"""The command `ds2deploy prepare`, which makes manifests from recordings and transcripts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ds2deploy.cli.errors import complain
from ds2deploy.cli.options import Json, Overrides, argument, flag, option
from ds2deploy.data.corpora.registry import layout_help
from ds2deploy.output import print_json
from ds2deploy.runtimes.errors import ConfigError, require

if TYPE_CHECKING:
    from ds2deploy.data.preparation import Report

SCREENING, SETS, RECIPE = "Screening", "Sets", "Recipe"
"""Titles of the option groups."""

SOURCE_HELP = (
    "Folder of recordings; CSV or TSV file with a recording and its transcript in each line; or "
    "manifest of deepspeech.pytorch."
)
OUT_HELP = "Folder that the manifests are written to."
LABELS_HELP = (
    "Labels of the model as one string, blank first; auto collects the characters of the "
    "transcripts. Default: English letters."
)
NORMALIZE_HELP = "Replace characters that have no label (e.g. é with e), and drop punctuation."
LEAVE_OUT_HELP = "Skip and report utterances that cannot be used, instead of stopping."
READ_HELP = "Read every recording to its end, to detect truncated files and silence."
SHORTEST_HELP = "Reject utterances shorter than this (seconds)."
LONGEST_HELP = "Reject utterances longer than this (seconds). Default: no limit."
VALID_HELP = "Share of the utterances (or speakers, see --split-by) held out for validation."
SPLIT_BY_HELP = "Hold out single utterances, or all utterances of some speakers."
JOIN_HELP = (
    "Also write held-out sets in which MIN to MAX recordings of a speaker are joined, such as 2,6."
)
JOIN_TIMES_HELP = "Number of times that each recording is used in the joined sets."
RECIPE_HELP = (
    "Recipe (file or name) to check the data against: its features, and its labels unless "
    "--labels is given. Default: 16 kHz audio, one feature frame every 10 ms."
)
PREVIEW_HELP = (
    "Write audio and plots of this recipe's augmentation to OUT, instead of manifests; SOURCE must "
    "be a manifest."
)

PREVIEWED = 3
"""Number of utterances that a preview writes before and after augmentation."""


def prepare(
    source: Annotated[Path, argument("SOURCE", SOURCE_HELP)],
    out: Annotated[Path, argument("OUT", OUT_HELP)],
    layout: Annotated[str, option("NAME", layout_help())] = "folder",
    labels: Annotated[str | None, option("CHARACTERS", LABELS_HELP)] = None,
    normalize: Annotated[bool, flag("--normalize", NORMALIZE_HELP, SCREENING)] = False,
    leave_out: Annotated[bool, flag("--leave-out", LEAVE_OUT_HELP, SCREENING)] = False,
    read: Annotated[bool, flag("--read", READ_HELP, SCREENING)] = False,
    shortest: Annotated[float, option("SECONDS", SHORTEST_HELP, SCREENING, min=0)] = 0.0,
    longest: Annotated[float | None, option("SECONDS", LONGEST_HELP, SCREENING, min=0)] = None,
    valid: Annotated[float, option("SHARE", VALID_HELP, SETS, min=0, max=0.9)] = 0.1,
    split_by: Annotated[
        Literal["utterance", "speaker"], option("utterance|speaker", SPLIT_BY_HELP, SETS)
    ] = "utterance",
    join: Annotated[str, option("MIN,MAX", JOIN_HELP, SETS)] = "1,1",
    join_times: Annotated[int, option("COUNT", JOIN_TIMES_HELP, SETS, min=1)] = 1,
    recipe: Annotated[str | None, option("RECIPE", RECIPE_HELP, RECIPE)] = None,
    preview: Annotated[str | None, option("RECIPE", PREVIEW_HELP, RECIPE)] = None,
    set_: Overrides = None,
    json: Json = False,
) -> None:
    """Make manifests from recordings and their transcripts.

    The report in OUT lists what the manifests contain and which utterances were left out.

    Example: ds2deploy prepare recordings data/mine

    A corpus: ds2deploy prepare LibriSpeech data/libri --layout librispeech --leave-out

    Augmentation: ds2deploy prepare data/mine/train.jsonl.gz heard --preview digits
    """
    require("lhotse", "train")
    if preview is not None:
        _preview(source, out, preview, set_ or [], json)
        return
    import msgspec

    from ds2deploy.config import Recipe
    from ds2deploy.data.preparation import PrepareOptions
    from ds2deploy.data.preparation import prepare as prepare_manifests
    from ds2deploy.data.screening import Screening
    from ds2deploy.recipes import load_recipe
    from ds2deploy.runtimes.alphabet import Alphabet

    if set_ and recipe is None:
        raise ConfigError(f"--set {set_[0]}: requires a recipe; add --recipe RECIPE")
    wanted = Recipe() if recipe is None else load_recipe(recipe, set_ or [])
    options = PrepareOptions(
        layout=layout,
        valid_share=valid,
        split_by=split_by,
        join=_min_max(join),
        join_times=join_times,
        screening=Screening(
            shortest_s=shortest,
            longest_s=longest,
            normalize=normalize,
            read=read,
            features=wanted.features,
        ),
        leave_out=leave_out,
    )
    alphabet = None if labels == "auto" else Alphabet(labels or wanted.labels)
    manifests, report = prepare_manifests(source, out, alphabet, options)
    for error in report.left_out:
        complain(f"left out: {error}")
    for part, count in report.unknown_parts.items():
        complain(
            f"{source}: the name of part {part!r} contains none of train, dev, test: its {count} "
            "utterances are added to the training set; rename the part to hold them out"
        )
    if valid and "train" in manifests and "valid" not in manifests:
        complain(
            f"{out}: the validation set is empty, and training needs one; add recordings, or hold "
            f"out a larger share than --valid {valid:g}"
        )
    if json:
        print_json(msgspec.to_builtins(report) | {"manifests": msgspec.to_builtins(report.sets)})
    else:
        _print_report(report, labels == "auto")


def _preview(manifest: Path, out: Path, recipe: str, overrides: list[str], json: bool) -> None:
    """Write audio and plots of the first utterances of a manifest."""
    from ds2deploy.data.manifest import read_manifest
    from ds2deploy.data.preview import write_preview
    from ds2deploy.recipes import load_recipe

    parsed = load_recipe(recipe, overrides)
    cuts = list(read_manifest(manifest).subset(first=PREVIEWED))
    written = [str(path) for path in write_preview(cuts, parsed, out, parsed.training.seed)]
    if json:
        print_json({"files": written})
    else:
        typer.echo("\n".join(written))


def _print_report(report: Report, with_labels: bool) -> None:
    for made in report.sets:
        speakers = f", {made.speakers} speaker{'s' if made.speakers > 1 else ''}"
        speakers = speakers if made.speakers else ""
        typer.echo(f"{made.manifest}  {made.utterances} utterances, {made.hours} h{speakers}")
    for change in report.characters:
        typer.echo(str(change))
    if report.left_out:
        unreadable = f", {report.unreadable} of them cannot be read" if report.unreadable else ""
        typer.echo(f"{len(report.left_out)} of {report.listed} utterances left out{unreadable}")
    if with_labels:
        typer.echo(f"labels = {report.labels!r}  (put this line at the top of the recipe)")


def _min_max(text: str) -> tuple[int, int]:
    try:
        low, high = (int(part) for part in text.split(","))
    except ValueError:
        low, high = 0, 0
    if not 1 <= low <= high:
        raise ConfigError(
            f"--join {text}: expected MIN,MAX, whole numbers with 1 <= MIN <= MAX, such as 2,6"
        )
    return low, high
