"""`ds2deploy verify`: an artifact against its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ds2deploy.cli.options import Json, argument, flag, option
from ds2deploy.heartbeat import status
from ds2deploy.output import print_json
from ds2deploy.runtimes.errors import ParityError, require

AUDIO_HELP = "Manifest of real speech for the check. Default: synthetic speech."
NETWORK_HELP = "Check the network as TensorRT parses the file, on the CPU."


def verify(
    artifact: Annotated[Path, argument("ARTIFACT", "ONNX file or engine of ds2deploy.")],
    checkpoint: Annotated[Path, argument("CHECKPOINT", "Checkpoint that it was exported from.")],
    audio: Annotated[Path | None, option("MANIFEST", AUDIO_HELP)] = None,
    network: Annotated[bool, flag("--network", NETWORK_HELP)] = False,
    json: Json = False,
) -> None:
    """Compare an artifact with its checkpoint.

    The exit code is 1 where they disagree.

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
            f"{artifact}: does not compute what {checkpoint} computes: {report.failure()}"
        )
