"""A machine with a GPU, for tests on one without: TensorRT's and CUDA's Python API.

It stands in for `tensorrt` (or `tensorrt_rtx`) and `cuda.bindings.runtime`. What it computes is
right, by ONNX Runtime, from the ONNX file that its engines hold; and it is as strict as a GPU is
undefined: device memory is at addresses that only it can follow, queued work is done when the
stream is synchronised and not before, memory that is freed is never used again, and what a program
must not do is noted in `Machine.violations`. `test_tensorrt.py` compares its names and signatures
with the real packages.
"""

# ruff: noqa: N801, N803, N815  # the names are those of the real packages

from __future__ import annotations

import ctypes
import functools
import hashlib
import inspect
import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

MAGIC = b"standin-engine\n"
OFFSET = 1 << 52
"""From where the host has a byte to where the device has it: no pointer of one serves the other."""

TIME_AXES = ("time", "samples")

_SESSIONS: dict[str, onnxruntime.InferenceSession] = {}


def make_blob(onnx: bytes, profile: dict[str, Any], tensors: dict[str, Any] | None = None) -> bytes:
    """An engine: profile {batch: [min, opt, max], frames: [...]}, `tensors` replaces its own."""
    header = json.dumps({"profile": profile, "tensors": tensors}).encode()
    return MAGIC + len(header).to_bytes(4, "big") + header + onnx


# ---- CUDA


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalAddress = 700
    cudaErrorLaunchFailure = 719
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorUnknown = 999


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


class cudaDeviceAttr(IntEnum):
    cudaDevAttrIntegrated = 18
    cudaDevAttrCanMapHostMemory = 19
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


CONSTANTS = {"cudaStreamNonBlocking": 1, "cudaHostAllocDefault": 0, "cudaHostAllocMapped": 2}
E = cudaError_t
TEXTS = {E.cudaErrorMemoryAllocation: "out of memory"}

# They free even where they report an error, which is then one of earlier work.
RELEASES = {
    "cudaFree",
    "cudaFreeHost",
    "cudaStreamDestroy",
    "cudaGraphDestroy",
    "cudaGraphExecDestroy",
    "cudaStreamEndCapture",
}
# They do not care which device is current.
DEVICELESS = {
    "cudaGetDeviceCount",
    "cudaSetDevice",
    "cudaDeviceGetAttribute",
    "cudaGetDeviceProperties",
    "cudaGetErrorName",
    "cudaGetErrorString",
    "cudaGetLastError",
    "cudaDriverGetVersion",
    "cudaRuntimeGetVersion",
}
UNSAFE_WHILE_CAPTURING = {"cudaMalloc", "cudaFree", "cudaHostAlloc", "cudaFreeHost"}


class CudaFailureError(Exception):
    def __init__(self, error: cudaError_t) -> None:
        self.error = error


class Block:
    """One allocation. Its memory is never given back, so that a late use is seen and harmless."""

    def __init__(self, size: int, space: str, device: int) -> None:
        self.size, self.space, self.device = size, space, device
        self.memory = (ctypes.c_ubyte * size)()
        self.base = ctypes.addressof(self.memory)
        self.live = True
        ctypes.memset(self.base, 0xFF, size)  # NaN, and lengths of -1


class Stream:
    def __init__(self, flags: int, device: int) -> None:
        self.flags, self.device = flags, device
        self.queue: list[Any] = []
        self.captured: list[Any] | None = None
        self.capture: Any = None  # (mode, thread), or "invalid"


class Handle:
    """cudaStream_t, cudaGraph_t, cudaGraphExec_t."""

    _numbers = itertools.count(0x7000)

    def __init__(self) -> None:
        self.number = next(self._numbers)

    def __int__(self) -> int:
        return self.number


class Copy:
    context = None

    def __init__(self, machine: Machine, to: int, source: int, size: int) -> None:
        self.machine, self.spans = machine, [(to, size), (source, size)]

    def run(self) -> None:
        to, source = (self.machine.locate(*span) for span in self.spans)
        ctypes.memmove(to, source, self.spans[0][1])


class Execute:
    """An execution as it was queued: its shapes and addresses, whatever the context does later."""

    def __init__(self, machine: Machine, context: ContextState) -> None:
        self.machine, self.context, self.version = machine, context, context.version
        core = context.core
        self.shapes = {name: context.shape(name) for name in core.tensors}
        self.addresses = dict(context.addresses)
        self.spans = [(self.addresses[n], core.bytes(n, s)) for n, s in self.shapes.items()]

    def run(self) -> None:
        core = self.context.core
        if not self.context.alive:
            self.machine.violate("execution of a context that is gone")
        arrays = {}
        for (name, shape), span in zip(self.shapes.items(), self.spans, strict=True):
            memory = (ctypes.c_ubyte * span[1]).from_address(self.machine.locate(*span))
            arrays[name] = np.frombuffer(memory, core.tensors[name].numpy).reshape(shape)
        outputs = [n for n in core.tensors if core.tensors[n].mode is TensorIOMode.OUTPUT]
        feed = {n: arrays[n].copy() for n in core.tensors if n not in outputs}
        if any(address < OFFSET for address in self.addresses.values()):
            self.machine.violate("the device was given an address of the host")
        sound, lengths, *_ = feed.values()
        longest = np.inf if "state.position" in feed else sound.shape[-1]
        if (
            not all(np.isfinite(array).all() for array in feed.values())
            or not ((lengths > 0) & (lengths <= longest)).all()
        ):
            self.machine.violate("input that was never written")
        self.machine.executions += 1
        for name, value in zip(outputs, core.session.run(outputs, feed), strict=True):
            arrays[name][...] = value


class Cudart:
    """The functions of `cuda.bindings.runtime`: each gives (error, *results)."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def cudaGetDeviceCount(self):
        m = self.machine
        if m.driver == 0 or m.driver // 1000 < m.bindings // 1000:
            return E.cudaErrorInsufficientDriver, None
        return (E.cudaSuccess, m.devices) if m.devices else (E.cudaErrorNoDevice, None)

    def cudaSetDevice(self, device):
        if not 0 <= device < self.machine.devices:
            return (E.cudaErrorInvalidDevice,)
        self.machine.local.device = device
        return (E.cudaSuccess,)

    def cudaDeviceGetAttribute(self, attr, device):
        major, minor = self.machine.capability.split(".")
        values = {
            cudaDeviceAttr.cudaDevAttrIntegrated: int(self.machine.integrated),
            cudaDeviceAttr.cudaDevAttrCanMapHostMemory: int(self.machine.can_map),
            cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor: int(major),
            cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor: int(minor),
        }
        return E.cudaSuccess, values[attr]

    def cudaGetDeviceProperties(self, device):
        return E.cudaSuccess, SimpleNamespace(name=b"Stand-in GPU")

    def cudaGetErrorName(self, error):
        return E.cudaSuccess, error.name.encode()

    def cudaGetErrorString(self, error):
        return E.cudaSuccess, TEXTS.get(error, error.name[9:].lower()).encode()

    def cudaGetLastError(self):
        error, self.machine.last_error = self.machine.last_error, E.cudaSuccess
        return (error,)

    def cudaDriverGetVersion(self):
        return E.cudaSuccess, self.machine.driver

    def cudaRuntimeGetVersion(self):
        return E.cudaSuccess, self.machine.bindings

    def cudaMalloc(self, size):
        return self._allocate(size, "device", OFFSET)

    def cudaHostAlloc(self, size, flags):
        mapped = flags & CONSTANTS["cudaHostAllocMapped"]
        return self._allocate(size, "mapped" if mapped else "host", 0)

    def cudaHostGetDevicePointer(self, pHost, flags):
        block = self.machine.block_at(pHost)
        if block is None or block.space != "mapped" or flags:
            return E.cudaErrorInvalidValue, None
        return E.cudaSuccess, pHost + OFFSET

    def cudaFree(self, devPtr):
        return self._free(devPtr, ("device",))

    def cudaFreeHost(self, ptr):
        return self._free(ptr, ("host", "mapped"))

    def cudaMemcpyAsync(self, dst, src, count, kind, stream):
        down = kind is cudaMemcpyKind.cudaMemcpyDeviceToHost
        if (dst >= OFFSET) is down or (src >= OFFSET) is not down:
            self.machine.violate(f"{kind.name}, but from {src:#x} to {dst:#x}")
            return (E.cudaErrorInvalidValue,)
        try:
            for address in (dst, src):
                self.machine.locate(address, count)
        except CudaFailureError as failure:
            self.machine.violate("copy beyond an allocation, or of memory that is not pinned")
            return (failure.error,)
        return self._queue(stream, [Copy(self.machine, dst, src, count)])

    def cudaStreamCreateWithFlags(self, flags):
        handle = Handle()
        self.machine.streams[int(handle)] = Stream(flags, self.machine.local.device)
        return E.cudaSuccess, handle

    def cudaStreamSynchronize(self, stream):
        found = self.machine.streams.get(int(stream))
        if found is None:
            return (E.cudaErrorInvalidResourceHandle,)
        if found.captured is not None:
            found.capture = "invalid"
            return (E.cudaErrorStreamCaptureUnsupported,)
        work = list(found.queue)
        try:
            for item in work:  # in the queue while it runs: a buffer freed meanwhile is seen
                item.run()
        except CudaFailureError as failure:
            self.machine.violate("queued work used memory that is not there")
            return (failure.error,)
        finally:
            del found.queue[: len(work)]
        return (E.cudaSuccess,)

    def cudaStreamDestroy(self, stream):
        found = self.machine.streams.pop(int(stream), None)
        if found is None:
            self.machine.violate("stream destroyed twice")
            return (E.cudaErrorInvalidResourceHandle,)
        if found.queue or found.captured is not None:
            self.machine.violate("stream destroyed with work in it")
        self.machine.events.append("stream")
        return (E.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream, mode):
        found = self.machine.streams.get(int(stream))
        if found is None or found.captured is not None:
            return (E.cudaErrorInvalidValue,)
        if not found.flags & CONSTANTS["cudaStreamNonBlocking"]:
            self.machine.violate("capture on a stream that waits for the default stream")
        found.captured, found.capture = [], (mode, threading.get_ident())
        return (E.cudaSuccess,)

    def cudaStreamEndCapture(self, stream):
        found = self.machine.streams.get(int(stream))
        if found is None or found.captured is None:
            return E.cudaErrorInvalidValue, None
        captured, capture = found.captured, found.capture
        found.captured = found.capture = None
        if capture == "invalid":
            return E.cudaErrorStreamCaptureInvalidated, None
        handle = Handle()
        self.machine.graphs[int(handle)] = captured
        return E.cudaSuccess, handle

    def cudaGraphInstantiate(self, graph, flags):
        captured = self.machine.graphs.get(int(graph))
        if captured is None:
            return E.cudaErrorInvalidValue, None
        handle = Handle()
        self.machine.executables[int(handle)] = list(captured)
        return E.cudaSuccess, handle

    def cudaGraphLaunch(self, graphExec, stream):
        work = self.machine.executables.get(int(graphExec))
        if work is None:
            self.machine.violate("launch of a graph that is gone")
            return (E.cudaErrorInvalidValue,)
        for item in work:
            if item.context is not None and (
                not item.context.alive or item.context.version != item.version
            ):
                self.machine.violate("launch of a graph whose context has changed since")
        return self._queue(stream, work)

    def cudaGraphExecDestroy(self, graphExec):
        if self.machine.executables.pop(int(graphExec), None) is None:
            self.machine.violate("executable graph destroyed twice")
        self.machine.events.append("graph")
        return (E.cudaSuccess,)

    def cudaGraphDestroy(self, graph):
        if self.machine.graphs.pop(int(graph), None) is None:
            self.machine.violate("graph destroyed twice")
        return (E.cudaSuccess,)

    def _allocate(self, size: int, space: str, offset: int):
        if size <= 0 or size > self.machine.memory:
            return E.cudaErrorMemoryAllocation, None
        block = Block(size, space, self.machine.local.device)
        self.machine.blocks.append(block)
        self.machine.peak = max(self.machine.peak, self.machine.allocated())
        return E.cudaSuccess, block.base + offset

    def _free(self, address: int, spaces: tuple[str, ...]):
        block = self.machine.block_at(address)
        if block is None or block.space not in spaces or not block.live:
            self.machine.violate("freed twice, or never allocated")
            return (E.cudaErrorInvalidValue,)
        if any(
            self.machine.block_at(at) is block
            for stream in self.machine.streams.values()
            for item in list(stream.queue)
            for at, _ in item.spans
        ):
            self.machine.violate("freed while queued work uses it")
        block.live = False
        ctypes.memset(block.base, 0xDD, block.size)
        self.machine.events.append("buffer")
        return (E.cudaSuccess,)

    def _queue(self, stream: Any, work: list[Any]):
        found = self.machine.streams.get(int(stream))
        if found is None:
            return (E.cudaErrorInvalidResourceHandle,)
        (found.queue if found.captured is None else found.captured).extend(work)
        return (E.cudaSuccess,)


# ---- TensorRT


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    INT32 = 3
    INT64 = 8


class TensorIOMode(IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ILogger:
    Severity = Severity

    def __init__(self) -> None:
        self._made = True

    def log(self, severity, msg):
        raise NotImplementedError


class Dims(tuple):
    __slots__ = ()


class IHostMemory(bytearray):
    @property
    def nbytes(self) -> int:
        return len(self)


RAISE = object()


def traced(failing: Any) -> Callable[[Any], Any]:
    """Count the calls of a method; an injected fault makes it give `failing`, or raise."""

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def call(self, *arguments, **named):
            fault = self._machine.count(function.__qualname__)
            if fault == "raise" or (fault and failing is RAISE):
                raise RuntimeError(f"injected into {function.__qualname__}\nsecond line")
            return failing if fault else function(self, *arguments, **named)

        return call

    return decorate


class EngineCore:
    """What an engine holds: the network, its tensors, its profile."""

    def __init__(self, blob: bytes) -> None:
        size = int.from_bytes(blob[len(MAGIC) :][:4], "big")
        start = len(MAGIC) + 4
        header, onnx = json.loads(blob[start : start + size]), blob[start + size :]
        key = hashlib.sha256(onnx).hexdigest()
        if key not in _SESSIONS:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            _SESSIONS[key] = onnxruntime.InferenceSession(
                onnx, options, providers=["CPUExecutionProvider"]
            )
        self.session = _SESSIONS[key]
        self.profile = header["profile"]
        types = {"tensor(float)": "FLOAT", "tensor(int64)": "INT64"}
        own = {i.name: ("INPUT", types[i.type]) for i in self.session.get_inputs()}
        own |= {o.name: ("OUTPUT", types[o.type]) for o in self.session.get_outputs()}
        self.dims = {
            t.name: t.shape for t in (*self.session.get_inputs(), *self.session.get_outputs())
        }
        self.tensors = {
            name: SimpleNamespace(
                mode=TensorIOMode[mode],
                dtype=DataType[kind],
                numpy={"FLOAT": np.float32, "INT64": np.int64}.get(kind, np.int32),
            )
            for name, (mode, kind) in (header["tensors"] or own).items()
        }

    def frames(self, size: int) -> int:
        """Of the last axis of what goes in: frames, or samples."""
        if next(iter(self.tensors)) != "waveform":
            return size
        features = json.loads(self.session.get_modelmeta().custom_metadata_map["ds2deploy"])[
            "features"
        ]
        return size // round(features["sample_rate"] * features["stride_ms"] / 1000) + 1

    def bytes(self, name: str, shape: tuple[int, ...]) -> int:
        return int(np.prod(shape)) * np.dtype(self.tensors[name].numpy).itemsize


class ContextState:
    """Of an execution context, apart from it: what is queued must not keep the context alive."""

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self.alive = True
        self.version = 0
        self.warm = -1  # version that has been executed outside of a capture
        self.given: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self.given:
            return self.given[name]
        sound = next(iter(self.core.tensors))
        given = self.given.get(sound, (-1,))
        sizes = {"batch": given[0], "output_time": (self.core.frames(given[-1]) - 1) // 2 + 1}
        return tuple(sizes.get(dim, dim) for dim in self.core.dims[name])


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig | None) -> None:
        self._machine, self._engine, self._config = engine._machine, engine, config
        self._state = ContextState(engine._core)
        self._machine.live["context"] += 1

    def __del__(self) -> None:
        self._state.alive = False
        self._machine.live["context"] -= 1
        self._machine.events.append("context")
        if any(
            item.context is self._state
            for stream in self._machine.streams.values()
            for item in list(stream.queue)
        ):
            self._machine.violate("context freed while it is queued")

    @traced(False)
    def set_input_shape(self, name, shape):
        profile = self._state.core.profile
        core = self._state.core
        sizes = [(shape[0], "batch")]
        sizes += [(core.frames(shape[-1]), "frames")] if core.dims[name][-1] in TIME_AXES else []
        fixed = zip(core.dims[name], shape, strict=True)
        if any(not profile[k][0] <= size <= profile[k][2] for size, k in sizes) or any(
            dim != size for dim, size in fixed if isinstance(dim, int)
        ):
            self._engine._error(f"{name} {shape} is outside of the profile")
            return False
        if self._state.given.get(name) != tuple(shape):
            self._state.given[name] = tuple(shape)
            self._state.version += 1
        return True

    @traced(["features"])
    def infer_shapes(self):
        return [
            name
            for name, tensor in self._state.core.tensors.items()
            if tensor.mode is TensorIOMode.INPUT and name not in self._state.given
        ]

    @traced(Dims((-1,)))
    def get_tensor_shape(self, name):
        return Dims(self._state.shape(name))

    @traced(False)
    def set_tensor_address(self, name, memory):
        if self._state.addresses.get(name) != memory:
            self._state.addresses[name] = memory
            self._state.version += 1
        return True

    @traced(False)
    def execute_async_v3(self, stream_handle):
        machine, state = self._machine, self._state
        if not isinstance(stream_handle, int) or stream_handle not in machine.streams:
            self._engine._error("no such stream")
            return False
        stream = machine.streams[stream_handle]
        if set(state.addresses) != set(state.core.tensors):
            self._engine._error("a tensor has no address")
            return False
        if stream.captured is None:
            state.warm = state.version
        elif state.warm != state.version:
            machine.violate("captured before the new shape has been executed once")
        elif not machine.capturable:
            stream.capture = "invalid"
            self._engine._error("operation not permitted when stream is capturing")
            return False
        machine.executes += 1
        if self._config is not None:
            self._config._compile(state.given)
        work = Execute(machine, state)
        (stream.queue if stream.captured is None else stream.captured).append(work)
        return True


class RtxExecutionContext(IExecutionContext):
    @traced(False)
    def is_stream_capturable(self, stream):
        return self._machine.says_capturable


class IRuntimeCache:
    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._kernels: set[str] = set()

    @traced(False)
    def deserialize(self, blob):
        if not bytes(blob).startswith(b"kernels\n"):
            return False
        self._kernels = set(bytes(blob).decode().split("\n")[1:]) - {""}
        return True

    @traced(None)
    def serialize(self):
        return IHostMemory("\n".join(["kernels", *sorted(self._kernels)]).encode())


class IRuntimeConfig:
    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._cache: IRuntimeCache | None = None

    @traced(None)
    def create_runtime_cache(self):
        return IRuntimeCache(self._machine)

    @traced(False)
    def set_runtime_cache(self, cache):
        self._cache = cache
        return True

    def _compile(self, shapes: dict[str, tuple[int, ...]]) -> None:
        kernel = repr(sorted(shapes.items()))
        if self._cache is None or kernel not in self._cache._kernels:
            self._machine.compiled += 1
            if self._cache is not None:
                self._cache._kernels.add(kernel)


class ICudaEngine:
    def __init__(self, runtime: Runtime, core: EngineCore) -> None:
        self._machine, self._runtime, self._core = runtime._machine, runtime, core
        self._machine.live["engine"] += 1

    def __del__(self) -> None:
        self._machine.live["engine"] -= 1
        self._machine.events.append("engine")

    @property
    def num_io_tensors(self):
        return len(self._core.tensors)

    @traced(RAISE)
    def get_tensor_name(self, index):
        return list(self._core.tensors)[index]

    @traced(RAISE)
    def get_tensor_mode(self, name):
        return self._core.tensors[name].mode

    @traced(RAISE)
    def get_tensor_dtype(self, name):
        return self._core.tensors[name].dtype

    @traced(None)
    def create_execution_context(self):
        self._machine.need_device("create_execution_context")
        return IExecutionContext(self, None)

    def _error(self, text: str) -> None:
        self._runtime._logger.log(Severity.ERROR, text)


class RtxCudaEngine(ICudaEngine):
    @traced(None)
    def create_runtime_config(self):
        return IRuntimeConfig(self._machine)

    @traced(None)
    def create_execution_context(self, runtime_config=None):
        self._machine.need_device("create_execution_context")
        return RtxExecutionContext(self, runtime_config)


class Runtime:
    _machine: Machine

    @traced(RAISE)
    def __init__(self, logger):
        if not isinstance(logger, ILogger) or not getattr(logger, "_made", False):
            raise TypeError("ILogger.__init__() must be called when overriding __init__")
        self._logger = logger
        self._machine.live["runtime"] += 1

    def __del__(self) -> None:
        if hasattr(self, "_logger"):
            self._machine.live["runtime"] -= 1
            self._machine.events.append("runtime")

    @traced(None)
    def deserialize_cuda_engine(self, serialized_engine):
        self._machine.need_device("deserialize_cuda_engine")
        if not serialized_engine.startswith(MAGIC):
            self._logger.log(Severity.ERROR, "Serialization assertion\nmagicTag failed")
            return None
        kind = RtxCudaEngine if self._machine.flavor == "rtx" else ICudaEngine
        return kind(self, EngineCore(serialized_engine))


# ---- The machine


class Machine:
    """What is there, and what has been done with it.

    Args:
        flavor: `tensorrt` or `rtx`, of the library that is installed.
        version: of it.
        capability: of all GPUs.
        devices: how many there are.
        integrated: their memory is the host's.
        driver: newest CUDA that it takes, 12060 for 12.6; 0 for no driver.
        bindings: CUDA of cuda-bindings.
    """

    def __init__(
        self,
        flavor: str = "tensorrt",
        version: str = "10.3.0",
        capability: str = "8.9",
        devices: int = 1,
        integrated: bool = False,
        driver: int = 12090,
        bindings: int = 12090,
    ) -> None:
        self.flavor, self.version, self.capability = flavor, version, capability
        self.devices, self.integrated, self.can_map = devices, integrated, True
        self.driver, self.bindings = driver, bindings
        self.memory = 1 << 40
        self.capturable = self.says_capturable = True
        self.lock = threading.RLock()
        self.local = threading.local()
        self.last_error = E.cudaSuccess
        self.calls: list[str] = []
        self.violations: list[str] = []
        self.events: list[str] = []  # what was freed, in order
        self.blocks: list[Block] = []
        self.streams: dict[int, Stream] = {}
        self.graphs: dict[int, list[Any]] = {}
        self.executables: dict[int, list[Any]] = {}
        self.live: Counter[str] = Counter()
        self.used_devices: set[int] = set()
        self.peak = self.executes = self.executions = self.compiled = 0
        self._faults: dict[Any, Any] = {}

    def install(self, monkeypatch: Any) -> Machine:
        """Put the stand-ins where the packages would be."""
        cudart = self.cudart()
        bindings, package = ModuleType("cuda.bindings"), ModuleType("cuda")
        bindings.runtime, package.bindings = cudart, bindings
        monkeypatch.setitem(__import__("sys").modules, "cuda", package)
        monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", bindings)
        monkeypatch.setitem(__import__("sys").modules, "cuda.bindings.runtime", cudart)
        for flavor, name in (("tensorrt", "tensorrt"), ("rtx", "tensorrt_rtx")):
            module = self.tensorrt() if flavor == self.flavor else None
            monkeypatch.setitem(__import__("sys").modules, name, module)
        monkeypatch.setitem(__import__("sys").modules, "tensorrt_rtx_bindings", None)
        return self

    def cudart(self) -> ModuleType:
        module = ModuleType("cuda.bindings.runtime")
        for name, value in CONSTANTS.items():
            setattr(module, name, value)
        for kind in (cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode, cudaDeviceAttr):
            setattr(module, kind.__name__, kind)
        functions = Cudart(self)
        for name in vars(Cudart):
            if name.startswith("cuda"):
                setattr(module, name, self._instrument(name, getattr(functions, name)))
        return module

    def tensorrt(self) -> ModuleType:
        module = ModuleType("tensorrt")
        module.__version__ = self.version
        for kind in (ILogger, DataType, TensorIOMode):
            setattr(module, kind.__name__, kind)
        module.Runtime = type("Runtime", (Runtime,), {"_machine": self})
        return module

    def fail(self, name: str, nth: int = 1, error: Any = E.cudaErrorUnknown) -> None:
        """Let the nth call of a function from now on fail."""
        self._faults[(name, self.calls.count(name) + nth)] = error

    def fail_call(self, index: int, error: Any) -> None:
        """Let the call with this index, of all functions, fail; TensorRT's raise for "raise"."""
        self._faults[index] = error

    def count(self, name: str) -> Any:
        """Note a call; gives the fault that it is to have."""
        with self.lock:
            self.calls.append(name)
            keys = (len(self.calls) - 1, (name, self.calls.count(name)))
            return next((self._faults.pop(key) for key in keys if key in self._faults), None)

    def violate(self, text: str) -> None:
        self.violations.append(text)

    def need_device(self, name: str) -> None:
        device = getattr(self.local, "device", None)
        if device is None:
            self.violate(f"{name} in a thread that has not said its device")
            self.local.device = device = 0
        self.used_devices.add(device)

    def allocated(self) -> int:
        """Bytes that are not freed, on both sides."""
        return sum(block.size for block in self.blocks if block.live)

    def left(self) -> dict[str, int]:
        """What has not been freed, by kind; empty is as it should be after a session."""
        counts = {
            "memory": sum(block.live for block in self.blocks),
            "streams": len(self.streams),
            "graphs": len(self.graphs),
            "executables": len(self.executables),
            **self.live,
        }
        return {name: count for name, count in counts.items() if count}

    def block_at(self, address: int) -> Block | None:
        base = address - OFFSET if address >= OFFSET else address
        return next((b for b in reversed(self.blocks) if b.base <= base < b.base + b.size), None)

    def locate(self, address: int, size: int) -> int:
        """Where the host has a span of memory, of either side."""
        block = self.block_at(address)
        spaces = ("device", "mapped") if address >= OFFSET else ("host", "mapped")
        base = address - OFFSET if address >= OFFSET else address
        if (
            block is None
            or not block.live
            or block.space not in spaces
            or base + size > block.base + block.size
        ):
            raise CudaFailureError(E.cudaErrorIllegalAddress)
        return base

    def _instrument(self, name: str, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            fault = self.count(name)
            if name not in DEVICELESS:
                self.need_device(name)
            if name in UNSAFE_WHILE_CAPTURING and self._forbidden():
                return self._answer(name, E.cudaErrorStreamCaptureUnsupported)
            if fault is None:
                answer = function(*arguments)
                failed = answer[0] and name != "cudaGetLastError"
                return self._answer(name, answer[0]) if failed else answer
            if name in RELEASES:
                answer = function(*arguments)
                if len(answer) > 1 and answer[1] is not None:
                    del self.graphs[int(answer[1])]
            return self._answer(name, E.cudaErrorUnknown if fault == "raise" else fault)

        call.__signature__ = inspect.signature(function)
        return call

    def _answer(self, name: str, error: Any) -> tuple[Any, ...]:
        self.last_error = error
        gives = name.startswith(("cudaGet", "cudaDriver", "cudaRuntime", "cudaDeviceGet")) or (
            name
            in (
                "cudaMalloc",
                "cudaHostAlloc",
                "cudaHostGetDevicePointer",
                "cudaStreamCreateWithFlags",
                "cudaStreamEndCapture",
                "cudaGraphInstantiate",
            )
        )
        return (error, None) if gives and name != "cudaGetLastError" else (error,)

    def _forbidden(self) -> bool:
        """Whether a capture is under way that this thread may not disturb; it then fails."""
        for stream in list(self.streams.values()):
            if isinstance(stream.capture, tuple):
                mode, thread = stream.capture
                others = mode is cudaStreamCaptureMode.cudaStreamCaptureModeGlobal
                if others or thread == threading.get_ident():
                    stream.capture = "invalid"
                    return True
        return False
