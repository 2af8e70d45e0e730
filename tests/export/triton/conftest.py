"""Artifacts of every kind, each with its configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import pytest

from ds2deploy.config import Recipe
from ds2deploy.export.format import ExportFormat
from ds2deploy.export.onnx.graph import build_graph
from ds2deploy.export.onnx.lowering import lower
from ds2deploy.export.triton.config import make_config
from ds2deploy.export.verified_onnx import append_description
from ds2deploy.model.checkpoint import save_checkpoint
from ds2deploy.model.load import load_checkpoint
from ds2deploy.runtimes.artifact import ArtifactDescription, ModelShape
from ds2deploy.runtimes.features import FeatureConfig

SMALL = FeatureConfig(
    sample_rate=8000,
    window_ms=4.0,
    stride_ms=2.0,
    normalize="global",
    mean=(0.1,) * 17,
    deviation=(0.3,) * 17,
)


class Served(NamedTuple):
    """An ONNX file, its description, and its config.pbtxt."""

    path: Path
    description: ArtifactDescription
    text: str


KINDS = {
    "offline": ("digits.ckpt", ExportFormat()),
    "offline waveform": ("digits.ckpt", ExportFormat(waveform=True)),
    "streaming": ("digits-streaming.ckpt", ExportFormat(streaming=True)),
    "streaming waveform": (
        "digits-streaming.ckpt",
        ExportFormat(streaming=True, waveform=True, block_ms=200),
    ),
    "gru": (
        ModelShape(rnn="gru", hidden=12, layers=2, bidirectional=False, lookahead=4),
        ExportFormat(streaming=True, waveform=True, block_ms=40),
    ),
    "lstm without lookahead": (
        ModelShape(rnn="lstm", hidden=12, layers=2, bidirectional=False, lookahead=1),
        ExportFormat(streaming=True, block_ms=40),
    ),
    "offline gru": (ModelShape(rnn="gru", hidden=12, layers=2), ExportFormat()),
}


@pytest.fixture(scope="session")
def make_served(
    tmp_path_factory: pytest.TempPathFactory, lively_network: Any
) -> Callable[[str], Served]:
    """Makes artifacts, each once; written, but not compared with the checkpoint."""
    folder = tmp_path_factory.mktemp("served")
    made: dict[str, Served] = {}

    def make(kind: str) -> Served:
        if kind not in made:
            source, export_format = KINDS[kind]
            if isinstance(source, str):
                checkpoint = Path(__file__).parents[2] / "models" / source
            else:
                recipe = Recipe(model=source, features=SMALL)
                checkpoint = folder / f"{kind}.ckpt"
                save_checkpoint(checkpoint, lively_network(source, bins=SMALL.bins), recipe, {})
            loaded = load_checkpoint(checkpoint)
            blocks = export_format.blocks(loaded, str(checkpoint))
            description = export_format.describe(loaded, "fp32", blocks)
            path = folder / f"{kind.replace(' ', '.')}.onnx"
            onnx.save(build_graph(lower(loaded.network), description), path)
            append_description(path, description)
            made[kind] = Served(path, description, make_config(description, "cpu"))
        return made[kind]

    return make


@pytest.fixture(params=[*KINDS])
def served(request: pytest.FixtureRequest, make_served: Callable[[str], Served]) -> Served:
    """An artifact of every kind."""
    return make_served(request.param)
