"""`ds2deploy demo`: everything once, on synthetic speech."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ds2deploy.cli.errors import BAD_RESULT, fail
from ds2deploy.cli.options import Json
from ds2deploy.cli.printing import print_json
from ds2deploy.heartbeat import heartbeat
from ds2deploy.runtimes.errors import require


def demo(
    out: Annotated[Path, typer.Option(readable=False, help="Folder for all files.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of voices, weights and batches.")] = 0,
    json: Json = False,
) -> None:
    """Train, export, verify and transcribe on synthetic speech.

    Takes a few minutes.

    Example: ds2deploy demo --out runs/demo
    """
    for module in ("espeakng_loader", "lightning", "onnx"):
        require(module, "demo")
    require("onnxruntime", "cpu")
    with heartbeat("importing torch and lightning"):
        from ds2deploy.demo.run import run_demo

    result = run_demo(out, seed)
    if json:
        print_json(result.summary())
    if not result.passed:
        fail(f"{out}: {result.failure()}", BAD_RESULT)
