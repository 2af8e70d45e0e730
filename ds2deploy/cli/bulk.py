"""The command `ds2deploy bulk`, which transcribes a corpus and can be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

from ds2deploy.cli.decoding import Beam, Decoder, HotWords, Lexicon, Lm, Phrases, choose_decoder
from ds2deploy.cli.errors import complain, exit_if_failed
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
from ds2deploy.heartbeat import status
from ds2deploy.output import print_json
from ds2deploy.runtimes.errors import missing_file

if TYPE_CHECKING:
    from ds2deploy.bulk.run import Report
    from ds2deploy.runtimes.decoding.config import DecoderConfig

WORKERS = "Workers"

SOURCE_HELP = (
    "Recordings to transcribe: a folder, a list of paths or URLs, or a manifest (.jsonl, "
    ".jsonl.gz)."
)
OUT_HELP = "Folder for the results: part-*.jsonl files with one line for each input."
RETRY_HELP = "Transcribe inputs again that failed in an earlier run."
ENGINE_HELP = (
    "Run the workers as processes of this machine (local) or on a Ray cluster (ray). Default: "
    "local."
)
WORKERS_HELP = "Number of workers; each loads the model once."
ADDRESS_HELP = (
    'Address of the Ray cluster; "auto" finds a running one. Default: start Ray on this machine.'
)
PRICE_HELP = "Price of one worker for one hour; the report then includes the cost."


def bulk(
    model: Annotated[Path, argument("MODEL", MODEL_HELP)],
    source: Annotated[Path, argument("SOURCE", SOURCE_HELP)],
    out: Annotated[Path, option("DIR", OUT_HELP)],
    retry_errors: Annotated[bool, flag("--retry-errors", RETRY_HELP)] = False,
    engine: Annotated[Literal["local", "ray"], option("local|ray", ENGINE_HELP, WORKERS)] = "local",
    workers: Annotated[int, option("COUNT", WORKERS_HELP, WORKERS, min=1)] = 1,
    address: Annotated[str | None, option("ADDRESS", ADDRESS_HELP, WORKERS)] = None,
    price: Annotated[float | None, option("PRICE", PRICE_HELP, WORKERS)] = None,
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
    """Transcribe a corpus, and resume after an interruption.

    Each input gets one line in the results, with its transcript or its error. Running the command
    again transcribes only the inputs without a line. The exit code is 1 if some inputs failed, and
    2 if all did.

    Example: ds2deploy bulk model.onnx recordings --out transcripts
    """
    from ds2deploy.bulk.run import make_header, run_bulk
    from ds2deploy.bulk.worker import Job

    chosen = cast(
        "DecoderConfig | None", choose_decoder(decoder, lm, beam, hotwords, phrases, lexicon, None)
    )
    if not model.is_file():
        raise missing_file(model, "a model (.onnx, .engine or .ckpt)")
    job = Job(
        model=str(model.resolve()), header=make_header(model, chosen), device=device,
        runtime=known_runtime(runtime), threads=threads, decoder=chosen,
    )  # fmt: skip
    with status("transcribing") as tell:
        report = run_bulk(
            source, out, job, engine, workers, address, retry_errors, price,
            lambda so_far: tell(_progress(so_far)),
        )  # fmt: skip
    if not report.inputs:
        complain(f"{source}: contains no recordings")
    if json:
        print_json({**_facts(report), "out": str(out)})
    else:
        complain(_summary(report, out))
    exit_if_failed(report.failed, report.inputs)


def _progress(report: Report) -> str:
    done = report.transcripts + report.failed + report.skipped
    return (
        f"{done} of {report.inputs} inputs so far, {report.audio_s / 3600:.2f} h of audio, "
        f"{report.factor:.3g}x real time, {report.failed} failed"
    )


def _summary(report: Report, out: Path) -> str:
    errors = ", ".join(f"{count} {kind}" for kind, count in report.errors.items())
    cost = ""
    if report.cost is not None and report.audio_s:
        each = 3600 * report.cost / report.audio_s
        cost = f"; cost {report.cost:g}, {each:.3g} per hour of audio"
    return (
        f"{out}: {report.inputs} inputs, {report.skipped} done before, {report.transcripts} "
        f"transcribed, {report.failed} failed{f' ({errors})' if errors else ''}; "
        f"{report.audio_s / 3600:.2f} h of audio in {report.took_s:.0f} s, "
        f"{report.factor:.3g}x real time{cost}"
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
