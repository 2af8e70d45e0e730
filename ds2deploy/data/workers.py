"""Data-loading processes, with a clear error for each way in which they die.

`torch.utils.data.DataLoader` passes tensors in shared memory. By default it waits forever if shared
memory is full, and raises a RuntimeError anywhere in the training if a worker is killed.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.autograd.profiler import record_function
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ds2deploy.runtimes.errors import Ds2Error, WorkerError

SHARED_MEMORY = "/dev/shm"  # noqa: S108  # a place to measure, not a file to write
REMEDY = "start the container with --shm-size=2g, or set data.workers=0"

Item = TypeVar("Item", bound=tuple[Any, ...])


def load(dataset: Dataset[Item], plan: Sequence[Any], workers: int) -> Iterator[Item]:
    """Load every part of a plan, in order.

    Args:
        dataset: dataset that makes an item from a part of the plan.
        plan: parts to load.
        workers: number of loading processes; 0 loads in this process.

    Raises:
        WorkerError: a process cannot be started, or shared memory is full.
        Ds2Error, OSError: error of the dataset, in any process.
    """
    loader: DataLoader[Any] = DataLoader(
        _Guarded(dataset),
        sampler=plan,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_prepare_worker,
    )
    try:
        if workers:
            multiprocessing.Event()  # fail here: torch would add a traceback
            with record_function("load"):
                pass  # its first use imports a module, and logs a worker's death in it
        with _no_collection():
            items = iter(loader)
    except OSError as error:
        reason = error.strerror or str(error)
        raise WorkerError(
            f"data.workers = {workers}: cannot start a process that loads data ({reason}; "
            f"{_size()}): {REMEDY}"
        ) from None
    for item in items:
        if isinstance(item, Exception):
            raise item
        yield item


@contextmanager
def _no_collection() -> Iterator[None]:
    """Start no garbage collection, here and in processes that are forked meanwhile."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _prepare_worker(_: int) -> None:
    """Keep a worker from collecting its parent's garbage, and change how it handles signals.

    Garbage of the training process can contain a session of ONNX Runtime. To destroy it waits for
    its threads, which a forked process does not have, and so would never end.

    The worker gets its own process group, and torch's signal handlers are removed.

    Ctrl-C in a terminal and `timeout` send their signal to the whole group. The training process
    handles it by writing a checkpoint, and needs its workers until then; they end with it. Torch's
    handlers would print a line of their own before our message.
    """
    gc.freeze()
    gc.enable()
    os.setpgid(0, 0)
    for number in (signal.SIGBUS, signal.SIGSEGV, signal.SIGFPE):
        signal.signal(number, signal.SIG_DFL)


class _Guarded(Dataset[Any]):
    """Dataset that returns errors instead of raising them, because torch adds a traceback."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __getitem__(self, part: Any) -> Any:
        try:
            item = self._dataset[part]
        except (Ds2Error, OSError) as error:
            return error
        worker = get_worker_info()
        return item if worker is None else _shared(item, worker.num_workers)


def _shared(item: Item, workers: int) -> Item | WorkerError:
    """Move the tensors of an item to shared memory.

    The queue between the processes would do this too, but in a thread whose errors are lost, and
    the training would wait for the item forever.
    """
    try:
        for value in item:
            if isinstance(value, torch.Tensor) and value.numel():
                value.share_memory_()  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError) as error:
        return WorkerError(
            f"data.workers = {workers}: shared memory is full ({_size()}; "
            f"{str(error).splitlines()[0][:120]}): {REMEDY}"
        )
    return item


def _size() -> str:
    try:
        total = shutil.disk_usage(SHARED_MEMORY).total
    except OSError:
        return f"there is no {SHARED_MEMORY}"
    return f"{SHARED_MEMORY} has {total / 2**20:.4g} MiB"


@contextmanager
def worker_failures(workers: int) -> Iterator[None]:
    """Turn the death of a worker into one error that names the remedy.

    Torch detects the death in a signal handler, so that the error can arise anywhere in the
    context.

    Args:
        workers: number of processes that load data.

    Raises:
        WorkerError: a worker died.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            if "Communication with the workers is no longer possible" not in str(error):
                raise
            raise WorkerError(
                f"data.workers = {workers}: too many open files; raise the limit with `ulimit -n`, "
                "or set data.workers=0"
            ) from None
        raise WorkerError(_death(error, workers)) from None


def _death(error: RuntimeError, workers: int) -> str:
    """Make the message; the signal is in the error itself or in its cause."""
    texts = [" ".join(str(cause).split()) for cause in (error.__cause__, error) if cause]
    text = next((text for text in texts if "killed by signal" in text), texts[-1])
    how = f"data.workers = {workers}: {text.partition('. ')[0].rstrip('. ')}"
    if "Bus error" in text:
        return f"{how}: shared memory is full ({_size()}): {REMEDY}"
    return (
        f"{how}; if it was killed for lack of memory, lower data.workers or data.batch_size; "
        f"otherwise {REMEDY} to see its error"
    )
