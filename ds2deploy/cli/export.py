"""The command `ds2deploy export`, which turns a checkpoint into ONNX files and engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import typer

from ds2deploy.cli.options import Json, argument, flag, option
from ds2deploy.heartbeat import status
from ds2deploy.output import print_json
from ds2deploy.runtimes.errors import ConfigError, require

T = TypeVar("T")

STREAMING, ENGINES, TRITON = "Streaming", "Engines", "Triton"
"""Titles of the option groups."""

SOURCE_HELP = (
    "Checkpoint of ds2deploy or deepspeech.pytorch; to build engines, also an exported ONNX file."
)
OUT_HELP = "Folder that the artifacts are written to."
PRECISION_HELP = "Precisions to export: fp32, fp16, bf16, int8. Default: fp32."
ONNX_HELP = "Keep the ONNX files, or write only engines (--no-onnx)."
WAVEFORM_HELP = "Include feature extraction in the graph, so that its input is audio samples."
AUDIO_HELP = "Manifest of real speech for the parity check. Default: synthetic speech."
STREAMING_HELP = "Export a model that processes live streams block by block."
BLOCK_MS_HELP = "Length of a block of a streaming model (milliseconds). Default: 320."
STATISTICS_HELP = (
    "Manifest of speech whose feature statistics replace per-utterance normalisation, which a "
    "stream cannot use."
)
TRT_HELP = "Build TensorRT engines for the GPU of this machine."
RTX_HELP = "Build TensorRT-RTX engines; the build needs no GPU."
BATCH_HELP = "Batch sizes of the optimisation profile (utterances or streams). Default: 1,4,16."
SECONDS_HELP = "Audio lengths of the optimisation profile (seconds). Default: 0.5,5,30."
PROFILE_FROM_HELP = "Take the audio lengths of the optimisation profile from this manifest."
WORKSPACE_HELP = "Maximum scratch memory of an engine (MiB). Default: TensorRT's own."
LEVEL_HELP = (
    "Optimisation level of the build, from 0 (fast build) to 5 (fast engine). Default: TensorRT's "
    "own."
)
TIMING_CACHE_HELP = "Timing cache file that speeds up later builds (with --trt)."
OTHER_GPUS_HELP = (
    "Other GPUs that the engine can run on (with --trt): none, ampere_plus or "
    "same_compute_capability. Default: none."
)
TARGETS_HELP = (
    "Compute capabilities that the engine can run on (with --rtx), such as 8.6,8.9,12.0. Default: "
    "Ampere and later."
)

TRITON_HELP = "Also write a model repository for NVIDIA Triton, with one model per artifact."
TRITON_DEVICE_HELP = "Device on which Triton runs ONNX files: cpu or gpu. Default: cpu."


def export(
    source: Annotated[Path, argument("CHECKPOINT", SOURCE_HELP)],
    out: Annotated[Path, option("FOLDER", OUT_HELP)],
    precision: Annotated[str | None, option("NAME,...", PRECISION_HELP)] = None,
    onnx: Annotated[bool, flag("--onnx/--no-onnx", ONNX_HELP)] = True,
    waveform: Annotated[bool, flag("--waveform", WAVEFORM_HELP)] = False,
    audio: Annotated[Path | None, option("MANIFEST", AUDIO_HELP)] = None,
    streaming: Annotated[bool, flag("--streaming", STREAMING_HELP, STREAMING)] = False,
    block_ms: Annotated[float | None, option("MS", BLOCK_MS_HELP, STREAMING)] = None,
    statistics_from: Annotated[Path | None, option("MANIFEST", STATISTICS_HELP, STREAMING)] = None,
    trt: Annotated[bool, flag("--trt", TRT_HELP, ENGINES)] = False,
    rtx: Annotated[bool, flag("--rtx", RTX_HELP, ENGINES)] = False,
    batch: Annotated[str | None, option("MIN,OPT,MAX", BATCH_HELP, ENGINES)] = None,
    seconds: Annotated[str | None, option("MIN,OPT,MAX", SECONDS_HELP, ENGINES)] = None,
    profile_from: Annotated[Path | None, option("MANIFEST", PROFILE_FROM_HELP, ENGINES)] = None,
    workspace: Annotated[int | None, option("MIB", WORKSPACE_HELP, ENGINES)] = None,
    optimization_level: Annotated[int | None, option("0-5", LEVEL_HELP, ENGINES)] = None,
    timing_cache: Annotated[Path | None, option("FILE", TIMING_CACHE_HELP, ENGINES)] = None,
    hardware_compatibility: Annotated[str | None, option("NAME", OTHER_GPUS_HELP, ENGINES)] = None,
    targets: Annotated[str | None, option("X.Y,...", TARGETS_HELP, ENGINES)] = None,
    triton: Annotated[Path | None, option("REPOSITORY", TRITON_HELP, TRITON)] = None,
    triton_device: Annotated[str | None, option("NAME", TRITON_DEVICE_HELP, TRITON)] = None,
    json: Json = False,
) -> None:
    """Export a checkpoint to verified ONNX files and engines.

    A file is written only if it passes the parity check.

    Example: ds2deploy export runs/mine/best.ckpt --out deploy --precision fp32,fp16

    For streams: ds2deploy export best.ckpt --out deploy --streaming --waveform

    On the device: ds2deploy export deploy/model.fp16.onnx --out deploy --trt --seconds 0.5,5,20

    For Triton: ds2deploy export best.ckpt --out deploy --streaming --waveform --triton repository
    """
    require("onnxruntime", "cpu")
    import msgspec

    from ds2deploy.cli.export_report import artifact_lines
    from ds2deploy.export.tensorrt.options import engine_options

    engines = engine_options(
        trt=trt,
        rtx=rtx,
        batch=None if batch is None else _min_opt_max("--batch", batch, int),
        seconds=None if seconds is None else _min_opt_max("--seconds", seconds, float),
        profile_from=profile_from,
        workspace_mb=workspace,
        optimization_level=optimization_level,
        timing_cache=timing_cache,
        hardware_compatibility=hardware_compatibility,
        targets=targets,
    )
    repository = _repository(triton, triton_device)
    if not onnx and not engines:
        raise ConfigError("--no-onnx: nothing would be written; add --trt or --rtx")
    if source.suffix == ".engine":
        raise ConfigError(f"{source}: already an engine; give the checkpoint or the ONNX file")
    exported: list[Any]
    with status(f"exporting {source}") as step:
        if source.suffix.lower() == ".onnx":
            _refuse_for_onnx(
                source,
                {
                    "--precision": precision is not None,
                    "--audio": audio is not None,
                    "--no-onnx": not onnx,
                    "--streaming": streaming,
                    "--block-ms": block_ms is not None,
                    "--waveform": waveform,
                    "--statistics-from": statistics_from is not None,
                    "--triton-device": triton_device is not None,
                },
            )
            from ds2deploy.export.tensorrt.engines import export_engines

            exported = export_engines(source, out, engines, step, repository)
        else:
            require("onnx", "export")
            from ds2deploy.export.artifacts import export_checkpoint
            from ds2deploy.export.format import ExportFormat

            export_format = ExportFormat(
                streaming=streaming,
                waveform=waveform,
                block_ms=block_ms,
                statistics_from=None if statistics_from is None else str(statistics_from),
            )
            precisions = _precisions("fp32" if precision is None else precision)
            exported = export_checkpoint(
                source, out, precisions, audio, step, engines, onnx, export_format, repository
            )
    if json:
        print_json({"artifacts": msgspec.to_builtins(exported)})
    else:
        for item in exported:
            typer.echo("\n".join(artifact_lines(item)))


def _repository(folder: Path | None, device: str | None) -> Any:
    """Make the options of the model repository; None if none is asked for."""
    from ds2deploy.export.triton.repository import TritonOptions

    if device not in (None, "cpu", "gpu"):
        raise ConfigError(f"--triton-device {device}: expected cpu or gpu")
    if folder is None:
        if device is not None:
            raise ConfigError(
                f"--triton-device {device}: requires a model repository; add --triton REPOSITORY"
            )
        return None
    return TritonOptions(repository=str(folder), device="gpu" if device == "gpu" else "cpu")


def _refuse_for_onnx(source: Path, given: dict[str, bool]) -> None:
    """Raise a ConfigError that names the options that cannot be used with an ONNX file."""
    if named := [option for option, is_given in given.items() if is_given]:
        raise ConfigError(
            f"{source}: {', '.join(named)}: only for checkpoints, because an engine has the "
            "precision and inputs of its ONNX file; omit the option, or give the checkpoint"
        )


def _precisions(text: str) -> list[Any]:
    from ds2deploy.runtimes.artifact import Precision

    known = get_args(Precision)
    chosen = [name.strip().lower() for name in text.split(",")]
    if unknown := [name for name in chosen if name not in known]:
        raise ConfigError(f"--precision {unknown[0]!r}: expected one or more of {', '.join(known)}")
    return list(dict.fromkeys(chosen))


def _min_opt_max(option: str, text: str, kind: Callable[[str], T]) -> tuple[T, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"{option} {text}: expected three numbers, MIN,OPT,MAX, such as "
            f"{'1,4,16' if kind is int else '0.5,5,30'}"
        ) from None
