"""Time in the exported graph of a streaming model: block after block of many streams."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from ds2deploy.export.onnx.graph_builder import GraphBuilder
from ds2deploy.export.onnx.time_axis import RECURRENT
from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.geometry import CONV1_DELAY, CONV2_DELAY, TIME_STRIDE, window_delay
from ds2deploy.runtimes.tensors import (
    LENGTHS,
    NEXT,
    NEXT_POSITION,
    POSITION,
    STATE,
    WAVEFORM,
    input_tensors,
    memory_names,
)


class StreamBlocks:
    """The next block of every stream of a batch, each at a position of its own.

    Where a frame stands in its utterance follows from the position; what is before the first, or
    past the last, is zero as it is for a whole utterance. So start and end need no other graph.

    Args:
        g: the graph.
        description: metadata of the artifact, with its blocks.
    """

    def __init__(self, g: GraphBuilder, description: ArtifactDescription) -> None:
        assert description.blocks is not None
        self._g, self._description, self._blocks = g, description, description.blocks
        # Only samples come with their windows incomplete.
        waveform = description.input == "waveform"
        self._behind = window_delay(description.features) if waveform else 0
        tensors = {tensor.name: tensor for tensor in input_tensors(description)}
        self._states = {name: tensors[STATE + name] for name in memory_names(tensors)}
        self._layers: dict[str, list[str]] = {name: [] for name in RECURRENT[description.model.rnn]}
        self._stacked: dict[str, str] = {}
        self._back = ""

    def valid_samples(self, x: str) -> str:
        """See `TimeAxis`."""
        g, stride = self._g, self._description.features.stride
        start = g.node("Mul", "samples/start", POSITION, g.integer(stride))
        count = self._blocks.frames * stride
        index = g.node("Add", "samples/index", start, self._range(count))
        column = g.node("Unsqueeze", "samples/lengths", LENGTHS, g.integers(1))
        return g.node("Less", "samples/before_end", index, column)

    def valid_features(self, x: str, lengths: str) -> str:
        """See `TimeAxis`."""
        return self._inside("input", POSITION, self._blocks.frames, self._behind, lengths)

    def valid_frames(self, layer: int, x: str, lengths: str) -> str:
        """See `TimeAxis`."""
        g, name = self._g, f"conv{layer}"
        start = "position/output"
        if layer == 1:
            g.node("Div", start, POSITION, g.integer(TIME_STRIDE))
        delay = (CONV1_DELAY, CONV2_DELAY)[layer - 1] + self._behind // TIME_STRIDE
        valid = self._inside(name, start, self._blocks.frames // TIME_STRIDE, delay, lengths)
        return g.number(f"{name}/valid", valid)

    def beside(
        self, name: str, x: str, axis: int, before: int, after: int
    ) -> tuple[str, tuple[int, int]]:
        """See `TimeAxis`; what stood before comes from the state, and what follows is awaited."""
        if name not in self._states:  # a lookahead that sees one frame
            return x, (0, 0)
        g, state = self._g, self._states[name]
        kept = state.dims[axis]
        assert isinstance(kept, int)
        precise = name == WAVEFORM  # float32 in every graph
        past = state.name if precise else g.lowered(f"{name}/past", state.name)
        joined = g.node("Concat", f"{name}/joined", past, x, axis=axis)
        last = g.slice(f"{name}/kept", joined, axis, -kept)
        g.renamed(NEXT + name, last, already=precise)
        return joined, (0, 0)

    def initial_states(self, layer: int, x: str) -> list[str]:
        """See `TimeAxis`; TensorRT wants the batch in the middle, servers want it first."""
        g = self._g
        model = self._description.model
        if not isinstance(model.hidden, int):
            return [self._part_of_row(layer, name) for name in self._layers]
        for name in self._layers:
            if name not in self._stacked:
                state = g.lowered(f"{name}/past", STATE + name)
                self._stacked[name] = g.node(
                    "Transpose", f"{name}/layers_first", state, perm=[1, 0, 2]
                )
        return [
            g.slice(f"rnn{layer}/{name}_before", self._stacked[name], 0, layer - 1, layer)
            for name in self._layers
        ]

    def _part_of_row(self, layer: int, name: str) -> str:
        """State of a layer of (batch, units of all layers): (1, batch, units)."""
        g, units = self._g, self._description.model.units
        if name not in self._stacked:
            self._stacked[name] = g.lowered(f"{name}/past", STATE + name)
        start = sum(units[: layer - 1])
        end = start + units[layer - 1]
        part = g.slice(f"rnn{layer}/{name}_part", self._stacked[name], 1, start, end)
        return g.node("Unsqueeze", f"rnn{layer}/{name}_before", part, g.integers(0))

    def final_states(self, layer: int) -> tuple[str, ...]:
        """See `TimeAxis`."""
        names = tuple(f"rnn{layer}/{name}_after" for name in self._layers)
        for name, after in zip(self._layers, names, strict=True):
            self._layers[name].append(after)
        return names

    def valid_first(self, x: str, lengths: str) -> tuple[str, str]:
        """See `TimeAxis`; in the block in which a stream begins, others stand before them.

        The frames of the second convolution stand at `position / 2 - delay` and after.
        """
        g, count = self._g, self._blocks.frames // TIME_STRIDE
        delay = CONV2_DELAY + self._behind // TIME_STRIDE
        ends = g.node("Unsqueeze", "valid/lengths", lengths, g.integers(1))
        before = g.node("Sub", "valid/before", g.integer(delay), "position/output")
        begin, end = (
            g.node("Clip", f"valid/{name}", index, g.integer(0), g.integer(count))
            for name, index in (
                ("begin", before),
                ("end", g.node("Add", "valid/until", ends, before)),
            )
        )
        counts = g.node("Sub", "valid/counted", end, begin)
        counts = g.node("Squeeze", "valid/counts_in_row", counts, g.integers(1))
        counts = g.node("Cast", "valid/counts", counts, to=TensorProto.INT32)
        frame, last = self._range(count), g.integer(count - 1)
        forward = g.node("Min", "valid/from", g.node("Add", "valid/later", frame, begin), last)
        self._back = g.node(
            "Max", "valid/back", g.node("Sub", "valid/earlier", frame, begin), g.integer(0)
        )
        return self._moved("valid/first", x, forward), counts

    def in_place(self, x: str) -> str:
        """See `TimeAxis`."""
        return self._moved("valid/in_place", x, self._back)

    def finish(self) -> None:
        """See `TimeAxis`."""
        g = self._g
        for name, after in self._layers.items():
            if isinstance(self._description.model.hidden, int):
                stacked = g.node("Concat", f"{name}/stacked", *after, axis=0)
                first = g.node("Transpose", f"{name}/batch_first", stacked, perm=[1, 0, 2])
            else:
                row = g.node("Concat", f"{name}/row", *after, axis=2)
                first = g.node("Squeeze", f"{name}/batch_first", row, g.integers(0))
            g.renamed(NEXT + name, first)
        g.node("Add", NEXT_POSITION, POSITION, g.integer(self._blocks.frames))

    def _moved(self, name: str, x: str, frames: str) -> str:
        """X (time, batch, features) with other frames of each stream: frames (batch, time)."""
        g = self._g
        x = g.node("Transpose", f"{name}/batch_first", x, perm=[1, 0, 2])
        indices = g.node("Unsqueeze", f"{name}/indices", frames, g.integers(2))
        x = g.node("GatherND", f"{name}/frames", x, indices, batch_dims=1)
        return g.node("Transpose", name, x, perm=[1, 0, 2])

    def _inside(self, name: str, start: str, count: int, delay: int, lengths: str) -> str:
        """Mask of the frames, from start (batch, 1) - delay on, that are from 0 to their length."""
        g = self._g
        index = g.node("Add", f"{name}/index", start, self._range(count, -delay))
        column = g.node("Unsqueeze", f"{name}/lengths", lengths, g.integers(1))
        begun = g.node("GreaterOrEqual", f"{name}/begun", index, g.integer(0))
        before_end = g.node("Less", f"{name}/before_end", index, column)
        return g.node("And", f"{name}/inside", begun, before_end)

    def _range(self, count: int, first: int = 0) -> str:
        index = np.arange(first, first + count, dtype=np.int64)[None]
        return self._g.constant(f"range_{first}_{count}", index)
