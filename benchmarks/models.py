"""Networks of the benchmarks, with random weights, which are as fast as trained ones.

Their output layer is enlarged, so that they answer speech with labels that differ from frame to
frame, as a trained network does; else every text would be the same, or empty.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import torch

from ds2deploy.bench.plan import Case, open_case
from ds2deploy.config import Recipe
from ds2deploy.export.format import ExportFormat, artifact_name
from ds2deploy.export.onnx.graph import build_graph
from ds2deploy.export.onnx.lowering import lower
from ds2deploy.export.parity.speech import synthesize
from ds2deploy.export.verified_onnx import append_description
from ds2deploy.loading import file_kind
from ds2deploy.model.checkpoint import save_checkpoint
from ds2deploy.model.load import load_checkpoint
from ds2deploy.model.weights import build_network
from ds2deploy.runtimes.artifact import ModelShape, Precision
from ds2deploy.runtimes.features import FeatureConfig, FeatureExtractor, FloatArray, IntArray
from ds2deploy.runtimes.session import Session

LARGE = ModelShape()
"""deepspeech.pytorch's default: 5 bidirectional LSTMs of 1024."""

MEDIUM = ModelShape(hidden=512, layers=3)
TINY = ModelShape(hidden=32, layers=2)

DIGITS = Path(__file__).resolve().parents[1] / "tests" / "models" / "digits.ckpt"
"""A trained model of spoken digits that comes with the project."""

OUTPUT_GAIN = 30.0

VOICE_S = 10.0
"""Seconds of synthetic speech that are made; what is longer repeats them."""


def make_checkpoint(shape: ModelShape, folder: Path) -> Path:
    """A checkpoint of such a network, the same every time.

    The features of a unidirectional one are not normalised, so that it streams.
    """
    torch.manual_seed(0)
    recipe = Recipe(model=shape)
    if not shape.bidirectional:
        features = msgspec.structs.replace(recipe.features, normalize="none")
        recipe = msgspec.structs.replace(recipe, features=features)
    network = build_network(recipe)
    with torch.no_grad():
        network.output.weight.mul_(OUTPUT_GAIN)
    path = folder / f"{shape.layers}x{shape.hidden}.ckpt"
    save_checkpoint(path, network, recipe, {})
    return path


def write_onnx(
    checkpoint: Path,
    folder: Path,
    precision: Precision = "fp32",
    export_format: ExportFormat | None = None,
) -> Path:
    """The checkpoint's artifact as an export writes it, but not compared with the checkpoint.

    The comparison takes minutes, and says nothing of speed.
    """
    loaded = load_checkpoint(checkpoint)
    export_format = export_format or ExportFormat()
    blocks = export_format.blocks(loaded, checkpoint.name)
    description = export_format.describe(loaded, precision, blocks)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{checkpoint.stem}.{artifact_name(export_format, precision)}"
    deploy = lower(loaded.network, columns=precision != "int8")
    onnx.save(build_graph(deploy, description), path)
    append_description(path, description)
    return path


def open_network(path: Path, runtime: str, threads: int = 0) -> Session:
    """Open a model on a runtime of `ds2deploy bench`.

    Args:
        path: checkpoint or artifact.
        runtime: one of `ds2deploy.bench.plan.NAMES`.
        threads: threads of the CPU; 0 takes all.
    """
    return open_case(Case(path, path.name, runtime, file_kind(path)), threads).session


def speech(sample_rate: int, seconds: float, voice: int = 0) -> FloatArray:
    """Synthetic speech: (samples,) float32."""
    count = int(sample_rate * seconds)
    once = synthesize(sample_rate, min(count, int(sample_rate * VOICE_S)), seed=voice)
    return np.resize(once, count)


def speech_batch(config: FeatureConfig, batch: int, seconds: float) -> tuple[FloatArray, IntArray]:
    """Features (batch, 1, bins, time) float32 of so many utterances, and their lengths (batch,)."""
    extract = FeatureExtractor(config)
    voices = [extract(speech(config.sample_rate, seconds, i)) for i in range(min(batch, 8))]
    features = np.stack([voices[i % len(voices)] for i in range(batch)])[:, None]
    return features, np.full(batch, features.shape[3], np.int64)


def network_run(session: Session, batch: int, seconds: float) -> Callable[[], object]:
    """Return a run of the network on that many utterances, whose features are extracted already."""
    features, lengths = speech_batch(session.description.features, batch, seconds)
    return lambda: session.run(features, lengths)


def shape_name(shape: ModelShape) -> str:
    """Name a shape: `5 x BiLSTM-1024`."""
    kind = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}[shape.rnn]
    return f"{shape.layers} x {'Bi' if shape.bidirectional else ''}{kind}-{shape.hidden}"


def recipe_of(shape: ModelShape, **sections: object) -> Recipe:
    """A recipe of such a network."""
    return msgspec.convert({"model": msgspec.to_builtins(shape), **sections}, Recipe)
