"""Compares an artifact with a checkpoint again."""

from __future__ import annotations

from pathlib import Path

import lhotse
import msgspec

from ds2deploy.export.format import with_features
from ds2deploy.export.parity.check import check_parity
from ds2deploy.export.parity.report import ParityReport, Progress
from ds2deploy.export.parsed_network.evaluator import check_network
from ds2deploy.export.tensorrt.options import refuse_what_no_parser_takes
from ds2deploy.export.tensorrt.profiles import grid
from ds2deploy.export.verified_onnx import check_int8, make_reference, read_recordings
from ds2deploy.model.checkpoint import Checkpoint
from ds2deploy.model.load import load_checkpoint
from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.errors import ModelFileError
from ds2deploy.runtimes.onnx.session import OnnxSession, describe_artifact
from ds2deploy.runtimes.tensorrt.engine_file import SUFFIX as ENGINE_SUFFIX
from ds2deploy.runtimes.tensorrt.engine_file import read_engine_description
from ds2deploy.runtimes.tensorrt.library import TensorRt


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
        checkpoint: checkpoint that the artifact should equal.
        audio: manifest of real speech; synthetic speech without one.
        progress: function that receives the current step, as text.
        network: library whose parser reads the ONNX file. The parsed network is then computed on
            the CPU, in place of the file in ONNX Runtime.

    Returns:
        The report; `passed` says whether they agree.

    Raises:
        ModelFileError: one of the two is damaged, or they are of different models.
        MissingFileError, ManifestError, AudioError: what is wrong with which file.
    """
    path = Path(artifact)
    if path.suffix not in (".onnx", ENGINE_SUFFIX):
        raise ModelFileError(
            f"{path}: not an .onnx or .engine file; expected: ds2deploy verify ARTIFACT CHECKPOINT"
        )
    if network is not None and path.suffix == ENGINE_SUFFIX:
        raise ModelFileError(
            f"{path}: --network needs an ONNX file; give the one that the engine was built from"
        )
    is_engine = path.suffix == ENGINE_SUFFIX
    description = read_engine_description(path)[0] if is_engine else describe_artifact(path)
    if network is not None:
        refuse_what_no_parser_takes(description.model, description.precision, str(path))
    if description.precision == "int8":
        check_int8(description.model.rnn, audio, str(path))
    loaded = load_checkpoint(checkpoint)
    if description.statistics_from and loaded.recipe.features.normalize == "utterance":
        given = description.features  # compare with the model so normalised
        loaded = with_features(
            loaded, normalize=given.normalize, mean=given.mean, deviation=given.deviation
        )
    for name in ("labels", "features", "model"):
        if getattr(description, name) != getattr(loaded.recipe, name):
            raise ModelFileError(
                f"{artifact}: was exported from another checkpoint than {checkpoint} (different "
                f"{name}); give {description.source.name} with SHA-256 "
                f"{description.source.sha256[:12]}..."
            )
    recordings = read_recordings(audio)
    if is_engine:
        report = _verify_engine(path, description, loaded, recordings, progress)
    else:
        reference = make_reference(loaded, description.input, recordings)
        if network is not None:
            report = check_network(path, description, network, reference, progress)
        else:
            report = check_parity(OnnxSession(path), reference, progress)
    same = description.source.sha256 == loaded.source.sha256
    return msgspec.structs.replace(report, same_checkpoint=same)


def _verify_engine(
    path: Path,
    description: ArtifactDescription,
    checkpoint: Checkpoint,
    recordings: tuple[str, lhotse.CutSet] | None,
    progress: Progress,
) -> ParityReport:
    from ds2deploy.runtimes.tensorrt.session import TensorRtSession

    assert description.engine is not None
    profile = description.engine.profile
    reference = make_reference(checkpoint, description.input, recordings, profile.frames[2])
    with TensorRtSession(path) as session:
        return check_parity(session, reference, progress, grid(profile, description.blocks))
