"""A session on TensorRT or TensorRT-RTX: the library, CUDA from Python, and numpy.

A session deserialises the engine once. A run borrows an execution context with a stream and
buffers of its own, so that as many threads run at once as there are contexts.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

from ds2deploy.runtimes.engine_description import EngineDescription, runs_on, seconds_of_frames
from ds2deploy.runtimes.errors import (
    DeviceError,
    FeaturesError,
    ModelFileError,
    RuntimeUnavailableError,
    one_line,
)
from ds2deploy.runtimes.session import beyond_profile, check_tensors
from ds2deploy.runtimes.streaming.state import BaseSession
from ds2deploy.runtimes.tensorrt import cuda
from ds2deploy.runtimes.tensorrt.contexts import ContextPool, ExecutionContext, GraphSwitch, Shape
from ds2deploy.runtimes.tensorrt.engine_file import read_blob, read_engine_description
from ds2deploy.runtimes.tensorrt.library import NAMES, TensorRt, import_tensorrt
from ds2deploy.runtimes.tensorrt.log import make_log
from ds2deploy.runtimes.tensorrt.rtx_devices import on_another_gpu, tensorrt_command
from ds2deploy.runtimes.tensorrt.runtime_cache import CACHE_SUFFIX, RuntimeCache
from ds2deploy.runtimes.tensors import Tensors, input_tensors, output_tensors, samples_of


class TensorRtSession(BaseSession):
    """Runs an engine; from several threads, if you like.

    Args:
        path: path of the engine; its description lies beside it.
        device: `cuda`, `cuda:1`, ...
        contexts: threads that may run at the same time, at most; each takes device memory, and
            is made when it is first needed. Further threads wait for one another.
        cuda_graphs: replay a shape that comes again as a CUDA graph.
        keep_cache: keep what TensorRT-RTX compiles beside the engine, for the next start.

    Attributes:
        description: metadata of the model.
        runtime: `tensorrt cuda` or `tensorrt-rtx cuda`.
        profile: the shapes that the engine takes. Smaller inputs are padded; results do not change.

    Raises:
        MissingFileError: no engine, or no description beside it.
        ModelFileError: the engine is damaged, or not its description's.
        RuntimeUnavailableError: it was built for another library, another version of it, or
            another GPU; or there is no GPU.
        DeviceError: the GPU failed, or has too little memory.
    """

    def __init__(
        self,
        path: str | Path,
        device: str = "cuda",
        contexts: int = 2,
        cuda_graphs: bool = True,
        keep_cache: bool = True,
    ) -> None:
        self._path = Path(path)
        self._keep_cache = keep_cache
        self._closing = threading.Lock()
        self._pool: ContextPool | None = None
        self._cache: RuntimeCache | None = None
        self._engine: Any = None
        self._runtime: Any = None
        # The cheap checks come first: the document, the library, the GPU.
        self.description, engine = read_engine_description(self._path)
        library = _open_library(self._path, engine)
        self._device = _open_device(self._path, engine, device)
        self.profile = engine.profile
        self.runtime = f"{'tensorrt' if engine.flavor == 'tensorrt' else 'tensorrt-rtx'} {device}"
        self._graphs = GraphSwitch(self._path, cuda_graphs)
        self._log = make_log(library)
        try:
            self._load(library, engine)
            self._pool = ContextPool(self._make_execution, max(1, contexts))
        except BaseException:
            self.close()
            raise

    @property
    def cuda_graphs(self) -> str:
        """State of CUDA graphs: `on`, `off`, or `off: ` and why."""
        return self._graphs.text

    def compute(self, tensors: Tensors) -> Tensors:
        """Run the network once; see `Session.compute`.

        Raises:
            FeaturesError: more utterances, or longer ones, than the engine takes.
            DeviceError: the GPU failed, or the session is closed.
        """
        tensors = check_tensors(self.description, tensors)
        sound = tensors[self.description.inputs[0]]
        shape = self._shape_for(len(sound), sound.shape[-1])
        try:
            pool = self._pool
            if pool is None:
                raise DeviceError("the session is closed; open another")
            with pool.borrow(shape) as context:
                return context.run(tensors, shape)
        except RuntimeError as error:  # DeviceError is one; so is what TensorRT's binding raises
            logged = self._log.take()
            raise DeviceError(f"{self._path}: {one_line(error)}{logged}") from None

    def close(self) -> None:
        """Free everything, after the runs under way; again does nothing."""
        with self._closing:
            if self._runtime is not None:
                with contextlib.suppress(DeviceError):
                    self._device.activate()  # it may be another thread than those that ran
            pool, self._pool = self._pool, None
            try:
                if pool is not None:
                    pool.stop()
                if self._cache is not None:
                    self._cache.save()
            finally:
                if pool is not None:
                    pool.free()
                self._cache = self._engine = self._runtime = None  # freed in this order

    def __del__(self) -> None:
        # A courtesy to who forgets `close`; while the interpreter ends, anything may be gone.
        with contextlib.suppress(Exception):
            self.close()

    def _load(self, library: TensorRt, description: EngineDescription) -> None:
        trt = library.module
        blob = read_blob(self._path, description)
        try:
            self._device.activate()
            self._runtime = trt.Runtime(self._log)
            self._engine = self._runtime.deserialize_cuda_engine(blob)
            if self._engine is None:
                raise ModelFileError(
                    f"{self._path}: {library.title} cannot load it{self._log.take()}; build it "
                    f"again: {description.rebuild}"
                )
            self._check_tensors(trt, description.rebuild)
            if library.flavor == "rtx" and self._keep_cache:
                beside = self._path.with_name(self._path.name + CACHE_SUFFIX)
                self._cache = RuntimeCache(self._engine.create_runtime_config(), beside)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise DeviceError(
                f"{self._path}: {library.title} failed ({one_line(error)}{self._log.take()})"
            ) from None

    def _check_tensors(self, trt: Any, rebuild: str) -> None:
        """Refuse an engine whose tensors are not those that the description names."""
        found = {}
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            found[name] = (self._engine.get_tensor_mode(name), self._engine.get_tensor_dtype(name))
        kinds = {"float32": trt.DataType.FLOAT, "int64": trt.DataType.INT64}
        expected = {
            tensor.name: (mode, kinds[tensor.dtype])
            for mode, tensors in (
                (trt.TensorIOMode.INPUT, input_tensors(self.description)),
                (trt.TensorIOMode.OUTPUT, output_tensors(self.description)),
            )
            for tensor in tensors
        }
        if found != expected:
            listed = ", ".join(
                f"{name} ({mode.name.lower()}, {kind.name.lower()})"
                for name, (mode, kind) in found.items()
            )
            raise ModelFileError(
                f"{self._path}: its tensors ({listed}) do not match its description "
                f"({', '.join(expected)}); build it again: {rebuild}"
            )

    def _make_execution(self) -> ExecutionContext:
        """Give an execution context with its buffers; one at a time: they share the engine."""
        self._device.activate()
        return ExecutionContext(self._device, self._make_context, self.description, self._graphs)

    def _make_context(self) -> Any:
        configuration = () if self._cache is None else (self._cache.config,)
        context = self._engine.create_execution_context(*configuration)
        if context is None:
            raise DeviceError(
                "TensorRT could not create an execution context, usually because GPU memory is "
                "full: use fewer contexts"
            )
        return context

    def _shape_for(self, utterances: int, size: int) -> Shape:
        """Choose the shape to run a batch in: the batch's own, or the profile's least.

        Streams come and go: with a power of two of them, the same few shapes come again and again,
        and are replayed as CUDA graphs.
        """
        assert self.profile is not None
        smallest, optimum, largest = self.profile.batch
        features = self.description.features
        streaming = self.description.blocks is not None
        if utterances > largest:
            what = "streams" if streaming else "utterances"
            raise FeaturesError(
                f"{utterances} {what}; this engine accepts {smallest} to {largest} at a time: "
                f"split them, or rebuild the engine with --batch {smallest},{optimum},{utterances}"
            )
        if streaming:
            return min(largest, max(smallest, 1 << (utterances - 1).bit_length())), size
        waveform = self.description.input == "waveform"
        frames = features.frames(size) if waveform else size
        if frames > self.profile.frames[2]:
            duration_s = seconds_of_frames(frames, features)
            raise FeaturesError(beyond_profile(duration_s, self.profile, features))
        shortest = self.profile.frames[0]
        if waveform:
            shortest = samples_of(shortest, features)
        return max(utterances, smallest), max(size, shortest)


def _open_library(path: Path, engine: EngineDescription) -> TensorRt:
    built = f"{path} was built by {NAMES[engine.flavor]} {engine.version}"
    try:
        library = import_tensorrt(engine.flavor)
    except RuntimeUnavailableError as error:
        raise RuntimeUnavailableError(
            f"{built}, which cannot be used here: {error}; or build it again: {engine.rebuild}"
        ) from None
    if library.version != engine.version:
        raise RuntimeUnavailableError(
            f"{built}, but this machine has {library.version}, and an engine needs the version "
            f"that built it; build it again: {engine.rebuild}"
        )
    return library


def _open_device(path: Path, engine: EngineDescription, name: str) -> cuda.Device:
    try:
        device = cuda.open_device(name)
    except RuntimeUnavailableError as error:
        raise RuntimeUnavailableError(f"{path}: {error}") from None
    has = device.compute_capability
    if engine.flavor == "rtx" and (another := on_another_gpu(device)):
        raise RuntimeUnavailableError(
            f"{path}: {another}; build an engine with TensorRT here: "
            f"{tensorrt_command(engine.rebuild)}"
        )
    if not runs_on(engine, has):
        raise RuntimeUnavailableError(
            f"{path} was built for compute capability {', '.join(engine.compute_capabilities)}, "
            f"this GPU is {has}; build it again: {engine.rebuild}"
        )
    return device
