"""Writes verified artifacts: nothing appears under its name before it has passed."""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import lhotse
import msgspec
import onnx

from ds2deploy.data.manifest import read_manifest
from ds2deploy.export.format import ExportFormat, artifact_name
from ds2deploy.export.onnx.graph import build_graph
from ds2deploy.export.onnx.lowering import lower
from ds2deploy.export.parity.check import check_parity
from ds2deploy.export.parity.reference import Reference
from ds2deploy.export.parity.report import ParityReport
from ds2deploy.export.tensorrt.engines import EngineExport, export_engine
from ds2deploy.export.tensorrt.options import EngineOptions, refuse_what_no_parser_takes
from ds2deploy.export.tensorrt.profiles import grid
from ds2deploy.export.tensorrt.verified_engine import check_builder, check_network, longest_frames
from ds2deploy.model.checkpoint import Checkpoint
from ds2deploy.model.load import load_checkpoint
from ds2deploy.model.streaming import exact_session, torch_session
from ds2deploy.runtimes.artifact import METADATA_KEY, ArtifactDescription, Precision
from ds2deploy.runtimes.errors import ConfigError, MissingFileError, ModelFileError, ParityError
from ds2deploy.runtimes.files import FOREIGN_BYTE, WholeFiles, file_sha256
from ds2deploy.runtimes.onnx.metadata import read_onnx_description
from ds2deploy.runtimes.onnx.session import OnnxSession, describe_artifact
from ds2deploy.runtimes.tensorrt.engine_file import SUFFIX as ENGINE_SUFFIX
from ds2deploy.runtimes.tensorrt.engine_file import read_engine_description
from ds2deploy.runtimes.tensorrt.library import TensorRt, import_tensorrt

Progress = Callable[[str], None]

WHOLE_FEATURES = ExportFormat()


class Exported(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="onnx"):
    """An ONNX file that was written.

    Attributes:
        path: of the file.
        size: in bytes.
        sha256: of the file.
        precision: of weights and activations.
        nodes: in the graph.
        build_s: seconds to fold, write and check the graph.
        verify_s: seconds of the parity check.
        report: what was compared.
    """

    path: str
    size: int
    sha256: str
    precision: Precision
    nodes: int
    build_s: float
    verify_s: float
    report: ParityReport


def export_onnx(
    checkpoint: str | Path,
    out: str | Path,
    precisions: Sequence[Precision] = ("fp32",),
    audio: str | Path | None = None,
    progress: Progress = lambda message: None,
    export_format: ExportFormat = WHOLE_FEATURES,
) -> list[Exported]:
    """Export a checkpoint to ONNX, verified, with dynamic batch and time.

    Args:
        checkpoint: of ds2deploy or of deepspeech.pytorch.
        out: folder for `model.onnx` (fp32) and `model.fp16.onnx`.
        precisions: of the artifacts; those of one call stand or fall together.
        audio: manifest of real speech for the parity check; synthetic speech without one, but not
            for int8.
        progress: told what is being done.
        export_format: input of the artifacts.

    Returns:
        What was written, in the order of `precisions`.

    Raises:
        ParityError: an artifact differs from the checkpoint; none is written.
        MissingFileError, ModelFileError, ManifestError: a bad input; none is written.
        ConfigError: a precision that ONNX Runtime cannot compute, or int8 without audio.
    """
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
) -> list[Exported | EngineExport]:
    """Export a checkpoint to ONNX and to TensorRT engines, each verified.

    Args:
        checkpoint: of ds2deploy or of deepspeech.pytorch.
        out: folder for the artifacts.
        precisions: of the artifacts; those of one call stand or fall together.
        audio: manifest of real speech for the parity checks; synthetic speech without one.
        progress: told what is being done.
        engines: what to build of every precision.
        keep_onnx: whether the ONNX files, of which the engines are built, are written too.
        export_format: input of the artifacts.

    Returns:
        What was written: of each precision the ONNX file, then its engines.

    Raises:
        ParityError: an artifact differs from the checkpoint; none is written.
        MissingFileError, ModelFileError, ManifestError: a bad input; none is written.
        ConfigError: a precision that the model, or what it is exported to, does not take.
        RuntimeUnavailableError: the library for an engine is not there, or cannot build here.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise MissingFileError(f"{out}: is a file; expected a folder for the artifacts")
    if "bf16" in precisions and not engines:
        raise ConfigError(
            "--precision bf16: ONNX Runtime computes no bfloat16 on a CPU, so that nothing could "
            "be verified; it is for engines: add --trt or --rtx, or choose fp16"
        )
    for options in engines:
        check_builder(options)
    loaded = load_checkpoint(checkpoint)
    blocks = export_format.blocks(loaded, str(checkpoint))
    if "int8" in precisions:
        _check_int8(loaded.recipe.model.rnn, audio, str(checkpoint))
    for precision in precisions if engines else ():
        refuse_what_no_parser_takes(loaded.recipe.model, precision, str(checkpoint))
    cuts = None if audio is None else (Path(audio).name, read_manifest(audio))
    profiles = [options.profile(loaded.recipe.features, blocks) for options in engines]
    progress("gathering statistics" if export_format.statistics_from else "reading")
    loaded = export_format.prepare(loaded)
    reference = Reference(
        torch_session(loaded),
        cuts,
        longest_frames(profiles),
        sound="waveform" if export_format.waveform else "features",
        exact=exact_session(loaded),
    )
    exported: list[Exported | EngineExport] = []
    with ExitStack() as stack:
        files = stack.enter_context(WholeFiles())  # all take their names at its end, or none does
        for precision in precisions:
            path = out / artifact_name(export_format, precision)
            if keep_onnx:
                temporary = files.add(path)
            else:
                folder = tempfile.TemporaryDirectory(prefix="ds2deploy-")
                temporary = Path(stack.enter_context(folder)) / path.name
            library = import_tensorrt(engines[0].flavor) if precision == "bf16" else None
            described = export_format.describe(loaded, precision, blocks)
            written = _write(loaded, described, temporary, reference, progress, library)
            if keep_onnx:
                exported.append(msgspec.structs.replace(written, path=str(path)))
            description = read_onnx_description(temporary)
            for options in engines:
                item = export_engine(
                    temporary,
                    description,
                    options,
                    reference,
                    path,
                    _command(checkpoint, out, precision, audio, keep_onnx, export_format),
                    files,
                    lambda what, name=precision: progress(f"{name}: {what}"),  # type: ignore[misc]
                    written.report if options is engines[0] and library is not None else None,
                )
                exported.append(item)
    return exported


def _check_int8(rnn: str, audio: str | Path | None, checkpoint: str) -> None:
    """Refuse what cannot be quantised, and what could not be judged."""
    if rnn != "lstm":
        raise ConfigError(
            f"{checkpoint}: --precision int8: ONNX Runtime has a quantised LSTM, and no {rnn}; "
            "choose fp32, or train an LSTM"
        )
    if audio is None:
        raise ConfigError(
            f"{checkpoint}: --precision int8 is judged by the words of real speech: add "
            "--audio MANIFEST, of recordings such as it will hear"
        )


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


def verify_artifact(
    artifact: str | Path,
    checkpoint: str | Path,
    audio: str | Path | None = None,
    progress: Progress = lambda message: None,
    network: TensorRt | None = None,
) -> ParityReport:
    """Compare an artifact with a checkpoint again.

    Args:
        artifact: an ONNX file or an engine that ds2deploy exported.
        checkpoint: what it should compute.
        audio: manifest of real speech; synthetic speech without one.
        progress: told what is being done.
        network: the library whose parser reads the ONNX file: what it makes of it is computed on
            the CPU, instead of the file in ONNX Runtime.

    Returns:
        The report; `passed` says whether they agree.

    Raises:
        ModelFileError: one of the two is damaged, or they are of different models.
        MissingFileError, ManifestError, AudioError: what is wrong with which file.
    """
    path = Path(artifact)
    if path.suffix not in (".onnx", ENGINE_SUFFIX):
        raise ModelFileError(f"{path}: not an artifact; give an .onnx file or an .engine first")
    if network is not None and path.suffix == ENGINE_SUFFIX:
        raise ModelFileError(f"{path}: --network takes the ONNX file that an engine is built of")
    description = _description(path)
    if network is not None:
        refuse_what_no_parser_takes(description.model, description.precision, str(path))
    if description.precision == "int8":
        _check_int8(description.model.rnn, audio, str(path))
    loaded = load_checkpoint(checkpoint)
    if description.statistics_from and loaded.recipe.features.normalize == "utterance":
        loaded = _with_features(loaded, description)  # compare with the model so normalised
    for name in ("labels", "features", "model"):
        if getattr(description, name) != getattr(loaded.recipe, name):
            raise ModelFileError(
                f"{artifact}: differs from {checkpoint} in its {name}; it was exported from "
                f"another checkpoint, {description.source.name} of sha256 "
                f"{description.source.sha256[:12]}: give that"
            )
    cuts = None if audio is None else (Path(audio).name, read_manifest(audio))
    if path.suffix == ENGINE_SUFFIX:
        report = _verify_engine(path, description, loaded, cuts, progress)
    else:
        reference = _reference(loaded, description, cuts)
        if network is not None:
            report = check_network(path, description, network, reference, progress)
        else:
            report = check_parity(OnnxSession(path), reference, progress)
    same = description.source.sha256 == loaded.source.sha256
    return msgspec.structs.replace(report, same_checkpoint=same)


def _reference(
    checkpoint: Checkpoint,
    description: ArtifactDescription,
    cuts: tuple[str, lhotse.CutSet] | None,
    frames: int = 0,
) -> Reference:
    """Make the reference of an artifact: its checkpoint in float64."""
    return Reference(
        torch_session(checkpoint),
        cuts,
        frames,
        sound=description.input,
        exact=exact_session(checkpoint),
    )


def _with_features(checkpoint: Checkpoint, description: ArtifactDescription) -> Checkpoint:
    """The checkpoint with the statistics that the artifact was exported with."""
    statistics = {"normalize", "mean", "deviation"}
    given = msgspec.structs.asdict(description.features)
    features = msgspec.structs.replace(
        checkpoint.recipe.features, **{name: given[name] for name in statistics}
    )
    recipe = msgspec.structs.replace(checkpoint.recipe, features=features)
    return msgspec.structs.replace(checkpoint, recipe=recipe)


def _description(path: Path) -> ArtifactDescription:
    if path.suffix == ENGINE_SUFFIX:
        return read_engine_description(path)[0]
    return describe_artifact(path)


def _verify_engine(
    path: Path,
    description: ArtifactDescription,
    checkpoint: Checkpoint,
    cuts: tuple[str, lhotse.CutSet] | None,
    progress: Progress,
) -> ParityReport:
    from ds2deploy.runtimes.tensorrt.session import TensorRtSession

    assert description.engine is not None
    profile = description.engine.profile
    reference = _reference(checkpoint, description, cuts, profile.frames[2])
    with TensorRtSession(path) as session:
        return check_parity(session, reference, progress, grid(profile, description.blocks))


def _write(
    checkpoint: Checkpoint,
    description: ArtifactDescription,
    path: Path,
    reference: Reference,
    progress: Progress,
    library: TensorRt | None,
) -> Exported:
    """Write an ONNX file; verified in ONNX Runtime, or as the library's parser takes it."""
    precision = description.precision
    progress(f"{precision}: writing the graph")
    started = time.perf_counter()
    deploy = lower(checkpoint.network, columns=precision != "int8")
    try:
        model = build_graph(deploy, description)
    except ParityError as error:
        raise ParityError(f"{checkpoint.source.name}: {error}; nothing is written") from None
    onnx.save(model, path)
    size = path.stat().st_size
    by_name = not FOREIGN_BYTE.search(str(path))  # onnx wants names in UTF-8
    onnx.checker.check_model(str(path) if by_name else model, full_check=True)
    built = time.perf_counter()
    if library is None:
        session = OnnxSession(path, description=description)
        report = check_parity(
            session, reference, lambda message: progress(f"{precision}: comparing {message}")
        )
    else:
        report = check_network(
            path, description, library, reference, lambda what: progress(f"{precision}: {what}")
        )
    if not report.passed:
        raise ParityError(
            f"{checkpoint.source.name}: the {precision} artifact does not compute what the "
            f"checkpoint computes, nothing is written: {report.failure()}"
        )
    append_description(path, msgspec.structs.replace(description, parity=report.summary()), size)
    return Exported(
        path=str(path),
        size=path.stat().st_size,
        sha256=file_sha256(path),
        precision=precision,
        nodes=len(model.graph.node),
        build_s=round(built - started, 2),
        verify_s=round(time.perf_counter() - built, 2),
        report=report,
    )


def append_description(
    path: Path, description: ArtifactDescription, size: int | None = None
) -> None:
    """Put the description into an ONNX file by appending to it.

    Messages of protocol buffers that stand one after the other are one message, so the bytes
    that were verified stay as they are.

    Args:
        path: the ONNX file.
        description: metadata of the model.
        size: bytes that the file must have; None takes any.

    Raises:
        ModelFileError: the file is gone, or is not the one that was verified.
    """
    addition = onnx.ModelProto()
    entry = addition.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, description.to_json()
    try:
        with path.open("r+b") as file:  # which never makes a file
            found = file.seek(0, os.SEEK_END)
            if size is not None and found != size:
                raise ModelFileError(_disturbed(path, f"has {found} bytes, {size} were verified"))
            file.write(addition.SerializeToString())
    except FileNotFoundError:
        raise ModelFileError(_disturbed(path, "is gone")) from None


def _disturbed(path: Path, reason: str) -> str:
    return (
        f"{path}: {reason}; another process writes into {path.parent}: export again, into a folder "
        "of its own"
    )
