"""`ds2deploy prepare`: recordings to manifests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ds2deploy.cli.errors import complain
from ds2deploy.cli.options import Json
from ds2deploy.cli.printing import print_json
from ds2deploy.data.corpora.registry import layout_help
from ds2deploy.runtimes.errors import ConfigError, require

if TYPE_CHECKING:
    from ds2deploy.data.preparation import Report


def prepare(
    source: Annotated[
        Path, typer.Argument(readable=False, help="Folder, or manifest of deepspeech.pytorch.")
    ],
    out: Annotated[Path, typer.Argument(readable=False, help="Folder for the manifests.")],
    layout: Annotated[str, typer.Option(help=layout_help())] = "folder",
    labels: Annotated[
        str | None,
        typer.Option(
            help="Blank and characters; English letters by default; auto: those of the transcripts."
        ),
    ] = None,
    normalize: Annotated[
        bool,
        typer.Option(
            "--normalize",
            help="Replace or drop characters that have no label; the report lists them.",
            rich_help_panel="Screening",
        ),
    ] = False,
    leave_out: Annotated[
        bool,
        typer.Option(
            "--leave-out",
            help="Leave unusable utterances out and name each, instead of stopping.",
            rich_help_panel="Screening",
        ),
    ] = False,
    read: Annotated[
        bool,
        typer.Option(
            "--read",
            help="Read all audio, to find truncated files and silence.",
            rich_help_panel="Screening",
        ),
    ] = False,
    shortest: Annotated[
        float,
        typer.Option(
            min=0, help="Drop utterances shorter than this (seconds).", rich_help_panel="Screening"
        ),
    ] = 0.0,
    longest: Annotated[
        float | None,
        typer.Option(
            min=0, help="Drop utterances longer than this (seconds).", rich_help_panel="Screening"
        ),
    ] = None,
    valid: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.9,
            help="Share held out for validation.",
            rich_help_panel="Sets",
        ),
    ] = 0.1,
    split_by: Annotated[
        str,
        typer.Option(
            help="utterance, or speaker: no speaker is in both sets.", rich_help_panel="Sets"
        ),
    ] = "utterance",
    join: Annotated[
        str,
        typer.Option(
            help="Also write the held-out sets with MIN,MAX recordings joined, such as 2,6.",
            rich_help_panel="Sets",
        ),
    ] = "1,1",
    join_times: Annotated[
        int,
        typer.Option(min=1, help="How often --join uses each recording.", rich_help_panel="Sets"),
    ] = 1,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Screen for this recipe, a file or a name: its features, and its labels unless "
            "--labels says others. Default: features of 16 kHz every 10 ms.",
            rich_help_panel="Recipe",
        ),
    ] = None,
    preview: Annotated[
        str | None,
        typer.Option(
            help="Write audio and pictures of this recipe's augmentation; SOURCE is a manifest.",
            rich_help_panel="Recipe",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change the recipe of --recipe or --preview: section.key=value; may be repeated.",
            rich_help_panel="Recipe",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Make manifests from recordings with transcripts.

    Also prints a report: sets, hours, speakers, and everything that was left out.

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

    if split_by not in ("utterance", "speaker"):
        raise ConfigError(f"--split-by {split_by}: expected utterance or speaker")
    if set_ and recipe is None:
        raise ConfigError(f"--set {set_[0]}: changes a recipe; name it with --recipe")
    wanted = Recipe() if recipe is None else load_recipe(recipe, set_ or [])
    screening = Screening(
        shortest_s=shortest,
        longest_s=longest,
        normalize=normalize,
        read=read,
        features=wanted.features,
    )
    options = PrepareOptions(
        layout=layout,
        valid_share=valid,
        split_by=split_by,  # type: ignore[arg-type]
        join=_pair(join),
        join_times=join_times,
        screening=screening,
        leave_out=leave_out,
    )
    alphabet = None if labels == "auto" else Alphabet(labels or wanted.labels)
    manifests, report = prepare_manifests(source, out, alphabet, options)
    for error in report.left_out:
        complain(f"left out: {error}")
    if valid and layout == "folder" and "valid" not in manifests:
        complain(
            f"{out}: no utterance fell into the validation set, which a training needs; give more "
            f"recordings, or a larger share than --valid {valid:g}"
        )
    if json:
        print_json(msgspec.to_builtins(report) | {"manifests": msgspec.to_builtins(report.sets)})
    else:
        _print_preparation(report, labels == "auto")


PREVIEWED = 3
"""Number of utterances that a preview writes, each before and after augmentation."""


def _preview(manifest: Path, out: Path, recipe: str, overrides: list[str], json: bool) -> None:
    """Write audio and pictures of the first utterances of a manifest."""
    from ds2deploy.data.manifest import read_manifest
    from ds2deploy.data.preview import write_preview
    from ds2deploy.recipes import load_recipe

    parsed = load_recipe(recipe, overrides)
    cuts = list(read_manifest(manifest).subset(first=PREVIEWED))
    written = [str(path) for path in write_preview(cuts, parsed, out, parsed.training.seed)]
    if json:
        print_json({"files": written})
    for path in [] if json else written:
        typer.echo(path)


def _print_preparation(report: Report, labels: bool) -> None:
    """Print the manifests, the changed characters and the number of utterances left out."""
    for made in report.sets:
        speakers = f", {made.speakers} speaker{'s' if made.speakers > 1 else ''}"
        speakers = speakers if made.speakers else ""
        typer.echo(f"{made.manifest}  {made.utterances} utterances, {made.hours} h{speakers}")
    for change in report.characters:
        became = {None: "no label", "": "left out", " ": "a space"}.get(change.became)
        typer.echo(f"{change.character!r}  {change.times} times: {became or change.became}")
    if report.left_out:
        unreadable = f", {report.unreadable} of them cannot be read" if report.unreadable else ""
        typer.echo(f"{len(report.left_out)} of {report.listed} utterances left out{unreadable}")
    if labels:
        typer.echo(f"labels = {report.labels!r}  (put this line at the top of the recipe)")


def _pair(text: str) -> tuple[int, int]:
    try:
        low, high = (int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--join {text}: expected two whole numbers, such as 2,6") from None
    if not 1 <= low <= high:
        raise ConfigError(f"--join {text}: expected the smaller number first, from 1")
    return low, high
