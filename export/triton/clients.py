"""Clients of a simulated server, in step: what they send at the same time can be batched."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from ds2deploy.export.triton.sequences import SequenceBatcher
from ds2deploy.export.triton.simulator import DynamicBatcher, Request, SimulatedModel
from ds2deploy.runtimes.tensors import Tensors
from ds2deploy.runtimes.triton import Infer, SequencePart

T = TypeVar("T")


class Batcher(Protocol):
    """A batcher of Triton, with the time given by the caller (microseconds)."""

    @property
    def deadline(self) -> int | None:
        """Time at which the oldest request has waited long enough; None where none waits."""

    def submit(self, request: Request, now: int) -> None:
        """Queue a request."""

    def advance(self, now: int) -> None:
        """Run all batches that are due."""


def make_batcher(model: SimulatedModel) -> Batcher:
    """Make the batcher that a configuration asks for."""
    if model.config.WhichOneof("scheduling_choice") == "sequence_batching":
        return SequenceBatcher(model)
    settings = model.config.dynamic_batching
    largest = model.config.HasField("dynamic_batching")
    sizes = settings.preferred_batch_size if largest else (1,)
    return DynamicBatcher(model, sizes, settings.max_queue_delay_microseconds)


def run_clients(
    batcher: Batcher, clients: Sequence[Callable[[Infer], T]], stagger: int = 0
) -> list[T]:
    """Run clients side by side, each in a thread.

    Time goes in rounds: when all clients wait, the requests of all of them go to the batcher, in
    the order of the clients. So the result does not depend on the threads.

    Args:
        batcher: the simulated server.
        clients: each is called with its transport.
        stagger: rounds by which each client begins later than the one before it.

    Returns:
        What the clients return.

    Raises:
        Exception: the first error of a client.
    """
    rounds = _Rounds(batcher, len(clients))
    results: dict[int, T] = {}
    errors: dict[int, BaseException] = {}

    def work(index: int) -> None:
        def infer(
            inputs: Tensors, outputs: Sequence[str], sequence: SequencePart | None
        ) -> Tensors:
            found = rounds.wait(index, Request(inputs, sequence))
            assert found is not None
            return {name: found[name] for name in outputs}

        try:
            for _ in range(index * stagger):
                rounds.wait(index, None)
            results[index] = clients[index](infer)
        except BaseException as error:  # raised again in the caller's thread
            errors[index] = error
        finally:
            rounds.leave(index)

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[min(errors)]
    return [results[i] for i in range(len(clients))]


class _Rounds:
    """A meeting point of the threads of `run_clients`."""

    def __init__(self, batcher: Batcher, clients: int) -> None:
        self._batcher, self._now = batcher, 0
        self._live = {*range(clients)}
        self._pending: dict[int, Request | None] = {}
        self._done: dict[int, Request | None] = {}
        self._condition = threading.Condition()

    def wait(self, index: int, request: Request | None) -> Tensors | None:
        """Wait for the end of this round, with a request or without."""
        with self._condition:
            self._pending[index] = request
            self._run_if_complete()
            while index not in self._done:
                self._condition.wait()
            self._done.pop(index)
        if request is None:
            return None
        if request.error is not None:
            raise request.error
        assert request.results is not None
        return request.results

    def leave(self, index: int) -> None:
        """Take part in no further round."""
        with self._condition:
            self._live.discard(index)
            self._run_if_complete()

    def _run_if_complete(self) -> None:
        if not self._pending or self._live - set(self._pending):
            return
        self._now += 1_000
        for _, request in sorted(self._pending.items()):
            if request is not None:
                self._submit(request)
        self._batcher.advance(self._now)
        while (deadline := self._batcher.deadline) is not None:
            self._now = max(self._now, deadline)
            self._batcher.advance(self._now)
        self._done.update(self._pending)
        self._pending.clear()
        self._condition.notify_all()

    def _submit(self, request: Request) -> None:
        try:
            self._batcher.submit(request, self._now)
        except Exception as error:
            request.error = error
