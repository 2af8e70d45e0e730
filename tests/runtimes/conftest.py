"""Models that tests of several runtimes share."""

from __future__ import annotations

from pathlib import Path

import pytest


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
