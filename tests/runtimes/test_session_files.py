"""Every runtime with a CPU refuses files that it cannot run, and opens those that it can."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from ds2deploy.model.checkpoint import save_checkpoint
from ds2deploy.model.weights import build_network
from ds2deploy.runtimes.artifact import METADATA_KEY
from ds2deploy.runtimes.errors import MissingFileError, ModelFileError, RuntimeUnavailableError
from tests.runtimes.rows import SUFFIXES, Row, speech


def test_a_missing_file_is_named(row: Row, tmp_path: Path):
    row.refused(tmp_path / f"nothing{SUFFIXES[row.kind]}", MissingFileError)


@pytest.mark.parametrize("kept", [0, 1000, -2000], ids=["empty", "beginning", "end missing"])
def test_a_damaged_file_is_named(row: Row, small: Path, tmp_path: Path, kept: int):
    path = tmp_path / small.name
    path.write_bytes(small.read_bytes()[:kept])
    row.refused(path, ModelFileError)


def test_weights_that_are_not_numbers_are_refused(
    row: Row, small_onnx: Path, small_recipe: Any, tmp_path: Path
):
    path = tmp_path / f"nan{SUFFIXES[row.kind]}"
    if row.kind == "onnx":
        model = onnx.load(small_onnx)
        weights = next(
            one for one in model.graph.initializer if one.raw_data and one.data_type == 1
        )
        weights.raw_data = np.full(len(weights.raw_data) // 4, np.nan, np.float32).tobytes()
        onnx.save(model, path)
    else:
        network = build_network(small_recipe)
        network.output.weight.data[0, 0] = float("nan")
        save_checkpoint(path, network, small_recipe, {})
    row.refused(path, ModelFileError)


def described(path: Path, out: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Copy an ONNX file with another description."""
    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            document = msgspec.json.decode(entry.value)
            change(document)
            entry.value = msgspec.json.encode(document).decode()
    onnx.save(model, out)
    return out


def test_a_description_of_another_graph_is_refused_at_loading(
    row: Row, small_onnx: Path, tmp_path: Path
):
    if row.kind != "onnx":
        pytest.skip("a checkpoint's description is derived from its network")
    path = tmp_path / "other.onnx"
    described(small_onnx, path, lambda document: document.update(labels=document["labels"][:-1]))
    assert "export it again" in row.refused(path, ModelFileError)


def test_bf16_is_refused_with_the_file_to_give(row: Row, small_onnx: Path, tmp_path: Path):
    if row.kind != "onnx":
        pytest.skip("checkpoints are fp32")
    path = described(small_onnx, tmp_path / "b.onnx", lambda text: text.update(precision="bf16"))
    assert re.search(r"fp32|fp16", row.refused(path, RuntimeUnavailableError))


def test_names_that_are_not_utf8_can_be_opened(row: Row, small: Path, tmp_path: Path):
    path = tmp_path / os.fsdecode(b"caf\xe9" + small.suffix.encode())
    try:
        shutil.copyfile(small, path)
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    features, lengths = speech(row.open(small).description.features, 1, 40)
    found, expected = (row.open(name).run(features, lengths)[0] for name in (path, small))
    np.testing.assert_array_equal(found, expected)
