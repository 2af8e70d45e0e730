"""Simulates Triton's execution of a model: requests by its configuration, in batches.

It follows Triton's sources (core: infer_request.cc, dynamic_batch_scheduler.cc) in what decides
about results: which requests are accepted, which are batched, and how tensors are reshaped. Time
is given by the caller, in microseconds; running a batch takes none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ds2deploy.export.triton.schema import load_schema
from ds2deploy.runtimes.errors import Ds2Error
from ds2deploy.runtimes.onnx.library import import_onnxruntime
from ds2deploy.runtimes.tensors import Tensors
from ds2deploy.runtimes.triton import SequencePart

Run = Callable[[Tensors], Tensors]
"""Runs the model itself: all inputs, states included, to all outputs."""

NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "TYPE_FP32": np.dtype(np.float32),
    "TYPE_INT64": np.dtype(np.int64),
}


class RequestError(Ds2Error, ValueError):
    """A request that Triton would refuse."""


class Request:
    """One request, and later its result.

    Args:
        inputs: arrays with the batch axis.
        sequence: place in a stream; None for whole utterances.

    Attributes:
        results: outputs, once it has run.
        error: reason why it failed.
        states: states of its stream, with a batch axis of 1, when it runs.
    """

    def __init__(self, inputs: Tensors, sequence: SequencePart | None = None) -> None:
        self.inputs, self.sequence = inputs, sequence
        self.results: Tensors | None = None
        self.error: Exception | None = None
        self.states: dict[str, npt.NDArray[Any]] = {}

    @property
    def size(self) -> int:
        """Utterances in the request."""
        return len(next(iter(self.inputs.values())))

    @property
    def shapes(self) -> tuple[Any, ...]:
        """Return what must be equal in a batch: shapes without the batch axis, states included."""
        tensors = {**self.inputs, **self.states}
        return tuple(sorted((name, array.shape[1:]) for name, array in tensors.items()))


class SimulatedModel:
    """A model as one instance of Triton runs it.

    Args:
        config: the parsed configuration.
        run: the model.

    Attributes:
        config: the parsed configuration.
        batches: all batches that have run: the requests of each.
    """

    def __init__(self, config: Any, run: Run) -> None:
        self.config, self._run = config, run
        self.batches: list[list[Request]] = []
        self._types = {value: name for name, value in load_schema().DataType.items()}

    def check(self, request: Request) -> None:
        """Accept a request, or refuse it as Triton does.

        Raises:
            RequestError: another tensor, type or shape than the configuration declares.
        """
        declared = {one.name: one for one in self.config.input}
        if set(request.inputs) != set(declared):
            raise RequestError(
                f"inputs {', '.join(sorted(request.inputs))}: expected {', '.join(declared)}"
            )
        for name, array in request.inputs.items():
            dims = [*declared[name].dims]
            fits = array.ndim == len(dims) + 1 and all(
                limit in (-1, size) for size, limit in zip(array.shape[1:], dims, strict=False)
            )
            if not fits or array.dtype != self._dtype(declared[name]):
                raise RequestError(f"input {name} {array.dtype}{array.shape}: expected {dims}")
        sizes = {len(array) for array in request.inputs.values()}
        if len(sizes) != 1 or not 1 <= max(sizes) <= self.config.max_batch_size:
            raise RequestError(
                f"batch of {sorted(sizes)}: expected 1 to {self.config.max_batch_size}"
            )

    def execute(self, requests: Sequence[Request]) -> None:
        """Run a batch; each request gets its results, or the error that all of them have."""
        self.batches.append([*requests])
        try:
            self._execute(requests)
        except Exception as error:  # the engine's own classes: every request of the batch fails
            for request in requests:
                request.error = error

    def _execute(self, requests: Sequence[Request]) -> None:
        reshaped = {one.name for one in self.config.input if one.HasField("reshape")}
        tensors = {}
        for name in [*requests[0].inputs, *requests[0].states]:
            parts = [{**request.inputs, **request.states}[name] for request in requests]
            joined = np.concatenate(parts)
            tensors[name] = joined[:, 0] if name in reshaped else joined
        outputs = self._run(tensors)
        first = 0
        for request in requests:
            rows = slice(first, first + request.size)
            request.results = {
                one.name: self._output(one, outputs[one.name][rows]) for one in self.config.output
            }
            request.states = {
                state.output_name: outputs[state.output_name][rows].copy()
                for state in self.config.sequence_batching.state
            }
            first += request.size

    def _output(self, declared: Any, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if declared.HasField("reshape"):
            array = array[:, None]
        dims = zip(array.shape[1:], declared.dims, strict=True)
        if not all(limit in (-1, size) for size, limit in dims):
            raise RequestError(f"output {declared.name} {array.shape}: expected {declared.dims}")
        if array.dtype != self._dtype(declared):
            raise RequestError(
                f"output {declared.name} of type {array.dtype}; expected {self._dtype(declared)}"
            )
        return array.copy()

    def _dtype(self, declared: Any) -> np.dtype[Any]:
        return NUMPY_TYPES[self._types[declared.data_type]]


class DynamicBatcher:
    """Triton's dynamic batcher.

    Requests wait in order. A batch takes them from the front as long as their shapes are equal. It
    runs when its size is a preferred one, when it cannot grow, or when its oldest request has
    waited for the queue delay.

    Args:
        model: runs the batches.
        preferred: sizes that run at once; without any, the largest.
        delay_us: queue delay, in microseconds.
        done: called with every request that has run, and the time.
    """

    def __init__(
        self,
        model: SimulatedModel,
        preferred: Sequence[int],
        delay_us: int,
        done: Callable[[Request, int], None] = lambda request, now: None,
    ) -> None:
        self._model, self._delay_us, self._done = model, delay_us, done
        self._preferred = {*preferred} or {max(1, model.config.max_batch_size)}
        self._queue: deque[tuple[int, Request]] = deque()

    @property
    def deadline(self) -> int | None:
        """Time at which the oldest request has waited long enough; None where none waits."""
        return self._queue[0][0] + self._delay_us if self._queue else None

    def submit(self, request: Request, now: int) -> None:
        """Queue a request.

        Raises:
            RequestError: see `SimulatedModel.check`.
        """
        self._model.check(request)
        self.enqueue(request, now)

    def enqueue(self, request: Request, now: int) -> None:
        """Queue a request that was checked."""
        self._queue.append((now, request))

    def advance(self, now: int) -> None:
        """Run all batches that are due."""
        while count := self._due(now):
            batch = [self._queue.popleft()[1] for _ in range(count)]
            self._model.execute(batch)
            for request in batch:
                self._done(request, now)

    def _due(self, now: int) -> int:
        """Count the requests of the batch that runs now; 0 if it waits."""
        if not self._queue:
            return 0
        size, count, best, full = 0, 0, 0, False
        for _, request in self._queue:
            if count and request.shapes != self._queue[0][1].shapes:
                full = True
                break
            if count and size + request.size > max(self._preferred):
                full = True
                break
            size, count = size + request.size, count + 1
            best = count if size in self._preferred else best
        late = now >= self._queue[0][0] + self._delay_us
        if best and not late:
            return best
        return count if late or full or size >= max(self._preferred) else 0


def open_onnx(path: Path) -> Any:
    """Open a session of ONNX Runtime on the CPU."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # The path may not be UTF-8, which ONNX Runtime wants.
    return onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )


def onnx_run(path: Path) -> Run:
    """Run an ONNX file as it is, with no check of ds2deploy's."""
    session = open_onnx(path)
    names = [output.name for output in session.get_outputs()]

    def run(tensors: Tensors) -> Tensors:
        return dict(zip(names, session.run(names, dict(tensors)), strict=True))

    return run
