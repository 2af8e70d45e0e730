"""What an artifact takes: whole utterances or blocks, features or samples."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ds2deploy.checkpoint import Checkpoint
from ds2deploy.data import pooled_statistics
from ds2deploy.manifest import read_manifest
from ds2deploy.runtimes.artifact import ArtifactDescription, Precision
from ds2deploy.runtimes.blocks import BLOCK_MS
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.tensors import with_tensors
from ds2deploy.streaming import streaming_description


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint is exported to take.

    Attributes:
        streaming: blocks of streams, instead of whole utterances.
        waveform: samples, instead of features.
        block_ms: of sound in a block.
        statistics_from: manifest of speech for the statistics of a model that normalises whole
            utterances, which a stream does not have; None leaves the model's features.
    """

    streaming: bool = False
    waveform: bool = False
    block_ms: float = BLOCK_MS
    statistics_from: str | None = None

    def __post_init__(self) -> None:
        if self.statistics_from is not None and not self.streaming:
            raise ConfigError("--statistics-from: is for streams; add --streaming")
        if self.block_ms != BLOCK_MS and not self.streaming:
            raise ConfigError("--block-ms: is for streams; add --streaming")

    def prepare(self, checkpoint: Checkpoint, name: str) -> Checkpoint:
        """The checkpoint with features that suit the form.

        Args:
            checkpoint: to export.
            name: of its file, for errors.

        Raises:
            ConfigError: a model that cannot stream, or not without statistics.
            MissingFileError, ManifestError, AudioError: of the manifest for statistics.
        """
        if not self.streaming:
            return checkpoint
        features = checkpoint.recipe.features
        if checkpoint.recipe.model.bidirectional:
            raise ConfigError(
                f"{name}: --streaming: a bidirectional model reads an utterance from its end as "
                "well, and cannot stream; train a unidirectional one, as the recipe "
                "digits-streaming does, or export this one without --streaming"
            )
        if features.normalize != "utterance":
            if self.statistics_from is not None:
                raise ConfigError(
                    f"{name}: --statistics-from: its features do not wait for the end of an "
                    f'utterance (normalize = "{features.normalize}"); leave the option out'
                )
            return checkpoint
        if self.statistics_from is None:
            raise ConfigError(
                f"{name}: --streaming: its features are normalised by the mean and deviation of "
                "the whole utterance, which a stream does not have; --statistics-from MANIFEST "
                "replaces them by those of the recordings there"
            )
        manifest = Path(self.statistics_from)
        mean, deviation = pooled_statistics(read_manifest(manifest), checkpoint.recipe)
        features = msgspec.structs.replace(
            features,
            normalize="global",
            mean=(mean,) * features.bins,
            deviation=(deviation,) * features.bins,
        )
        recipe = msgspec.structs.replace(checkpoint.recipe, features=features)
        return msgspec.structs.replace(checkpoint, recipe=recipe)

    def describe(self, checkpoint: Checkpoint, precision: Precision) -> ArtifactDescription:
        """The artifact's description, but for the parity report.

        Args:
            checkpoint: from `prepare`.
            precision: of the artifact.

        Raises:
            ConfigError: a block of another duration than whole frames have.
        """
        given = self.statistics_from
        description = msgspec.structs.replace(
            checkpoint.description(),
            precision=precision,
            input="waveform" if self.waveform else "features",
            statistics_from=None if given is None else Path(given).name,
        )
        if self.streaming:
            return streaming_description(description, description.input, self.block_ms)
        return with_tensors(description)

    def command(self) -> list[str]:
        """The form as it is written on the command line."""
        words = ["--streaming"] if self.streaming else []
        words += ["--waveform"] if self.waveform else []
        words += [] if self.block_ms == BLOCK_MS else ["--block-ms", f"{self.block_ms:g}"]
        given = self.statistics_from
        return words + ([] if given is None else ["--statistics-from", given])


def artifact_name(form: Form, precision: Precision) -> str:
    """`model.onnx`, `model.fp16.onnx`, `model.streaming.waveform.fp16.onnx`."""
    parts = ["model"]
    parts += ["streaming"] if form.streaming else []
    parts += ["waveform"] if form.waveform else []
    parts += [] if precision == "fp32" else [precision]
    return ".".join([*parts, "onnx"])
