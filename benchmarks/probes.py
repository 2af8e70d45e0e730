"""Measure the machine at its best: products in each precision, reading from cache and memory.

A probe is one call that does a known amount. It takes its turn among the cases of a benchmark, so
that what slows the machine for a while slows both, and a share of the least time stays true.
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
"""Side of the square matrices: large enough that nothing but arithmetic takes time."""

SIZES = (MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB)
"""Bytes that are read again and again. 4 and 16 MiB are the recurrent weights of one direction of
an LSTM of 1024 units in int8 and in fp32; the last is beyond any cache."""

TINY_SIDE, TINY_SIZES = 128, (MIB, 16 * MIB)

LOW_SIDE = 512
"""Side of square matrices in bf16: a processor without instructions for it takes a hundred times as
long as in fp32."""

READERS = ("numpy", "torch")
"""Libraries that read; which is the faster depends on the size and on the machine."""

LEAST_READ = 128 * MIB
"""Bytes of a call, so that starting it takes no part of the time."""


class Probe(NamedTuple):
    """A call that does a known amount.

    Attributes:
        kind: `multiply` or `read`.
        what: precision of the product, or bytes of the working set.
        amount: operations or bytes of a call.
        call: does it.
    """

    kind: str
    what: str | int
    amount: float
    call: Callable[[], object]


def machine_probes(quick: bool = False) -> dict[str, Probe]:
    """Make every probe that `rates` needs for fp32 and int8.

    Of fp32 three libraries multiply, since no single one is the fastest everywhere.

    Args:
        quick: sizes of a test.
    """
    side = TINY_SIDE if quick else SIDE
    found = multiply_probes(side, side, side)
    for size in TINY_SIZES if quick else SIZES:
        for library in READERS:
            found[f"read {size // MIB} MiB {library}"] = read_probe(size, library=library)
    return found


def multiply_probes(m: int, k: int, n: int) -> dict[str, Probe]:
    """(m, k) by (k, n) in fp32 and int8, the second matrix constant as weights are."""
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
    """Square matrices in bf16, which no artifact for a CPU has: for the table of rates."""
    side = TINY_SIDE if quick else LOW_SIDE
    square = torch.ones(side, side, dtype=torch.bfloat16)
    return Probe("multiply", "bf16", 2.0 * side**3, lambda: square @ square)


def product_in_onnxruntime(
    left: np.ndarray, right: np.ndarray, precision: str
) -> Callable[[], object]:
    """A graph of one node; int8 is uint8 by int8, as the dynamically quantised LSTM has it."""
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
    # As the sessions of the models: threads that spin would take the cores from who comes next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"left": left})


def read_probe(size: int, threads: int = 0, library: str = "numpy") -> Probe:
    """Read so many bytes again and again.

    numpy takes the maximum of bytes, 32 of them with an instruction, in threads that meet at the
    end alone; torch the scalar product of two halves. From the second level of the cache on,
    loading is what either waits for. (A matrix by a vector, as a recurrent step at batch 1 is one,
    read 16 MiB at 75 GB/s where the maximum read 98.)

    Args:
        size: bytes of the working set.
        threads: 0 takes one for every core.
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
    """Return the seconds of every probe in rounds of probes alone."""
    return take_turns({name: probe.call for name, probe in probes.items()}, rounds)


def take_turns_with(
    probes: Mapping[str, Probe],
    cases: Mapping[str, Callable[[], object]],
    rounds: int,
    progress: Callable[[str], None],
) -> dict[str, list[float]]:
    """Run cases in turns, with every probe before each of them.

    One probe a round, of milliseconds, would be too few.

    Args:
        probes: probes from `machine_probes`.
        cases: functions to measure, by name.
        rounds: number of measured rounds.
        progress: called with a line on the run in progress.

    Returns:
        Seconds in each round: of every case, and the least of every probe.
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
    """Compute the rates of the machine from probes: the best of all libraries.

    Args:
        probes: probes from `machine_probes`.
        seconds: seconds of their runs, from `take_turns_with`.
        round_: number of the round; None takes each probe at its best.
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
    """Least seconds, by the rates of each round."""
    rounds = len(next(iter(took.values())))
    return [least_time(stages, rates(probes, took, i)) for i in range(rounds)]
