"""What an artifact says of itself: one JSON document, inside the ONNX file or beside the engine.

Tensor names and model shape are declared here, once, for exporter and runtimes alike.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ds2deploy.runtimes.engine_description import EngineDescription
from ds2deploy.runtimes.errors import ConfigError, ModelFileError
from ds2deploy.runtimes.features import FeatureConfig

FORMAT_VERSION = 1
METADATA_KEY = "ds2deploy"

FEATURES = "features"
LENGTHS = "lengths"
LOG_PROBS = "log_probs"
OUTPUT_LENGTHS = "output_lengths"

Precision = Literal["fp32", "fp16", "bf16"]

CONV_MAPS = 32
"""Feature maps of both convolutions."""

TIME_STRIDE = 2
"""Input frames per output frame."""


class ModelShape(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The dimensions of a DeepSpeech 2 network; the convolutions are fixed.

    Attributes:
        rnn: kind of the recurrent layers.
        hidden: units of each recurrent layer, per direction.
        layers: recurrent layers.
        bidirectional: both directions, summed; otherwise forward only, then a lookahead
            convolution.
        lookahead: frames that the lookahead sees, the current one included; 20 in
            deepspeech.pytorch. Without effect on a bidirectional model.
    """

    rnn: Literal["lstm", "gru", "rnn"] = "lstm"
    hidden: int = 1024
    layers: int = 5
    bidirectional: bool = True
    lookahead: int = 20

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "lookahead"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} = {getattr(self, name)}: expected at least 1")


def conv_bins(bins: int) -> int:
    """Frequency bins after the two convolutions: 41 of 161."""
    return _half(_half(bins))


def output_length(frames: int) -> int:
    """Output frames of so many input frames: one for every two, the last half one included."""
    return (frames - 1) // TIME_STRIDE + 1


def _half(bins: int) -> int:
    return (bins - 1) // 2 + 1


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the weights came from.

    Attributes:
        name: of the checkpoint file.
        sha256: of its bytes.
        kind: who trained it.
    """

    name: str
    sha256: str
    kind: Literal["ds2deploy", "deepspeech.pytorch"]


class ArtifactDescription(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that a runtime needs to know of a model file.

    Attributes:
        format_version: of this document.
        kind: a whole utterance at a time.
        input: what the first tensor holds.
        precision: of weights and activations; inputs, output layer and log-softmax are fp32.
        labels: one character each, blank first.
        features: how audio becomes features.
        model: the network's dimensions.
        inputs: tensor names.
        outputs: tensor names.
        source: the checkpoint.
        parity: the report of the check that the artifact passed.
        created_by: name and version of the exporter.
        engine: of a TensorRT engine, what it was built with; None for an ONNX file.
    """

    format_version: int = FORMAT_VERSION
    kind: Literal["offline"] = "offline"
    input: Literal["features"] = "features"
    precision: Precision
    labels: str
    features: FeatureConfig
    model: ModelShape
    inputs: tuple[str, ...] = (FEATURES, LENGTHS)
    outputs: tuple[str, ...] = (LOG_PROBS, OUTPUT_LENGTHS)
    source: Source
    parity: dict[str, Any] | None = None
    created_by: str = ""
    engine: EngineDescription | None = None

    def to_json(self) -> str:
        """The document, as it is stored."""
        plain = msgspec.to_builtins(self)
        if self.engine is None:
            del plain["engine"]
        return msgspec.json.encode(plain).decode()


class _Header(msgspec.Struct):
    format_version: int


def read_description(document: str, path: str) -> ArtifactDescription:
    """Parse the document of an artifact.

    Args:
        document: JSON.
        path: of the artifact, for the error.

    Raises:
        ModelFileError: damaged, or of a newer format.
    """
    try:
        version = msgspec.json.decode(document, type=_Header).format_version
        if version > FORMAT_VERSION:
            raise ModelFileError(
                f"{path}: artifact format {version}, this ds2deploy reads up to "
                f"{FORMAT_VERSION}; upgrade it: pip install -U ds2deploy"
            )
        return msgspec.json.decode(document, type=ArtifactDescription)
    except (msgspec.DecodeError, ConfigError, RecursionError) as error:
        raise ModelFileError(
            f"{path}: its description is damaged ({error}); export it again"
        ) from None
