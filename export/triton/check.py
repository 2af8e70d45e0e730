"""Compares `config.pbtxt` with the artifact: every name, type and dimension."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ds2deploy.export.triton.config import batching, served
from ds2deploy.export.triton.schema import TYPES, load_schema, parse_config
from ds2deploy.runtimes.artifact import METADATA_KEY, ArtifactDescription
from ds2deploy.runtimes.errors import Ds2Error, ParityError
from ds2deploy.runtimes.tensors import LENGTHS, input_tensors, output_tensors
from ds2deploy.runtimes.triton import served_description

ONNX_TYPES = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}


class Signature(NamedTuple):
    """A tensor as a graph has it, or as a configuration declares it.

    Attributes:
        name: name of the tensor.
        type: Triton's name of its type.
        dims: dims without the batch; -1 for an axis that is not fixed.
    """

    name: str
    type: str
    dims: tuple[int, ...]


class Graph(NamedTuple):
    """Inputs and outputs of a graph."""

    inputs: list[Signature]
    outputs: list[Signature]


def onnx_graph(path: Path) -> Graph:
    """Read the tensors of an ONNX file, as ONNX Runtime sees them.

    Raises:
        ParityError: a tensor whose first axis is not the batch.
    """
    from ds2deploy.export.triton.simulator import open_onnx

    session = open_onnx(path)
    return Graph(_onnx_tensors(session.get_inputs()), _onnx_tensors(session.get_outputs()))


def declared_graph(description: ArtifactDescription) -> Graph:
    """Return the tensors that an engine's description declares; an engine opens on its GPU only."""
    return Graph(
        *(
            [
                Signature(
                    tensor.name,
                    TYPES[tensor.dtype],
                    tuple(-1 if isinstance(dim, str) else dim for dim in tensor.dims[1:]),
                )
                for tensor in tensors
            ]
            for tensors in (input_tensors(description), output_tensors(description))
        )
    )


def check_config(text: str, description: ArtifactDescription, graph: Graph) -> Any:
    """Compare a configuration with the artifact.

    Args:
        text: content of `config.pbtxt`.
        description: metadata of the artifact.
        graph: tensors of the artifact.

    Returns:
        The configuration, parsed by Triton's schema.

    Raises:
        ParityError: not in the schema, or another tensor, type, dim or size than the artifact's.
    """
    config = parse_config(text)
    problems = [
        *_tensor_problems("inputs", _inputs(config), graph.inputs),
        *_tensor_problems("outputs", _outputs(config), graph.outputs),
        *_state_problems(config.sequence_batching.state),
        *_batching_problems(config, description),
        *_warmup_problems(config),
        *_description_problems(config, description),
    ]
    if problems:
        raise ParityError(f"config.pbtxt differs from the artifact: {'; '.join(problems)}")
    return config


def signature(message: Any) -> Signature:
    """Return an input or output of a configuration as the graph sees it."""
    dims = message.reshape.shape if message.HasField("reshape") else message.dims
    return Signature(message.name, _type_name(message.data_type), tuple(dims))


def _inputs(config: Any) -> list[Signature]:
    states = config.sequence_batching.state
    return [signature(one) for one in config.input] + [
        _state(one, one.input_name) for one in states
    ]


def _outputs(config: Any) -> list[Signature]:
    states = config.sequence_batching.state
    return [signature(one) for one in config.output] + [
        _state(one, one.output_name) for one in states
    ]


def _state(message: Any, name: str) -> Signature:
    return Signature(name, _type_name(message.data_type), tuple(message.dims))


def _type_name(value: int) -> str:
    return str(load_schema().DataType.Name(value))


def _onnx_tensors(values: Iterable[Any]) -> list[Signature]:
    found = []
    for value in values:
        if not value.shape or isinstance(value.shape[0], int):
            raise ParityError(f"{value.name} {value.shape}: its first axis is not the batch")
        dims = tuple(dim if isinstance(dim, int) else -1 for dim in value.shape[1:])
        found.append(Signature(value.name, ONNX_TYPES.get(value.type, value.type), dims))
    return found


def _tensor_problems(
    what: str, declared: Sequence[Signature], there: Sequence[Signature]
) -> list[str]:
    if sorted(declared) == sorted(there):
        return []
    missing = sorted(set(there) - set(declared))
    surplus = sorted(set(declared) - set(there))
    twice = sorted({one for one in declared if declared.count(one) > 1})
    return [
        f"{what}: {label} {', '.join(f'{one.name} {one.type} {[*one.dims]}' for one in some)}"
        for label, some in (("missing", missing), ("unexpected", surplus), ("duplicate", twice))
        if some
    ]


def _state_problems(states: Sequence[Any]) -> list[str]:
    """States pair as Triton pairs them: by their sorted names; and all begin at zero."""
    problems = []
    configured = {state.input_name: state.output_name for state in states}
    sorted_pairs = zip(sorted(configured), sorted(configured.values()), strict=True)
    for name, following in sorted_pairs:
        if configured[name] != following:
            problems.append(f"state {name}: Triton pairs it with {following}, by sorted names")
    for state in states:
        initial = state.initial_state
        if len(initial) != 1 or not initial[0].name or not initial[0].zero_data:
            problems.append(f"state {state.input_name}: its initial value is not zero")
        elif (initial[0].data_type, [*initial[0].dims]) != (state.data_type, [*state.dims]):
            problems.append(
                f"state {state.input_name}: its initial value has another type or shape"
            )
    return problems


def _batching_problems(config: Any, description: ArtifactDescription) -> list[str]:
    problems, sizes = [], batching(description)
    if config.max_batch_size != sizes.largest:
        problems.append(f"max_batch_size {config.max_batch_size}: expected {sizes.largest}")
    kind = config.WhichOneof("scheduling_choice")
    expected = "sequence_batching"
    if description.blocks is None:
        expected = "dynamic_batching" if sizes.largest > 1 else ""
    if (kind or "") != expected:
        problems.append(f"{kind or 'no batching'}: expected {expected or 'no batching'}")
    oldest = config.sequence_batching.oldest
    batcher = oldest if kind == "sequence_batching" else config.dynamic_batching
    if any(not 1 <= size <= config.max_batch_size for size in batcher.preferred_batch_size):
        problems.append(
            f"preferred_batch_size {[*batcher.preferred_batch_size]}: expected 1 to "
            f"{config.max_batch_size}"
        )
    if config.sequence_batching.control_input:
        problems.append("control_input: the network has no such input")
    runtime = ("onnxruntime", "") if description.engine is None else ("", "tensorrt_plan")
    if (found := (config.backend, config.platform)) != runtime:
        problems.append(f"backend and platform {found}: expected {runtime}")
    return problems


def _warmup_problems(config: Any) -> list[str]:
    problems = []
    declared = {one.name: one for one in config.input}
    if config.model_warmup and config.sequence_batching.state:
        problems.append(
            "model_warmup: its requests have no states, so that the model would not load"
        )
    for warmup in config.model_warmup:
        if set(warmup.inputs) != set(declared):
            problems.append(
                f"warm-up {warmup.name}: inputs {', '.join(sorted(warmup.inputs))}; expected "
                f"{', '.join(declared)}"
            )
        for name in set(warmup.inputs) & set(declared):
            one, other = warmup.inputs[name], declared[name]
            dims = zip(one.dims, other.dims, strict=False)
            fits = len(one.dims) == len(other.dims) and all(
                size > 0 and limit in (-1, size) for size, limit in dims
            )
            if not fits or one.data_type != other.data_type:
                problems.append(
                    f"warm-up {warmup.name}: {name} has another type or shape ({[*one.dims]})"
                )
            if name == LENGTHS and not one.input_data_file:
                problems.append(f"warm-up {warmup.name}: no data file for {name}")
        if not 1 <= warmup.batch_size <= config.max_batch_size:
            problems.append(
                f"warm-up {warmup.name}: a batch of {warmup.batch_size}; expected 1 to "
                f"{config.max_batch_size}"
            )
    return problems


def _description_problems(config: Any, description: ArtifactDescription) -> list[str]:
    entry = config.parameters[METADATA_KEY].string_value
    parameters = {"parameters": {METADATA_KEY: {"string_value": entry}}}
    try:
        found = served_description(parameters, "config.pbtxt")
    except Ds2Error as error:
        return [str(error)]
    if found != served(description):
        return ["its description belongs to another artifact"]
    return []
