"""A session on ONNX Runtime."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ds2deploy.runtimes.artifact import (
    METADATA_KEY,
    ArtifactDescription,
    Precision,
    read_description,
)
from ds2deploy.runtimes.errors import (
    DeviceError,
    ModelFileError,
    RuntimeUnavailableError,
)
from ds2deploy.runtimes.files import FOREIGN_BYTE
from ds2deploy.runtimes.onnx.graph_check import check_description
from ds2deploy.runtimes.onnx.library import import_onnxruntime
from ds2deploy.runtimes.onnx.metadata import (
    check_size,
    no_description,
    read_onnx_description,
    unreadable_model,
)
from ds2deploy.runtimes.onnx.obstacles import Provider, first_line
from ds2deploy.runtimes.onnx.providers import TENSORRT_PROFILE, check, configure
from ds2deploy.runtimes.onnx.weights import check_weights
from ds2deploy.runtimes.session import usable_cores
from ds2deploy.runtimes.streaming.state import BaseSession
from ds2deploy.runtimes.tensors import Tensors

AT_ONCE = 4
"""Utterances of a wide LSTM in fp32 on a few cores. Up to here ONNX Runtime's threads share a
step's units, beyond it the utterances, and then each of them reads all weights in every step. Five
bidirectional layers of 1024 on two cores took 0.064 s for a second of audio at 4 utterances of 4 s
and 0.067 at 8; of 10 s 0.067 and 0.076. In int8, whose weights are a quarter as large, it made no
difference. Blocks of streams are short, so that the weights of the input side are read for few
frames: five forward layers of 1024 on two threads took 1.3 s of processor time for a block
each of 64 streams in one batch, and 2.8 s four at a time (0.19 and 0.23 s for 5 streams)."""

WIDE = 256
"""Units up to which ONNX Runtime always shares the utterances."""

FEW_CORES = 4
"""With more of them either way may win: not measured."""

EXCEPTIONAL_FRAMES = 12_800
"""Frames of a run, of all utterances, beyond which its memory is not kept for the next run: twice
the batches of a CPU. Runs that take their memory anew are slower in int8 (3 x BiLSTM-256, 4 x 10 s:
0.34 s of processor time in place of 0.24)."""


class OnnxSession(BaseSession):
    """Runs an exported ONNX file.

    Args:
        path: the artifact.
        device: `cpu`, `cuda`, `cuda:1`, ...
        threads: number of CPU threads; 0 takes one per core.
        description: overrides the one in the file, for an exporter that has not written it yet.
        provider: execution provider of ONNX Runtime; None takes that of the device.

    Raises:
        MissingFileError: no such file.
        ModelFileError: damaged, with weights that are not numbers, or not exported by ds2deploy.
        RuntimeUnavailableError: ONNX Runtime, or the provider, is not there, or does not take
            this model; nothing else runs instead.
    """

    def __init__(
        self,
        path: str | Path,
        device: str = "cpu",
        threads: int = 0,
        description: ArtifactDescription | None = None,
        provider: Provider | None = None,
    ) -> None:
        path = Path(path)
        check_size(path)
        kind, _, index = device.partition(":")
        if kind not in ("cpu", "cuda") or (index and not (kind == "cuda" and index.isdecimal())):
            raise RuntimeUnavailableError(
                f"{path}: device {device!r}: expected cpu, cuda or cuda:N"
            )
        chosen: Provider = provider or ("cuda" if kind == "cuda" else "cpu")
        described = description
        if chosen != "cpu" and described is None:
            described = read_onnx_description(path)
        check_weights(path)
        self._session = _open(path, chosen, int(index or 0), threads, described)
        self.description = description or _describe(self._session, path)
        self.runtime = f"onnxruntime {device if provider in (None, 'cuda') else provider}"
        self.profile = TENSORRT_PROFILE if chosen == "tensorrt" else None
        self.at_once = at_once(self.description, threads) if chosen == "cpu" else None
        self._give_back = shrinking_run() if chosen == "cpu" else None

    def compute(self, tensors: Tensors) -> Tensors:
        """Run the network once; see `Session.compute`."""
        size = len(tensors[self.description.inputs[0]])
        if self.at_once is None or size <= self.at_once:
            return self._compute(tensors)
        parts = [
            self._compute({name: array[i : i + self.at_once] for name, array in tensors.items()})
            for i in range(0, size, self.at_once)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _compute(self, tensors: Tensors) -> Tensors:
        outputs = self.description.outputs
        try:
            results = self._session.run(list(outputs), tensors, self._run_options(tensors))
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            name = self.description.inputs[0]
            raise DeviceError(
                f"{self.runtime} failed at {name} {tensors[name].shape}: {first_line(error)}"
            ) from error
        return dict(zip(outputs, results, strict=True))

    def _run_options(self, tensors: Tensors) -> Any:
        """Ask for the memory of an exceptionally large run to be given back after it."""
        sound = tensors[self.description.inputs[0]]
        frames = sound.shape[-1]
        if self.description.input == "waveform":
            frames = self.description.features.frames(frames)
        return self._give_back if len(sound) * frames > EXCEPTIONAL_FRAMES else None


def shrinking_run() -> Any:
    """Make options of a run after which ONNX Runtime gives its free memory back to the system."""
    options = import_onnxruntime().RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def at_once(description: ArtifactDescription, threads: int) -> int | None:
    """Utterances that a CPU runs at a time where more come; None where it runs them all."""
    model, cores = description.model, threads or usable_cores()
    wide = model.rnn == "lstm" and max(model.units) > WIDE and description.precision == "fp32"
    whole = description.blocks is None
    return AT_ONCE if wide and whole and 1 < cores <= FEW_CORES else None


def describe_artifact(path: str | Path) -> ArtifactDescription:
    """Read the description of an ONNX artifact, compared with its graph if that can be opened.

    Raises:
        MissingFileError, ModelFileError, RuntimeUnavailableError: see `OnnxSession`.
    """
    description = read_onnx_description(path)
    if description.precision == "bf16":  # which ONNX Runtime does not open on a CPU
        check_weights(Path(path))
        return description
    return OnnxSession(path).description


def _open(
    path: Path,
    provider: Provider,
    index: int,
    threads: int,
    description: ArtifactDescription | None,
) -> Any:
    try:
        onnxruntime = import_onnxruntime()
    except ImportError:
        raise RuntimeUnavailableError(
            f"{path}: ONNX Runtime is not installed: pip install "
            f"'ds2deploy[{'cpu' if provider in ('cpu', 'rtx') else 'gpu'}]'{_other_runtime()}"
        ) from None
    precision = _precision(path) if description is None else description.precision
    if precision == "bf16" and provider in ("cpu", "cuda"):
        raise RuntimeUnavailableError(
            f"{path}: ONNX Runtime cannot run bf16 on {provider}; export the checkpoint as an "
            "engine (--trt or --rtx), or with --precision fp16"
        )
    if precision == "int8" and provider != "cpu":
        raise RuntimeUnavailableError(
            f"{path}: ONNX Runtime runs int8 LSTMs only on a CPU; use the fp16 or fp32 file with "
            f"{provider}, or omit --runtime and --device"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what it raises says the same
    if provider == "cpu":
        # A pattern is a block for all tensors of a shape, beside the blocks that they had in the
        # first run: measured on 120 s of audio, 385 MB against 285 in fp32 and 1,173 against 701
        # in int8, for no less time (3 x BiLSTM-256, 3 s and 4 x 10 s of audio).
        options.enable_mem_pattern = False
    # Threads that wait for one another within a run spin: measured, 5 x BiLSTM-1024 at batch 1
    # takes 6 % less time in fp32 and 12 % less in int8. Between two runs they must not: they would
    # take the cores from feature extraction and from other sessions (torch beside them ran at half
    # its speed).
    options.add_session_config_entry("session.force_spinning_stop", "1")
    providers = configure(onnxruntime, options, provider, index, path, description)
    try:
        # ONNX Runtime wants names in UTF-8; a graph has everything in one file.
        model = path.read_bytes() if FOREIGN_BYTE.search(str(path)) else str(path)
        # Without the fallback to the CPU: it prints to standard output, opens the model a second
        # time, and where it is forbidden its own error takes the place of the true one.
        session = onnxruntime.InferenceSession(
            model, options, providers=providers or None, enable_fallback=0
        )
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        if provider != "cpu" and precision is not None:
            on_cpu = "omit --runtime and --device"
            other = on_cpu if provider == "cuda" else "use --runtime cuda"
            raise RuntimeUnavailableError(
                f"{path}: --runtime {provider} cannot run this model ({first_line(error)}); {other}"
            ) from None
        raise unreadable_model(path, first_line(error)) from None
    check(session, provider, path)
    return session


def _other_runtime() -> str:
    return "; or run it with --runtime openvino" if find_spec("openvino") else ""


def _precision(path: Path) -> Precision | None:
    """Read the precision of a file; None if it cannot be read: opening it will say why."""
    try:
        return read_onnx_description(path).precision
    except ModelFileError:
        return None


def _describe(session: Any, path: Path) -> ArtifactDescription:
    document = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if document is None:
        raise no_description(path)
    description = read_description(document, str(path))
    inputs, outputs = session.get_inputs(), session.get_outputs()
    check_description(description, _signature(inputs, path), _signature(outputs, path), path)
    return description


def _signature(values: Any, path: Path) -> list[Any]:
    """Names and shapes of a graph's tensors, which in a damaged file may not be text."""
    try:
        return [(value.name, list(value.shape)) for value in values]
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path}: its graph is damaged ({error}); export it again") from None
