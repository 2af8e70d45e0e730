"""Format of an export: whole utterances or blocks, features or samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ds2deploy.data.manifest import read_manifest
from ds2deploy.data.statistics import pooled_statistics
from ds2deploy.model.checkpoint import Checkpoint
from ds2deploy.runtimes.artifact import ArtifactDescription, Blocks, Input, Precision
from ds2deploy.runtimes.blocks import make_blocks, nearest_block_ms
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.tensors import with_tensors


class ExportFormat(msgspec.Struct, frozen=True, kw_only=True):
    """Format that a checkpoint is exported to.

    Attributes:
        streaming: blocks of streams, instead of whole utterances.
        waveform: samples, instead of features.
        block_ms: duration of sound in a block; None is 320 ms, or what is nearest to it.
        statistics_from: manifest of speech for the statistics of a model that normalises whole
            utterances, which a stream does not have; None leaves the model's features.
    """

    streaming: bool = False
    waveform: bool = False
    block_ms: float | None = None
    statistics_from: str | None = None

    def __post_init__(self) -> None:
        if self.statistics_from is not None and not self.streaming:
            raise ConfigError("--statistics-from: only for streams; add --streaming")
        if self.block_ms is not None and not self.streaming:
            raise ConfigError("--block-ms: only for streams; add --streaming")

    @property
    def input(self) -> Input:
        """Kind of the first input: features or samples."""
        return "waveform" if self.waveform else "features"

    def blocks(self, checkpoint: Checkpoint, name: str) -> Blocks | None:
        """Return the blocks of its artifacts; None for offline ones.

        Args:
            checkpoint: the checkpoint to export.
            name: name of its file, for errors.

        Raises:
            ConfigError: a model that cannot stream, or not without statistics, or not in such
                blocks.
        """
        if not self.streaming:
            return None
        features = checkpoint.recipe.features
        if checkpoint.recipe.model.bidirectional:
            raise ConfigError(
                f"{name}: --streaming: a bidirectional model needs the whole utterance and cannot "
                "stream; omit --streaming, or train a unidirectional model, such as: "
                "ds2deploy train digits-streaming"
            )
        if features.normalize != "utterance" and self.statistics_from is not None:
            raise ConfigError(
                f"{name}: --statistics-from: its features are not normalised over whole utterances "
                f'(normalize = "{features.normalize}"); omit the option'
            )
        if features.normalize == "utterance" and self.statistics_from is None:
            raise ConfigError(
                f"{name}: --streaming: its features are normalised over the whole utterance, which "
                "a stream does not have; add --statistics-from MANIFEST to normalise by the mean "
                "and deviation of those recordings"
            )
        block_ms = nearest_block_ms(features) if self.block_ms is None else self.block_ms
        return make_blocks(checkpoint.recipe.model, features, self.input, block_ms)

    def prepare(self, checkpoint: Checkpoint) -> Checkpoint:
        """Give a checkpoint the features that the format needs; `blocks` has accepted it.

        Raises:
            MissingFileError, ManifestError, AudioError: of the manifest for statistics.
        """
        if self.statistics_from is None:
            return checkpoint
        cuts = read_manifest(Path(self.statistics_from))
        mean, deviation = pooled_statistics(cuts, checkpoint.recipe)
        bins = checkpoint.recipe.features.bins
        statistics = {"mean": (mean,) * bins, "deviation": (deviation,) * bins}
        return with_features(checkpoint, normalize="global", **statistics)

    def describe(
        self, checkpoint: Checkpoint, precision: Precision, blocks: Blocks | None = None
    ) -> ArtifactDescription:
        """Make the artifact's description, without the parity report.

        Args:
            checkpoint: the result of `prepare`.
            precision: number format of the artifact.
            blocks: layout of its blocks; None for an offline artifact.
        """
        given = self.statistics_from
        return with_tensors(
            msgspec.structs.replace(
                checkpoint.description(),
                precision=precision,
                kind="offline" if blocks is None else "streaming",
                input=self.input,
                blocks=blocks,
                statistics_from=None if given is None else Path(given).name,
            )
        )

    def command(self) -> list[str]:
        """Return the options of the command line that ask for this format."""
        words = ["--streaming"] if self.streaming else []
        words += ["--waveform"] if self.waveform else []
        words += [] if self.block_ms is None else ["--block-ms", f"{self.block_ms:g}"]
        given = self.statistics_from
        return words + ([] if given is None else ["--statistics-from", given])


def with_features(checkpoint: Checkpoint, **changes: Any) -> Checkpoint:
    """Change some settings of a checkpoint's features."""
    features = msgspec.structs.replace(checkpoint.recipe.features, **changes)
    recipe = msgspec.structs.replace(checkpoint.recipe, features=features)
    return msgspec.structs.replace(checkpoint, recipe=recipe)


def artifact_name(export_format: ExportFormat, precision: Precision) -> str:
    """`model.onnx`, `model.fp16.onnx`, `model.streaming.waveform.fp16.onnx`."""
    parts = ["model"]
    parts += ["streaming"] if export_format.streaming else []
    parts += ["waveform"] if export_format.waveform else []
    parts += [] if precision == "fp32" else [precision]
    return ".".join([*parts, "onnx"])
