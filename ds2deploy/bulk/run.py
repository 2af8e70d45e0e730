"""Bulk transcription from the inputs to the report."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from ds2deploy.bulk.inputs import Input, read_inputs
from ds2deploy.bulk.local import Chunk, run_local
from ds2deploy.bulk.results import Header, Results
from ds2deploy.bulk.worker import CHUNK, Job, open_model
from ds2deploy.runtimes.decoding.config import DecoderConfig
from ds2deploy.runtimes.errors import ConfigError, require
from ds2deploy.runtimes.files import file_sha256

Engine = Literal["local", "ray"]

FORMAT_VERSION = 1


class Report(msgspec.Struct, kw_only=True):
    """Report of a bulk transcription.

    Attributes:
        inputs: number of inputs.
        skipped: number of inputs that an earlier run had done.
        transcripts: number of inputs that this run recognised.
        errors: number of inputs without a transcript, by class of error, including those of
            earlier runs.
        audio_s: duration of the audio that this run recognised, in seconds.
        took_s: duration of the run, in seconds.
        cost: cost of this run; None without a price.
    """

    inputs: int = 0
    skipped: int = 0
    transcripts: int = 0
    errors: dict[str, int] = {}
    audio_s: float = 0.0
    took_s: float = 0.0
    cost: float | None = None

    @property
    def failed(self) -> int:
        """Number of inputs without a transcript."""
        return sum(self.errors.values())

    @property
    def factor(self) -> float:
        """Seconds of audio that were recognised per second."""
        return self.audio_s / self.took_s if self.took_s else 0.0


def run_bulk(
    source: Path,
    out: Path,
    job: Job,
    engine: Engine = "local",
    workers: int = 1,
    address: str | None = None,
    retry: bool = False,
    price: float | None = None,
    on_progress: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Recognise all inputs of a source that have no result yet.

    Args:
        source: folder, list or manifest; see `read_inputs`.
        out: folder of the results.
        job: model and decoder; make its header with `make_header`.
        engine: `local` for processes on this machine, or `ray`.
        workers: number of workers, each with its own session.
        address: address of a Ray cluster; None starts Ray on this machine.
        retry: also recompute inputs that failed.
        price: price of one worker for one hour.
        on_progress: function that is called after every result.

    Raises:
        Ds2Error: the source or the model cannot be read, or the folder contains results of another
            model.
    """
    open_model(job).close()  # raise errors of the model before any work
    started = time.monotonic()
    report = Report()
    with Results(out, job.header, retry) as results:
        errors: Counter[str] = Counter(results.errors)
        chunks = _chunks(results.missing(read_inputs(source)), report)
        for found in _run(engine, job, chunks, workers, address):
            results.write(found.line)
            report.audio_s += found.audio_s
            report.transcripts += not found.error
            errors[found.error] += bool(found.error)
            report.took_s = time.monotonic() - started
            report.errors = {kind: count for kind, count in sorted(errors.items()) if count}
            on_progress(report)
    report.errors = {kind: count for kind, count in sorted(errors.items()) if count}
    report.took_s = time.monotonic() - started
    if price is not None:
        report.cost = round(price * workers * report.took_s / 3600, 4)
    return report


def make_header(model: Path, decoder: DecoderConfig | None) -> Header:
    """Hash the model and the decoder settings.

    Args:
        model: model file.
        decoder: settings of a beam search; None for greedy decoding.
    """
    digest = hashlib.sha256(b"greedy" if decoder is None else msgspec.json.encode(decoder))
    for path in () if decoder is None else decoder.lm_paths:
        digest.update(file_sha256(path).encode())
    return Header(
        format_version=FORMAT_VERSION,
        model_sha256=file_sha256(model),
        decoder_sha256=digest.hexdigest(),
    )


def _run(
    engine: Engine, job: Job, chunks: Iterator[Chunk], workers: int, address: str | None
) -> Iterator[Any]:
    if engine == "local":
        if address is not None:
            raise ConfigError(f"--address {address}: requires Ray; add --engine ray")
        return run_local(job, chunks, workers)
    require("ray", "bulk")
    from ds2deploy.bulk.ray_engine import run_ray

    return run_ray(job, chunks, workers, address)


def _chunks(inputs: Iterable[tuple[Input, bool]], report: Report) -> Iterator[Chunk]:
    """Split the inputs into chunks at fixed positions, and skip chunks without work."""
    inputs = iter(inputs)
    while part := list(itertools.islice(inputs, CHUNK)):
        wanted = frozenset(i for i, (_, is_missing) in enumerate(part) if is_missing)
        report.inputs += len(part)
        report.skipped += len(part) - len(wanted)
        if wanted:
            yield Chunk([item for item, _ in part], wanted)
