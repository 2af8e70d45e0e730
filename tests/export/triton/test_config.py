"""config.pbtxt: in Triton's schema, and compared with the artifact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ds2deploy.export.triton.check import check_config, declared_graph, onnx_graph
from ds2deploy.export.triton.config import check_engine, check_servable, make_config
from ds2deploy.export.triton.repository import model_name
from ds2deploy.export.triton.schema import parse_config
from ds2deploy.runtimes.engine_description import BuildFacts, EngineDescription, Profile
from ds2deploy.runtimes.errors import ConfigError, ModelFileError, ParityError
from ds2deploy.runtimes.tensors import check_state_names
from ds2deploy.runtimes.triton import served_description

pytest.importorskip("tritonclient", reason="the extra triton is not installed")

PROFILE = Profile(batch=(1, 4, 16), frames=(51, 501, 3001))


def as_engine(description: Any, profile: Profile = PROFILE) -> Any:
    facts = EngineDescription(
        flavor="tensorrt",
        version="10.3.0",
        compute_capabilities=("8.9",),
        hardware_compatibility="none",
        profile=profile,
        workspace_mb=None,
        optimization_level=None,
        onnx_sha256="0" * 64,
        engine_sha256="1" * 64,
        size=1,
        network_parity={},
        compared_with="",
        verification="",
        rebuild="",
        build=BuildFacts(
            parse_s=0, build_s=0, network_check_s=0, engine_check_s=None, peak_memory_mb=0, layers=1
        ),
    )
    return msgspec.structs.replace(description, engine=facts)


def test_every_kind_parses_and_equals_its_graph(served: Any):
    config = check_config(served.text, served.description, onnx_graph(served.path))
    assert config.backend == "onnxruntime"
    assert not config.name  # so that the folder may be renamed
    assert onnx_graph(served.path) == declared_graph(served.description)
    streaming = served.description.blocks is not None
    assert config.HasField("sequence_batching") == streaming
    assert config.HasField("dynamic_batching") != streaming
    assert bool(config.model_warmup) != streaming  # a warm-up has no states
    states = [name for name in served.description.inputs if name.startswith("state.")]
    assert [state.input_name for state in config.sequence_batching.state] == states
    lengths = next(one for one in config.input if one.name == "lengths")
    assert list(lengths.dims) == [1]
    assert lengths.HasField("reshape")
    assert list(lengths.reshape.shape) == []


def test_the_server_hands_the_description_to_clients(served: Any):
    config = parse_config(served.text)
    text = config.parameters["ds2deploy"].string_value
    found = served_description({"parameters": {"ds2deploy": {"string_value": text}}}, "model")
    assert found == msgspec.structs.replace(served.description, parity=None)
    with pytest.raises(ModelFileError, match="--triton REPOSITORY"):
        served_description({}, "model")


DAMAGE = {
    "dim": ("dims: [1, 161, -1]", "dims: [1, 160, -1]"),
    "rank": ("dims: [-1, 29]", "dims: [29]"),
    "type": (
        'name: "log_probs"\n  data_type: TYPE_FP32',
        'name: "log_probs"\n  data_type: TYPE_FP16',
    ),
    "name": ('name: "output_lengths"', 'name: "lengths_out"'),
    "reshape": ("  reshape {\n  }\n", ""),
    "preferred": ("preferred_batch_size: [4, 16]", "preferred_batch_size: [4, 32]"),
    "largest": ("max_batch_size: 16", "max_batch_size: 8"),
    "backend": ('backend: "onnxruntime"', 'backend: "python"'),
    "warmup": ("dims: [1, 161, 101]", "dims: [1, 162, 101]"),
    "labels": ("ABCDE", "BACDE"),
    "schema": ("dynamic_batching {", "dynamic_batch {"),
}


@pytest.mark.parametrize("damage", [*DAMAGE])
def test_a_damaged_configuration_is_refused(make_served: Callable[[str], Any], damage: str):
    served = make_served("offline")
    old, new = DAMAGE[damage]
    assert old in served.text
    text = served.text.replace(old, new, 1)
    with pytest.raises(ParityError, match=r"config\.pbtxt"):
        check_config(text, served.description, onnx_graph(served.path))


@pytest.mark.parametrize("damage", ["missing", "pair", "zero", "dims", "control", "warmup"])
def test_damaged_states_are_refused(make_served: Callable[[str], Any], damage: str):
    from google.protobuf import text_format

    served = make_served("streaming")
    config = parse_config(served.text)
    batching = config.sequence_batching
    if damage == "missing":
        del batching.state[2]
    elif damage == "pair":
        batching.state[1].output_name = batching.state[2].output_name
        batching.state[2].output_name = "next.features"
    elif damage == "zero":
        del batching.state[0].initial_state[:]
    elif damage == "dims":
        batching.state[3].dims[0] += 1
    elif damage == "control":
        batching.control_input.add(name="START")
    else:
        config.model_warmup.add(name="one", batch_size=1)
    with pytest.raises(ParityError, match=r"config\.pbtxt"):
        check_config(
            text_format.MessageToString(config), served.description, onnx_graph(served.path)
        )


def test_names_that_sort_otherwise_are_refused():
    """`position` sorts before `state.cell`, and `next.position` after `next.cell`."""
    states = ("state.cell", "state.rnn")
    with pytest.raises(ConfigError, match=r"next\.position"):
        check_state_names(("position", *states), ("next.position", "next.cell", "next.rnn"))


def test_an_engine_runs_on_a_gpu_in_the_batches_of_its_profile(make_served: Callable[[str], Any]):
    for kind in ("offline", "streaming"):
        description = as_engine(make_served(kind).description)
        text = make_config(description, "cpu")
        config = check_config(text, description, declared_graph(description))
        assert (config.platform, config.backend) == ("tensorrt_plan", "")
        assert config.max_batch_size == 16
        assert "KIND_GPU" in text
        for warmup in config.model_warmup:
            assert list(warmup.inputs["features"].dims)[-1] == 501


def test_artifacts_that_triton_cannot_serve_are_refused_with_a_remedy(
    make_served: Callable[[str], Any],
):
    offline = make_served("offline").description
    with pytest.raises(ConfigError, match="--trt"):
        check_engine("rtx", (1, 4, 16))
    with pytest.raises(ConfigError, match=r"--batch 1,4,16"):
        check_engine("tensorrt", (2, 4, 16))
    with pytest.raises(ConfigError, match="fp16"):
        check_servable(msgspec.structs.replace(offline, precision="int8"), "gpu")
    with pytest.raises(ConfigError, match="--no-onnx"):
        check_servable(msgspec.structs.replace(offline, precision="bf16"), "gpu")
    stream = make_served("streaming").description
    wide = msgspec.structs.replace(
        stream.features, window_ms=50.0, normalize="none", mean=None, deviation=None
    )
    with pytest.raises(ConfigError, match="--waveform"):
        check_servable(msgspec.structs.replace(stream, features=wide), "cpu")


def test_int8_is_not_batched(make_served: Callable[[str], Any]):
    """Its results depend on what else is in a batch."""
    for kind in ("offline", "streaming"):
        described = msgspec.structs.replace(make_served(kind).description, precision="int8")
        config = check_config(make_config(described, "cpu"), described, declared_graph(described))
        assert config.max_batch_size == 1
        assert not config.HasField("dynamic_batching")


@pytest.mark.parametrize(
    ("artifact", "name"),
    [
        ("model.onnx", "model"),
        ("model.streaming.waveform.fp16.onnx", "model_streaming_waveform_fp16"),
        ("model.fp16.engine", "model_fp16_trt"),
    ],
)
def test_the_model_is_named_after_its_artifact(artifact: str, name: str):
    assert model_name(artifact) == name


def test_a_graph_without_a_batch_axis_is_refused(tmp_path: Path):
    import onnx
    from onnx import TensorProto, helper

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "x.onnx")
    with pytest.raises(ParityError, match="batch"):
        onnx_graph(tmp_path / "x.onnx")
