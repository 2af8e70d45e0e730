"""Measurement of models on this machine, stage by stage, and comparison with a reference.

The start of each model is measured in a separate process (`probe`). Then all models are open at the
same time, and run in turns at every batch size and duration (`stages`, `timing`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np

from ds2deploy.bench.machine import Machine, describe_machine
from ds2deploy.bench.plan import Case, Plan, open_case
from ds2deploy.bench.probe import Start, run_probe
from ds2deploy.bench.stages import BEAM_SEARCH, Measurement, StagedRun, compare
from ds2deploy.runtimes.decoding.decoder import MakeDecoder
from ds2deploy.runtimes.errors import (
    ConfigError,
    FeaturesError,
    ModelFileError,
    RuntimeUnavailableError,
    one_line,
)
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.runtimes.session import Session, beyond_profile

PROBE_RATE = 16_000
"""Sample rate (Hz) of the utterance that a fresh process converts to its model's rate."""

Speak = Callable[[int, int, int], FloatArray]
"""Function that makes speech: (rate in Hz, samples, seed) -> (samples,) float32 in [-1, 1]."""


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """Measurement that was skipped.

    Attributes:
        model: name of the model.
        runtime: name of the runtime, see `plan.NAMES`.
        batch: number of utterances at a time; None if the runtime does not run at all.
        audio_s: duration of each utterance, in seconds; None if the runtime does not run at all.
        reason: reason for skipping the measurement.
    """

    model: str
    runtime: str
    batch: int | None = None
    audio_s: float | None = None
    reason: str


class Benchmark(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a benchmark.

    Attributes:
        machine: machine of the measurement.
        threads: number of CPU threads; 0 if the runtime chose it.
        rounds: number of measured rounds.
        reference: model and runtime to which the ratios are relative.
        remarks: sentences about the limits of the figures.
        starts: start of each model on each runtime.
        measurements: latencies of each model on each runtime, for each batch size and duration.
        skipped: cases that do not run, with the reasons.
    """

    machine: Machine
    threads: int
    rounds: int
    reference: str
    remarks: tuple[str, ...]
    starts: tuple[Start, ...]
    measurements: tuple[Measurement, ...]
    skipped: tuple[Skipped, ...]


def measure(
    plan: Plan,
    speak: Speak,
    progress: Callable[[str], None] = lambda message: None,
    beam_search: MakeDecoder = BEAM_SEARCH,
) -> Benchmark:
    """Measure all cases of a plan that run on this machine.

    Args:
        plan: plan from `plan.make_plan`.
        speak: function that makes speech.
        progress: function that is called with a description of the current work.
        beam_search: function that makes the decoder that is measured next to greedy decoding.

    Raises:
        ModelFileError: a model is damaged.
        ConfigError: the models have different sample rates, or none takes any of the batches.
        RuntimeUnavailableError: no case runs on this machine.
    """
    starts, skipped = _start(plan, speak, progress)
    reference = next((case for case in plan.reference if case in starts), next(iter(starts)))
    rate = _one_rate(starts)
    measurements: list[Measurement] = []
    with ExitStack() as stack:
        opened = {case: stack.enter_context(open_case(case, plan.threads)) for case in starts}
        for batch in plan.batches:
            for seconds in plan.durations_s:
                waveforms = [speak(rate, round(rate * seconds), seed) for seed in range(batch)]
                runs = {
                    case: StagedRun(recognizer.session, waveforms, beam_search=beam_search)
                    for case, recognizer in opened.items()
                }
                runs, refused = runnable(runs, batch, seconds)
                skipped += refused
                tell = _prefixed(progress, f"batch {batch}, {seconds:g} s: ")
                measurements += compare(runs, reference, plan.rounds, tell)
    if not measurements:
        raise ConfigError(f"nothing could be measured: {skipped[-1].reason}")
    return Benchmark(
        machine=describe_machine(),
        threads=plan.threads,
        rounds=plan.rounds,
        reference=str(reference),
        remarks=tuple(_remarks(plan, reference)),
        starts=tuple(starts.values()),
        measurements=tuple(measurements),
        skipped=tuple(skipped),
    )


def _start(
    plan: Plan, speak: Speak, progress: Callable[[str], None]
) -> tuple[dict[Case, Start], list[Skipped]]:
    """Measure the start of each case; skip those that do not start."""
    starts: dict[Case, Start] = {}
    skipped: list[Skipped] = []
    with tempfile.TemporaryDirectory(prefix="ds2deploy-") as folder:
        audio = Path(folder) / "speech.npy"
        np.save(audio, speak(PROBE_RATE, round(PROBE_RATE * plan.durations_s[-1]), 0))
        for case in plan.cases:
            progress(f"starting {case}")
            _read_once(case.path)
            answer = run_probe(case, plan.threads, audio, PROBE_RATE)
            if answer.bad_file:
                raise ModelFileError(answer.reason)
            if answer.start is not None:
                starts[case] = answer.start
                continue
            skipped.append(Skipped(model=case.model, runtime=case.runtime, reason=answer.reason))
    if not starts:
        raise RuntimeUnavailableError(f"nothing could be measured: {skipped[0].reason}")
    return starts, skipped


def _read_once(path: Path) -> None:
    """Read a file into the system's cache, so that the first case is not slower than the others."""
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass


def _prefixed(progress: Callable[[str], None], prefix: str) -> Callable[[str], None]:
    return lambda message: progress(prefix + message)


def _one_rate(starts: Mapping[Case, Start]) -> int:
    rates = {start.sample_rate: case for case, start in starts.items()}
    if len(rates) > 1:
        rated = ", ".join(f"{case.path} ({rate} Hz)" for rate, case in rates.items())
        raise ConfigError(f"{rated}: different sample rates; compare models of the same rate")
    return next(iter(rates))


def runnable(
    runs: Mapping[Case, StagedRun], batch: int, seconds: float
) -> tuple[dict[Case, StagedRun], list[Skipped]]:
    """Run each case once; return those that accept the batch, and reasons for the others."""
    taken: dict[Case, StagedRun] = {}
    skipped: list[Skipped] = []
    for case, run in runs.items():
        reason = _beyond(run.session, batch, seconds)
        if reason is None:
            try:
                run()
            except (RuntimeError, MemoryError, FeaturesError) as error:  # torch has no other
                reason = one_line(error)
        if reason is None:
            taken[case] = run
            continue
        skipped.append(
            Skipped(
                model=case.model,
                runtime=case.runtime,
                batch=batch,
                audio_s=seconds,
                reason=reason,
            )
        )
    return taken, skipped


def _beyond(session: Session, batch: int, seconds: float) -> str | None:
    """Explain why an engine does not accept a batch; None if it does."""
    profile, description = session.profile, session.description
    if profile is None or description.blocks is not None:
        return None
    if batch > profile.batch[2]:
        return (
            f"a batch of {batch}; this engine takes {profile.batch[0]} to {profile.batch[2]}: "
            f"export it again with --batch {profile.batch[0]},{profile.batch[1]},{batch}"
        )
    return beyond_profile(seconds, profile, description.features)


def _remarks(plan: Plan, reference: Case) -> list[str]:
    remarks = []
    if not plan.reference_is_torch:
        remarks.append(
            f"no checkpoint was given, so the reference is {reference}; add --reference CHECKPOINT "
            "to compare with torch"
        )
    elif reference.exported:
        remarks.append(f"torch does not run here, so the reference is {reference}")
    limit = os.environ.get("OMP_NUM_THREADS")
    if limit and not plan.threads:
        remarks.append(
            f"OMP_NUM_THREADS={limit} limits torch only; use --threads N to limit all runtimes"
        )
    return remarks
