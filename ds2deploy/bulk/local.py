"""Workers on this machine: processes that are replaced when they die."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

from ds2deploy.bulk.inputs import Input
from ds2deploy.bulk.worker import Done, Job, Worker, failed
from ds2deploy.runtimes.errors import DeviceError, Ds2Error

ATTEMPTS = 2
"""Number of workers that may die on a chunk before its inputs are retried singly; an input on which
this many workers die is reported as an error."""

AHEAD = 2
"""Number of chunks queued for each worker, so that it never waits for the next one."""

READY = "ready"
"""First message of a worker, sent when its session is open."""

LEAST_LIVES = 3
"""Number of consecutive workers that may fail at their start before the command ends."""


class Chunk(NamedTuple):
    """Inputs that one worker recognises together.

    Attributes:
        inputs: the inputs.
        wanted: indices of the inputs whose result is missing.
        deaths: number of workers that died on this chunk.
    """

    inputs: Sequence[Input]
    wanted: frozenset[int]
    deaths: int = 0


def run_local(job: Job, chunks: Iterable[Chunk], workers: int) -> Iterator[Done]:
    """Recognise chunks in processes on this machine.

    Args:
        job: model and decoder.
        chunks: chunks, read as they are needed.
        workers: number of processes.

    Yields:
        One result for every wanted input.

    Raises:
        DeviceError: no worker can be started.
    """
    pool = _Pool(job, iter(chunks), workers)
    try:
        yield from pool.run()
    finally:
        pool.close()


class _Process:
    """Process of a worker, and the chunks that it holds."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(job, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.chunks: deque[Chunk] = deque()
        self.proved = False

    def give(self, chunk: Chunk) -> None:
        """Send a chunk to the process."""
        self.chunks.append(chunk)
        with suppress(OSError):  # a dead process is detected when its connection is read
            self.connection.send(chunk.inputs)

    def end(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.terminate()
        self.process.join()


class _Pool:
    def __init__(self, job: Job, chunks: Iterator[Chunk], workers: int) -> None:
        self._job, self._coming = job, chunks
        self._again: deque[Chunk] = deque()
        self._early_deaths = 0
        self._processes = [_Process(job) for _ in range(workers)]

    def run(self) -> Iterator[Done]:
        """Distribute chunks and yield results until all are done."""
        for _ in range(AHEAD):
            for process in self._processes:
                self._feed(process)
        while busy := [one for one in self._processes if one.chunks]:
            for connection in wait([one.connection for one in busy]):
                process = next(one for one in busy if one.connection is connection)
                yield from self._hear(process)

    def close(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.end()

    def _hear(self, process: _Process) -> Iterator[Done]:
        try:
            message = process.connection.recv()
        except (EOFError, OSError):
            yield from self._replace(process)
            return
        if isinstance(message, Ds2Error):
            raise message
        if message == READY:
            process.proved = True
            self._early_deaths = 0
            return
        chunk = process.chunks[0]
        if message is None:  # the chunk is done
            process.chunks.popleft()
            self._feed(process)
        elif message.index in chunk.wanted:
            process.chunks[0] = chunk._replace(wanted=chunk.wanted - {message.index})
            yield message

    def _replace(self, process: _Process) -> Iterator[Done]:
        """Replace a process that died, and queue its chunks again."""
        process.end()
        if not process.proved:
            self._early_deaths += 1
            if self._early_deaths >= LEAST_LIVES:
                raise DeviceError(
                    f"{self._job.model}: workers die while they start (exit code "
                    f"{process.process.exitcode}), perhaps for lack of memory; lower --workers"
                )
        first, *rest = process.chunks
        self._again.extend(rest)
        first = first._replace(deaths=first.deaths + 1) if process.proved else first
        if first.deaths < ATTEMPTS:
            self._again.append(first)
        elif len(first.inputs) > 1:
            for i in sorted(first.wanted):
                self._again.append(Chunk([first.inputs[i]], frozenset({0}), first.deaths - 1))
        else:
            code = process.process.exitcode
            error = died_on(first.inputs[0], self._job, f"exit code {code}")
            yield failed(first.inputs[0], 0, error, self._job.header)
        self._processes.remove(process)
        fresh = _Process(self._job)
        self._processes.append(fresh)
        for _ in range(AHEAD):
            self._feed(fresh)

    def _feed(self, process: _Process) -> None:
        chunk = self._again.popleft() if self._again else next(self._coming, None)
        if chunk is not None:
            process.give(chunk)


def died_on(item: Input, job: Job, reason: str) -> DeviceError:
    """Make the error of an input on which workers died.

    Args:
        item: the input.
        job: model and decoder.
        reason: exit code or exception of the last worker.
    """
    return DeviceError(
        f"{item.audio}: the workers that read it died ({reason}); try it alone: ds2deploy "
        f"transcribe {job.model} {item.audio}"
    )


def _work(job: Job, connection: Connection) -> None:
    """Receive chunks and send results until the connection closes: the body of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    try:
        worker = Worker(job)
    except Ds2Error as error:
        connection.send(error)
        return
    connection.send(READY)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            for found in worker.run(connection.recv()):
                connection.send(found)
            connection.send(None)
