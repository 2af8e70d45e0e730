"""Models that tests of several runtimes share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtimes.rows import ROWS, Row


@pytest.fixture(scope="session")
def offline_onnx(digits_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model for digits, written but not verified, which would take half a minute."""
    import onnx

    from ds2deploy.export.onnx.graph import build_graph
    from ds2deploy.export.onnx.lowering import lower
    from ds2deploy.export.verified_onnx import append_description
    from ds2deploy.model.load import load_checkpoint

    loaded = load_checkpoint(digits_checkpoint)
    path = tmp_path_factory.mktemp("offline") / "digits.onnx"
    onnx.save(build_graph(lower(loaded.network), loaded.description()), path)
    append_description(path, loaded.description())
    return path


@pytest.fixture(
    params=[
        pytest.param(row, marks=[pytest.mark.slow] if row.backend.asked_only else [])
        for row in ROWS
    ],
    ids=[f"{row.backend.name}-{row.kind}" for row in ROWS],
)
def row(request: pytest.FixtureRequest) -> Row:
    found: Row = request.param
    if found.backend.module:
        reason = f"the extra {found.backend.name} is not installed"
        pytest.importorskip(found.backend.module, reason=reason)
    return found


@pytest.fixture
def small(row: Row, small_onnx: Path, small_checkpoint: Path) -> Path:
    """A model of the row's kind with random weights."""
    return small_onnx if row.kind == "onnx" else small_checkpoint


@pytest.fixture
def trained(row: Row, offline_onnx: Path, digits_checkpoint: Path) -> Path:
    return offline_onnx if row.kind == "onnx" else digits_checkpoint
