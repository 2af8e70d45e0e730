"""`ds2deploy verify`: an artifact against its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ds2deploy.cli.errors import BAD_RESULT, fail
from ds2deploy.cli.options import Json
from ds2deploy.cli.printing import print_json
from ds2deploy.heartbeat import status
from ds2deploy.runtimes.errors import require


def verify(
    artifact: Annotated[
        Path, typer.Argument(readable=False, help="ONNX file or engine that ds2deploy exported.")
    ],
    checkpoint: Annotated[
        Path, typer.Argument(readable=False, help="Checkpoint that the artifact was exported from.")
    ],
    audio: Annotated[
        Path | None,
        typer.Option(readable=False, help="Manifest of real speech; by default synthetic speech."),
    ] = None,
    network: Annotated[
        bool,
        typer.Option(
            "--network", help="Check the network that TensorRT parses from the file, on the CPU."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Compare an artifact with its checkpoint.

    The exit code is 1 if they disagree.

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
        print_json(report.summary())
    else:
        for line in report_lines(report):
            typer.echo(line)
    if not report.passed:
        fail(
            f"{artifact}: does not compute what {checkpoint} computes: {report.failure()}",
            BAD_RESULT,
        )
