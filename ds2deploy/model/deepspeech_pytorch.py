"""Importer of deepspeech.pytorch checkpoints, which reads their numbers but runs no code of them.

Only files of its version 3 are read (Lightning's format, with `state_dict`, and `hyper_parameters`
with `model_cfg` and `spect_cfg`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import torch

from ds2deploy.config import Recipe
from ds2deploy.model.checkpoint import Checkpoint
from ds2deploy.model.foreign_pickle import plain, plain_items, read_foreign_checkpoint
from ds2deploy.model.weights import checked_weight, load_network, unwrapped
from ds2deploy.runtimes.artifact import WeightsSource
from ds2deploy.runtimes.errors import DECODING_ERRORS, ModelFileError
from ds2deploy.runtimes.files import file_sha256

# Patterns of deepspeech.pytorch's parameter names, and our names.
NAMES = (
    (r"conv\.seq_module\.(\d)\.(\w+)", r"conv.layers.\1.\2"),
    (r"rnns\.(\d+)\.rnn\.(\w+)", r"rnns.\1.rnn.\2"),
    (r"rnns\.(\d+)\.batch_norm\.module\.(\w+)", r"rnns.\1.batch_norm.\2"),
    (r"lookahead\.0\.conv\.(\w+)", r"lookahead.conv.\1"),
    (r"fc\.0\.module\.0\.(\w+)", r"output_norm.\1"),
    (r"fc\.0\.module\.1\.(\w+)", r"output.\1"),
)


def import_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of deepspeech.pytorch without running anything that it names.

    Raises:
        ModelFileError: the file is not such a checkpoint or is damaged, or ds2deploy does not
            support its model.
    """
    document = read_foreign_checkpoint(path)
    weights = document.get("state_dict")
    if not isinstance(weights, dict) or "hyper_parameters" not in document:
        raise ModelFileError(
            f"{path}: a PyTorch file without state_dict and hyper_parameters; expected a "
            "checkpoint of ds2deploy or deepspeech.pytorch 3"
        )
    weights = plain_items(weights)
    weights = unwrapped(weights, lambda name: parameter_name(name) is not None, path)
    try:
        hyper = plain(document["hyper_parameters"])
        refusal = _why_refused(hyper["labels"])
        recipe = None if refusal else _recipe(hyper, weights)
    except (KeyError, TypeError, AttributeError, *DECODING_ERRORS) as error:
        raise ModelFileError(
            f"{path}: its hyper_parameters are not deepspeech.pytorch's "
            f"({type(error).__name__}: {error}); restore the original"
        ) from None
    if recipe is None:
        raise ModelFileError(f"{path}: {refusal}")
    network = load_network(recipe, _rename(weights, path), path)
    return Checkpoint(
        network=network.eval(),
        recipe=recipe,
        source=WeightsSource(name=path.name, sha256=file_sha256(path), kind="deepspeech.pytorch"),
    )


def parameter_name(name: str) -> str | None:
    """Translate a parameter name of deepspeech.pytorch to ours; None if it has no such name."""
    for pattern, ours in NAMES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, ours, name)
    return None


def _why_refused(labels: Any) -> str:
    """Explain why a model with these labels cannot be loaded; empty if it can."""
    if not all(isinstance(label, str) for label in labels):
        return "its labels are not text; restore the original"
    if long := [label for label in labels if len(label) != 1]:
        return (
            f"unsupported labels {', '.join(map(repr, long[:5]))}: each label must be one "
            "character; use another model"
        )
    if twice := sorted({label for label in labels if list(labels).count(label) > 1}):
        return (
            f"duplicate labels {', '.join(map(repr, twice[:5]))}: each label must occur once; use "
            "another model"
        )
    # deepspeech.pytorch's blank is the label "_" (model.py: CTCLoss(blank=labels.index("_"))).
    if "_" in labels and labels[0] != "_":
        return (
            f"the blank '_' is label {list(labels).index('_')}, and must be label 0; use another "
            "model"
        )
    return ""


def _recipe(hyper: dict[str, Any], weights: dict[str, Any]) -> Recipe:
    model, spectrogram = hyper["model_cfg"], hyper["spect_cfg"]
    bidirectional = any(name.endswith("_reverse") for name in weights)
    document = {
        "labels": "".join(hyper["labels"]),
        "model": {
            "rnn": str(model["rnn_type"]).lower(),
            "hidden": model["hidden_size"],
            "layers": model["hidden_layers"],
            "bidirectional": bidirectional,
            "lookahead": model.get("lookahead_context", 20),
        },
        "features": {
            "sample_rate": spectrogram["sample_rate"],
            "window_ms": 1000 * spectrogram["window_size"],
            "stride_ms": 1000 * spectrogram["window_stride"],
            "window": spectrogram["window"],
        },
    }
    return msgspec.convert(document, Recipe)


def _rename(weights: dict[str, Any], path: Path) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, weight in weights.items():
        ours = parameter_name(name) if isinstance(name, str) else None
        if ours is None or not isinstance(weight, torch.Tensor):
            raise ModelFileError(
                f"{path}: {name!r} is not a parameter of deepspeech.pytorch's model; restore the "
                "original"
            )
        renamed[ours] = checked_weight(weight, name, path)
    return renamed
