"""Plan of a benchmark: models, the runtimes for each, and the reference."""

from __future__ import annotations

import ctypes.util
import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from ds2deploy.loading import backends_for, file_kind, load, open_checkpoint
from ds2deploy.runtimes.backends import BACKENDS, FILE_NAMES, FileKind
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.recognizer import Recognizer

N = TypeVar("N", int, float)

PACKED = "torch packed"
"""Runtime that runs the network with packed sequences, as deepspeech.pytorch does."""

ON_TORCH = (PACKED, "torch", "torch cuda")
ON_GPU = (
    "torch cuda",
    *(backend.name for backend in backends_for("onnx") if backend.needs_gpu),
)

TAKES: dict[FileKind, tuple[str, ...]] = {
    kind: ON_TORCH
    if kind == "checkpoint"
    else tuple(backend.name for backend in backends_for(kind))
    for kind in FILE_NAMES
}
"""Runtimes of each kind of file."""

NAMES = tuple(dict.fromkeys(name for names in TAKES.values() for name in names))

LEAST_S, MOST_S = 0.1, 3600.0
"""Minimum and maximum duration of an utterance, in seconds."""

MOST_BATCH = 4096


class Case(msgspec.Struct, frozen=True):
    """Model on a runtime.

    Attributes:
        path: path of the model.
        model: name in tables: the file name, or the path if two names are equal.
        runtime: name of the runtime, one of `NAMES`.
        kind: kind of the file.
    """

    path: Path
    model: str
    runtime: str
    kind: FileKind

    def __str__(self) -> str:
        return f"{self.model} on {self.runtime}"

    @property
    def exported(self) -> bool:
        """True for a model that runs without torch."""
        return self.runtime not in ON_TORCH


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Plan of a benchmark.

    Attributes:
        cases: models on runtimes; some may not run on this machine.
        reference: candidates for the reference, in order; the first that runs is used.
        reference_is_torch: True if the reference is PyTorch; False if there is no checkpoint.
        batches: batch sizes, in utterances.
        durations_s: durations of the utterances, in seconds.
        rounds: number of measured rounds.
        threads: number of CPU threads; 0 lets the runtime choose.
    """

    cases: tuple[Case, ...]
    reference: tuple[Case, ...]
    reference_is_torch: bool
    batches: tuple[int, ...]
    durations_s: tuple[float, ...]
    rounds: int
    threads: int


def make_plan(
    models: Sequence[Path],
    batch: str = "1,8",
    seconds: str = "1,10",
    rounds: int = 5,
    threads: int = 0,
    runtimes: Sequence[str] = (),
    reference: Path | None = None,
) -> Plan:
    """Make a plan from the options of `ds2deploy bench`.

    Args:
        models: paths of artifacts, engines and checkpoints.
        batch: comma-separated batch sizes.
        seconds: comma-separated durations of the utterances, in seconds.
        rounds: number of measured rounds.
        threads: number of CPU threads; 0 lets the runtime choose.
        runtimes: names from `NAMES`, one or more per item; empty takes all that fit a model.
        reference: checkpoint to compare with; None takes the first among the models.

    Raises:
        MissingFileError, ModelFileError: see `file_kind`.
        ConfigError: a number or runtime is invalid, or no model accepts it.
    """
    batches = _numbers("--batch", batch, int, 1, MOST_BATCH)
    durations = _numbers("--seconds", seconds, float, LEAST_S, MOST_S)
    asked = _runtimes(runtimes)
    paths = list(dict.fromkeys([*models, *([] if reference is None else [reference])]))
    kinds = {path: file_kind(path) for path in paths}
    if reference is not None and kinds[reference] != "checkpoint":
        raise ConfigError(f"--reference {reference}: not a checkpoint; give a .ckpt file")
    checkpoint = reference or next((path for path in paths if kinds[path] == "checkpoint"), None)
    names = _short_names(paths)
    cases = []
    for path in paths:
        chosen = _chosen(kinds[path], asked, path == checkpoint)
        cases += [Case(path, names[path], name, kinds[path]) for name in chosen]
    if unused := [name for name in asked if name not in {case.runtime for case in cases}]:
        raise ConfigError(
            f"--runtime {option_name(unused[0])}: cannot run {', '.join(map(str, paths))}; use "
            f"{_options(TAKES['onnx'])} for .onnx files, and {_options(ON_TORCH)} for checkpoints"
        )
    return Plan(
        cases=tuple(cases),
        reference=_references(cases, checkpoint),
        reference_is_torch=checkpoint is not None,
        batches=batches,
        durations_s=durations,
        rounds=rounds,
        threads=threads,
    )


def open_case(case: Case, threads: int) -> Recognizer:
    """Open a model on a runtime.

    Raises:
        ModelFileError: the model is damaged.
        RuntimeUnavailableError: the runtime is missing, or cannot run this model.
    """
    if case.runtime in ON_TORCH:
        device = "cuda" if case.runtime == "torch cuda" else "cpu"
        packed = case.runtime == PACKED
        return Recognizer(open_checkpoint(case.path, device, threads, packed))
    return load(case.path, runtime=case.runtime, threads=threads)


def _chosen(kind: FileKind, asked: Sequence[str], is_reference: bool) -> list[str]:
    """List the runtimes of a file; by default, GPU runtimes only if there is a GPU."""
    driver = ctypes.util.find_library("cuda") is not None
    takes = TAKES[kind]
    if not asked:
        engine = kind in ("tensorrt", "rtx")
        usual = [name for name in takes if _is_usual(name)]
        return [name for name in usual if driver or engine or name not in ON_GPU]
    chosen = [name for name in takes if name in asked]
    if is_reference and not chosen:
        on_gpu = driver and any(name in ON_GPU for name in asked)
        return [PACKED, "torch cuda"] if on_gpu else [PACKED]
    return chosen


def _is_usual(name: str) -> bool:
    """Return True for a runtime that is measured by default: see the fields of `Backend`."""
    backend = next((backend for backend in BACKENDS if backend.name == name), None)
    if backend is None:
        return True
    return not backend.asked_only and (not backend.module or _is_installed(backend.module))


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _references(cases: list[Case], checkpoint: Path | None) -> tuple[Case, ...]:
    """Order the candidates for the reference: packed torch, or torch on a GPU if an export is."""
    if checkpoint is None:
        return tuple(cases)
    on_gpu = any(case.exported and case.runtime in ON_GPU for case in cases)
    order = ("torch cuda", PACKED, "torch") if on_gpu else (PACKED, "torch", "torch cuda")
    own = [case for case in cases if case.path == checkpoint]
    return tuple(sorted(own, key=lambda case: order.index(case.runtime)))


def option_name(name: str) -> str:
    """Spell the name of a runtime as a value of `--runtime`, such as `torch-packed`."""
    return name.replace(" ", "-").lower()


def _options(names: Sequence[str]) -> str:
    return ", ".join(map(option_name, names))


def _runtimes(items: Sequence[str]) -> list[str]:
    """Find the runtimes that were asked for; a space in a name may be a hyphen."""
    known = {option_name(name): name for name in NAMES}
    asked = [part.strip() for item in items for part in item.split(",")]
    if unknown := [name for name in asked if option_name(name) not in known]:
        raise ConfigError(f"--runtime {unknown[0]}: expected one of {', '.join(known)}")
    return list(dict.fromkeys(known[option_name(name)] for name in asked))


def _numbers(
    option: str, text: str, kind: Callable[[str], N], least: float, most: float
) -> tuple[N, ...]:
    """Parse comma-separated numbers, and return them sorted and without duplicates."""
    try:
        numbers = sorted({kind(part) for part in text.split(",")})
    except ValueError:
        numbers = []
    if not numbers or not all(math.isfinite(n) and least <= n <= most for n in numbers):
        what = "whole numbers" if kind is int else "seconds"
        raise ConfigError(
            f"{option} {text}: expected {what} from {least:g} to {most:g}, such as 1,10"
        )
    return tuple(numbers)


def _short_names(paths: Sequence[Path]) -> dict[Path, str]:
    names = [path.name for path in paths]
    return {path: path.name if names.count(path.name) == 1 else os.fspath(path) for path in paths}
