"""Checkpoints: weights and the recipe that made them, without pickled classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from ds2deploy.config import Recipe
from ds2deploy.model.network import DeepSpeech2
from ds2deploy.runtimes.artifact import ArtifactDescription, WeightsSource
from ds2deploy.runtimes.errors import DECODING_ERRORS, MissingFileError, ModelFileError
from ds2deploy.runtimes.features import FeatureExtractor
from ds2deploy.runtimes.files import file_sha256, whole_file
from ds2deploy.version import __version__

FORMAT_VERSION = 1
KEY = "ds2deploy"
COMPILED = "_orig_mod"
"""Part that `torch.compile` puts into the names of weights, at any depth."""

WRAPPERS = ("module", "model", "network")
"""Prefixes that `DataParallel` and common Lightning modules put before the names of weights."""

LONGEST_ZIP_END = 22 + 65_535
"""Bytes of a zip archive's last record, with the longest comment."""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A trained network with all that is needed to use it.

    Attributes:
        network: in evaluation mode, on the CPU.
        recipe: how it was trained; of an imported one, what its file says.
        source: name and sha256 of the file, and who trained it.
        metrics: of the last validation, such as `wer`; empty where unknown.
    """

    network: DeepSpeech2
    recipe: Recipe
    source: WeightsSource
    metrics: dict[str, float] = {}

    def description(self) -> ArtifactDescription:
        """What an artifact of this checkpoint says of itself, but for the parity report."""
        return ArtifactDescription(
            precision="fp32",
            labels=self.recipe.labels,
            features=self.recipe.features,
            model=self.recipe.model,
            source=self.source,
            created_by=f"ds2deploy {__version__}",
        )


def build_network(recipe: Recipe) -> DeepSpeech2:
    """The recipe's network with fresh weights."""
    return DeepSpeech2(recipe.model, recipe.features.bins, len(recipe.labels))


def header(recipe: Recipe, metrics: dict[str, float]) -> dict[str, Any]:
    """What stands under `ds2deploy` in a checkpoint, in plain types."""
    return {
        "format_version": FORMAT_VERSION,
        "version": __version__,
        "recipe": msgspec.to_builtins(recipe),
        "metrics": metrics,
    }


def save_checkpoint(
    path: str | Path, network: DeepSpeech2, recipe: Recipe, metrics: dict[str, float]
) -> None:
    """Write weights and recipe; the file appears whole or not at all."""
    document = {KEY: header(recipe, metrics), "state_dict": network.state_dict()}
    with whole_file(Path(path)) as temporary, temporary.open("wb") as file:
        torch.save(document, file)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of ds2deploy or of deepspeech.pytorch.

    Neither unpickles a class that the file names.

    Raises:
        MissingFileError: no such file.
        ModelFileError: damaged, of another project, or newer than this version.
    """
    path = Path(path)
    if path.suffix == ".onnx" and path.is_file():
        raise ModelFileError(f"{path}: an ONNX file; expected the checkpoint that it was made from")
    document = read_document(path)
    if document is None:
        from ds2deploy.model.deepspeech_pytorch import import_checkpoint

        return import_checkpoint(path)
    recipe, metrics = _read_header(document[KEY], path)
    network = load_network(recipe, document.get("state_dict"), path)
    return Checkpoint(
        network=network.eval(),
        recipe=recipe,
        source=WeightsSource(name=path.name, sha256=file_sha256(path), kind="ds2deploy"),
        metrics=metrics,
    )


def read_document(path: Path) -> dict[str, Any] | None:
    """The content of a checkpoint of ours; None where the file may be another project's.

    Raises:
        MissingFileError: no such file.
        ModelFileError: damaged.
    """
    if not path.is_file():
        kind = "is a directory" if path.is_dir() else "no such file"
        raise MissingFileError(f"{path}: {kind}; expected a checkpoint")
    if path.stat().st_size == 0:
        raise ModelFileError(f"{path}: empty file (0 bytes); expected a checkpoint, copy it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch trips over other projects' files and over damage in a dozen ways
        if _has_lost_its_end(path):
            raise ModelFileError(
                f"{path}: a truncated checkpoint, its end is missing; copy it again"
            ) from None
        return None
    return document if isinstance(document, dict) and KEY in document else None


def load_network(recipe: Recipe, weights: Any, path: Path) -> DeepSpeech2:
    """Build the recipe's network with the weights of a checkpoint.

    The shapes are compared before memory is taken, so that a damaged file cannot ask for all of it.

    Args:
        recipe: the checkpoint's recipe.
        weights: the checkpoint's weights, by their names.
        path: the checkpoint's path, for errors.

    Raises:
        ModelFileError: a parameter is missing, has another shape, or holds NaN or infinity.
    """
    with torch.device("meta"):
        outline = build_network(recipe)
    fitting = _fitting_weights(outline, weights, path)
    network = build_network(recipe)
    network.load_state_dict(fitting)
    _check_numbers(network, path)
    return network


def _fitting_weights(network: DeepSpeech2, weights: Any, path: Path) -> dict[str, Any]:
    """The weights by the network's own names; every parameter is there, in the right shape."""
    if not isinstance(weights, dict):
        raise ModelFileError(f"{path}: has no weights; restore the original")
    expected = network.state_dict()
    fitting = unwrapped(weights, expected.__contains__, path)
    for name, parameter in expected.items():
        if not isinstance(fitting.get(name), torch.Tensor):
            raise ModelFileError(
                f"{path}: has no weights {name!r}; it does not fit its own recipe, "
                "restore the original"
            )
        if fitting[name].shape != parameter.shape:
            raise ModelFileError(
                f"{path}: weights {name!r} are {tuple(fitting[name].shape)}, its recipe "
                f"({network.labels} labels, {network.shape.layers} x {network.shape.rnn} of "
                f"{network.shape.hidden}) expects {tuple(parameter.shape)}; restore the original"
            )
    if surplus := sorted(map(str, fitting.keys() - expected.keys())):
        raise ModelFileError(
            f"{path}: has weights that its recipe has no place for: {surplus[0]!r}; "
            "restore the original"
        )
    return fitting


def unwrapped(weights: dict[Any, Any], known: Callable[[str], bool], path: Path) -> dict[str, Any]:
    """Undo the names that `torch.compile`, `DataParallel` and Lightning modules give weights.

    Args:
        weights: weights by their names in a file.
        known: whether the network has a parameter of that name.
        path: the file's path, for the error.

    Returns:
        The weights by their names in the network; a name that is unknown in any case stays as it
        is.

    Raises:
        ModelFileError: two weights for one parameter.
    """
    found: dict[str, Any] = {}
    for name, weight in weights.items():
        parts = [part for part in str(name).split(".") if part != COMPILED]
        while parts and parts[0] in WRAPPERS and not known(".".join(parts)):
            del parts[0]
        inner = ".".join(parts)
        inner = inner if known(inner) else str(name)
        if inner in found:
            raise ModelFileError(f"{path}: has two weights {inner!r}; restore the original")
        found[inner] = weight
    return found


def _check_numbers(network: DeepSpeech2, path: Path) -> None:
    """Refuse NaN and infinity, and variances below zero, whose root is NaN."""
    for name, weight in network.state_dict().items():
        if not weight.is_floating_point():
            continue
        bad = 0
        # A sum hides neither and is quick, but may be too large by itself.
        if not torch.isfinite(weight.sum()):
            bad = int((~torch.isfinite(weight)).sum())
        if name.endswith("running_var"):
            bad += int((weight < 0).sum())
        if bad:
            raise ModelFileError(
                f"{path}: weights {name!r}: {bad} of {weight.numel()} are NaN, infinite or a "
                "variance below 0; its training diverged, or the file is damaged: take an earlier "
                "checkpoint, or restore the original"
            )


def _has_lost_its_end(path: Path) -> bool:
    """Whether a file begins like a zip archive but lacks the record at its end."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
        file.seek(max(0, path.stat().st_size - LONGEST_ZIP_END))
        _, found, record = file.read().rpartition(b"PK\x05\x06")
    return zipped and not (found and len(record) >= 18)


def read_recipe(document: dict[str, Any], path: Path) -> Recipe:
    """The recipe in the content of a checkpoint of ours, see `read_document`."""
    return _read_header(document[KEY], path)[0]


def _read_header(document: Any, path: Path) -> tuple[Recipe, dict[str, float]]:
    try:
        version = int(document["format_version"])
        if version > FORMAT_VERSION:
            raise ModelFileError(
                f"{path}: checkpoint format {version}, this ds2deploy reads up to "
                f"{FORMAT_VERSION}; upgrade it: pip install -U ds2deploy"
            )
        recipe = msgspec.convert(document["recipe"], Recipe)
        FeatureExtractor(recipe.features)  # a recipe to train by may lack statistics, this may not
        return recipe, msgspec.convert(document.get("metrics", {}), dict[str, float])
    except ModelFileError:
        raise
    except (KeyError, TypeError, *DECODING_ERRORS) as error:
        raise ModelFileError(
            f"{path}: its recipe is damaged ({error}); restore the original"
        ) from None
