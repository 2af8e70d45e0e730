"""Workers on a Ray cluster: a pool of actors with one session each."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from ds2deploy.bulk.local import ATTEMPTS, Chunk, died_on
from ds2deploy.bulk.worker import Done, Job, Worker, failed
from ds2deploy.loading import choose_backend

AHEAD = 2
"""Number of chunks queued for each actor, so that it never waits for the next one."""


def run_ray(job: Job, chunks: Iterator[Chunk], workers: int, address: str | None) -> Iterator[Done]:
    """Recognise chunks with actors on a Ray cluster.

    Only paths are sent to the actors, and only text is sent back. If an actor or its node dies,
    the actor is replaced and its chunks are queued again.

    Args:
        job: model and decoder; every node must be able to read the model file and the recordings.
        chunks: chunks, read as they are needed.
        workers: number of actors.
        address: address of the cluster; None starts one on this machine.

    Yields:
        One result for every wanted input.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ours = not ray.is_initialized()
    if ours:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    try:
        yield from _Actors(job, chunks, workers).run()
    finally:
        if ours:
            ray.shutdown()


class _Actors:
    def __init__(self, job: Job, chunks: Iterator[Chunk], workers: int) -> None:
        self._job, self._coming = job, chunks
        device = choose_backend(Path(job.model), job.device, job.runtime)[2]
        gpus = 1 if device.startswith("cuda") else 0
        cores = 1 if gpus else max(1, job.threads)
        self._make: Any = ray.remote(num_cpus=cores, num_gpus=gpus)(_Actor)
        self._again: list[Chunk] = []
        self._running: dict[Any, tuple[Any, Chunk]] = {}
        self._actors = [self._make.remote(job) for _ in range(workers)]

    def run(self) -> Iterator[Done]:
        """Distribute chunks and yield results until all are done."""
        for _ in range(AHEAD):
            for actor in self._actors:
                self._feed(actor)
        while self._running:
            ready, _ = ray.wait(list(self._running), num_returns=1)
            actor, chunk = self._running.pop(ready[0])
            try:
                found = ray.get(ready[0])
            except ray.exceptions.RayActorError as error:
                actor = self._replaced(actor)
                yield from self._retry(chunk, error)
            else:
                yield from (one for one in found if one.index in chunk.wanted)
            self._feed(actor)

    def _replaced(self, actor: Any) -> Any:
        """Replace an actor that died, once for all of its chunks."""
        if actor not in self._actors:
            return self._actors[-1]
        self._actors.remove(actor)
        self._actors.append(self._make.remote(self._job))
        return self._actors[-1]

    def _retry(self, chunk: Chunk, error: Exception) -> Iterator[Done]:
        chunk = chunk._replace(deaths=chunk.deaths + 1)
        if chunk.deaths <= 2 * ATTEMPTS:  # the death of a node affects unrelated chunks as well
            self._again.append(chunk)
        elif len(chunk.inputs) > 1:
            self._again += [
                Chunk([chunk.inputs[i]], frozenset({0}), chunk.deaths - 1) for i in chunk.wanted
            ]
        else:
            death = died_on(chunk.inputs[0], self._job, type(error).__name__)
            yield failed(chunk.inputs[0], 0, death, self._job.header)

    def _feed(self, actor: Any) -> None:
        chunk = self._again.pop() if self._again else next(self._coming, None)
        if chunk is not None:
            self._running[actor.run.remote(chunk.inputs)] = (actor, chunk)


class _Actor:
    """Ray actor around a `Worker`."""

    def __init__(self, job: Job) -> None:
        self._worker = Worker(job)

    def run(self, inputs: Any) -> list[Done]:
        """Recognise a chunk."""
        return list(self._worker.run(inputs))
