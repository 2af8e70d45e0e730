"""Writes verified artifacts: nothing appears under its name before it has passed."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import lhotse
import msgspec

from ds2deploy.data.cuts import read_audio
from ds2deploy.export.format import ExportFormat, artifact_name
from ds2deploy.export.parity.report import Progress
from ds2deploy.export.tensorrt.engines import check_destination
from ds2deploy.export.tensorrt.options import EngineOptions, refuse_what_no_parser_takes
from ds2deploy.export.tensorrt.verified_engine import EngineExport, export_engine, longest_frames
from ds2deploy.export.triton.config import check_servable
from ds2deploy.export.triton.repository import (
    TritonExport,
    TritonOptions,
    write_engine_model,
    write_model,
)
from ds2deploy.export.triton.verification import CLIENTS, LONGEST_S
from ds2deploy.export.verified_onnx import (
    Exported,
    check_int8,
    make_reference,
    read_recordings,
    write_onnx,
)
from ds2deploy.model.load import load_checkpoint
from ds2deploy.runtimes.artifact import Precision
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.runtimes.files import WholeFiles
from ds2deploy.runtimes.onnx.metadata import read_onnx_description
from ds2deploy.runtimes.tensorrt.library import import_tensorrt

WHOLE_FEATURES = ExportFormat()


def export_onnx(
    checkpoint: str | Path,
    out: str | Path,
    precisions: Sequence[Precision] = ("fp32",),
    audio: str | Path | None = None,
    progress: Progress = lambda message: None,
    export_format: ExportFormat = WHOLE_FEATURES,
) -> list[Exported]:
    """Export a checkpoint to verified ONNX files alone; see `export_checkpoint`."""
    exported = export_checkpoint(
        checkpoint, out, precisions, audio, progress, export_format=export_format
    )
    return [item for item in exported if isinstance(item, Exported)]


def export_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    precisions: Sequence[Precision] = ("fp32",),
    audio: str | Path | None = None,
    progress: Progress = lambda message: None,
    engines: Sequence[EngineOptions] = (),
    keep_onnx: bool = True,
    export_format: ExportFormat = WHOLE_FEATURES,
    triton: TritonOptions | None = None,
) -> list[Exported | EngineExport | TritonExport]:
    """Export a checkpoint to ONNX and to TensorRT engines, each verified.

    Args:
        checkpoint: file of ds2deploy or of deepspeech.pytorch.
        out: folder for the artifacts.
        precisions: one artifact each; all of one call are written, or none.
        audio: manifest of real speech for the parity checks; synthetic speech without one.
        progress: function that receives the current step, as text.
        engines: options of the engines to build, for every precision.
        keep_onnx: True to also write the ONNX files from which the engines are built.
        export_format: input of the artifacts.
        triton: repository of Triton for all that is written; None for none.

    Returns:
        What was written: of each precision the ONNX file, then its engines; after each of them,
        its model of the repository.

    Raises:
        ParityError: an artifact differs from the checkpoint, or a model of the repository from its
            artifact; none is written.
        MissingFileError, ModelFileError, ManifestError: a bad input; none is written.
        ConfigError: a precision that the model, or what it is exported to, does not take.
        RuntimeUnavailableError: the library for an engine is not there, or cannot build here.
    """
    out = Path(out)
    if "bf16" in precisions and not engines:
        raise ConfigError(
            "--precision bf16: only for engines, because ONNX Runtime cannot verify bf16 on a "
            "CPU; add --trt or --rtx, or choose fp16"
        )
    check_destination(out, engines, triton)
    loaded = load_checkpoint(checkpoint)
    blocks = export_format.blocks(loaded, str(checkpoint))
    for precision in precisions if engines else ():
        refuse_what_no_parser_takes(loaded.recipe.model, precision, str(checkpoint))
    if "int8" in precisions:
        check_int8(loaded.recipe.model.rnn, audio, str(checkpoint))
    if triton is not None and keep_onnx:
        for precision in precisions:
            described = export_format.describe(loaded, precision, blocks)
            check_servable(described, triton.device)
    recordings = read_recordings(audio)
    profiles = [options.profile(loaded.recipe.features, blocks) for options in engines]
    progress("computing statistics" if export_format.statistics_from else "preparing the reference")
    loaded = export_format.prepare(loaded)
    reference = make_reference(loaded, export_format.input, recordings, longest_frames(profiles))
    exported: list[Exported | EngineExport | TritonExport] = []
    speech = None if triton is None else _speech(recordings, loaded.recipe.features.sample_rate)
    with ExitStack() as stack:
        files = stack.enter_context(WholeFiles())  # all take their names at its end, or none does
        scratch = "" if keep_onnx else stack.enter_context(TemporaryDirectory(prefix="ds2deploy-"))
        for precision in precisions:
            path = out / artifact_name(export_format, precision)
            onnx = files.add(path) if keep_onnx else Path(scratch, path.name)
            library = import_tensorrt(engines[0].flavor) if precision == "bf16" else None
            described = export_format.describe(loaded, precision, blocks)
            written = write_onnx(loaded, described, onnx, reference, progress, library)
            if keep_onnx:
                exported.append(msgspec.structs.replace(written, path=str(path)))
            command = _command(checkpoint, out, precision, audio, keep_onnx, export_format)

            def say(what: str, name: str = precision) -> None:
                progress(f"{name}: {what}")

            if triton is not None and keep_onnx:
                described = read_onnx_description(onnx)
                exported.append(
                    write_model(onnx, path.name, onnx, described, triton, files, say, speech)
                )
            parsed = written.report if library is not None else None  # of the first library alone
            for options in engines:
                built = export_engine(onnx, options, reference, path, command, files, say, parsed)
                exported.append(built)
                parsed = None
                if triton is not None:
                    engine = Path(built.path)
                    exported.append(write_engine_model(engine, onnx, triton, files, say, speech))
    return exported


def _speech(
    recordings: tuple[str, lhotse.CutSet] | None, sample_rate: int
) -> list[FloatArray] | None:
    """Read the first recordings of the manifest, for the simulation of Triton; None without one."""
    if recordings is None:
        return None
    cuts = itertools.islice(recordings[1], CLIENTS)
    return [read_audio(cut, sample_rate)[: int(LONGEST_S * sample_rate)] for cut in cuts]


def _command(
    checkpoint: str | Path,
    out: Path,
    precision: Precision,
    audio: str | Path | None,
    keep_onnx: bool,
    export_format: ExportFormat,
) -> str:
    words = ["ds2deploy", "export", str(checkpoint), "--out", str(out), "--precision", precision]
    words += [] if audio is None else ["--audio", str(audio)]
    return shlex.join(words + export_format.command() + ([] if keep_onnx else ["--no-onnx"]))
