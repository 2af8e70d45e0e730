"""The command `ds2deploy verify`, which compares an artifact with its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ds2deploy.cli.options import Json, argument, flag, option
from ds2deploy.heartbeat import status
from ds2deploy.output import print_json
from ds2deploy.runtimes.errors import ParityError, require

AUDIO_HELP = "Manifest of real speech for the check. Default: synthetic speech."
NETWORK_HELP = "Check the network that TensorRT parses from the ONNX file; runs on the CPU."
ARTIFACT_HELP = "Artifact to verify: an ONNX file or an engine made by ds2deploy."
CHECKPOINT_HELP = "Checkpoint that the artifact was exported from."


def verify(
    artifact: Annotated[Path, argument("ARTIFACT", ARTIFACT_HELP)],
    checkpoint: Annotated[Path, argument("CHECKPOINT", CHECKPOINT_HELP)],
    audio: Annotated[Path | None, option("MANIFEST", AUDIO_HELP)] = None,
    network: Annotated[bool, flag("--network", NETWORK_HELP)] = False,
    json: Json = False,
) -> None:
    """Compare an artifact with its checkpoint.

    The exit code is 1 if they disagree.

    Example: ds2deploy verify deploy/model.onnx runs/mine/best.ckpt
    """
    require("onnx", "export")
    require("onnxruntime", "cpu")
    from ds2deploy.cli.export_report import report_lines
    from ds2deploy.export.verification import verify_artifact
    from ds2deploy.runtimes.tensorrt.library import any_tensorrt

    library = any_tensorrt() if network else None
    with status(f"verifying {artifact}") as step:
        report = verify_artifact(artifact, checkpoint, audio, step, library)
    if json:
        print_json(report.summary())
    else:
        for line in report_lines(report):
            typer.echo(line)
    if not report.passed:
        raise ParityError(
            f"{artifact}: its results differ from those of {checkpoint}: {report.failure()}"
        )
