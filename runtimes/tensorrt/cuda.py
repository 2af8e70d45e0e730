"""CUDA from Python, as much as a session needs: a device, streams, growing buffers, graphs.

Over `cuda.bindings.runtime` (cuda-bindings 12.9 and 13 alike), which is imported when a device is
opened. Whatever is made here is freed once, by its `close`, also after it was made in part.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ds2deploy.runtimes.errors import DeviceError, RuntimeUnavailableError, one_line

LOG = logging.getLogger("ds2deploy")

NO_DRIVER = "there is no NVIDIA driver"


class NoDeviceError(RuntimeUnavailableError):
    """No GPU that CUDA can use from Python: the reason, and what mends it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}: {remedy}")
        self.reason, self.remedy = reason, remedy


class Device:
    """One GPU: its product's `name`, its `compute_capability` such as `8.9`.

    `mapped` says that its memory is the host's and can be mapped: nothing need be copied.
    """

    def __init__(self, runtime: Any, index: int) -> None:
        self.runtime = runtime
        self.index = index
        name = self.call("cudaGetDeviceProperties", index).name
        self.name = name.decode(errors="replace").rstrip("\0") if isinstance(name, bytes) else name
        major, minor = (self._attribute(f"ComputeCapability{part}") for part in ("Major", "Minor"))
        self.compute_capability = f"{major}.{minor}"
        self.mapped = all([self._attribute("Integrated"), self._attribute("CanMapHostMemory")])

    def call(self, function: str, *arguments: Any, wanted: int | None = None) -> Any:
        """Call one of CUDA's functions; raise DeviceError with CUDA's own words."""
        return _call(self.runtime, function, *arguments, wanted=wanted)

    def release(self, function: str, *arguments: Any) -> Any:
        """Call a function that frees: an error is logged, for the rest must be freed too."""
        try:
            return self.call(function, *arguments)
        except DeviceError as error:
            # As text: a record that is kept would keep the error's frames.
            LOG.warning("cannot free a resource of the GPU: %s", str(error))

    def activate(self) -> None:
        """Make it the device of the calling thread; every thread has to."""
        self.call("cudaSetDevice", self.index)

    def _attribute(self, name: str) -> int:
        attribute = getattr(self.runtime.cudaDeviceAttr, f"cudaDevAttr{name}")
        return int(self.call("cudaDeviceGetAttribute", attribute, self.index))


class CudaStream:
    """Work in order, independent of the default stream (which cannot be captured)."""

    def __init__(self, device: Device) -> None:
        self._device = device
        flags = device.runtime.cudaStreamNonBlocking
        self.handle: Any = device.call("cudaStreamCreateWithFlags", flags)

    def synchronize(self) -> None:
        """Wait for all that was queued; raises DeviceError with what failed in it."""
        self._device.call("cudaStreamSynchronize", self.handle)

    def close(self) -> None:
        """Free it; nothing may be queued."""
        handle, self.handle = self.handle, None
        if handle is not None:
            self._device.release("cudaStreamDestroy", handle)


class Buffer:
    """Memory of one tensor on the device, with staging for it, pinned on the host.

    It grows to exactly what is asked for and never shrinks: after the largest request its
    `address` is stable. On a mapped device one allocation is both.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._host = 0
        self.address = 0
        self.capacity = 0

    def reserve(self, size: int) -> None:
        """Make room for `size` bytes, losing the content; raises DeviceError, then empty."""
        if size <= self.capacity:
            return
        self.close()  # first: both at once need not fit
        call, runtime = self._device.call, self._device.runtime
        if self._device.mapped:
            self._host = int(call("cudaHostAlloc", size, runtime.cudaHostAllocMapped, wanted=size))
            self.address = int(call("cudaHostGetDevicePointer", self._host, 0))
        else:
            self.address = int(call("cudaMalloc", size, wanted=size))
            self._host = int(call("cudaHostAlloc", size, runtime.cudaHostAllocDefault, wanted=size))
        self.capacity = size

    def view(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return the host's side as an array, valid until the buffer grows or is closed."""
        count = math.prod(shape)
        size = count * np.dtype(dtype).itemsize
        assert 0 < size <= self.capacity
        memory = (ctypes.c_ubyte * size).from_address(self._host)
        return np.frombuffer(memoryview(memory), np.dtype(dtype), count).reshape(shape)

    def upload(self, size: int, stream: CudaStream) -> None:
        """Queue the copy of the first `size` bytes to the device."""
        self._copy(self.address, self._host, size, "HostToDevice", stream)

    def download(self, size: int, stream: CudaStream) -> None:
        """Queue the copy of the first `size` bytes to the host."""
        self._copy(self._host, self.address, size, "DeviceToHost", stream)

    def close(self) -> None:
        """Free both sides; nothing queued may use them."""
        host, device = self._host, self.address
        self._host = self.address = self.capacity = 0
        if device and not self._device.mapped:
            self._device.release("cudaFree", device)
        if host:
            self._device.release("cudaFreeHost", host)

    def _copy(self, to: int, source: int, size: int, kind: str, stream: CudaStream) -> None:
        if not self._device.mapped:
            direction = getattr(self._device.runtime.cudaMemcpyKind, f"cudaMemcpy{kind}")
            self._device.call("cudaMemcpyAsync", to, source, size, direction, stream.handle)


class Graph:
    """Work recorded while `record` queues it, with its addresses, to be queued by one call."""

    def __init__(self, device: Device, stream: CudaStream, record: Callable[[], None]) -> None:
        self._device = device
        self._executable: Any = None
        # Of this thread only: another context may allocate while this one captures.
        mode = device.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        device.call("cudaStreamBeginCapture", stream.handle, mode)
        try:
            record()
        except BaseException:
            _, remains = device.runtime.cudaStreamEndCapture(stream.handle)  # None where it failed
            device.runtime.cudaGetLastError()
            if remains is not None:
                device.release("cudaGraphDestroy", remains)
            raise
        graph = device.call("cudaStreamEndCapture", stream.handle)
        try:
            self._executable = device.call("cudaGraphInstantiate", graph, 0)
        finally:
            device.release("cudaGraphDestroy", graph)

    def launch(self, stream: CudaStream) -> None:
        """Queue the work; its buffers must be where they were."""
        self._device.call("cudaGraphLaunch", self._executable, stream.handle)

    def close(self) -> None:
        """Free it; it may not be running."""
        executable, self._executable = self._executable, None
        if executable is not None:
            self._device.release("cudaGraphExecDestroy", executable)


def open_device(device: str = "cuda") -> Device:
    """Find a GPU: `cuda` for the first one, `cuda:1`, ...

    Raises:
        NoDeviceError: no such device, or none at all; with the reason and the remedy.
    """
    kind, colon, number = device.partition(":")
    if kind != "cuda" or (colon and not number.isdecimal()):
        reason = f"device {device!r} cannot run TensorRT engines"
        raise NoDeviceError(reason, "use cuda or cuda:N")
    runtime = _import_runtime()
    index = int(number or 0)
    try:
        count = int(_call(runtime, "cudaGetDeviceCount"))
        if index < count:
            return Device(runtime, index)
    except DeviceError as error:
        remedy = _driver_remedy(runtime)
        why = "" if remedy.startswith(NO_DRIVER) else f" ({error})"
        raise NoDeviceError(f"CUDA finds no GPU{why}", remedy) from None
    there = ", ".join(f"cuda:{i}" for i in range(count)) or "none"
    raise NoDeviceError(
        f"device {device} does not exist, CUDA finds {there}", _driver_remedy(runtime)
    )


def examine_device(device: str = "cuda") -> tuple[bool, str, str]:
    """Tell if CUDA works here, on which GPU or why not, and the remedy; never raises."""
    try:
        found = open_device(device)
    except NoDeviceError as error:
        return False, error.reason, error.remedy
    return True, f"{found.name}, compute capability {found.compute_capability}", ""


def _import_runtime() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ModuleNotFoundError as error:
        reason = f"cuda-bindings is not installed (no module {error.name})"
    except Exception as error:  # a library that does not load: of several unrelated classes
        reason = f"cuda-bindings cannot be imported ({one_line(error)})"
    raise NoDeviceError(reason, "pip install cuda-bindings")


def _driver_remedy(runtime: Any) -> str:
    """Remedy for a missing GPU, by the versions of driver and bindings (12060 is 12.6)."""
    versions = []
    for function in ("cudaDriverGetVersion", "cudaRuntimeGetVersion"):
        try:
            versions.append(int(_call(runtime, function) or 0) // 1000)
        except DeviceError:
            versions.append(0)
    driver, bindings = versions
    if driver == 0:
        return f"{NO_DRIVER}; install one, or run the ONNX file on the CPU"
    if driver < bindings:
        return (
            f"the driver supports CUDA {driver}, but cuda-bindings needs CUDA {bindings}; pip "
            f"install 'cuda-bindings=={driver}.*', or install a newer driver"
        )
    return "check the output of nvidia-smi and the environment variable CUDA_VISIBLE_DEVICES"


def _call(runtime: Any, function: str, *arguments: Any, wanted: int | None = None) -> Any:
    try:
        error, *results = getattr(runtime, function)(*arguments)
    except (RuntimeError, OSError) as trouble:  # the bindings' own: a library is missing
        raise DeviceError(f"{function}: {one_line(trouble)}") from None
    if error == runtime.cudaError_t.cudaSuccess:
        return results[0] if results else None
    # Otherwise the next who asks CUDA for its last error, as TensorRT does, takes it for its own.
    runtime.cudaGetLastError()
    texts = (runtime.cudaGetErrorName(error)[1], runtime.cudaGetErrorString(error)[1])
    name, text = (t.decode() if isinstance(t, bytes) else str(error) for t in texts)
    size = "" if wanted is None else f" ({wanted} bytes requested)"
    raise DeviceError(f"{function}: {name}: {text}{size}")
