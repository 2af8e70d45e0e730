"""Time in the exported graph: whole utterances, or block after block of many streams.

The network is written once (`graph`), on top of this. Three things differ: the frames
beside those at hand (zeros, or the state of a stream), which frames count, and the first state of
a recurrent layer.
"""

from __future__ import annotations

from typing import Protocol

from onnx import TensorProto

from ds2deploy.export.onnx.graph_builder import GraphBuilder
from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.tensors import LENGTHS

RECURRENT = {"lstm": ("rnn", "cell"), "gru": ("rnn",), "rnn": ("rnn",)}
"""States of the recurrent operators, in the order of their inputs and outputs."""


class TimeAxis(Protocol):
    """Time in the graph: what stands beside the frames at hand, and which of them count."""

    def valid_samples(self, x: str) -> str:
        """Mask of the samples of x (batch, samples) that belong to their utterance."""
        ...

    def valid_features(self, x: str, lengths: str) -> str:
        """Mask (batch, time) of the frames of x (batch, 1, bins, time) in their utterance."""
        ...

    def valid_frames(self, layer: int, x: str, lengths: str) -> str:
        """Compute the same after the first or second convolution, in the graph's type: 1 or 0."""
        ...

    def beside(
        self, name: str, x: str, axis: int, before: int, after: int
    ) -> tuple[str, tuple[int, int]]:
        """X with what a layer needs to see beside it.

        Args:
            name: name of the state.
            x: frames at hand.
            axis: axis of time.
            before: zeros in front of an utterance that its first frame sees.
            after: zeros behind an utterance that its last frame sees.

        Returns:
            X, and how much of that is still to be padded: before and after.
        """
        ...

    def initial_states(self, layer: int, x: str) -> list[str]:
        """States before a recurrent layer of x (time, ...), (directions, batch, hidden) each."""
        ...

    def final_states(self, layer: int) -> tuple[str, ...]:
        """Names for the states that a recurrent layer ends with; empty where nobody needs them."""
        ...

    def valid_first(self, x: str, lengths: str) -> tuple[str, str]:
        """X (time, batch, ...) with the valid frames of every utterance in front of the others.

        Returns:
            X, and how many frames of each are valid: (batch,) int32.
        """
        ...

    def in_place(self, x: str) -> str:
        """Undo `valid_first`; what stands on invalid frames is meaningless."""
        ...

    def finish(self) -> None:
        """Write what the next block begins with."""
        ...


class WholeUtterances:
    """Every utterance from its first frame to its last; what follows is padding.

    Args:
        g: the graph.
        description: metadata of the artifact.
    """

    def __init__(self, g: GraphBuilder, description: ArtifactDescription) -> None:
        self._g, self._shape = g, description.model
        self._features, self._frames = "", ""
        self._zeros: dict[int, str] = {}

    def valid_samples(self, x: str) -> str:
        """See `TimeAxis`."""
        return self._before_end("samples", x, 1, LENGTHS)

    def valid_features(self, x: str, lengths: str) -> str:
        """See `TimeAxis`; normalisation and the network ask for the same."""
        self._features = self._features or self._before_end("input", x, 3, lengths)
        return self._features

    def valid_frames(self, layer: int, x: str, lengths: str) -> str:
        """See `TimeAxis`; the second convolution leaves time as it is."""
        if not self._frames:
            valid = self._before_end("valid", x, 3, lengths)
            self._frames = self._g.number("valid/mask", valid)
        return self._frames

    def beside(
        self, name: str, x: str, axis: int, before: int, after: int
    ) -> tuple[str, tuple[int, int]]:
        """See `TimeAxis`; the layer pads."""
        return x, (before, after)

    def initial_states(self, layer: int, x: str) -> list[str]:
        """See `TimeAxis`.

        Left out, they are zeros as well; but TensorRT's parser (10.1) then makes them in float32,
        which a strongly typed network in fp16 refuses.
        """
        g, units = self._g, self._shape.units[layer - 1]
        if units not in self._zeros:
            directions = 2 if self._shape.bidirectional else 1
            name = "rnn" if isinstance(self._shape.hidden, int) else f"rnn{layer}"
            batch = g.node("Shape", f"{name}/batch", x, start=1, end=2)
            sizes = (g.integers(directions), batch, g.integers(units))
            size = g.node("Concat", f"{name}/state_shape", *sizes, axis=0)
            self._zeros[units] = g.node("Expand", f"{name}/zero_state", g.scalar(0), size)
        return [self._zeros[units]] * len(RECURRENT[self._shape.rnn])

    def final_states(self, layer: int) -> tuple[str, ...]:
        """See `TimeAxis`; nobody needs them."""
        return ()

    def valid_first(self, x: str, lengths: str) -> tuple[str, str]:
        """See `TimeAxis`; they are in front."""
        return x, self._g.node("Cast", "valid/counts", lengths, to=TensorProto.INT32)

    def in_place(self, x: str) -> str:
        """See `TimeAxis`."""
        return x

    def finish(self) -> None:
        """See `TimeAxis`; nothing follows."""

    def _before_end(self, name: str, x: str, axis: int, lengths: str) -> str:
        g = self._g
        time = g.node("Shape", f"{name}/time", x, start=axis, end=axis + 1)
        time = g.node("Squeeze", f"{name}/frames", time)
        index = g.node("Range", f"{name}/range", g.integer(0), time, g.integer(1))
        column = g.node("Unsqueeze", f"{name}/lengths", lengths, g.integers(1))
        return g.node("Less", f"{name}/before_end", index, column)
