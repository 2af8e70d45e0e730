"""What an artifact says of itself survives being written, and is refused where it cannot hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds2deploy.runtimes.alphabet import ENGLISH
from ds2deploy.runtimes.artifact import (
    FORMAT_VERSION,
    ArtifactDescription,
    ModelShape,
    WeightsSource,
    read_description,
)
from ds2deploy.runtimes.errors import ConfigError, ModelFileError
from ds2deploy.runtimes.features import FeatureConfig
from ds2deploy.runtimes.geometry import conv2_bins, output_length
from ds2deploy.runtimes.tensors import check_state_names


def describe(**changes) -> ArtifactDescription:
    fields = {
        "precision": "fp32",
        "labels": ENGLISH,
        "features": FeatureConfig(),
        "model": ModelShape(),
        "source": WeightsSource(name="best.ckpt", sha256="0" * 64, kind="ds2deploy"),
    }
    return ArtifactDescription(**fields | changes)


def changed(**changes) -> str:
    """A description as JSON, with fields that the struct itself would not take."""
    return json.dumps(json.loads(describe().to_json()) | changes)


def test_the_defaults_come_back():
    assert read_description(describe().to_json(), "a.onnx") == describe()


@given(
    precision=st.sampled_from(["fp32", "fp16"]),
    characters=st.sets(st.characters(exclude_categories=["Cs"]), min_size=2, max_size=12),
    model=st.builds(
        ModelShape,
        rnn=st.sampled_from(["lstm", "gru", "rnn"]),
        hidden=st.integers(1, 4096),
        layers=st.integers(1, 9),
        bidirectional=st.booleans(),
        lookahead=st.integers(1, 80),
    ),
    rate=st.sampled_from([8_000, 16_000, 44_100]),
    window=st.sampled_from(["hamming", "hann", "blackman", "bartlett"]),
    statistics=st.booleans(),
    parity=st.none() | st.just({"passed": True, "batches": [{"difference": 1e-6}]}),
)
@settings(max_examples=50)
def test_any_description_comes_back(precision, characters, model, rate, window, statistics, parity):
    features = FeatureConfig(sample_rate=rate, window=window)
    if statistics:
        random = np.random.default_rng(rate)
        features = FeatureConfig(
            sample_rate=rate,
            window=window,
            normalize="global",
            mean=tuple(random.standard_normal(features.bins).tolist()),
            deviation=tuple(random.uniform(0.1, 2, features.bins).tolist()),
        )
    description = describe(
        precision=precision,
        labels="".join(sorted(characters)),
        model=model,
        features=features,
        parity=parity,
        created_by="ds2deploy 0.1.0",
    )
    assert read_description(description.to_json(), "a.onnx") == description


def test_tensor_names_are_the_contract():
    document = json.loads(describe().to_json())
    assert document["inputs"] == ["features", "lengths"]
    assert document["outputs"] == ["log_probs", "output_lengths"]
    assert document["format_version"] == FORMAT_VERSION


def test_a_newer_format_is_refused_with_the_upgrade():
    newer = changed(format_version=FORMAT_VERSION + 1, kind="telepathic", invention={"x": 1})
    with pytest.raises(ModelFileError) as raised:
        read_description(newer, "model.onnx")
    assert str(raised.value) == (
        f"model.onnx: artifact format {FORMAT_VERSION + 1}; this version of ds2deploy reads "
        f"formats up to {FORMAT_VERSION}: pip install -U ds2deploy"
    )


def test_streams_of_an_older_format_are_refused_and_the_rest_is_read():
    blocks = {"frames": 32, "output_delay": 5} | dict.fromkeys(
        ("window_ms", "convolutions_ms", "lookahead_ms", "waiting_ms"), 100.0
    )
    streaming = json.loads(changed(kind="streaming", format_version=2))
    streaming["blocks"] = blocks
    with pytest.raises(
        ModelFileError, match="ds2deploy export CHECKPOINT --out FOLDER --streaming"
    ):
        read_description(json.dumps(streaming), "model.onnx")
    assert read_description(changed(format_version=2), "model.onnx").format_version == 2


def test_states_pair_by_their_sorted_names():
    check_state_names(["features", "state.b", "state.a"], ["next.a", "log_probs", "next.b"])
    for inputs, outputs in (
        (["position", "state.a"], ["next.a", "next.position"]),
        (["state.a"], []),
        (["state.a", "state.b"], ["next.a", "next.c"]),
    ):
        with pytest.raises(ConfigError, match="do not pair"):
            check_state_names(inputs, outputs)


@pytest.mark.parametrize(
    ("document", "detail"),
    [
        (changed(surprise=1), "surprise"),
        (changed(source={**json.loads(describe().to_json())["source"], "url": "x"}), "url"),
        (changed(features={"sample_rat": 8000}), "sample_rat"),
        (changed(model={"hiden": 4}), "hiden"),
        (changed(precision="int3"), "int3"),
        (changed(kind="streaming"), "streaming"),
        (changed(model={"hidden": 0}), "model.hidden = 0"),
        (changed(features={"sample_rate": 0}), "features.sample_rate = 0"),
        (changed(labels=None), "labels"),
        (changed(format_version="1"), "format_version"),
        ("{}", "format_version"),
        (json.dumps({"format_version": 1}), "precision"),
        ("[]", "array"),
        ("", "truncated"),
        (describe().to_json()[:-20], "truncated"),
    ],
)
def test_a_damaged_description_is_refused(document, detail):
    with pytest.raises(ModelFileError) as raised:
        read_description(document, "model.onnx")
    message = str(raised.value)
    assert message.startswith("model.onnx: its description is damaged (")
    assert detail in message
    assert message.endswith("export it again")


@pytest.mark.parametrize("field", ["hidden", "layers", "lookahead"])
def test_a_network_of_nothing_is_refused(field):
    with pytest.raises(ConfigError, match=f"model.{field} = 0: expected at least 1"):
        ModelShape(**{field: 0})


def convolved(size: int, kernel: int, stride: int, padding: int) -> int:
    return len(range(0, size + 2 * padding - kernel + 1, stride))


@given(st.integers(1, 5000))
def test_output_length_is_that_of_the_two_convolutions(frames):
    assert output_length(frames) == convolved(convolved(frames, 11, 2, 5), 11, 1, 5)


@given(st.integers(2, 2000))
def test_conv_bins_are_those_of_the_two_convolutions(bins):
    assert conv2_bins(bins) == convolved(convolved(bins, 41, 2, 20), 21, 2, 10)


@settings(max_examples=15, deadline=None)
@given(frames=st.integers(1, 60), bins=st.integers(3, 60))
def test_torch_gives_outputs_of_that_size(frames, bins):
    torch = pytest.importorskip("torch")
    outputs = torch.zeros(1, 1, bins, frames)
    for kernel, stride, padding in (((41, 11), (2, 2), (20, 5)), ((21, 11), (2, 1), (10, 5))):
        weight = torch.zeros(1, 1, *kernel)
        outputs = torch.conv2d(outputs, weight, stride=stride, padding=padding)
    assert outputs.shape == (1, 1, conv2_bins(bins), output_length(frames))


def test_known_sizes():
    assert conv2_bins(161) == 41
    assert [output_length(n) for n in (1, 2, 3, 457)] == [1, 1, 2, 229]
