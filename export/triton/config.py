"""Writes `config.pbtxt` of an artifact, from its description."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from ds2deploy.export.triton.schema import TYPES, load_schema, write_text
from ds2deploy.runtimes.artifact import METADATA_KEY, ArtifactDescription
from ds2deploy.runtimes.engine_description import Flavor, frames_of
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.geometry import window_delay
from ds2deploy.runtimes.streaming.pool import BATCH as STREAM_BATCH
from ds2deploy.runtimes.streaming.pool import STREAMS
from ds2deploy.runtimes.tensors import (
    LENGTHS,
    NEXT,
    STATE,
    Tensor,
    check_state_names,
    input_tensors,
    named_sizes,
    output_tensors,
    samples_of,
)

Device = Literal["cpu", "gpu"]

BATCH = (1, 4, 16)
"""Smallest, preferred and largest batch of whole utterances, as in engines by default."""

QUEUE_DELAY_US = 5_000
"""Longest time that a request waits for others to be batched with, in microseconds: short beside
the computation of an utterance, or a block of 320 ms."""

IDLE_US = 60_000_000
"""Longest pause between two blocks of a stream, in microseconds; then Triton forgets it."""

WARMUP_S = 1.0
"""Duration of the utterances of the warm-up, where no profile gives one."""

WARMUP_LENGTH = "lengths"
"""File in the folder `warmup` with the length of the warm-up's utterances, 8 bytes."""


class Batching(msgspec.Struct, frozen=True):
    """Sizes of batches.

    Attributes:
        largest: requests in a batch, at most.
        preferred: sizes that are sent without waiting for more.
    """

    largest: int
    preferred: tuple[int, ...]


def batching(description: ArtifactDescription) -> Batching:
    """Choose the sizes of the batches of an artifact.

    An engine has those of its profile. In int8 the result of an utterance depends on its batch, so
    nothing is batched.
    """
    if description.precision == "int8":
        return Batching(1, ())
    sizes = (1, STREAM_BATCH, STREAM_BATCH) if description.blocks is not None else BATCH
    if description.engine is not None:
        sizes = description.engine.profile.batch
    return Batching(sizes[2], tuple(sorted({*sizes[1:]} - {1})))


def check_engine(flavor: Flavor, batch: Sequence[int]) -> None:
    """Refuse an engine that Triton cannot run.

    Args:
        flavor: library of the engine.
        batch: minimum, optimum and maximum batch of its profile.

    Raises:
        ConfigError: an engine of TensorRT-RTX, or one that takes no single request.
    """
    if flavor == "rtx":
        raise ConfigError(
            "--triton: Triton cannot run TensorRT-RTX engines; omit --rtx, or use --trt"
        )
    if batch[0] != 1:
        raise ConfigError(
            f"--triton: the engine's smallest batch is {batch[0]}, but Triton also sends single "
            f"requests; use --batch 1,{batch[1]},{batch[2]}"
        )


def check_servable(description: ArtifactDescription, device: Device) -> None:
    """Refuse what Triton cannot run, or not so.

    Args:
        description: metadata of the artifact.
        device: device that an ONNX file should run on.

    Raises:
        ConfigError: says why, and what to choose instead.
    """
    engine = description.engine
    if engine is not None:
        check_engine(engine.flavor, engine.profile.batch)
    if engine is None and device == "gpu" and description.precision == "int8":
        raise ConfigError(
            "--triton-device gpu: int8 runs only on a CPU; choose --triton-device cpu or "
            "--precision fp16"
        )
    if engine is None and description.precision == "bf16":
        raise ConfigError(
            "--triton: ONNX Runtime cannot run bf16; add --no-onnx, or choose --precision fp16"
        )
    if description.blocks is not None:
        check_state_names(description.inputs, description.outputs)
        if description.input == "features" and window_delay(description.features):
            raise ConfigError(
                "--triton: the analysis window of this model is longer than two strides, so that a "
                "stream of features would begin before frame 0; add --waveform"
            )


def make_config(description: ArtifactDescription, device: Device) -> str:
    """Write the text of `config.pbtxt`.

    The name of the model is left out: Triton takes that of the folder.

    Args:
        description: metadata of the artifact.
        device: device that an ONNX file runs on; engines run on a GPU.

    Raises:
        ConfigError: see `check_servable`.
        RuntimeUnavailableError: see `schema.load_schema`.
    """
    check_servable(description, device)
    schema = load_schema()
    config, engine = schema.ModelConfig(), description.engine
    if engine is None:
        config.backend = "onnxruntime"
    else:
        config.platform = "tensorrt_plan"
    sizes = batching(description)
    config.max_batch_size = sizes.largest
    inputs, outputs = input_tensors(description), output_tensors(description)
    for tensor in inputs:
        if not tensor.name.startswith(STATE):
            _declare(config.input.add(), tensor)
    for tensor in outputs:
        if not tensor.name.startswith(NEXT):
            _declare(config.output.add(), tensor)
    if description.blocks is not None:
        _add_sequences(config.sequence_batching, inputs, sizes)
    else:
        if sizes.largest > 1:
            config.dynamic_batching.preferred_batch_size.extend(sizes.preferred)
            config.dynamic_batching.max_queue_delay_microseconds = QUEUE_DELAY_US
        _add_warmup(config, description, sizes)
    on_gpu = engine is not None or device == "gpu"
    config.instance_group.add(count=1, kind=schema.ModelInstanceGroup.Kind.Value(
        "KIND_GPU" if on_gpu else "KIND_CPU"))  # fmt: skip
    config.parameters[METADATA_KEY].string_value = served(description).to_json()
    return _comment(description) + write_text(config)


def served(description: ArtifactDescription) -> ArtifactDescription:
    """Return the description that clients need: without the parity report."""
    return msgspec.structs.replace(description, parity=None)


def _comment(description: ArtifactDescription) -> str:
    source = " ".join(Path(description.source.name).name.split())
    return f"# {description.precision} of {source}, written by {description.created_by}\n"


def _dims(tensor: Tensor) -> list[int]:
    """Dims without the batch; -1 for an axis that is not fixed."""
    return [-1 if isinstance(dim, str) else dim for dim in tensor.dims[1:]]


def _declare(message: Any, tensor: Tensor) -> None:
    message.name, dims = tensor.name, _dims(tensor)
    message.data_type = _type(tensor)
    message.dims.extend(dims or [1])
    if not dims:  # one number for each request; Triton has no tensors without dims
        message.reshape.SetInParent()


def _type(tensor: Tensor) -> int:
    value = load_schema().DataType.Value(TYPES[tensor.dtype])
    assert isinstance(value, int)
    return value


def _add_sequences(message: Any, inputs: tuple[Tensor, ...], sizes: Batching) -> None:
    """Streams: Triton gathers blocks of several, and keeps the states of each.

    All states begin at zero, so the network need not be told which block is the first.
    """
    message.max_sequence_idle_microseconds = IDLE_US
    message.oldest.max_candidate_sequences = STREAMS
    if sizes.largest > 1:
        message.oldest.preferred_batch_size.extend(sizes.preferred)
        message.oldest.max_queue_delay_microseconds = QUEUE_DELAY_US
    for tensor in inputs:
        if not tensor.name.startswith(STATE):
            continue
        state, dims = message.state.add(), _dims(tensor)
        state.input_name = tensor.name
        state.output_name = NEXT + tensor.name.removeprefix(STATE)
        state.data_type = _type(tensor)
        state.dims.extend(dims)
        state.initial_state.add(name="zeros", data_type=_type(tensor), dims=dims, zero_data=True)


def _add_warmup(config: Any, description: ArtifactDescription, sizes: Batching) -> None:
    """Make the requests that Triton runs while it loads the model.

    None for streams: Triton gives its warm-up requests no states, and the model would not load.
    """
    sound = input_tensors(description)[0]
    size = warmup_size(description)
    shape = sound.shape(**named_sizes(description, 1, size))[1:]
    for batch in sorted({1, *sizes.preferred[:1]}):
        warmup = config.model_warmup.add(name=f"batch {batch}", batch_size=batch)
        first, lengths = warmup.inputs[sound.name], warmup.inputs[LENGTHS]
        first.data_type, first.zero_data = _type(sound), True
        first.dims.extend(shape)
        lengths.data_type = _type(input_tensors(description)[1])
        lengths.dims.append(1)
        lengths.input_data_file = WARMUP_LENGTH


def warmup_size(description: ArtifactDescription) -> int:
    """Frames, or samples, of the utterances of the warm-up."""
    config, engine = description.features, description.engine
    frames = frames_of(WARMUP_S, config) if engine is None else engine.profile.frames[1]
    return samples_of(frames, config) if description.input == "waveform" else frames
