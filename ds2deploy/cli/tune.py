"""The command `ds2deploy tune`, which finds the weights of language models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ds2deploy.cli.decoding import LM_HELP
from ds2deploy.cli.errors import BAD_RESULT, complain
from ds2deploy.cli.options import (
    MODEL_HELP,
    Device,
    Json,
    RuntimeName,
    Threads,
    argument,
    known_runtime,
    option,
)
from ds2deploy.heartbeat import file_progress, status
from ds2deploy.output import print_json
from ds2deploy.runtimes.errors import ConfigError, require

if TYPE_CHECKING:
    from ds2deploy.training.tuning import Tuning


MANIFEST_HELP = "Manifest of the validation set; do not use the test set."
OUT_HELP = "Settings file to write; the name must end in .decoder."
BEAM_HELP = "Number of hypotheses that the beam search keeps."


def tune(
    model: Annotated[Path, argument("MODEL", MODEL_HELP)],
    manifest: Annotated[Path, argument("MANIFEST", MANIFEST_HELP)],
    lm: Annotated[list[Path], option("FILE", LM_HELP)],
    out: Annotated[Path, option("FILE", OUT_HELP)],
    beam: Annotated[int, option("COUNT", BEAM_HELP, min=1)] = 64,
    device: Device = None,
    runtime: RuntimeName = None,
    threads: Threads = 0,
    json: Json = False,
) -> None:
    """Find the weights of one or two language models.

    Half of the utterances are used to choose the weights, the other half to measure them. If the
    result is not better than greedy decoding, no file is written and the exit code is 1.

    Example: ds2deploy tune model.onnx valid.jsonl.gz --lm words.lm --out words.decoder
    """
    require("lhotse", "train")
    require("jiwer", "train")
    from ds2deploy.data.manifest import read_usable
    from ds2deploy.loading import load
    from ds2deploy.runtimes.alphabet import Alphabet
    from ds2deploy.runtimes.decoding.config import DecoderConfig, one_or_all
    from ds2deploy.runtimes.decoding.decoder_file import SUFFIX, write_decoder_file
    from ds2deploy.training.kept_log_probs import KeepingDecoder, keep_log_probs
    from ds2deploy.training.tuning import tune as tune_decoder

    if out.suffix != SUFFIX:
        raise ConfigError(f"--out {out}: expected a name that ends in {SUFFIX}")
    cuts, unusable = read_usable(manifest)
    settings = DecoderConfig(lm=one_or_all([str(path) for path in lm]), beam=beam)
    with load(model, device, known_runtime(runtime), threads, KeepingDecoder) as recognizer:
        description = recognizer.description
        alphabet = Alphabet(description.labels)
        settings(alphabet, description.frame_s)  # raise errors of the settings before the run
        with file_progress(f"running {model.name}", len(cuts)) as advance:
            utterances, errors = keep_log_probs(recognizer, cuts, str(manifest), advance)
    for error in (*(item.error for item in unusable), *errors):
        complain(error)
    with status("tuning") as step:
        result = tune_decoder(
            utterances,
            alphabet,
            description.frame_s,
            settings,
            lambda done, total: step(f"{done} of {total} settings tried"),
        )
    if result.better:
        facts = {
            "wer": result.wer,
            "greedy_wer": result.greedy_wer,
            "utterances": result.utterances,
        }
        write_decoder_file(out, result.settings, description.labels, facts)
    if json:
        print_json({**_facts(result), "written": str(out) if result.better else None})
    else:
        _print_result(result, out)
    if not result.better:
        complain(
            f"{out}: not written, because the settings are not significantly better than greedy "
            "decoding; try another language model, or more validation data"
        )
        raise typer.Exit(BAD_RESULT)


def _facts(result: Tuning) -> dict[str, object]:
    import msgspec

    return {**msgspec.to_builtins(result), "better": result.better}


def _print_result(result: Tuning, out: Path) -> None:
    best = result.settings
    low, high = result.interval
    if result.all_equal:
        typer.echo(
            f"all {len(result.tried)} settings have the same WER, {100 * result.tried[0].wer:.2f} "
            "%, on the utterances used to choose the weights; the middle settings are used"
        )
    second = best.character_lm_weight
    beside = "" if second is None else f"character_lm_weight {second:g}, "
    typer.echo(
        f"lm_weight {best.lm_weight:g}, {beside}word_score {best.word_score:g}, "
        f"confidence_scale {best.confidence_scale:g}"
    )
    for weight, kind in ((best.lm_weight, "word"), (second, "character")):
        if weight == 0 and not result.all_equal:
            typer.echo(f"the {kind} language model does not lower the WER: omit it")
    typer.echo(
        f"WER {100 * result.wer:.2f} %, greedy {100 * result.greedy_wer:.2f} %: "
        f"gain {100 * result.gain:.2f} points, 95 % interval {100 * low:.2f} to {100 * high:.2f} "
        f"({result.utterances} utterances that were not used to choose the weights)"
    )
    if result.better:
        typer.echo(f"{out} written")
