"""Writes one ONNX file: the graph, its parity check against the checkpoint, its description."""

from __future__ import annotations

import os
import time
from pathlib import Path

import lhotse
import msgspec
import numpy as np
import onnx
from torch import nn

from ds2deploy.data.manifest import read_manifest
from ds2deploy.export.onnx.graph import build_graph
from ds2deploy.export.onnx.lowering import lower, scale_shift
from ds2deploy.export.parity.check import check_parity
from ds2deploy.export.parity.reference import Reference
from ds2deploy.export.parity.report import ParityReport, Progress
from ds2deploy.export.parsed_network.evaluator import check_network
from ds2deploy.model.checkpoint import Checkpoint
from ds2deploy.model.streaming import exact_session, torch_session
from ds2deploy.runtimes.artifact import METADATA_KEY, ArtifactDescription, Input, Precision
from ds2deploy.runtimes.errors import ConfigError, ModelFileError, ParityError
from ds2deploy.runtimes.files import FOREIGN_BYTE, file_sha256
from ds2deploy.runtimes.onnx.session import OnnxSession
from ds2deploy.runtimes.tensorrt.library import TensorRt

AMPLIFIED, SAFE_EPS = 100, 1e-3
"""Factor of a batch norm above which an fp32 export that fails gives advice, and the epsilon that
it advises: with it, a factor is at most 32 times the batch norm's scale. Networks with factors of
up to 311 were exported within 1e-4; another one, with factors of up to 292, was not."""


class Exported(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="onnx"):
    """An ONNX file that was written.

    Attributes:
        path: path of the file.
        size: size of the file, in bytes.
        sha256: SHA-256 of the file.
        precision: number format of weights and activations.
        nodes: number of nodes in the graph.
        build_s: seconds to fold, write and check the graph.
        verify_s: seconds of the parity check.
        report: report of the parity check.
    """

    path: str
    size: int
    sha256: str
    precision: Precision
    nodes: int
    build_s: float
    verify_s: float
    report: ParityReport


def read_recordings(audio: str | Path | None) -> tuple[str, lhotse.CutSet] | None:
    """Name and utterances of the manifest for parity checks; None without one."""
    return None if audio is None else (Path(audio).name, read_manifest(audio))


def make_reference(
    checkpoint: Checkpoint,
    sound: Input,
    recordings: tuple[str, lhotse.CutSet] | None,
    frames: int = 0,
) -> Reference:
    """Make the reference of a checkpoint's artifacts: its network in float64.

    Args:
        checkpoint: checkpoint that the artifacts should equal.
        sound: input of the artifacts.
        recordings: real speech; synthetic speech without it.
        frames: longest utterance of the checks; at least that of the default shapes.
    """
    return Reference(
        torch_session(checkpoint), recordings, frames, sound=sound, exact=exact_session(checkpoint)
    )


def check_int8(rnn: str, audio: str | Path | None, checkpoint: str) -> None:
    """Refuse what cannot be quantised, and what could not be judged."""
    if rnn != "lstm":
        raise ConfigError(
            f"{checkpoint}: int8: ONNX Runtime quantises LSTMs only, not a {rnn.upper()}; choose "
            "--precision fp32, or train an LSTM"
        )
    if audio is None:
        raise ConfigError(
            f"{checkpoint}: int8 is verified with real speech: add --audio MANIFEST, with "
            "recordings like those that the model will transcribe"
        )


def write_onnx(
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
    nodes = _write_graph(checkpoint, description, path)
    size = path.stat().st_size
    built = time.perf_counter()
    if library is None:
        session = OnnxSession(path, description=description)
        report = check_parity(
            session, reference, lambda what: progress(f"{precision}: comparing {what}")
        )
    else:
        report = check_network(
            path, description, library, reference, lambda what: progress(f"{precision}: {what}")
        )
    if not report.passed:
        raise ParityError(
            f"{checkpoint.source.name}: the results of the {precision} artifact differ from those "
            f"of the checkpoint, nothing was written: {report.failure()}"
            + (_amplified_rounding(checkpoint) if precision == "fp32" else "")
        )
    append_description(path, msgspec.structs.replace(description, parity=report.summary()), size)
    return Exported(
        path=str(path),
        size=path.stat().st_size,
        sha256=file_sha256(path),
        precision=precision,
        nodes=nodes,
        build_s=round(built - started, 2),
        verify_s=round(time.perf_counter() - built, 2),
        report=report,
    )


def _amplified_rounding(checkpoint: Checkpoint) -> str:
    """Advise how to train a network whose batch norms amplify rounding; empty for any other."""
    units = 0
    for norm in checkpoint.network.modules():
        if isinstance(norm, nn.BatchNorm1d):
            scale, _ = scale_shift(norm)
            units += int((np.abs(scale) > AMPLIFIED).sum())
    if not units:
        return ""
    return (
        f"; batch norms amplify rounding more than {AMPLIFIED} times in {units} units that hardly "
        f"move: train two more epochs with training.start={checkpoint.source.name} and "
        f"model.norm_eps={SAFE_EPS:g}"
    )


def _write_graph(checkpoint: Checkpoint, description: ArtifactDescription, path: Path) -> int:
    """Fold, write and check the graph, without its description; its number of nodes."""
    try:
        model = build_graph(
            lower(checkpoint.network, columns=description.precision != "int8"), description
        )
    except ParityError as error:
        raise ParityError(f"{checkpoint.source.name}: {error}; nothing was written") from None
    onnx.save(model, path)
    by_name = not FOREIGN_BYTE.search(str(path))  # onnx wants names in UTF-8
    onnx.checker.check_model(str(path) if by_name else model, full_check=True)
    return len(model.graph.node)


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
                raise ModelFileError(
                    _disturbed(path, f"has {found} bytes instead of the {size} that were verified")
                )
            file.write(addition.SerializeToString())
    except FileNotFoundError:
        raise ModelFileError(_disturbed(path, "disappeared")) from None


def _disturbed(path: Path, reason: str) -> str:
    return (
        f"{path}: {reason}; another process writes into {path.parent}: export again into another "
        "folder"
    )
