"""Measure models on this machine, stage by stage, and compare them with a reference.

The start of each is measured in a process of its own (`probe`). Then all are open at the
same time, and take turns at every batch and duration (`stages`, `timing`).
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
"""Function that makes speech: sample rate in Hz, samples, seed -> (samples,) float32 in [-1, 1]."""


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """A measurement that was skipped.

    Attributes:
        model: name of the model.
        runtime: see `plan.NAMES`.
        batch: number of utterances at a time; None where the runtime does not run at all.
        audio_s: duration of each utterance (seconds), likewise.
        reason: reason for skipping it, in words.
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
        threads: CPU threads that were asked for; 0 is the runtime's choice.
        rounds: number of measured rounds.
        reference: model and runtime that the ratios are relative to.
        remarks: sentences on the limits of the figures.
        starts: start of each model on each runtime.
        measurements: latencies of each of these, at each batch and duration.
        skipped: cases that do not run, with the reason.
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
    """Measure everything in a plan that runs here.

    Args:
        plan: see `plan.make_plan`.
        speak: function that makes speech.
        progress: called with a line on the work in progress.
        beam_search: makes the decoder that is measured beside greedy decoding.

    Raises:
        ModelFileError: a damaged model.
        ConfigError: models of different sample rates, or none that takes any of the batches.
        RuntimeUnavailableError: nothing runs here.
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
        raise RuntimeUnavailableError(f"nothing to measure: {skipped[0].reason}")
    return starts, skipped


def _read_once(path: Path) -> None:
    """Have the system cache the file, so that the first case does not pay for reading it."""
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass


def _prefixed(progress: Callable[[str], None], prefix: str) -> Callable[[str], None]:
    return lambda message: progress(prefix + message)


def _one_rate(starts: Mapping[Case, Start]) -> int:
    rates = {start.sample_rate: case for case, start in starts.items()}
    if len(rates) > 1:
        told = ", ".join(f"{case.path} {rate} Hz" for rate, case in rates.items())
        raise ConfigError(f"{told}: compare models that take speech at one rate")
    return next(iter(rates))


def runnable(
    runs: Mapping[Case, StagedRun], batch: int, seconds: float
) -> tuple[dict[Case, StagedRun], list[Skipped]]:
    """Run each case once; return those that take the batch, and the others with the reason."""
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
    """Explain why an engine does not take such a batch; None where it does."""
    profile, description = session.profile, session.description
    if profile is None or description.blocks is not None:
        return None
    if batch > profile.batch[2]:
        return (
            f"a batch of {batch}; this engine takes {profile.batch[0]} to {profile.batch[2]}: "
            f"rebuild with --batch {profile.batch[0]},{profile.batch[1]},{batch}"
        )
    return beyond_profile(seconds, profile, description.features)


def _remarks(plan: Plan, reference: Case) -> list[str]:
    remarks = []
    if not plan.reference_is_torch:
        remarks.append(
            f"no checkpoint was given, so the reference is {reference}; --reference CHECKPOINT "
            "compares with torch"
        )
    elif reference.exported:
        remarks.append(f"torch does not run here, so the reference is {reference}")
    limit = os.environ.get("OMP_NUM_THREADS")
    if limit and not plan.threads:
        remarks.append(
            f"OMP_NUM_THREADS={limit} holds torch, and not the others; --threads N holds all alike"
        )
    return remarks
