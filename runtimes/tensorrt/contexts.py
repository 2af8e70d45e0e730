"""Execution contexts of a TensorRT engine, one for each run at a time, and the pool of them."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.errors import DeviceError, one_line
from ds2deploy.runtimes.tensorrt import cuda
from ds2deploy.runtimes.tensors import LENGTHS, Tensors, input_tensors, named_sizes, output_tensors

LOG = logging.getLogger("ds2deploy")

Shape = tuple[int, int]
"""Input shape of an execution context: utterances, and frames or samples of each."""


class ExecutionContext:
    """An execution context, a stream, and the buffers of all tensors; for one run at a time.

    A CUDA graph is valid for the state that its context was captured in, and the state changes
    with the input's shape ("one execution context per captured graph", TensorRT's guide): a
    context has one graph, of the shape it is prepared for. A run that repeats it is captured, the
    next is replayed; another shape drops it.

    Attributes:
        shape: input shape that the context is prepared for; None for none.
        spent: True if a capture failed; the state of the context is then unknown.
    """

    def __init__(
        self,
        device: cuda.Device,
        make_context: Callable[[], Any],
        description: ArtifactDescription,
        graphs: GraphSwitch,
    ) -> None:
        self.shape: Shape | None = None
        self.spent = False
        self._device = device
        self._description = description
        self._graphs = graphs
        self._context: Any = None
        self._repeats = False
        self._graph: cuda.Graph | None = None
        self._stream: cuda.CudaStream | None = None
        self._inputs, self._outputs = input_tensors(description), output_tensors(description)
        self._dtypes = {tensor.name: tensor.dtype for tensor in (*self._inputs, *self._outputs)}
        self._buffers = {name: cuda.Buffer(device) for name in self._dtypes}
        self._shapes: dict[str, tuple[int, ...]] = {}
        try:
            self._context = make_context()
            self._stream = cuda.CudaStream(device)
        except BaseException:
            self.close()
            raise

    def run(self, tensors: Tensors, shape: Shape) -> Tensors:
        """Run a batch that fits in `shape`; after an error the context must be closed."""
        assert self._stream is not None
        self._device.activate()
        if shape != self.shape:
            self._prepare(shape)
        self._stage(tensors)
        graph = self._graph if self._graphs.on else None
        if graph is not None:
            graph.launch(self._stream)
        else:
            self._queue()
        self._stream.synchronize()
        sound = tensors[self._inputs[0].name]
        results = self._results(len(sound), sound.shape[-1])
        if graph is None and self._repeats and self._graphs.on:
            self._capture()
        self._repeats = True
        return results

    def close(self) -> None:
        """Free all of it, also after an error at any step."""
        if self._stream is not None:
            # Work that an error left queued still uses the buffers. It may end in the same error.
            with contextlib.suppress(DeviceError):
                self._stream.synchronize()
        self._drop_graph()
        self._context = None
        for buffer in self._buffers.values():
            buffer.close()
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _prepare(self, shape: Shape) -> None:
        """Tell the context a shape, and where tensors of it are."""
        self._drop_graph()
        self.shape, self._repeats = None, False
        sizes = named_sizes(self._description, *shape)
        given = {tensor.name: tensor.shape(**sizes) for tensor in self._inputs}
        expected = {tensor.name: tensor.shape(**sizes) for tensor in self._outputs}
        for name, dims in given.items():
            if not self._context.set_input_shape(name, dims):
                raise DeviceError(f"the engine rejects the shape {dims} of its input {name}")
        if unknown := self._context.infer_shapes():
            raise DeviceError(f"the engine needs more inputs than {', '.join(given)}: {unknown}")
        self._shapes = given | {
            name: tuple(self._context.get_tensor_shape(name)) for name in expected
        }
        if self._shapes != given | expected:
            raise DeviceError(
                f"the engine computes the shapes {self._shapes}; expected {given | expected}"
            )
        for name, buffer in self._buffers.items():
            buffer.reserve(self._size(name))
            if not self._context.set_tensor_address(name, buffer.address):
                raise DeviceError(f"the engine rejects the address of {name}")
        self.shape = shape

    def _stage(self, tensors: Tensors) -> None:
        """Copy a batch to where the device takes it from, padded to the shape.

        Padding is exact in this network: what is past a length is masked, and an utterance more,
        of zeros, or a stream at its first block, changes none of the others.
        """
        for name in (tensor.name for tensor in self._inputs):
            given, staged = tensors[name], self._view(name)
            if given.shape != staged.shape:
                staged[...] = 1 if name == LENGTHS else 0
            staged[tuple(map(slice, given.shape))] = given

    def _results(self, batch: int, size: int) -> Tensors:
        """Copy what the device wrote, for the batch without padding."""
        sizes = named_sizes(self._description, batch, size)
        shapes = {tensor.name: tensor.shape(**sizes) for tensor in self._outputs}
        return {
            name: self._view(name)[tuple(map(slice, shape))].copy()
            for name, shape in shapes.items()
        }

    def _queue(self) -> None:
        """Copy in, execute, copy out; nothing of it is done before the stream is synchronised."""
        assert self._stream is not None
        for name in (tensor.name for tensor in self._inputs):
            self._buffers[name].upload(self._size(name), self._stream)
        if not self._context.execute_async_v3(int(self._stream.handle)):
            raise DeviceError("the engine could not be executed")
        for name in (tensor.name for tensor in self._outputs):
            self._buffers[name].download(self._size(name), self._stream)

    def _capture(self) -> None:
        """Record what has just run; where that fails, no context tries it again."""
        assert self._stream is not None
        try:
            # TensorRT-RTX can say beforehand.
            capturable = getattr(self._context, "is_stream_capturable", None)
            if capturable is not None and not capturable(int(self._stream.handle)):
                raise DeviceError("TensorRT reports that this engine does not support CUDA graphs")
            self._graph = cuda.Graph(self._device, self._stream, self._queue)
        except RuntimeError as error:
            self.spent = True
            self._graphs.give_up(one_line(error))

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def _view(self, name: str) -> Any:
        return self._buffers[name].view(self._shapes[name], np.dtype(self._dtypes[name]).type)

    def _size(self, name: str) -> int:
        return int(np.prod(self._shapes[name])) * np.dtype(self._dtypes[name]).itemsize


class ContextPool:
    """Contexts, made when they are needed, each lent to one run at a time."""

    def __init__(self, make: Callable[[], ExecutionContext], limit: int) -> None:
        self._make = make
        self._limit = limit
        self._made = 0
        self._idle: list[ExecutionContext] = []
        self._stopped = False
        self._changed = threading.Condition()
        self._making = threading.Lock()

    @contextlib.contextmanager
    def borrow(self, shape: Shape) -> Iterator[ExecutionContext]:
        """Lend a context, prepared for `shape` if there is one; waits while all are lent.

        A context whose run failed is not lent again: its state is unknown.
        """
        context = self._take(shape)
        try:
            yield context
        except BaseException:
            context.close()
            self._forget_one()
            raise
        if context.spent:
            context.close()
            self._forget_one()
            return
        with self._changed:
            self._idle.append(context)
            self._changed.notify_all()

    def stop(self) -> None:
        """Lend no more, and wait until every context is back."""
        with self._changed:
            self._stopped = True  # the next context that comes back wakes who waits
            self._changed.wait_for(lambda: len(self._idle) == self._made)

    def free(self) -> None:
        """Free the contexts, after `stop`."""
        while self._idle:
            self._idle.pop().close()

    def _take(self, shape: Shape) -> ExecutionContext:
        with self._changed:
            while not self._stopped:
                if self._idle:
                    fitting = (i for i, item in enumerate(self._idle) if item.shape == shape)
                    return self._idle.pop(next(fitting, 0))  # else the least recently used
                if self._made < self._limit:
                    self._made += 1
                    break
                self._changed.wait()
            else:
                raise DeviceError("the session is closed; open another")
        try:
            with self._making:
                return self._make()
        except BaseException:
            self._forget_one()
            raise

    def _forget_one(self) -> None:
        with self._changed:
            self._made -= 1
            self._changed.notify_all()


class GraphSwitch:
    """Switch for the CUDA graphs of a session; the first failed capture turns it off."""

    def __init__(self, path: Path, wanted: bool) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.on = wanted
        self.text = "on" if wanted else "off"

    def give_up(self, reason: str) -> None:
        """Turn it off for all contexts, and log why, once."""
        with self._lock:
            if self.on:
                self.on = False
                self.text = f"off: capture failed: {reason}"
                LOG.warning("%s: runs without CUDA graphs: capture failed: %s", self._path, reason)
