"""The command `ds2deploy demo`, which runs every step on synthetic speech."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ds2deploy.cli.options import Json, option
from ds2deploy.heartbeat import heartbeat
from ds2deploy.output import print_json
from ds2deploy.runtimes.errors import ParityError, require

OUT_HELP = "Folder for all files that the demo writes."
SEED_HELP = "Seed of the random voices, initial weights and batches."


def demo(
    out: Annotated[Path, option("FOLDER", OUT_HELP)] = Path("runs/demo"),
    seed: Annotated[int, option("NUMBER", SEED_HELP, min=0)] = 0,
    json: Json = False,
) -> None:
    """Train, export, verify and transcribe synthetic speech.

    The demo takes a few minutes.

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
        raise ParityError(f"{out}: {result.failure()}")
