"""Speed against deepspeech.pytorch itself, whole and compressed.

    git clone https://github.com/SeanNaren/deepspeech.pytorch
    python benchmarks/origin.py deepspeech.pytorch [--quick] [--json] [--out DIR]

The model class of the clone runs eagerly in torch, in turns with ONNX Runtime on the same random
weights: 5 x BiLSTM-1024, in fp32 and int8, and compressed by `ds2deploy compress`. Before any
timing, the probabilities of both must be equal. Stand-ins replace what the class imports for
training: Lightning, OmegaConf, and the clone's other modules.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from models import (
    LARGE,
    TINY,
    make_checkpoint,
    network_run,
    open_network,
    shape_name,
    speech_batch,
    write_onnx,
)
from report import Result, Table, arguments, deliver_or_refuse, progress
from torch import nn

from ds2deploy.bench.timing import latency, ratio, take_turns
from ds2deploy.compression.compress import compress
from ds2deploy.model.deepspeech_pytorch import parameter_name
from ds2deploy.model.load import load_checkpoint
from ds2deploy.runtimes.artifact import ModelShape, Precision
from ds2deploy.runtimes.errors import ConfigError, MissingFileError
from ds2deploy.runtimes.features import FeatureConfig

THEIRS = "deepspeech.pytorch, eager"
TOLERANCE = 1e-5
"""Maximum difference of probabilities; both compute in float32."""

BATCHES = (1, 8)


class _StandIn(ModuleType):
    """Module that makes a class of every name, for imports that only training needs."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        base = nn.Module if name == "LightningModule" else object
        members: dict[str, Any] = {"get_type": staticmethod(type)}
        if base is object:
            members["__init__"] = lambda *_, **__: None
        made = type(name, (base,), members)
        setattr(self, name, made)
        return made


def stand_ins(source: Path) -> dict[str, ModuleType]:
    """Make a stand-in for every module that a file imports, except torch and the standard library.

    Returns:
        stand-ins by the names of the modules and of their packages.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    kept = {"torch", *sys.stdlib_module_names}
    parts = [name.split(".") for name in names if name.split(".")[0] not in kept]
    packages = {".".join(part[:count]) for part in parts for count in range(1, len(part) + 1)}
    return {name: _StandIn(name) for name in packages}


def their_network(clone: Path, checkpoint: Path) -> nn.Module:
    """Build the clone's own class with the weights of a checkpoint.

    Args:
        clone: folder of deepspeech.pytorch.
        checkpoint: bidirectional checkpoint of ds2deploy.

    Raises:
        MissingFileError: the folder has no `deepspeech_pytorch/model.py`.
    """
    source = clone / "deepspeech_pytorch" / "model.py"
    if not source.is_file():
        raise MissingFileError(f"{source}: no such file; give a clone of deepspeech.pytorch")
    loaded = load_checkpoint(checkpoint)
    shape, features = loaded.recipe.model, loaded.recipe.features
    with patch.dict(sys.modules, stand_ins(source)):
        spec = importlib.util.spec_from_file_location("deepspeech_pytorch.model", source)
        assert spec is not None
        assert spec.loader is not None
        module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.BiDirectionalConfig()
        config.rnn_type = SimpleNamespace(value={"lstm": nn.LSTM, "gru": nn.GRU}[shape.rnn])
        config.hidden_size, config.hidden_layers = shape.hidden, shape.layers
        known = {
            "labels": list(loaded.recipe.labels),
            "model_cfg": config,
            "spect_cfg": SimpleNamespace(sample_rate=features.sample_rate, window_size=0.02),
        }
        wanted = inspect.signature(module.DeepSpeech.__init__).parameters
        network: nn.Module = module.DeepSpeech(
            **{name: known.get(name) for name in wanted if name != "self"}
        )
    ours, theirs = loaded.network.state_dict(), network.state_dict()
    for name in theirs:
        if not name.endswith("num_batches_tracked"):
            theirs[name] = ours[parameter_name(name) or name]
    network.load_state_dict(theirs)
    return network.eval()


def their_run(network: nn.Module, batch: int, seconds: float) -> Callable[[], torch.Tensor]:
    """Return a function that runs their network: (batch, time', labels) probabilities."""
    features, lengths = map(torch.from_numpy, speech_batch(FeatureConfig(), batch, seconds))

    def run() -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = network(features, lengths)[0]
            return found

    return run


def check(network: nn.Module, artifact: Path) -> float:
    """Return the largest difference of the probabilities of an artifact from theirs.

    Raises:
        ConfigError: it is beyond the tolerance, so that the networks are not the same.
    """
    run = network_run(open_network(artifact, "onnxruntime"), 2, 2.0)
    log_probs: Any = run()
    difference = float(np.abs(np.exp(log_probs[0]) - their_run(network, 2, 2.0)().numpy()).max())
    if difference > TOLERANCE:
        raise ConfigError(f"{artifact.name}: probabilities differ by {difference:.1e} from theirs")
    return difference


def measure(clone: Path, shape: ModelShape, seconds: float, rounds: int, speed: float) -> Result:
    """Check that the networks are equal, and time them in turns.

    Args:
        clone: folder of deepspeech.pytorch.
        shape: network.
        seconds: duration of each utterance.
        rounds: number of rounds.
        speed: factor by which the compressed network has fewer operations.
    """
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    with tempfile.TemporaryDirectory() as folder:
        whole = make_checkpoint(shape, Path(folder))
        small = Path(folder) / "small.ckpt"
        compress(whole, small, speed=speed, method="units")
        theirs = their_network(clone, whole)
        files = {
            f"ONNX Runtime {precision}{name}": write_onnx(path, Path(folder), precision)
            for name, path in (("", whole), (f", compressed {speed:g}x", small))
            for precision in precisions
        }
        difference = check(theirs, files["ONNX Runtime fp32"])
        progress(f"probabilities within {difference:.1e}")
        sessions = {name: open_network(path, "onnxruntime") for name, path in files.items()}
        took = {}
        for batch in BATCHES:
            cases: dict[str, Callable[[], object]] = {THEIRS: their_run(theirs, batch, seconds)}
            cases |= {name: network_run(one, batch, seconds) for name, one in sessions.items()}
            for name, times in take_turns(cases, rounds, progress=progress).items():
                took[name, batch] = times
    rows = [
        [
            f"{name}, batch {batch}",
            f"{latency(times).p50:.3f}",
            str(ratio(took[THEIRS, batch], times)),
        ]
        for (name, batch), times in took.items()
    ]
    return Result(
        name="origin",
        title=f"Against deepspeech.pytorch: {shape_name(shape)}, random weights",
        quick=shape != LARGE,
        tables=[
            Table(
                title=f"{seconds:g} s of audio each, in turns",
                columns=["", "p50 (s)", "relative speed"],
                rows=rows,
            )
        ],
        notes=[f"Probabilities in fp32 within {difference:.1e} of deepspeech.pytorch's."],
        data={f"{name}, batch {batch}": times for (name, batch), times in took.items()},
    )


def main() -> int:
    """Measure, and print or write the result; returns the exit code."""
    parser = arguments(__doc__ or "")
    parser.add_argument("clone", type=Path, help="folder of a clone of deepspeech.pytorch")
    options = parser.parse_args()
    sizes = (TINY, 0.5, 2, 1.5) if options.quick else (LARGE, 10.0, 5, 2.0)
    return deliver_or_refuse(lambda: measure(options.clone, *sizes), options)


if __name__ == "__main__":
    sys.exit(main())
