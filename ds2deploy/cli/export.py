"""`ds2deploy export`: a checkpoint to ONNX files and engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import typer

from ds2deploy.cli.options import Json
from ds2deploy.cli.printing import print_json
from ds2deploy.heartbeat import status
from ds2deploy.runtimes.errors import ConfigError, require

EXPORT_SOURCE = (
    "Checkpoint of ds2deploy or of deepspeech.pytorch; for engines also an exported ONNX file."
)


def export(
    source: Annotated[
        Path, typer.Argument(readable=False, metavar="CHECKPOINT", help=EXPORT_SOURCE)
    ],
    out: Annotated[Path, typer.Option(readable=False, help="Folder for the artifacts.")],
    onnx: Annotated[
        bool, typer.Option("--onnx/--no-onnx", help="Write the ONNX files too (the default).")
    ] = True,
    trt: Annotated[
        bool,
        typer.Option(
            "--trt",
            help="Build TensorRT engines for the GPU of this machine.",
            rich_help_panel="Engines",
        ),
    ] = False,
    rtx: Annotated[
        bool,
        typer.Option(
            "--rtx", help="Build TensorRT-RTX engines; needs no GPU.", rich_help_panel="Engines"
        ),
    ] = False,
    precision: Annotated[
        str | None, typer.Option(help="fp32 (default), fp16, bf16, int8, or several: fp32,int8.")
    ] = None,
    streaming: Annotated[
        bool,
        typer.Option(
            "--streaming",
            help="Export a model that takes blocks of streams instead of whole utterances.",
            rich_help_panel="Streaming",
        ),
    ] = False,
    block_ms: Annotated[
        float | None,
        typer.Option(
            help="Length of a block (milliseconds); default 320.", rich_help_panel="Streaming"
        ),
    ] = None,
    waveform: Annotated[
        bool,
        typer.Option(
            "--waveform", help="Put the feature extractor into the graph: the input is samples."
        ),
    ] = False,
    statistics_from: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            help="Speech whose statistics normalise a model trained per utterance.",
            rich_help_panel="Streaming",
        ),
    ] = None,
    audio: Annotated[
        Path | None,
        typer.Option(readable=False, help="Manifest of real speech for the parity check."),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            help="Minimum, optimum and maximum batch (utterances, or streams), default 1,4,16.",
            rich_help_panel="Engines",
        ),
    ] = None,
    seconds: Annotated[
        str | None,
        typer.Option(
            help="Minimum, optimum and maximum length of the audio (seconds), default 0.5,5,30.",
            rich_help_panel="Engines",
        ),
    ] = None,
    profile_from: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            help="Manifest whose durations give --seconds.",
            rich_help_panel="Engines",
        ),
    ] = None,
    workspace: Annotated[
        int | None,
        typer.Option(help="Limit of the scratch memory (MiB).", rich_help_panel="Engines"),
    ] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option(help="From 0, fast to build, to 5, fast to run.", rich_help_panel="Engines"),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            help="--trt: file that makes the next build faster.",
            rich_help_panel="Engines",
        ),
    ] = None,
    hardware_compatibility: Annotated[
        str | None,
        typer.Option(
            help="--trt: none, ampere_plus or same_compute_capability.", rich_help_panel="Engines"
        ),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            help="--rtx: compute capabilities, such as 8.6,8.9,12.0.", rich_help_panel="Engines"
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Export a checkpoint to ONNX files and TensorRT engines.

    Only files that pass the parity check are written.

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
        print_json({"artifacts": msgspec.to_builtins(exported)})
        return
    for item in exported:
        for line in artifact_lines(item):
            typer.echo(line)


def _precisions(text: str) -> list[Any]:
    from ds2deploy.runtimes.artifact import Precision

    known = get_args(Precision)
    chosen = [name.strip().lower() for name in text.split(",")]
    if unknown := [name for name in chosen if name not in known]:
        raise ConfigError(f"--precision {unknown[0]!r}: expected one or more of {', '.join(known)}")
    return list(dict.fromkeys(chosen))


T = TypeVar("T")


def _numbers(option: str, text: str, kind: Callable[[str], T]) -> tuple[T, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"{option} {text}: expected three numbers, at least, usually and at most, such as "
            f"{'1,4,16' if kind is int else '0.5,5,30'}"
        ) from None
