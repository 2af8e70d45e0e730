"""Worker with one session, which recognises chunks of inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from ds2deploy.bulk.inputs import Input, Opened
from ds2deploy.bulk.results import Header, result_line
from ds2deploy.runtimes.decoding.config import DecoderConfig
from ds2deploy.runtimes.decoding.transcript import Transcript
from ds2deploy.runtimes.errors import DeviceError, Ds2Error
from ds2deploy.runtimes.recognizer import Recognizer

CHUNK = 128
"""Number of inputs in a chunk. Batches are formed within a chunk, so that results do not depend on
the number of workers or on interruptions."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Settings with which every worker opens its session.

    Attributes:
        model: path of the model.
        header: hashes of model and decoder.
        device: device to run on; None takes the runtime's default.
        runtime: name of the runtime; None takes the usual one of the file's format.
        threads: number of CPU threads; 0 lets the runtime choose.
        decoder: settings of a beam search; None for greedy decoding.
    """

    model: str
    header: Header
    device: str | None = None
    runtime: str | None = None
    threads: int = 0
    decoder: DecoderConfig | None = None


class Done(msgspec.Struct, frozen=True, array_like=True):
    """Result of one input.

    Attributes:
        index: index of the input in its chunk.
        line: line to write to the results.
        audio_s: duration of the audio that was recognised, in seconds.
        error: class of the error; empty for a transcript.
    """

    index: int
    line: bytes
    audio_s: float
    error: str = ""


class Worker:
    """Recogniser of chunks with one session.

    Args:
        job: model and decoder.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._recognizer = open_model(job)
        self._rate = self._recognizer.description.features.sample_rate

    def run(self, chunk: Sequence[Input]) -> Iterator[Done]:
        """Recognise the inputs of a chunk, which is halved if memory does not suffice.

        Yields:
            One result for every input, in any order.
        """
        done: set[int] = set()
        try:
            for found in self._attempt(chunk, range(len(chunk))):
                done.add(found.index)
                yield found
        except (MemoryError, DeviceError) as error:
            rest = [i for i in range(len(chunk)) if i not in done]
            yield from self._with_less(chunk, rest, error)

    def failure(self, chunk: Sequence[Input], index: int, error: Ds2Error) -> Done:
        """Make the result of an input that could not be recognised."""
        return failed(chunk[index], index, error, self._job.header)

    def _with_less(
        self, chunk: Sequence[Input], indices: Sequence[int], error: Exception
    ) -> Iterator[Done]:
        if len(indices) == 1:
            known = error if isinstance(error, Ds2Error) else DeviceError("out of memory")
            yield self.failure(chunk, indices[0], known)
            return
        middle = len(indices) // 2
        for half in (indices[:middle], indices[middle:]):
            done: set[int] = set()
            try:
                for found in self._attempt([chunk[i] for i in half], half):
                    done.add(found.index)
                    yield found
            except (MemoryError, DeviceError) as again:
                yield from self._with_less(chunk, [i for i in half if i not in done], again)

    def _attempt(self, chunk: Sequence[Input], indices: Sequence[int]) -> Iterator[Done]:
        opened = [Opened(item, self._rate) for item in chunk]
        sources = (item.source() for item in opened)
        with closing(self._recognizer.transcribe_many(sources)) as results:
            for found in results:
                item, sha256 = chunk[found.index], opened[found.index].sha256
                line = result_line(item, found.result, sha256, self._job.header)
                is_text = isinstance(found.result, Transcript)
                kind = "" if is_text else type(found.result).__name__
                yield Done(indices[found.index], line, found.audio_s, kind)


def failed(item: Input, index: int, error: Ds2Error, header: Header) -> Done:
    """Make the result of an input that no worker could recognise."""
    return Done(index, result_line(item, error, "", header), 0.0, type(error).__name__)


def open_model(job: Job) -> Recognizer:
    """Open the session of a worker."""
    from ds2deploy.loading import load

    return load(Path(job.model), job.device, job.runtime, job.threads, job.decoder)
