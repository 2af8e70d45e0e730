"""`ds2deploy evaluate`: error rates of a model on a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ds2deploy.cli.decoding import Beam, Decoder, HotWords, Lexicon, Lm, Phrases, choose_decoder
from ds2deploy.cli.errors import BAD_RESULT, complain
from ds2deploy.cli.options import Device, Json, RuntimeName, Threads, argument, flag, known_runtime
from ds2deploy.heartbeat import file_progress
from ds2deploy.output import escape_control, print_json
from ds2deploy.runtimes.errors import require

if TYPE_CHECKING:
    from ds2deploy.training.evaluation import Evaluation


def evaluate(
    model: Annotated[Path, argument("MODEL", "Artifact or checkpoint.")],
    manifest: Annotated[Path, argument("MANIFEST", "Utterances with transcripts.")],
    decoder: Decoder = None,
    lm: Lm = None,
    beam: Beam = None,
    hotwords: HotWords = None,
    phrases: Phrases = None,
    lexicon: Lexicon = None,
    device: Device = None,
    runtime: RuntimeName = None,
    threads: Threads = 0,
    errors: Annotated[bool, flag("--errors", "List the utterances with errors.")] = False,
    json: Json = False,
) -> None:
    """Measure the word and character error rate of a model.

    Broken recordings and transcripts with characters outside the labels are named and skipped.
    The exit code is then 1, or 2 where nothing is left.

    Example: ds2deploy evaluate model.onnx data/mine/valid.jsonl.gz
    """
    require("lhotse", "train")
    require("jiwer", "train")
    import msgspec

    from ds2deploy.data.manifest import read_usable
    from ds2deploy.loading import load
    from ds2deploy.training.evaluation import evaluate as evaluate_model

    cuts, unusable = read_usable(manifest)
    chosen = choose_decoder(decoder, lm, beam, hotwords, phrases, lexicon)
    with (
        load(model, device, known_runtime(runtime), threads, chosen) as recognizer,
        file_progress(f"evaluating {model.name}", len(cuts)) as advance,
    ):
        result = evaluate_model(recognizer, cuts, str(manifest), advance, unusable)
    for broken in result.failed:
        complain(broken.error)
    if json:
        factor = round(result.real_time_factor, 5)
        print_json({**msgspec.to_builtins(result), "real_time_factor": factor})
    else:
        _print_scores(result, errors)
    if result.failed:
        raise typer.Exit(BAD_RESULT)


def _print_scores(result: Evaluation, errors: bool) -> None:
    """Print the error rates; before them, where wanted, the utterances with errors."""
    for item in result.hypotheses if errors else ():
        if item.reference != item.hypothesis:
            typer.echo(
                f"{escape_control(item.audio)}\n  said  {item.reference}\n  heard {item.hypothesis}"
            )
    typer.echo(
        f"WER {100 * result.wer:.2f} %  CER {100 * result.cer:.2f} %  "
        f"({result.errors.word_errors} of {result.errors.words} words, {result.utterances} "
        f"utterances, {result.audio_s:.0f} s of audio; {result.runtime}, real-time factor "
        f"{result.real_time_factor:.3f}{_left_out(result)})"
    )


def _left_out(result: Evaluation) -> str:
    """Count the utterances that are not part of the result, by kind."""
    parts = []
    for kind, name in (("recording", "broken recording"), ("transcript", "unusable transcript")):
        if count := sum(item.of == kind for item in result.failed):
            parts.append(f"; {count} {name}{'s' if count > 1 else ''} left out")
    return "".join(parts)
