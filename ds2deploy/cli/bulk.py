"""`ds2deploy bulk`: transcripts of a corpus, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

from ds2deploy.cli.decoding import Beam, Decoder, HotWords, Lexicon, Lm, Phrases, choose_decoder
from ds2deploy.cli.errors import complain, exit_if_failed
from ds2deploy.cli.options import (
    Device,
    Json,
    RuntimeName,
    Threads,
    argument,
    flag,
    known_runtime,
    option,
)
from ds2deploy.heartbeat import status
from ds2deploy.output import print_json
from ds2deploy.runtimes.errors import ConfigError

if TYPE_CHECKING:
    from ds2deploy.bulk.run import Report
    from ds2deploy.runtimes.decoding.config import DecoderConfig

WORKERS = "Workers"

SOURCE_HELP = "Folder of recordings, list of paths or URLs, or manifest (.jsonl, .jsonl.gz)."
OUT_HELP = "Folder of the results, part-*.jsonl: one line for each input."
ENGINE_HELP = "Processes of this machine, or actors of Ray. Default: local."


def bulk(
    model: Annotated[Path, argument("MODEL", "Artifact or checkpoint.")],
    source: Annotated[Path, argument("SOURCE", SOURCE_HELP)],
    out: Annotated[Path, option("DIR", OUT_HELP)],
    retry_errors: Annotated[
        bool, flag("--retry-errors", "Recognise inputs again that had an error.")
    ] = False,
    engine: Annotated[Literal["local", "ray"], option("local|ray", ENGINE_HELP, WORKERS)] = "local",
    workers: Annotated[
        int, option("COUNT", "Workers, each with a session of its own.", WORKERS, min=1)
    ] = 1,
    address: Annotated[
        str | None,
        option("ADDRESS", "Ray cluster, such as auto. Default: this machine.", WORKERS),
    ] = None,
    price: Annotated[
        float | None, option("PRICE", "Price of an hour of a worker, for the report.", WORKERS)
    ] = None,
    decoder: Decoder = None,
    lm: Lm = None,
    beam: Beam = None,
    hotwords: HotWords = None,
    phrases: Phrases = None,
    lexicon: Lexicon = None,
    device: Device = None,
    runtime: RuntimeName = None,
    threads: Threads = 0,
    json: Json = False,
) -> None:
    """Transcribe a corpus; a second run does what is missing.

    Nothing is dropped: each input has one line, with its transcript or its error. A run that was
    killed loses what it was computing, and no more. The exit code is 1 where inputs had errors.

    Example: ds2deploy bulk model.onnx recordings --out transcripts
    """
    from ds2deploy.bulk.run import make_header, run_bulk
    from ds2deploy.bulk.worker import Job

    chosen = cast(
        "DecoderConfig | None", choose_decoder(decoder, lm, beam, hotwords, phrases, lexicon, None)
    )
    if not model.is_file():
        raise ConfigError(f"{model}: no such file; expected an artifact or a checkpoint")
    job = Job(
        model=str(model.resolve()), header=make_header(model, chosen), device=device,
        runtime=known_runtime(runtime), threads=threads, decoder=chosen,
    )  # fmt: skip
    with status("transcribing") as tell:
        report = run_bulk(
            source, out, job, engine, workers, address, retry_errors, price,
            lambda so_far: tell(_progress(so_far)),
        )  # fmt: skip
    if json:
        print_json({**_facts(report), "out": str(out)})
    else:
        complain(_summary(report, out))
    exit_if_failed(report.failed, report.inputs)


def _progress(report: Report) -> str:
    done = report.transcripts + report.failed + report.skipped
    return (
        f"{done} of {report.inputs} inputs so far, {report.audio_s / 3600:.2f} h of audio, "
        f"{report.factor:.3g}x, {report.failed} errors"
    )


def _summary(report: Report, out: Path) -> str:
    errors = ", ".join(f"{count} {kind}" for kind, count in report.errors.items())
    cost = ""
    if report.cost is not None and report.audio_s:
        each = 3600 * report.cost / report.audio_s
        cost = f"; cost {report.cost:g}, {each:.3g} for an hour of audio"
    return (
        f"{out}: {report.inputs} inputs, {report.skipped} done before, {report.transcripts} "
        f"recognised, {report.failed} errors{f' ({errors})' if errors else ''}; "
        f"{report.audio_s / 3600:.2f} h of audio in {report.took_s:.0f} s, "
        f"{report.factor:.3g}x{cost}"
    )


def _facts(report: Report) -> dict[str, object]:
    return {
        "inputs": report.inputs,
        "skipped": report.skipped,
        "transcripts": report.transcripts,
        "errors": report.errors,
        "audio_s": round(report.audio_s, 3),
        "took_s": round(report.took_s, 3),
        "factor": round(report.factor, 3),
        "cost": report.cost,
    }
