"""What an artifact takes: whole utterances or blocks, features or samples."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ds2deploy.data.manifest import read_manifest
from ds2deploy.data.statistics import pooled_statistics
from ds2deploy.model.checkpoint import Checkpoint
from ds2deploy.runtimes.artifact import ArtifactDescription, Blocks, Input, Precision
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.geometry import make_blocks, nearest_block_ms
from ds2deploy.runtimes.tensors import with_tensors


class ExportFormat(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint is exported to take.

    Attributes:
        streaming: blocks of streams, instead of whole utterances.
        waveform: samples, instead of features.
        block_ms: of sound in a block; None is 320 ms, or what is nearest to it.
        statistics_from: manifest of speech for the statistics of a model that normalises whole
            utterances, which a stream does not have; None leaves the model's features.
    """

    streaming: bool = False
    waveform: bool = False
    block_ms: float | None = None
    statistics_from: str | None = None

    def __post_init__(self) -> None:
        if self.statistics_from is not None and not self.streaming:
            raise ConfigError("--statistics-from: is for streams; add --streaming")
        if self.block_ms is not None and not self.streaming:
            raise ConfigError("--block-ms: is for streams; add --streaming")

    def blocks(self, checkpoint: Checkpoint, name: str) -> Blocks | None:
        """The blocks of its artifacts; None of offline ones.

        Args:
            checkpoint: to export.
            name: of its file, for errors.

        Raises:
            ConfigError: a model that cannot stream, or not without statistics, or not in such
                blocks.
        """
        if not self.streaming:
            return None
        features = checkpoint.recipe.features
        if checkpoint.recipe.model.bidirectional:
            raise ConfigError(
                f"{name}: --streaming: a bidirectional model reads an utterance from its end as "
                "well, and cannot stream; train a unidirectional one, as the recipe "
                "digits-streaming does, or export this one without --streaming"
            )
        if features.normalize != "utterance" and self.statistics_from is not None:
            raise ConfigError(
                f"{name}: --statistics-from: its features do not wait for the end of an utterance "
                f'(normalize = "{features.normalize}"); leave the option out'
            )
        if features.normalize == "utterance" and self.statistics_from is None:
            raise ConfigError(
                f"{name}: --streaming: its features are normalised by the mean and deviation of "
                "the whole utterance, which a stream does not have; --statistics-from MANIFEST "
                "replaces them by those of the recordings there"
            )
        kind: Input = "waveform" if self.waveform else "features"
        block_ms = nearest_block_ms(features) if self.block_ms is None else self.block_ms
        return make_blocks(checkpoint.recipe.model, features, kind, block_ms)

    def prepare(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with features that suit the form, which `blocks` has accepted.

        Raises:
            MissingFileError, ManifestError, AudioError: of the manifest for statistics.
        """
        if self.statistics_from is None:
            return checkpoint
        cuts = read_manifest(Path(self.statistics_from))
        mean, deviation = pooled_statistics(cuts, checkpoint.recipe)
        bins = checkpoint.recipe.features.bins
        features = msgspec.structs.replace(
            checkpoint.recipe.features,
            normalize="global",
            mean=(mean,) * bins,
            deviation=(deviation,) * bins,
        )
        recipe = msgspec.structs.replace(checkpoint.recipe, features=features)
        return msgspec.structs.replace(checkpoint, recipe=recipe)

    def describe(
        self, checkpoint: Checkpoint, precision: Precision, blocks: Blocks | None = None
    ) -> ArtifactDescription:
        """The artifact's description, but for the parity report.

        Args:
            checkpoint: from `prepare`.
            precision: of the artifact.
            blocks: of a streaming one.
        """
        given = self.statistics_from
        return with_tensors(
            msgspec.structs.replace(
                checkpoint.description(),
                precision=precision,
                kind="offline" if blocks is None else "streaming",
                input="waveform" if self.waveform else "features",
                blocks=blocks,
                statistics_from=None if given is None else Path(given).name,
            )
        )

    def command(self) -> list[str]:
        """The form as it is written on the command line."""
        words = ["--streaming"] if self.streaming else []
        words += ["--waveform"] if self.waveform else []
        words += [] if self.block_ms is None else ["--block-ms", f"{self.block_ms:g}"]
        given = self.statistics_from
        return words + ([] if given is None else ["--statistics-from", given])


def artifact_name(form: ExportFormat, precision: Precision) -> str:
    """`model.onnx`, `model.fp16.onnx`, `model.streaming.waveform.fp16.onnx`."""
    parts = ["model"]
    parts += ["streaming"] if form.streaming else []
    parts += ["waveform"] if form.waveform else []
    parts += [] if precision == "fp32" else [precision]
    return ".".join([*parts, "onnx"])
