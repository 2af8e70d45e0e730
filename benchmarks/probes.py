"""Probes of the machine's best rates: products in each precision, reading from cache and memory.

A probe is a call with a known amount of work. Probes run in turns with the cases of a benchmark, so
that a temporary slow-down affects both, and ratios stay correct.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from counting import Rates, Stage, least_time
from onnx import TensorProto, helper, numpy_helper

from ds2deploy.bench.timing import take_turns
from ds2deploy.runtimes.onnx.library import import_onnxruntime
from ds2deploy.runtimes.session import usable_cores

MIB = 1 << 20
SIDE = 2048
"""Side of the square matrices, large enough that only arithmetic takes time."""

SIZES = (MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB)
"""Sizes of working sets, in bytes. 4 and 16 MiB are the recurrent weights of one direction of an
LSTM of 1024 units in int8 and fp32; the last one exceeds any cache."""

TINY_SIDE, TINY_SIZES = 128, (MIB, 16 * MIB)

LOW_SIDE = 512
"""Side of square matrices in bf16; a processor without bf16 instructions takes a hundred times as
long as in fp32."""

READERS = ("numpy", "torch")
"""Libraries that read; the fastest one depends on the size and the machine."""

LEAST_READ = 128 * MIB
"""Number of bytes per call, large enough that its start takes negligible time."""


class Probe(NamedTuple):
    """Call with a known amount of work.

    Attributes:
        kind: kind of the work, `multiply` or `read`.
        what: precision of the product, or size of the working set in bytes.
        amount: number of operations or bytes of a call.
        call: function that does the work.
    """

    kind: str
    what: str | int
    amount: float
    call: Callable[[], object]


def machine_probes(quick: bool = False) -> dict[str, Probe]:
    """Make every probe that `rates` needs for fp32 and int8.

    In fp32 three libraries are measured, because none is the fastest on all machines.

    Args:
        quick: True for the sizes of a test.
    """
    side = TINY_SIDE if quick else SIDE
    found = multiply_probes(side, side, side)
    for size in TINY_SIZES if quick else SIZES:
        for library in READERS:
            found[f"read {size // MIB} MiB {library}"] = read_probe(size, library=library)
    return found


def multiply_probes(m: int, k: int, n: int) -> dict[str, Probe]:
    """Make probes of (m, k) by (k, n) products in fp32 and int8; the second matrix is constant."""
    random = np.random.default_rng(0)
    left = random.standard_normal((m, k)).astype(np.float32)
    right = random.standard_normal((k, n)).astype(np.float32)
    tensors = torch.from_numpy(left), torch.from_numpy(right)
    calls: dict[str, Callable[[], object]] = {
        "fp32 numpy": lambda: left @ right,
        "fp32 torch": lambda: tensors[0] @ tensors[1],
        "fp32 onnxruntime": product_in_onnxruntime(left, right, "fp32"),
        "int8 onnxruntime": product_in_onnxruntime(left, right, "int8"),
    }
    return {
        name: Probe("multiply", name.split()[0], 2.0 * m * k * n, call)
        for name, call in calls.items()
    }


def bf16_probe(quick: bool = False) -> Probe:
    """Make a probe of square matrices in bf16, which is only used in the table of rates."""
    side = TINY_SIDE if quick else LOW_SIDE
    square = torch.ones(side, side, dtype=torch.bfloat16)
    return Probe("multiply", "bf16", 2.0 * side**3, lambda: square @ square)


def product_in_onnxruntime(
    left: np.ndarray, right: np.ndarray, precision: str
) -> Callable[[], object]:
    """Make a graph of one product; int8 is uint8 by int8, as in the dynamically quantised LSTM."""
    operator, types = "MatMul", (TensorProto.FLOAT, TensorProto.FLOAT)
    if precision == "int8":
        operator, types = "MatMulInteger", (TensorProto.UINT8, TensorProto.INT32)
        left = np.clip(left * 30 + 128, 0, 255).astype(np.uint8)
        right = np.clip(right * 30, -127, 127).astype(np.int8)
    graph = helper.make_graph(
        [helper.make_node(operator, ["left", "right"], ["product"])],
        "product",
        [helper.make_tensor_value_info("left", types[0], left.shape)],
        [helper.make_tensor_value_info("product", types[1], (left.shape[0], right.shape[1]))],
        [numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnxruntime = import_onnxruntime()
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    # As in the sessions of the models: spinning threads would occupy the cores of the next case.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"left": left})


def read_probe(size: int, threads: int = 0, library: str = "numpy") -> Probe:
    """Make a probe that reads a working set repeatedly.

    numpy computes the maximum of bytes, 32 per instruction, in threads that only synchronise at the
    end; torch computes the scalar product of two halves. From the second cache level on, both are
    limited by loading. A product of matrix and vector, as in a recurrent step at batch 1, read
    16 MiB at 75 GB/s, the maximum at 98 GB/s.

    Args:
        size: size of the working set, in bytes.
        threads: number of threads; 0 takes one per core.
        library: `numpy` or `torch`.
    """
    count, times = threads or usable_cores(), max(1, LEAST_READ // size)
    parts = np.array_split(np.ones(size, np.int8), count)
    halves = torch.ones(2, size // 8)

    def maxima(part: np.ndarray) -> None:
        for _ in range(times):
            part.max()

    def in_numpy() -> None:
        workers = [threading.Thread(target=maxima, args=(part,)) for part in parts]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def in_torch() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            for _ in range(times):
                torch.dot(halves[0], halves[1])
        finally:
            torch.set_num_threads(before)

    call = in_numpy if library == "numpy" else in_torch
    return Probe("read", size, float(size) * times, call)


def run_probes(probes: Mapping[str, Probe], rounds: int) -> dict[str, list[float]]:
    """Measure the seconds of every probe, in rounds that contain only probes."""
    return take_turns({name: probe.call for name, probe in probes.items()}, rounds)


def take_turns_with(
    probes: Mapping[str, Probe],
    cases: Mapping[str, Callable[[], object]],
    rounds: int,
    progress: Callable[[str], None],
) -> dict[str, list[float]]:
    """Run cases in turns, with every probe before each case.

    Probes only take milliseconds, so that one run per round would not suffice.

    Args:
        probes: probes from `machine_probes`.
        cases: functions to measure, by name.
        rounds: number of measured rounds.
        progress: function that is called with a description of the current run.

    Returns:
        The seconds of every case in each round, and the minimum of every probe in each round.
    """
    mixed: dict[str, Callable[[], object]] = {}
    for number, (case, call) in enumerate(cases.items()):
        mixed |= {f"{name} [{number}]": probe.call for name, probe in probes.items()}
        mixed[case] = call
    took = take_turns(mixed, rounds, progress=progress)
    found = {case: took[case] for case in cases}
    for name in probes:
        repeats = [took[f"{name} [{number}]"] for number in range(len(cases))]
        found[name] = [min(values) for values in zip(*repeats, strict=True)]
    return found


def rates(
    probes: Mapping[str, Probe], seconds: Mapping[str, Sequence[float]], round_: int | None = None
) -> Rates:
    """Compute the rates of the machine from probes, with the best library for each.

    Args:
        probes: probes from `machine_probes`.
        seconds: seconds of their runs, from `take_turns_with`.
        round_: number of the round; None takes the best round of each probe.
    """
    multiply: dict[str, float] = {}
    read: dict[int, float] = {}
    for name, probe in probes.items():
        took = min(seconds[name]) if round_ is None else seconds[name][round_]
        rate = probe.amount / took
        if isinstance(probe.what, int):
            read[probe.what] = max(rate, read.get(probe.what, 0.0))
        else:
            multiply[probe.what] = max(rate, multiply.get(probe.what, 0.0))
    return Rates(multiply=multiply, read=read)


def floors(
    probes: Mapping[str, Probe], took: Mapping[str, Sequence[float]], stages: Sequence[Stage]
) -> list[float]:
    """Compute the lower bound in seconds from the rates of each round."""
    rounds = len(next(iter(took.values())))
    return [least_time(stages, rates(probes, took, i)) for i in range(rounds)]
