"""Description of an artifact: one JSON document, inside the ONNX file or beside the engine.

The model's shape is declared here, once, for exporter and runtimes alike; its convolutions in
`geometry`, its tensors in `tensors`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ds2deploy.runtimes.engine_description import EngineDescription
from ds2deploy.runtimes.errors import DECODING_ERRORS, ConfigError, ModelFileError, newer_format
from ds2deploy.runtimes.features import FeatureConfig
from ds2deploy.runtimes.files import json_text
from ds2deploy.runtimes.geometry import CONV1, CONV2, TIME_STRIDE

FORMAT_VERSION = 3
STREAMS_SINCE = 3
"""First format whose streams can be run: before it, `state.position` was called `position`."""

METADATA_KEY = "ds2deploy"

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Kind = Literal["offline", "streaming"]
Input = Literal["features", "waveform"]

MOST_UNITS, MOST_LAYERS, MOST_MAPS = 65_536, 100, 1024
"""Largest layer, and most layers. A damaged file may ask for more than the memory holds."""


class ModelShape(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Dimensions of a DeepSpeech 2 network.

    Kernels and strides of the convolutions are in `geometry`.

    Attributes:
        rnn: kind of the recurrent layers.
        hidden: number of units of each recurrent layer, per direction; a list sets each layer
            separately.
        layers: number of recurrent layers.
        bidirectional: run both directions and sum their outputs; if false, run forward only, with
            a lookahead convolution.
        lookahead: number of output frames that the lookahead reads, the current one included; 20
            in deepspeech.pytorch. Bidirectional models ignore it.
        norm_eps: number added to the variance in batch norms. deepspeech.pytorch's 1e-5 amplifies
            a nearly constant unit, and a device's rounding errors in it, up to 316 times.
        ranks: rank of the input weights of each recurrent layer, which are then two factors; 0
            does not factor a layer. An empty list factors none.
        maps: number of feature maps of each of the two convolutions.
    """

    rnn: Literal["lstm", "gru", "rnn"] = "lstm"
    hidden: int | tuple[int, ...] = 1024
    layers: int = 5
    bidirectional: bool = True
    lookahead: int = 20
    norm_eps: float = 1e-5
    ranks: tuple[int, ...] = ()
    maps: tuple[int, int] = (CONV1.maps, CONV2.maps)

    def __post_init__(self) -> None:
        for name, most in (("layers", MOST_LAYERS), ("lookahead", 1000)):
            self._check(name, getattr(self, name), 1, most)
        for name in ("hidden", "ranks"):
            values = getattr(self, name)
            if isinstance(values, tuple) and len(values) not in (self.layers, 0):
                raise ConfigError(
                    f"model.{name} has {len(values)} numbers, but model.layers = {self.layers}; "
                    "expected one number for each layer"
                )
        for name, values, least, most in (
            ("hidden", self.units, 1, MOST_UNITS),
            ("ranks", self.ranks, 0, MOST_UNITS),
            ("maps", self.maps, 1, MOST_MAPS),
        ):
            if name == "hidden" and not values:
                raise ConfigError("model.hidden = []: expected a number for each layer")
            for value in values:
                self._check(name, value, least, most)
        if isinstance(self.hidden, tuple) and len(set(self.hidden)) == 1:
            msgspec.structs.force_setattr(self, "hidden", self.hidden[0])
        if not any(self.ranks):
            msgspec.structs.force_setattr(self, "ranks", ())
        if not 0 < self.norm_eps < 1:
            raise ConfigError(f"model.norm_eps = {self.norm_eps}: expected between 0 and 1")

    @staticmethod
    def _check(name: str, value: int, least: int, most: int) -> None:
        if value < least:
            raise ConfigError(f"model.{name} = {value}: expected at least {least}")
        if value > most:
            raise ConfigError(f"model.{name} = {value}: expected at most {most}")

    @property
    def units(self) -> tuple[int, ...]:
        """Units of every recurrent layer, per direction."""
        return (self.hidden,) * self.layers if isinstance(self.hidden, int) else self.hidden

    @property
    def input_ranks(self) -> tuple[int, ...]:
        """Rank of the input side of every recurrent layer; 0 where it is whole."""
        return self.ranks or (0,) * self.layers

    @property
    def lookahead_delay(self) -> int:
        """Frames by which the lookahead is behind, and that it keeps from before a block."""
        return 0 if self.bidirectional else self.lookahead - 1


def is_compressed(model: ModelShape) -> bool:
    """Tell whether a model has sizes that `compress` gives: by layer, ranks, or fewer maps."""
    return model.ranks != () or model.maps != ModelShape().maps or not isinstance(model.hidden, int)


class WeightsSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Origin of the weights.

    Attributes:
        name: name of the checkpoint file.
        sha256: SHA-256 of its bytes.
        kind: project that trained it.
    """

    name: str
    sha256: str
    kind: Literal["ds2deploy", "deepspeech.pytorch"]


class Blocks(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Blocks of a streaming artifact, all of one size.

    The latency is the longest time from a sound to its log-probabilities, without computing time.
    It is the sum of the last four attributes.

    Attributes:
        frames: number of feature frames of a block, even.
        output_delay: row `j` of a block's log_probs is output frame
            `position / 2 - output_delay + j`; there is none below 0.
        window_ms: time until the analysis window of a frame is full.
        convolutions_ms: duration of the future frames that the convolutions need.
        lookahead_ms: duration of the future frames that the lookahead needs.
        waiting_ms: longest time until the block is full; the last output frame of a block does not
            wait.
    """

    frames: int
    output_delay: int
    window_ms: float
    convolutions_ms: float
    lookahead_ms: float
    waiting_ms: float

    @property
    def latency_ms(self) -> float:
        """Longest delay from a sound to its log-probabilities, without computing time."""
        return self.window_ms + self.convolutions_ms + self.lookahead_ms + self.waiting_ms

    def parts(self) -> dict[str, float]:
        """Parts of the latency, and their sum, in milliseconds."""
        return {
            "window": self.window_ms,
            "convolutions": self.convolutions_ms,
            "lookahead": self.lookahead_ms,
            "waiting": self.waiting_ms,
            "total": self.latency_ms,
        }


class ArtifactDescription(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that a runtime needs to know of a model file.

    Attributes:
        format_version: version of this document.
        kind: kind of processing: whole utterances, or block by block.
        input: content of the first tensor.
        precision: number format of weights and activations; inputs, output layer and log-softmax
            are fp32. With `int8`, recurrent layers and the second convolution have int8 weights,
            and int8 inputs in their products; everything else is fp32.
        labels: labels, one character each, blank first.
        features: settings of feature extraction.
        model: dimensions of the network.
        inputs: names of the input tensors.
        outputs: names of the output tensors.
        source: checkpoint that the artifact was exported from.
        blocks: blocks of a streaming artifact; None for an offline one.
        statistics_from: manifest from which the statistics in `features` were computed, which
            replace per-utterance normalisation; None if nothing was replaced.
        parity: report of the check that the artifact passed.
        created_by: name and version of the exporter.
        engine: facts of a TensorRT engine; None for an ONNX file.
    """

    format_version: int = FORMAT_VERSION
    kind: Kind = "offline"
    input: Input = "features"
    precision: Precision
    labels: str
    features: FeatureConfig
    model: ModelShape
    inputs: tuple[str, ...] = ("features", "lengths")
    outputs: tuple[str, ...] = ("log_probs", "output_lengths")
    source: WeightsSource
    blocks: Blocks | None = None
    statistics_from: str | None = None
    parity: dict[str, Any] | None = None
    created_by: str = ""
    engine: EngineDescription | None = None

    def __post_init__(self) -> None:
        if (self.kind == "streaming") != (self.blocks is not None):
            raise ConfigError(f'kind = "{self.kind}" contradicts blocks = {self.blocks}')

    @property
    def frame_s(self) -> float:
        """Seconds from one output frame to the next."""
        return TIME_STRIDE * self.features.stride / self.features.sample_rate

    def to_json(self) -> str:
        """Encode the document as it is stored."""
        plain = msgspec.to_builtins(self)
        for name in ("engine", "blocks", "statistics_from"):
            if plain[name] is None:
                del plain[name]
        usual = msgspec.to_builtins(ModelShape())
        for name in ("ranks", "maps"):  # earlier versions read a model that has none
            if plain["model"][name] == usual[name]:
                del plain["model"][name]
        return json_text(plain)


class _Header(msgspec.Struct):
    format_version: int


def read_description(document: str, path: str) -> ArtifactDescription:
    """Parse the document of an artifact.

    Args:
        document: JSON.
        path: path of the artifact, for the error.

    Raises:
        ModelFileError: damaged, or of a newer format.
    """
    try:
        version = msgspec.json.decode(document, type=_Header).format_version
        if version > FORMAT_VERSION:
            raise newer_format(path, "artifact", version, FORMAT_VERSION)
        description = msgspec.json.decode(document, type=ArtifactDescription)
    except ModelFileError:
        raise
    except DECODING_ERRORS as error:
        raise ModelFileError(
            f"{path}: its description is damaged ({error}); export it again"
        ) from None
    if description.blocks is not None and version < STREAMS_SINCE:
        raise ModelFileError(
            f"{path}: streaming artifact of format {version}; this version of ds2deploy reads "
            f"formats from {STREAMS_SINCE} on; export it again: ds2deploy export CHECKPOINT "
            "--out FOLDER --streaming"
        )
    return description
