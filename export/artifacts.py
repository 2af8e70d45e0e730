"""Writes verified artifacts: nothing appears under its name before it has passed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import lhotse
import msgspec
import onnx

from ds2deploy.checkpoint import Checkpoint, load_checkpoint
from ds2deploy.export.graph import build_graph
from ds2deploy.export.lowering import lower
from ds2deploy.export.parity import ParityReport, check_parity
from ds2deploy.files import file_sha256, whole_file
from ds2deploy.manifest import read_manifest
from ds2deploy.runtimes.artifact import METADATA_KEY, ArtifactDescription, Precision
from ds2deploy.runtimes.errors import MissingFileError, ModelFileError, ParityError
from ds2deploy.runtimes.onnx_session import OnnxSession
from ds2deploy.runtimes.torch_session import TorchSession

Progress = Callable[[str], None]


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """An artifact that was written.

    Attributes:
        path: of the file.
        size: in bytes.
        sha256: of the file.
        nodes: in the graph.
        build_s: seconds to fold, write and check the graph.
        verify_s: seconds of the parity check.
        report: what was compared.
    """

    path: str
    size: int
    sha256: str
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
) -> list[Exported]:
    """Export a checkpoint to ONNX, verified, with dynamic batch and time.

    Args:
        checkpoint: of ds2deploy or of deepspeech.pytorch.
        out: folder for `model.onnx` (fp32) and `model.fp16.onnx`.
        precisions: of the artifacts; those of one call stand or fall together.
        audio: manifest of real speech for the parity check; synthetic speech without one.
        progress: told what is being done.

    Returns:
        What was written, in the order of `precisions`.

    Raises:
        ParityError: an artifact differs from the checkpoint; none is written.
        MissingFileError, ModelFileError, ManifestError: a bad input; none is written.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise MissingFileError(f"{out}: is a file; expected a folder for the artifacts")
    loaded = load_checkpoint(checkpoint)
    cuts = None if audio is None else (Path(audio).name, read_manifest(audio))
    exported = []
    with ExitStack() as stack:  # all take their names at its end, or none does
        for precision in precisions:
            path = out / artifact_name(precision)
            temporary = stack.enter_context(whole_file(path))
            written = _write(loaded, precision, temporary, cuts, progress)
            exported.append(msgspec.structs.replace(written, path=str(path)))
    return exported


def artifact_name(precision: Precision) -> str:
    """`model.onnx`, or `model.fp16.onnx`."""
    return "model.onnx" if precision == "fp32" else f"model.{precision}.onnx"


def verify_onnx(
    artifact: str | Path,
    checkpoint: str | Path,
    audio: str | Path | None = None,
    progress: Progress = lambda message: None,
) -> ParityReport:
    """Compare an artifact with a checkpoint again.

    Args:
        artifact: an ONNX file that ds2deploy exported.
        checkpoint: what it should compute.
        audio: manifest of real speech; synthetic speech without one.
        progress: told what is being done.

    Returns:
        The report; `passed` says whether they agree.

    Raises:
        ModelFileError: one of the two is damaged, or they are of different models.
        MissingFileError, ManifestError, AudioError: what is wrong with which file.
    """
    session = OnnxSession(artifact)
    loaded = load_checkpoint(checkpoint)
    for name in ("labels", "features", "model"):
        if getattr(session.description, name) != getattr(loaded.recipe, name):
            raise ModelFileError(
                f"{artifact}: differs from {checkpoint} in its {name}; it was exported from "
                f"another checkpoint, {session.description.source.name} of sha256 "
                f"{session.description.source.sha256[:12]}: give that"
            )
    cuts = None if audio is None else (Path(audio).name, read_manifest(audio))
    report = check_parity(session, _reference(loaded), cuts, progress)
    same = session.description.source.sha256 == loaded.source.sha256
    return msgspec.structs.replace(report, same_checkpoint=same)


def _write(
    checkpoint: Checkpoint,
    precision: Precision,
    path: Path,
    audio: tuple[str, lhotse.CutSet] | None,
    progress: Progress,
) -> Exported:
    progress(f"{precision}: writing the graph")
    description = msgspec.structs.replace(checkpoint.description(), precision=precision)
    started = time.perf_counter()
    model = build_graph(lower(checkpoint.network), precision)
    onnx.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    built = time.perf_counter()
    report = check_parity(
        OnnxSession(path, description=description),
        _reference(checkpoint),
        audio,
        lambda message: progress(f"{precision}: comparing {message}"),
    )
    if not report.passed:
        raise ParityError(
            f"{checkpoint.source.name}: the {precision} artifact does not compute what the "
            f"checkpoint computes, nothing is written: {report.failure()}"
        )
    append_description(path, msgspec.structs.replace(description, parity=report.summary()))
    return Exported(
        path=str(path),
        size=path.stat().st_size,
        sha256=file_sha256(path),
        nodes=len(model.graph.node),
        build_s=round(built - started, 2),
        verify_s=round(time.perf_counter() - built, 2),
        report=report,
    )


def append_description(path: Path, description: ArtifactDescription) -> None:
    """Put the description into an ONNX file by appending to it.

    Messages of protocol buffers that stand one after the other are one message, so the bytes
    that were verified stay as they are.
    """
    addition = onnx.ModelProto()
    entry = addition.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, description.to_json()
    with path.open("ab") as file:
        file.write(addition.SerializeToString())


def _reference(checkpoint: Checkpoint) -> TorchSession:
    return TorchSession(checkpoint.network, checkpoint.description())
