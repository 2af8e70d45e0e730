"""`ds2deploy bench`: the speed of models on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ds2deploy.cli.errors import BAD_RESULT
from ds2deploy.cli.options import Json, Threads
from ds2deploy.cli.printing import print_json
from ds2deploy.heartbeat import status
from ds2deploy.runtimes.errors import ConfigError, require


def bench(
    models: Annotated[
        list[Path],
        typer.Argument(readable=False, metavar="MODEL...", help="Artifacts, engines, checkpoints."),
    ],
    batch: Annotated[str, typer.Option(help="Batch sizes, one or several.")] = "1,8",
    seconds: Annotated[
        str, typer.Option(help="Lengths of the utterances in seconds, one or several.")
    ] = "1,10",
    rounds: Annotated[int, typer.Option(min=1, help="How often everything is measured.")] = 5,
    threads: Threads = 0,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            help="onnxruntime, cuda, tensorrt, rtx, openvino, torch, torch-packed, torch-cuda; "
            "one or several, else what the models are for.",
            rich_help_panel="Runtime",
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            readable=False, help="Checkpoint to compare with; else the first among the models."
        ),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(readable=False, help="Folder for plots, as PNG files.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure the speed of models on this machine.

    Ends with advice on which runtime to use.

    Example: ds2deploy bench model.onnx best.ckpt --plots plots
    """
    import msgspec

    from ds2deploy.bench.measure import measure
    from ds2deploy.bench.plan import make_plan
    from ds2deploy.bench.report import advise, print_report, write_plots
    from ds2deploy.export.parity.speech import synthesize

    if plots is not None:
        require("matplotlib", "bench")
        if plots.exists() and not plots.is_dir():
            raise ConfigError(f"--plots {plots}: is a file; expected a folder")
        plots.mkdir(parents=True, exist_ok=True)  # what cannot be is told before minutes are spent
    plan = make_plan(models, batch, seconds, rounds, threads, runtime or (), reference)
    with status("measuring") as step:
        result = measure(plan, synthesize, step)
    advice = advise(result)
    written = [] if plots is None else write_plots(result, plots)
    if json:
        paths = [str(path) for path in written]
        print_json({**msgspec.to_builtins(result), "advice": advice, "plots": paths})
    else:
        print_report(result, advice, written)
    if runtime and any(item.batch is None for item in result.skipped):
        raise typer.Exit(BAD_RESULT)  # one that was asked for does not run
