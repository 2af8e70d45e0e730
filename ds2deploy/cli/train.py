"""The command `ds2deploy train`, which trains a network from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ds2deploy.cli.errors import complain
from ds2deploy.cli.options import Json, Overrides, argument, flag
from ds2deploy.output import print_json
from ds2deploy.runtimes.errors import require

RECIPE_HELP = "Recipe of the training: a TOML file, or the name of a built-in recipe."
RESUME_HELP = "Continue the training from RUN/last.ckpt; finished stages are skipped."


def train(
    recipe: Annotated[str, argument("RECIPE", RECIPE_HELP)],
    set_: Overrides = None,
    resume: Annotated[bool, flag("--resume", RESUME_HELP)] = False,
    json: Json = False,
) -> None:
    """Train a network from a recipe.

    The command writes RUN/best.ckpt, RUN/last.ckpt and RUN/metrics.jsonl, where RUN is the
    recipe's training.run. Those files are of the last stage of a recipe with several; stages
    before it are trained in RUN/stage-1, RUN/stage-2 and so on.

    Example: ds2deploy train digits --set training.run=runs/mine

    One stage of several: ds2deploy train an4-streaming --set stages.2.training.epochs=20
    """
    require("lightning", "train")
    from ds2deploy.config import within_cores
    from ds2deploy.recipes import load_stages
    from ds2deploy.runtimes.session import usable_cores

    cores = usable_cores()
    limited = [within_cores(stage, cores) for stage in load_stages(recipe, set_ or [])]
    parsed = limited[-1][0]
    from ds2deploy.training.hardware import is_main_process
    from ds2deploy.training.stages import train_stages

    if parsed.training.export:  # fail now rather than after days of training
        require("onnxruntime", "cpu")
        require("onnx", "export")
    for change in dict.fromkeys(change for _, changes in limited for change in changes):
        if is_main_process():
            complain(change)
    metrics = train_stages([stage for stage, _ in limited], resume)
    if not is_main_process():
        return
    best = str(Path(parsed.training.run) / "best.ckpt")
    if parsed.training.export:
        from ds2deploy.export.artifacts import export_onnx

        words = parsed.data.valid if "int8" in parsed.training.export else None
        export_onnx(Path(best), Path(parsed.training.run), parsed.training.export, words)
    if json:
        print_json({"checkpoint": best, **metrics})
    else:
        typer.echo(f"{best}  WER {100 * metrics['wer']:.2f} %  CER {100 * metrics['cer']:.2f} %")
