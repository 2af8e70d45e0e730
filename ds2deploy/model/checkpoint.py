"""Checkpoints, which contain weights and the recipe of the training, but no pickled classes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import msgspec
import torch

from ds2deploy.config import Recipe
from ds2deploy.model.network import DeepSpeech2
from ds2deploy.runtimes.artifact import ArtifactDescription, WeightsSource
from ds2deploy.runtimes.errors import DECODING_ERRORS, ModelFileError, missing_file, newer_format
from ds2deploy.runtimes.features import FeatureExtractor
from ds2deploy.runtimes.files import whole_file
from ds2deploy.version import __version__

FORMAT_VERSION = 1
KEY = "ds2deploy"


LONGEST_ZIP_END = 22 + 65_535
"""Maximum size of the last record of a zip archive, in bytes, with the longest comment."""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Trained network with everything that is needed to use it.

    Attributes:
        network: network in evaluation mode, on the CPU.
        recipe: recipe of the training; for an imported checkpoint, the settings in its file.
        source: name and sha256 of the file, and the project that trained it.
        metrics: results of the last validation, such as `wer`; empty if unknown.
    """

    network: DeepSpeech2
    recipe: Recipe
    source: WeightsSource
    metrics: dict[str, float] = {}

    def description(self) -> ArtifactDescription:
        """Describe an artifact of this checkpoint, without the parity report."""
        return ArtifactDescription(
            precision="fp32",
            labels=self.recipe.labels,
            features=self.recipe.features,
            model=self.recipe.model,
            source=self.source,
            created_by=f"ds2deploy {__version__}",
        )


def header(recipe: Recipe, metrics: dict[str, float]) -> dict[str, Any]:
    """Make the entry `ds2deploy` of a checkpoint, in plain types."""
    return {
        "format_version": FORMAT_VERSION,
        "version": __version__,
        "recipe": msgspec.to_builtins(recipe),
        "metrics": metrics,
    }


def save_checkpoint(
    path: str | Path, network: DeepSpeech2, recipe: Recipe, metrics: dict[str, float]
) -> None:
    """Write weights and recipe to a file, atomically."""
    document = {KEY: header(recipe, metrics), "state_dict": network.state_dict()}
    with whole_file(Path(path)) as temporary, temporary.open("wb") as file:
        torch.save(document, file)


def read_document(path: Path) -> dict[str, Any] | None:
    """Read the content of a checkpoint of ds2deploy; None for a file of another project.

    Raises:
        MissingFileError: the file does not exist.
        ModelFileError: the file is damaged.
    """
    if not path.is_file():
        raise missing_file(path, "a checkpoint")
    if path.stat().st_size == 0:
        raise ModelFileError(f"{path}: empty file (0 bytes); copy the checkpoint again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises many classes for damaged files and those of other projects
        if _has_lost_its_end(path):
            raise ModelFileError(f"{path}: truncated checkpoint; copy it again") from None
        return None
    return document if isinstance(document, dict) and KEY in document else None


def _has_lost_its_end(path: Path) -> bool:
    """Return True for a file that begins like a zip archive but lacks the final record."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
        file.seek(max(0, path.stat().st_size - LONGEST_ZIP_END))
        _, found, record = file.read().rpartition(b"PK\x05\x06")
    return zipped and not (found and len(record) >= 18)


def read_recipe(document: dict[str, Any], path: Path) -> Recipe:
    """Read the recipe from the content of a checkpoint; see `read_document`."""
    return read_header(document[KEY], path)[0]


def read_header(document: Any, path: Path) -> tuple[Recipe, dict[str, float]]:
    """Read the recipe and the metrics from the entry `ds2deploy` of a checkpoint.

    Raises:
        ModelFileError: the entry is damaged, or newer than this version.
    """
    try:
        version = int(document["format_version"])
        if version > FORMAT_VERSION:
            raise newer_format(path, "checkpoint", version, FORMAT_VERSION)
        recipe = msgspec.convert(document["recipe"], Recipe)
        FeatureExtractor(recipe.features)  # a checkpoint must contain the feature statistics
        return recipe, msgspec.convert(document.get("metrics", {}), dict[str, float])
    except ModelFileError:
        raise
    except (KeyError, TypeError, *DECODING_ERRORS) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ModelFileError(f"{path}: damaged recipe ({reason}); restore the original") from None
