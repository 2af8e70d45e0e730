"""Simulates Triton's sequence batcher: strategy `oldest`, implicit states.

It follows Triton's sources (core: sequence_batch_scheduler.cc, sequence_state.cc): a stream has a
slot from its first request to its last, one request of it runs at a time, and the states that a
request leaves are paired with those of the next one **by their sorted names**.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from ds2deploy.export.triton.schema import load_schema
from ds2deploy.export.triton.simulator import (
    NUMPY_TYPES,
    DynamicBatcher,
    Request,
    RequestError,
    SimulatedModel,
)

GARBAGE = 77
"""Value of states that a configuration leaves undefined."""


class _Sequence:
    """A stream that has a slot, or waits for one."""

    def __init__(self, now: int) -> None:
        self.seen, self.running, self.ended, self.cancelled = now, False, False, False
        self.waiting: deque[Request] = deque()
        self.states: dict[str, npt.NDArray[Any]] = {}


class SequenceBatcher:
    """Batches requests of different streams.

    Args:
        model: runs the batches; its configuration has `sequence_batching`.

    Attributes:
        free: slots that no stream has.
    """

    def __init__(self, model: SimulatedModel) -> None:
        self._model, settings = model, model.config.sequence_batching
        self._settings = settings
        oldest = settings.oldest
        self.free: int = oldest.max_candidate_sequences or max(1, model.config.max_batch_size)
        self._batcher = DynamicBatcher(
            model, oldest.preferred_batch_size, oldest.max_queue_delay_microseconds, self._ran
        )
        self._active: dict[int, _Sequence] = {}
        self._backlog: dict[int, _Sequence] = {}
        self._running: dict[Request, _Sequence] = {}

    @property
    def deadline(self) -> int | None:
        """See `DynamicBatcher.deadline`."""
        return self._batcher.deadline

    def submit(self, request: Request, now: int) -> None:
        """Queue a request of a stream.

        Raises:
            RequestError: no id, a batch, or the first request without START.
        """
        self._model.check(request)
        part = request.sequence
        if part is None or part.id == 0:
            raise RequestError("a request of a stream must have an id above 0")
        if request.size != 1:
            raise RequestError("a request of a stream must have a batch of 1")
        self._forget_idle(now)
        sequence = self._active.get(part.id) or self._backlog.get(part.id)
        if sequence is None:
            if not part.start:
                raise RequestError(f"stream {part.id}: START is missing on its first request")
            sequence = _Sequence(now)
            home = self._active if self.free else self._backlog
            home[part.id] = sequence
            self.free -= home is self._active
        sequence.seen = now
        sequence.waiting.append(request)
        if part.id in self._active:
            self._feed(sequence, now)

    def advance(self, now: int) -> None:
        """Run all batches that are due, and forget idle streams."""
        self._batcher.advance(now)
        self._forget_idle(now)

    def cancel(self, number: int, now: int) -> None:
        """Cancel a stream: what waits of it does not run, and its slot is free again, once."""
        if (sequence := self._backlog.pop(number, None)) is None:
            if (sequence := self._active.pop(number, None)) is None:
                return
            sequence.cancelled = sequence.running  # then its slot is free when that has run
            self.free += not sequence.running
        for request in sequence.waiting:
            request.error = RequestError(f"stream {number}: cancelled")
        sequence.waiting.clear()
        self._admit(now)

    def _feed(self, sequence: _Sequence, now: int) -> None:
        """Hand the next request of a stream to the batcher, unless one is on its way."""
        if sequence.running or not sequence.waiting:
            return
        request = sequence.waiting.popleft()
        assert request.sequence is not None
        if request.sequence.start:
            sequence.states = self._initial()
        sequence.ended = request.sequence.end
        sequence.running = True
        self._running[request] = sequence
        request.states = sequence.states
        self._batcher.enqueue(request, now)

    def _ran(self, request: Request, now: int) -> None:
        assert request.sequence is not None
        number, sequence = request.sequence.id, self._running.pop(request)
        sequence.running = False
        if request.error is None:
            sequence.states = self._paired(request.states)
        if sequence.cancelled:
            self.free += 1
            self._admit(now)
        elif sequence.ended and not sequence.waiting:
            self._release(number)
            self._admit(now)
        else:
            self._feed(sequence, now)

    def _paired(self, left: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """States for the next request: the n-th input by name gets the n-th output by name."""
        inputs = sorted(state.input_name for state in self._settings.state)
        outputs = sorted(state.output_name for state in self._settings.state)
        return {name: left[other] for name, other in zip(inputs, outputs, strict=True)}

    def _initial(self) -> dict[str, npt.NDArray[Any]]:
        """States of a new stream. Without `initial_state` Triton leaves what is in the memory."""
        states = {}
        for state in self._settings.state:
            dtype = NUMPY_TYPES[load_schema().DataType.Name(state.data_type)]
            zero = len(state.initial_state) == 1 and state.initial_state[0].zero_data
            states[state.input_name] = np.full((1, *state.dims), 0 if zero else GARBAGE, dtype)
        return states

    def _forget_idle(self, now: int) -> None:
        idle_us = self._settings.max_sequence_idle_microseconds
        for number, sequence in [*self._active.items()]:
            busy = sequence.running or sequence.waiting
            if not busy and now - sequence.seen > idle_us:
                self._release(number)
        self._admit(now)

    def _release(self, number: int) -> None:
        del self._active[number]
        self.free += 1

    def _admit(self, now: int) -> None:
        """Give free slots to streams that wait for one."""
        while self.free and self._backlog:
            number = next(iter(self._backlog))
            sequence = self._active[number] = self._backlog.pop(number)
            self.free -= 1
            self._feed(sequence, now)
