"""The command `ds2deploy evaluate`, which measures error rates of a model on a manifest."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ds2deploy.cli.decoding import Beam, Decoder, HotWords, Lexicon, Lm, Phrases, choose_decoder
from ds2deploy.cli.errors import BAD_RESULT, complain
from ds2deploy.cli.options import (
    MODEL_HELP,
    Device,
    Json,
    RuntimeName,
    Threads,
    argument,
    flag,
    known_runtime,
    option,
)
from ds2deploy.heartbeat import file_progress
from ds2deploy.output import escape_control, print_json
from ds2deploy.runtimes.errors import require

if TYPE_CHECKING:
    from ds2deploy.training.error_analysis import Comparison, Confusion, Group
    from ds2deploy.training.evaluation import Evaluation
    from ds2deploy.training.scoring import Hypothesis

ANALYSIS = "Analysis"
MANIFEST_HELP = "Manifest of utterances with transcripts (.jsonl or .jsonl.gz)."
BY_HELP = "Print error rates by speaker, duration, gender, or any other tag of the manifest."
CONFUSIONS_HELP = "Print this many of the most frequent word confusions. Default: none."
ERRORS_HELP = "Print every utterance that has errors."
AGAINST_HELP = (
    "Compare with this model on the same utterances, or with the saved output of an earlier "
    "evaluate --json."
)
HTML_HELP = "Write a page (HTML) with all results to this file."


def evaluate(
    model: Annotated[Path, argument("MODEL", MODEL_HELP)],
    manifest: Annotated[Path, argument("MANIFEST", MANIFEST_HELP)],
    decoder: Decoder = None,
    lm: Lm = None,
    beam: Beam = None,
    hotwords: HotWords = None,
    phrases: Phrases = None,
    lexicon: Lexicon = None,
    device: Device = None,
    runtime: RuntimeName = None,
    threads: Threads = 0,
    by: Annotated[str | None, option("NAME,...", BY_HELP, ANALYSIS)] = None,
    confusions: Annotated[int, option("COUNT", CONFUSIONS_HELP, ANALYSIS, min=0)] = 0,
    errors: Annotated[bool, flag("--errors", ERRORS_HELP, ANALYSIS)] = False,
    against: Annotated[Path | None, option("FILE", AGAINST_HELP, ANALYSIS)] = None,
    html: Annotated[Path | None, option("FILE", HTML_HELP, ANALYSIS)] = None,
    json: Json = False,
) -> None:
    """Measure the word and character error rate of a model.

    Broken recordings, and transcripts with characters outside the labels, are reported on stderr
    and skipped. The exit code is then 1, or 2 if no utterance is left. The interval after the word
    error rate is its 95 % confidence interval (bootstrap over utterances).

    Example: ds2deploy evaluate model.onnx data/mine/valid.jsonl.gz
    """
    require("lhotse", "train")
    require("jiwer", "train")
    from ds2deploy.data.manifest import read_usable
    from ds2deploy.loading import load
    from ds2deploy.training.error_analysis import common_tags, compare, read_hypotheses
    from ds2deploy.training.error_analysis import confusions as find_confusions
    from ds2deploy.training.error_analysis import groups as find_groups
    from ds2deploy.training.evaluation import evaluate as evaluate_model
    from ds2deploy.training.evaluation_page import comparison_line, write_page

    cuts, unusable = read_usable(manifest)
    chosen = choose_decoder(decoder, lm, beam, hotwords, phrases, lexicon)
    others: Sequence[Hypothesis] = ()
    if against is not None and against.suffix == ".json":
        others = read_hypotheses(against)

    def run(path: Path) -> Evaluation:
        with (
            load(path, device, known_runtime(runtime), threads, chosen) as recognizer,
            file_progress(f"evaluating {path.name}", len(cuts)) as advance,
        ):
            return evaluate_model(recognizer, cuts, str(manifest), advance, unusable)

    result = run(model)
    names = [name.strip() for name in (by or "").split(",") if name.strip()]
    tables = find_groups(result.hypotheses, names)
    confused = find_confusions(result.hypotheses, confusions)
    compared = None
    if against is not None:
        others = others or run(against).hypotheses
        compared = compare(result.hypotheses, others, str(against))
    for broken in result.failed:
        complain(broken.error)
    if html is not None:
        every = find_groups(result.hypotheses, names or common_tags(result.hypotheses))
        words = confused or find_confusions(result.hypotheses)
        write_page(html, f"{model} on {manifest}", result, every, words, compared)
    if json:
        print_json(_document(result, tables, confused, compared))
    else:
        _print_errors(result, errors)
        _print_tables(tables, confused)
        _print_scores(result)
        if compared is not None:
            typer.echo(comparison_line(compared))
    if result.failed:
        raise typer.Exit(BAD_RESULT)


def _document(
    result: Evaluation,
    tables: Sequence[Group],
    confused: Sequence[Confusion],
    compared: Comparison | None,
) -> dict[str, object]:
    import msgspec

    return {
        **msgspec.to_builtins(result),
        "real_time_factor": round(result.real_time_factor, 5),
        "groups": msgspec.to_builtins(tables),
        "confusions": msgspec.to_builtins(confused),
        "comparison": msgspec.to_builtins(compared),
    }


def _print_errors(result: Evaluation, wanted: bool) -> None:
    """Print the utterances with errors if `wanted`."""
    for item in result.hypotheses if wanted else ():
        if item.reference != item.hypothesis:
            typer.echo(
                f"{escape_control(item.audio)}\n  reference  {item.reference}\n"
                f"  hypothesis {item.hypothesis}"
            )


def _print_tables(tables: Sequence[Group], confused: Sequence[Confusion]) -> None:
    width = max((len(group.value) for group in tables), default=0)
    for by, members in itertools.groupby(tables, key=lambda group: group.by):
        typer.echo(f"by {escape_control(by)}")
        for group in members:
            low, high = group.interval
            typer.echo(
                f"  {escape_control(group.value):{width}}  WER {100 * group.wer:6.2f} % "
                f"({100 * low:.1f} to {100 * high:.1f})  CER {100 * group.cer:6.2f} %  "
                f"{group.utterances} utterances, {group.errors.words} words"
            )
    for item in confused:
        typer.echo(f"  {item.count:4d} x {item.said or '(nothing)'} -> {item.heard or '(nothing)'}")


def _print_scores(result: Evaluation) -> None:
    """Print the error rates."""
    low, high = result.interval
    typer.echo(
        f"WER {100 * result.wer:.2f} % ({100 * low:.2f} to {100 * high:.2f})  "
        f"CER {100 * result.cer:.2f} %  "
        f"({result.errors.word_errors} of {result.errors.words} words, {result.utterances} "
        f"utterances, {result.audio_s:.0f} s of audio; {result.runtime}, real-time factor "
        f"{result.real_time_factor:.3f}{_left_out(result)})"
    )


def _left_out(result: Evaluation) -> str:
    """Count the skipped utterances by kind."""
    parts = []
    for kind, name in (("recording", "broken recording"), ("transcript", "unusable transcript")):
        if count := sum(item.of == kind for item in result.failed):
            parts.append(f"; {count} {name}{'s' if count > 1 else ''} left out")
    return "".join(parts)
