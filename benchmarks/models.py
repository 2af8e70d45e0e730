"""Networks of the benchmarks, with random weights, which are as fast as trained ones.

The weights of the output layer are scaled up, so that the labels differ from frame to frame, as
those of a trained network. Otherwise all texts would be equal or empty.
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
"""Default network of deepspeech.pytorch: 5 bidirectional LSTMs of 1024 units."""

MEDIUM = ModelShape(hidden=512, layers=3)
TINY = ModelShape(hidden=32, layers=2)

DIGITS = Path(__file__).resolve().parents[1] / "tests" / "models" / "digits.ckpt"
"""Trained model of spoken digits in the project."""

OUTPUT_GAIN = 30.0

VOICE_S = 10.0
"""Duration of the synthetic speech that is made, in seconds; longer speech repeats it."""


def make_checkpoint(shape: ModelShape, folder: Path) -> Path:
    """Write a checkpoint of a network with fixed random weights.

    The features of a unidirectional network are not normalised, so that it can stream.
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
    """Write the ONNX artifact of a checkpoint without a parity check.

    The check takes minutes, and is not needed to measure speed.
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
        threads: number of CPU threads; 0 takes all cores.
    """
    return open_case(Case(path, path.name, runtime, file_kind(path)), threads).session


def speech(sample_rate: int, seconds: float, voice: int = 0) -> FloatArray:
    """Make synthetic speech: (samples,) float32."""
    count = int(sample_rate * seconds)
    once = synthesize(sample_rate, min(count, int(sample_rate * VOICE_S)), seed=voice)
    return np.resize(once, count)


def speech_batch(config: FeatureConfig, batch: int, seconds: float) -> tuple[FloatArray, IntArray]:
    """Make features (batch, 1, bins, time) float32 of a batch, and their lengths (batch,)."""
    extract = FeatureExtractor(config)
    voices = [extract(speech(config.sample_rate, seconds, i)) for i in range(min(batch, 8))]
    features = np.stack([voices[i % len(voices)] for i in range(batch)])[:, None]
    return features, np.full(batch, features.shape[3], np.int64)


def network_run(session: Session, batch: int, seconds: float) -> Callable[[], object]:
    """Return a function that runs the network on a batch with precomputed features."""
    features, lengths = speech_batch(session.description.features, batch, seconds)
    return lambda: session.run(features, lengths)


def shape_name(shape: ModelShape) -> str:
    """Format the name of a shape, such as `5 x BiLSTM-1024`."""
    kind = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}[shape.rnn]
    return f"{shape.layers} x {'Bi' if shape.bidirectional else ''}{kind}-{shape.hidden}"


def recipe_of(shape: ModelShape, **sections: object) -> Recipe:
    """Make a recipe with a network of a shape."""
    return msgspec.convert({"model": msgspec.to_builtins(shape), **sections}, Recipe)
