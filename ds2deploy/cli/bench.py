"""The command `ds2deploy bench`, which measures the speed of models on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ds2deploy.cli.decoding import Lm, choose_decoder
from ds2deploy.cli.errors import BAD_RESULT
from ds2deploy.cli.options import DEVICE_RUNTIMES, RUNTIME, Json, Threads, argument, option
from ds2deploy.heartbeat import status
from ds2deploy.output import print_json
from ds2deploy.runtimes.errors import ConfigError, require

MODELS_HELP = "Models to measure: artifacts (.onnx), engines (.engine) or checkpoints (.ckpt)."
ROUNDS_HELP = (
    "Number of measured rounds, after one round of warm-up; each round runs every case once."
)
REFERENCE_HELP = (
    "Checkpoint that the other models are compared with. Default: the first checkpoint among the "
    "models."
)
PLOTS_HELP = "Write plots (PNG) to this folder. Default: no plots."
RUNTIME_HELP = (
    f"Runtime to measure: {', '.join(DEVICE_RUNTIMES)}, torch, torch-packed or torch-cuda. Repeat "
    "the option for several: --runtime onnxruntime --runtime openvino. Default: the usual runtimes "
    "of each model that are installed."
)

DECODER_HELP = (
    "Settings file (.decoder) of the beam search that is timed next to greedy decoding. "
    "Default: 64 hypotheses, no language model."
)


def bench(
    models: Annotated[list[Path], argument("MODEL", MODELS_HELP)],
    batch: Annotated[str, option("COUNT,...", "Batch sizes to measure (utterances).")] = "1,8",
    seconds: Annotated[
        str, option("SECONDS,...", "Utterance lengths to measure (seconds).")
    ] = "1,10",
    rounds: Annotated[int, option("COUNT", ROUNDS_HELP, min=1)] = 5,
    reference: Annotated[Path | None, option("CHECKPOINT", REFERENCE_HELP)] = None,
    plots: Annotated[Path | None, option("FOLDER", PLOTS_HELP)] = None,
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
        plots.mkdir(parents=True, exist_ok=True)  # fail now rather than after minutes of measuring
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
        raise typer.Exit(BAD_RESULT)  # a runtime that the user named does not run
