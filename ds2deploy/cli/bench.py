"""`ds2deploy bench`: speed of models on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ds2deploy.cli.decoding import Lm, choose_decoder
from ds2deploy.cli.errors import BAD_RESULT
from ds2deploy.cli.options import RUNTIME, Json, Threads, argument, option
from ds2deploy.heartbeat import status
from ds2deploy.output import print_json
from ds2deploy.runtimes.errors import ConfigError, require

REFERENCE_HELP = "Checkpoint to compare with. Default: the first among the models."
RUNTIME_HELP = (
    "Runtime to measure: onnxruntime, cuda, tensorrt, rtx, openvino, torch, torch-packed or "
    "torch-cuda; may be repeated. Default: those that the models are made for."
)

DECODER_HELP = (
    "Settings of the beam search that is timed beside greedy decoding, a .decoder file. "
    "Default: 64 hypotheses without a language model."
)


def bench(
    models: Annotated[list[Path], argument("MODEL", "Artifacts, engines, checkpoints.")],
    batch: Annotated[str, option("COUNT,...", "Batch sizes, in utterances.")] = "1,8",
    seconds: Annotated[str, option("SECONDS,...", "Lengths of the utterances (seconds).")] = "1,10",
    rounds: Annotated[int, option("COUNT", "Rounds; each runs everything once.", min=1)] = 5,
    reference: Annotated[Path | None, option("CHECKPOINT", REFERENCE_HELP)] = None,
    plots: Annotated[Path | None, option("FOLDER", "Folder for plots, as PNG files.")] = None,
    threads: Threads = 0,
    runtime: Annotated[list[str] | None, option("NAME", RUNTIME_HELP, RUNTIME)] = None,
    decoder: Annotated[Path | None, option("FILE", DECODER_HELP)] = None,
    lm: Lm = None,
    json: Json = False,
) -> None:
    """Measure speed on this machine and recommend a runtime.

    Example: ds2deploy bench model.onnx best.ckpt --plots plots
    """
    import msgspec

    from ds2deploy.bench.measure import measure
    from ds2deploy.bench.plan import make_plan
    from ds2deploy.bench.report import advise, print_report, write_plots
    from ds2deploy.bench.stages import BEAM_SEARCH
    from ds2deploy.export.parity.speech import synthesize

    if plots is not None:
        require("matplotlib", "bench")
        if plots.exists() and not plots.is_dir():
            raise ConfigError(f"--plots {plots}: is a file; expected a folder")
        plots.mkdir(parents=True, exist_ok=True)  # an error now, not after minutes
    plan = make_plan(models, batch, seconds, rounds, threads, runtime or (), reference)
    beam_search = choose_decoder(decoder, lm) or BEAM_SEARCH
    with status("measuring") as step:
        result = measure(plan, synthesize, step, beam_search)
    advice = advise(result)
    written = [] if plots is None else write_plots(result, plots)
    if json:
        paths = [str(path) for path in written]
        print_json({**msgspec.to_builtins(result), "advice": advice, "plots": paths})
    else:
        print_report(result, advice, written)
    if runtime and any(item.batch is None for item in result.skipped):
        raise typer.Exit(BAD_RESULT)  # one that was asked for does not run
