"""The command line: every function parses, calls one function of the library, and reports."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import typer

from ds2deploy.cli.errors import (
    BAD_INPUT,
    BAD_RESULT,
    ErrorsInOneLine,
    complain,
    complain_of,
    error_text,
    fail,
)
from ds2deploy.data.corpora.registry import layout_help
from ds2deploy.heartbeat import heartbeat, status
from ds2deploy.output import escape_control, json_for_output, open_streams
from ds2deploy.runtimes.errors import (
    FILE_ERRORS,
    AudioError,
    AudioWarning,
    ConfigError,
    Ds2Error,
    OutputError,
    require,
)
from ds2deploy.runtimes.session import usable_cores

if TYPE_CHECKING:
    from ds2deploy.data.preparation import Report
    from ds2deploy.runtimes.audio.pcm import PcmStream
    from ds2deploy.runtimes.decoding.greedy import Transcript
    from ds2deploy.runtimes.recognizer import Recognizer
    from ds2deploy.training.evaluation import Evaluation

T = TypeVar("T")

EXPORT_SOURCE = (
    "Checkpoint of ds2deploy or of deepspeech.pytorch; for engines also an exported ONNX file."
)

STDIN = Path("-")
"""In the place of a recording: raw audio on standard input."""


app = typer.Typer(
    cls=ErrorsInOneLine,
    help="Train DeepSpeech 2, export it to ONNX, run it without PyTorch, and prove they agree.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, or cuda:1; by default what the runtime is for.")
]
RuntimeName = Annotated[
    str | None,
    typer.Option(help="onnxruntime, torch, cuda, tensorrt or rtx; else what the file is for."),
]


def _at_most_cores(threads: int) -> int:
    cores = usable_cores()
    if threads > cores:
        complain(f"--threads {threads}: more than the cores of this process; {cores} are used")
    return min(threads, cores)


Threads = Annotated[
    int,
    typer.Option(
        min=0,
        callback=_at_most_cores,
        help="CPU threads, at most one per core; 0 lets the runtime choose.",
    ),
]


def main() -> None:
    """Entry point of the `ds2deploy` command."""
    # What is half-written goes, as it does after an error.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    shorten_spinning()  # before torch is imported
    try:
        open_streams()
    except OutputError as error:
        sys.exit(complain(str(error)))
    app(prog_name="ds2deploy")


def _version(wanted: bool) -> None:
    if wanted:
        from ds2deploy import __version__

        typer.echo(f"ds2deploy {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of ds2deploy itself."""
    warnings.showwarning = partial(_show_warning, warnings.showwarning)


@app.command()
def prepare(
    source: Annotated[
        Path, typer.Argument(readable=False, help="Folder, or manifest of deepspeech.pytorch.")
    ],
    out: Annotated[Path, typer.Argument(readable=False, help="Folder for the manifests.")],
    layout: Annotated[str, typer.Option(help=layout_help())] = "folder",
    labels: Annotated[
        str | None,
        typer.Option(help="Blank and characters; English letters by default; auto finds them."),
    ] = None,
    normalize: Annotated[
        bool,
        typer.Option("--normalize", help="Spell with the labels what has none; see the report."),
    ] = False,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Go on without what cannot be used; name each.")
    ] = False,
    read: Annotated[
        bool, typer.Option("--read", help="Read all audio: finds what was cut off, and silence.")
    ] = False,
    shortest: Annotated[float, typer.Option(min=0, help="Seconds of audio, at least.")] = 0.0,
    longest: Annotated[float | None, typer.Option(min=0, help="Seconds of audio, at most.")] = None,
    valid: Annotated[float, typer.Option(min=0, max=0.9, help="Share for validation.")] = 0.1,
    split_by: Annotated[
        str, typer.Option(help="utterance, or speaker: no one is heard in both sets.")
    ] = "utterance",
    join: Annotated[
        str,
        typer.Option(help="Also write the held-out sets, MIN,MAX recordings joined: 2,6."),
    ] = "1,1",
    join_times: Annotated[int, typer.Option(min=1, help="Uses of each in those.")] = 1,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Screen for this recipe, a file or a name: its features, and its labels unless "
            "--labels says others. Default: features of 16 kHz every 10 ms."
        ),
    ] = None,
    preview: Annotated[
        str | None,
        typer.Option(help="Of a manifest: hear and see what this recipe's augmentation does."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="--recipe, --preview: section.key=value of the recipe."),
    ] = None,
    json: Json = False,
) -> None:
    """Make manifests of recordings with transcripts, and a report of what is in them.

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
        _print_json(msgspec.to_builtins(report) | {"manifests": msgspec.to_builtins(report.sets)})
    else:
        _print_preparation(report, labels == "auto")


LISTENED = 3
"""Utterances of a manifest that are written before and after augmentation."""


def _preview(manifest: Path, out: Path, recipe: str, overrides: list[str], json: bool) -> None:
    """Audio and pictures of the first utterances of a manifest."""
    from ds2deploy.data.manifest import read_manifest
    from ds2deploy.data.preview import write_preview
    from ds2deploy.recipes import load_recipe

    parsed = load_recipe(recipe, overrides)
    cuts = list(read_manifest(manifest).subset(first=LISTENED))
    written = [str(path) for path in write_preview(cuts, parsed, out, parsed.training.seed)]
    if json:
        _print_json({"files": written})
    for path in [] if json else written:
        typer.echo(path)


def _print_preparation(report: Report, labels: bool) -> None:
    """What was written, and what it is not."""
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


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="TOML file, or the name of a built-in recipe.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from RUN/last.ckpt.")] = False,
    json: Json = False,
) -> None:
    """Train a network; writes RUN/best.ckpt, RUN/last.ckpt and RUN/metrics.jsonl.

    Example: ds2deploy train digits --set training.run=runs/mine
    """
    require("lightning", "train")
    from ds2deploy.config import within_cores
    from ds2deploy.recipes import load_recipe

    parsed, changes = within_cores(load_recipe(recipe, set_ or []), usable_cores())
    from ds2deploy.training.train import is_main_process
    from ds2deploy.training.train import train as train_network

    if parsed.training.export:  # now, and not when days have been spent
        require("onnxruntime", "cpu")
        require("onnx", "export")
    for change in changes if is_main_process() else []:
        complain(change)
    metrics = train_network(parsed, resume)
    if not is_main_process():
        return
    best = str(Path(parsed.training.run) / "best.ckpt")
    if parsed.training.export:
        from ds2deploy.export.artifacts import export_onnx

        words = parsed.data.valid if "int8" in parsed.training.export else None
        export_onnx(Path(best), Path(parsed.training.run), parsed.training.export, words)
    if json:
        _print_json({"checkpoint": best, **metrics})
    else:
        typer.echo(f"{best}  WER {100 * metrics['wer']:.2f} %  CER {100 * metrics['cer']:.2f} %")


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(readable=False, help="Artifact or checkpoint.")],
    manifest: Annotated[Path, typer.Argument(readable=False, help="Utterances with transcripts.")],
    device: Device = None,
    runtime: RuntimeName = None,
    threads: Threads = 0,
    errors: Annotated[bool, typer.Option("--errors", help="List the utterances that differ.")] = (
        False
    ),
    json: Json = False,
) -> None:
    """Word and character error rate of a model, on any runtime.

    Broken recordings and transcripts that the model could never write are named and left out;
    exit code 1 at the end, 2 where nothing is left.

    Example: ds2deploy evaluate model.onnx data/mine/valid.jsonl.gz
    """
    require("lhotse", "train")
    require("jiwer", "train")
    import msgspec

    from ds2deploy.data.manifest import read_usable
    from ds2deploy.loading import load
    from ds2deploy.training.evaluation import evaluate as evaluate_model

    cuts, unusable = read_usable(manifest)
    with (
        load(model, device, _runtime(runtime), threads) as recognizer,
        _progress(f"evaluating {model.name}", len(cuts)) as advance,
    ):
        result = evaluate_model(recognizer, cuts, str(manifest), advance, unusable)
    for broken in result.failed:
        complain(broken.error)
    if json:
        factor = round(result.real_time_factor, 5)
        _print_json({**msgspec.to_builtins(result), "real_time_factor": factor})
    else:
        _print_scores(result, errors)
    if result.failed:
        raise typer.Exit(BAD_RESULT)


def _print_scores(result: Evaluation, errors: bool) -> None:
    """One line; before it, where they are wanted, the utterances that differ."""
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
    """The count of each kind of utterances that are not part of the result."""
    parts = []
    for kind, fault in (("recording", "broken recording"), ("transcript", "unusable transcript")):
        if count := sum(item.of == kind for item in result.failed):
            parts.append(f"; {count} {fault}{'s' if count > 1 else ''} left out")
    return "".join(parts)


@app.command()
def export(
    source: Annotated[
        Path, typer.Argument(readable=False, metavar="CHECKPOINT", help=EXPORT_SOURCE)
    ],
    out: Annotated[Path, typer.Option(readable=False, help="Folder for the artifacts.")],
    onnx: Annotated[
        bool, typer.Option("--onnx/--no-onnx", help="Write the ONNX files too (the default).")
    ] = True,
    trt: Annotated[
        bool, typer.Option("--trt", help="Build TensorRT engines for the GPU of this machine.")
    ] = False,
    rtx: Annotated[
        bool, typer.Option("--rtx", help="Build TensorRT-RTX engines; needs no GPU.")
    ] = False,
    precision: Annotated[
        str | None, typer.Option(help="fp32 (default), fp16, bf16, int8, or several: fp32,int8.")
    ] = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Blocks of streams, instead of whole utterances.")
    ] = False,
    block_ms: Annotated[
        float | None, typer.Option(help="--streaming: milliseconds in a block; 320.")
    ] = None,
    waveform: Annotated[
        bool, typer.Option("--waveform", help="Samples in: the feature extractor in the graph.")
    ] = False,
    statistics_from: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            help="--streaming: speech that normalises a model trained per utterance.",
        ),
    ] = None,
    audio: Annotated[
        Path | None,
        typer.Option(readable=False, help="Manifest of real speech for the parity check."),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(help="Engine: utterances, or streams, at least, usually, at most; 1,4,16."),
    ] = None,
    seconds: Annotated[
        str | None, typer.Option(help="Engine: audio at least, usually, at most; 0.5,5,30.")
    ] = None,
    profile_from: Annotated[
        Path | None,
        typer.Option(readable=False, help="Engine: take --seconds from this manifest's durations."),
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(help="Engine: limit of its scratch memory, in MiB.")
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(help="Engine: 0 builds fast, 5 runs fast.")
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(readable=False, help="--trt: file that makes the next build faster."),
    ] = None,
    hardware_compatibility: Annotated[
        str | None, typer.Option(help="--trt: none, ampere_plus or same_compute_capability.")
    ] = None,
    targets: Annotated[
        str | None, typer.Option(help="--rtx: compute capabilities, such as 8.6,8.9,12.0.")
    ] = None,
    json: Json = False,
) -> None:
    """Export a checkpoint to ONNX and to engines; only what passes the parity check is written.

    Example: ds2deploy export runs/mine/best.ckpt --out deploy --precision fp32,fp16

    For streams: ds2deploy export best.ckpt --out deploy --streaming --waveform

    On the device: ds2deploy export deploy/model.fp16.onnx --out deploy --trt --seconds 0.5,5,20
    """
    require("onnxruntime", "cpu")
    import msgspec

    from ds2deploy.cli.export_report import artifact_lines
    from ds2deploy.export.tensorrt.options import engine_options

    engines = engine_options(
        trt=trt,
        rtx=rtx,
        batch=None if batch is None else _numbers("--batch", batch, int),
        seconds=None if seconds is None else _numbers("--seconds", seconds, float),
        profile_from=profile_from,
        workspace_mb=workspace,
        optimization_level=optimization_level,
        timing_cache=timing_cache,
        hardware_compatibility=hardware_compatibility,
        targets=targets,
    )
    if not onnx and not engines:
        raise ConfigError("--no-onnx: nothing would be written; add --trt or --rtx")
    if source.suffix == ".engine":
        raise ConfigError(f"{source}: is an engine already; give the checkpoint or the ONNX file")
    with status(f"exporting {source}") as step:
        if source.suffix.lower() == ".onnx":
            from ds2deploy.export.tensorrt.engines import export_engines

            given = {
                "--precision": precision is not None,
                "--audio": audio is not None,
                "--no-onnx": not onnx,
                "--streaming": streaming,
                "--block-ms": block_ms is not None,
                "--waveform": waveform,
                "--statistics-from": statistics_from is not None,
            }
            if named := [option for option, is_given in given.items() if is_given]:
                raise ConfigError(
                    f"{source}: {', '.join(named)}: for checkpoints; an engine of an ONNX file has "
                    "its precision, and takes what that takes"
                )
            exported: list[Any] = [*export_engines(source, out, engines, step)]
        else:
            require("onnx", "export")
            from ds2deploy.export.artifacts import export_checkpoint
            from ds2deploy.export.format import ExportFormat

            form = ExportFormat(
                streaming=streaming,
                waveform=waveform,
                block_ms=block_ms,
                statistics_from=None if statistics_from is None else str(statistics_from),
            )
            precisions = _precisions("fp32" if precision is None else precision)
            exported = [
                *export_checkpoint(source, out, precisions, audio, step, engines, onnx, form)
            ]
    if json:
        _print_json({"artifacts": msgspec.to_builtins(exported)})
        return
    for item in exported:
        for line in artifact_lines(item):
            typer.echo(line)


@app.command()
def verify(
    artifact: Annotated[
        Path, typer.Argument(readable=False, help="ONNX file or engine that ds2deploy exported.")
    ],
    checkpoint: Annotated[Path, typer.Argument(readable=False, help="What it should compute.")],
    audio: Annotated[
        Path | None,
        typer.Option(readable=False, help="Manifest of real speech; synthetic without it."),
    ] = None,
    network: Annotated[
        bool,
        typer.Option("--network", help="The network as TensorRT parses the file, on the CPU."),
    ] = False,
    json: Json = False,
) -> None:
    """Compare an artifact with a checkpoint; exit code 1 where they disagree.

    Example: ds2deploy verify deploy/model.onnx runs/mine/best.ckpt
    """
    require("onnx", "export")
    require("onnxruntime", "cpu")
    from ds2deploy.cli.export_report import report_lines
    from ds2deploy.export.artifacts import verify_artifact
    from ds2deploy.runtimes.tensorrt.library import any_tensorrt

    library = any_tensorrt() if network else None
    with status(f"verifying {artifact}") as step:
        report = verify_artifact(artifact, checkpoint, audio, step, library)
    if json:
        _print_json(report.summary())
    else:
        for line in report_lines(report):
            typer.echo(line)
    if not report.passed:
        fail(
            f"{artifact}: does not compute what {checkpoint} computes: {report.failure()}",
            BAD_RESULT,
        )


@app.command()
def transcribe(
    model: Annotated[Path, typer.Argument(readable=False, help="Artifact or checkpoint.")],
    audio: Annotated[
        list[Path],
        typer.Argument(
            readable=False,
            help="Recordings of any format and rate; - is raw audio, or WAV, on stdin.",
        ),
    ],
    format_: Annotated[str, typer.Option("--format", help="text, json, srt or vtt.")] = "text",
    stream: Annotated[
        bool, typer.Option("--stream", help="Print words as they come; --json: an object a line.")
    ] = False,
    rate: Annotated[
        int | None,
        typer.Option(min=1, help="Of raw 16-bit mono on stdin, in Hz; the model's by default."),
    ] = None,
    window: Annotated[
        float | None, typer.Option(help="Seconds: longer audio is taken in windows; 60.")
    ] = None,
    device: Device = None,
    runtime: RuntimeName = None,
    threads: Threads = 0,
    json: Json = False,
) -> None:
    """Print what is said in recordings; more than one gives a line each, with its name.

    Of many, a broken one is named on stderr and the rest goes on; exit code 1 at the end, 2 where
    none is left.

    Example: ds2deploy transcribe model.onnx a.wav --format srt

    While it is spoken: arecord -f S16_LE -r 16000 | ds2deploy transcribe --stream model.onnx -
    """
    from ds2deploy.loading import load
    from ds2deploy.runtimes.decoding.subtitles import Format, to_srt, to_vtt

    kind = "json" if json else format_
    if kind not in get_args(Format):
        raise ConfigError(f"--format {format_}: expected {', '.join(get_args(Format))}")
    if kind in ("srt", "vtt") and len(audio) > 1:
        raise ConfigError(f"--format {kind}: subtitles are of one recording, {len(audio)} given")
    if kind in ("srt", "vtt") and stream:
        raise ConfigError(f"--format {kind}: subtitles are made at the end; leave --stream out")
    if stream and window is not None:
        raise ConfigError(f"--window {window:g}: a stream needs no windows; leave it out")
    piped = STDIN in audio
    if piped and len(audio) > 1:
        raise ConfigError(f"{STDIN}: standard input is one recording; give it alone")
    if rate is not None and not piped:
        raise ConfigError(f"--rate {rate}: is for raw audio on standard input ({STDIN})")
    with load(model, device, _runtime(runtime), threads) as recognizer:
        if stream:
            _follow_each(recognizer, audio, rate, kind == "json")
            return
        if len(audio) > 1:
            _transcribe_many(recognizer, audio, window, kind == "json")
            return
        if piped:
            pcm = _pipe(recognizer, rate)
            transcript = recognizer.transcribe_pieces(pcm, pcm.format.sample_rate, window, pcm.name)
        else:
            transcript = recognizer.transcribe(audio[0], window_s=window)
    if kind == "json":
        _print_json({"transcripts": [_named(audio[0], transcript)]})
    elif kind == "srt":
        typer.echo(to_srt(transcript), nl=False)
    elif kind == "vtt":
        typer.echo(to_vtt(transcript), nl=False)
    else:
        typer.echo(transcript.text)


def _transcribe_many(
    recognizer: Recognizer, audio: list[Path], window: float | None, json: bool
) -> None:
    """Print texts in the order of the input, each as soon as those before it are there."""
    found: dict[int, Transcript | Ds2Error] = {}
    printed, broken, audio_s = 0, 0, 0.0
    with (
        _progress("transcribing", len(audio)) as advance,
        closing(recognizer.transcribe_many(audio, window_s=window)) as results,
    ):
        for item in results:
            found[item.index] = item.result
            if isinstance(item.result, Ds2Error):
                broken += 1
                complain(error_text(item.result))
            while not json and printed in found:
                result = found.pop(printed)
                if not isinstance(result, Ds2Error):
                    _print_line(f"{escape_control(str(audio[printed]))}\t{result.text}")
                printed += 1
            audio_s += item.audio_s
            advance(printed + len(found), audio_s)
    if json:
        _print_json({"transcripts": [_named(path, found[i]) for i, path in enumerate(audio)]})
    _exit_where_broken(broken, len(audio))


def _exit_where_broken(broken: int, count: int) -> None:
    """End with what so many broken recordings of all of them mean; return where none is."""
    if broken:
        raise typer.Exit(BAD_INPUT if broken == count else BAD_RESULT)


def _follow_each(recognizer: Recognizer, audio: list[Path], rate: int | None, json: bool) -> None:
    """Print what is said in recordings as it comes, one after the other."""
    broken = 0
    for path in audio:
        try:
            _follow(recognizer, path, rate, json, len(audio) > 1)
        except FILE_ERRORS as error:
            broken += 1
            complain(error_text(error))
            if json:
                _print_json_line({**_named(path, error), "final": True})
    _exit_where_broken(broken, len(audio))


def _follow(
    recognizer: Recognizer, path: Path, rate: int | None, json: bool, several: bool
) -> None:
    """Print what is said in one recording, or on standard input, as it comes."""
    from ds2deploy.cli.live_display import (
        Display,
        JsonDisplay,
        LineDisplay,
        WordDisplay,
        follow,
        recording_pieces,
    )

    display: Display
    prefix = f"{escape_control(str(path))}\t" if several else ""
    if json:
        display = JsonDisplay(_print_json_line, str(path))
    elif sys.stdout.isatty():
        display = LineDisplay(sys.stdout, prefix)
    else:
        display = WordDisplay(sys.stdout, prefix)
    if path == STDIN:
        pcm = _pipe(recognizer, rate)
        follow(recognizer, pcm, pcm.format.sample_rate, display, pcm.name)
    else:
        own = recognizer.description.features.sample_rate
        follow(recognizer, recording_pieces(path, own), own, display, str(path))


def _pipe(recognizer: Recognizer, rate: int | None) -> PcmStream:
    from ds2deploy.runtimes.audio.pcm import PcmStream

    own = recognizer.description.features.sample_rate
    if sys.stdin is None:
        raise AudioError("standard input: closed; expected raw audio, or a WAV stream")
    return PcmStream(sys.stdin.buffer, rate or own, name="standard input", told=rate is not None)


@app.command()
def bench(
    models: Annotated[
        list[Path],
        typer.Argument(readable=False, metavar="MODEL...", help="Artifacts, engines, checkpoints."),
    ],
    batch: Annotated[str, typer.Option(help="Utterances at a time, one or several.")] = "1,8",
    seconds: Annotated[str, typer.Option(help="Of each utterance, one or several.")] = "1,10",
    rounds: Annotated[int, typer.Option(min=1, help="In each, everything runs once.")] = 5,
    threads: Threads = 0,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            help="onnxruntime, cuda, tensorrt, rtx, torch, torch-packed, torch-cuda; one or "
            "several, else what the models are for."
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            readable=False, help="Checkpoint to compare with; else the first among the models."
        ),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(readable=False, help="Folder for plots, as PNG files.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure how fast models are on this machine, and say which runtime to use.

    Example: ds2deploy bench model.onnx best.ckpt --plots plots
    """
    import msgspec

    from ds2deploy.bench.measure import measure
    from ds2deploy.bench.plan import make_plan
    from ds2deploy.bench.report import advise, print_report, write_plots
    from ds2deploy.export.parity.speech import synthesize

    if plots is not None:
        require("matplotlib", "bench")
        if plots.exists() and not plots.is_dir():
            raise ConfigError(f"--plots {plots}: is a file; expected a folder")
        plots.mkdir(parents=True, exist_ok=True)  # what cannot be is told before minutes are spent
    plan = make_plan(models, batch, seconds, rounds, threads, runtime or (), reference)
    with status("measuring") as step:
        result = measure(plan, synthesize, step)
    advice = advise(result)
    written = [] if plots is None else write_plots(result, plots)
    if json:
        paths = [str(path) for path in written]
        _print_json({**msgspec.to_builtins(result), "advice": advice, "plots": paths})
    else:
        print_report(result, advice, written)
    if runtime and any(item.batch is None for item in result.skipped):
        raise typer.Exit(BAD_RESULT)  # one that was asked for does not run


@app.command()
def inspect(
    files: Annotated[
        list[Path],
        typer.Argument(
            readable=False,
            metavar="FILE...",
            help="Checkpoints, artifacts, manifests or recordings.",
        ),
    ],
    json: Json = False,
) -> None:
    """Say what files are.

    Of many, one that cannot be read is named on stderr and the rest goes on; exit code 1 at the
    end, 2 where none is left. With --json, several files are a list.

    Example: ds2deploy inspect deploy/model.onnx
    """
    from ds2deploy.inspection import inspect_file

    documents: list[dict[str, Any]] = []
    broken, partly = 0, False
    for file in files:
        try:
            facts = inspect_file(file)
        except (Ds2Error, OSError) as error:
            if len(files) == 1 or (isinstance(error, OSError) and error.strerror is None):
                raise
            broken += 1
            documents.append({"file": str(file), "error": complain_of(error)})
            continue
        for fault in facts["details"].get("left_out", ()):
            complain(fault)
            partly = True
        documents.append(facts)
        if not json:
            _print_facts(facts, first=len(documents) == 1)
    if json:
        _print_json({"files": documents} if len(files) > 1 else documents[0])
    _exit_where_broken(broken, len(files))
    if partly:
        raise typer.Exit(BAD_RESULT)


def _print_facts(facts: dict[str, Any], first: bool) -> None:
    """One line for each; an empty line before those of the next file."""
    if not first:
        typer.echo()
    named = {name: value for name, value in facts.items() if name != "details"}
    width = max(len(name) for name in named)
    for name, value in named.items():
        typer.echo(f"{name:{width}}  {escape_control(str(value))}")


@app.command()
def doctor(json: Json = False) -> None:
    """Say which runtimes work here, and the command that mends each that does not.

    Example: ds2deploy doctor
    """
    import msgspec

    from ds2deploy.doctor import examine

    findings = examine()
    if json:
        _print_json({"findings": msgspec.to_builtins(findings)})
        return
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = "yes" if finding.works else "no "
        typer.echo(f"{mark}  {finding.name:{width}}  {finding.detail}")
        if finding.remedy:
            typer.echo(f"     {'':{width}}  -> {finding.remedy}")


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(readable=False, help="Folder for everything that is made.")
    ] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of voices, weights and batches.")] = 0,
    json: Json = False,
) -> None:
    """The whole way on synthetic speech: train, export, verify, transcribe, in a few minutes.

    Example: ds2deploy demo --out runs/demo
    """
    for module in ("espeakng_loader", "lightning", "onnx"):
        require(module, "demo")
    require("onnxruntime", "cpu")
    with heartbeat("importing torch and lightning"):
        from ds2deploy.demo.run import run_demo

    result = run_demo(out, seed)
    if json:
        _print_json(result.summary())
    if not result.passed:
        fail(f"{out}: {result.failure()}", BAD_RESULT)


def _runtime(name: str | None) -> Any:
    from ds2deploy.loading import Runtime

    if name is not None and name not in get_args(Runtime):
        remedy = f"; or --device {name}" if re.fullmatch(r"cpu|cuda:\d+", name) else ""
        raise ConfigError(
            f"--runtime {name}: expected one of {', '.join(get_args(Runtime))}{remedy}"
        )
    return name


def _named(path: Path, result: Transcript | Ds2Error) -> dict[str, Any]:
    import msgspec

    if isinstance(result, Ds2Error):
        return {"audio": str(path), "error": error_text(result)}
    return {"audio": str(path), **msgspec.to_builtins(result)}


def _precisions(text: str) -> list[Any]:
    from ds2deploy.runtimes.artifact import Precision

    known = get_args(Precision)
    chosen = [name.strip().lower() for name in text.split(",")]
    if unknown := [name for name in chosen if name not in known]:
        raise ConfigError(f"--precision {unknown[0]!r}: expected one or more of {', '.join(known)}")
    return list(dict.fromkeys(chosen))


def _numbers(option: str, text: str, kind: Callable[[str], T]) -> tuple[T, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"{option} {text}: expected three numbers, at least, usually and at most, such as "
            f"{'1,4,16' if kind is int else '0.5,5,30'}"
        ) from None


def _pair(text: str) -> tuple[int, int]:
    try:
        low, high = (int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--join {text}: expected two whole numbers, such as 2,6") from None
    if not 1 <= low <= high:
        raise ConfigError(f"--join {text}: expected the smaller number first, from 1")
    return low, high


def _print_json(document: Any) -> None:
    sys.stdout.write(json_for_output(document, indent=True) + "\n")


def _print_json_line(document: Any) -> None:
    sys.stdout.write(json_for_output(document, indent=False) + "\n")
    sys.stdout.flush()


def _print_line(text: str) -> None:
    """On stdout, past a bar that is there: typer.echo finds the stream below, and writes into it.

    Args:
        text: of the line.
    """
    print(text, flush=True)


def _show_warning(
    other: Callable[..., None], message: Warning | str, category: type[Warning], *rest: Any
) -> None:
    """Print what is odd about a recording as one line, and other warnings as `other` does."""
    if issubclass(category, AudioWarning):
        complain(str(message))
    else:
        other(message, category, *rest)


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int, float], None]]:
    """Files, seconds of audio and speed on stderr: a bar on a terminal, now and then a line else.

    Yields:
        What is told how many files are done, and how many seconds of audio.
    """
    started = time.monotonic()

    def facts(audio_s: float) -> str:
        return f"{audio_s:.0f} s of audio, {audio_s / (time.monotonic() - started + 1e-9):.3g}x"

    if not sys.stderr.isatty():
        with heartbeat(title) as lines:
            yield lambda done, audio_s: lines.tell(f"{done} of {total} files, {facts(audio_s)}")
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files, {task.fields[facts]}"),
    )
    # What is printed meanwhile goes above the bar where both are on the terminal; a pipe or a file
    # gets it untouched.
    with Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    ) as bar:
        task = bar.add_task(title, total=total, facts=facts(0))
        yield lambda done, audio_s: bar.update(task, completed=done, facts=facts(audio_s))


SPINS = "1000"
"""Rounds of a waiting thread of libgomp, which torch computes with; some 10 microseconds.

libgomp's own 300,000 are 3 ms, in which a thread that waits for one that another process has
pushed aside keeps the core that this one needs.
"""


def shorten_spinning() -> None:
    """Let threads of torch sleep soon when they wait; settings of the environment are kept.

    For processes of our own, before torch is imported: libgomp reads the environment when it is
    loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
