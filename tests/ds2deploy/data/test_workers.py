"""Processes that load data, and how they die: the training ends at once, in one line."""

from __future__ import annotations

import errno
import gc
import multiprocessing.context
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from ds2deploy.config import Recipe
from ds2deploy.data import batches as data
from ds2deploy.data import workers
from ds2deploy.data.batches import evaluation_batches
from ds2deploy.data.manifest import read_manifest
from ds2deploy.runtimes.errors import AlphabetError, WorkerError
from ds2deploy.training.train import train

PATIENCE_S = 240
"""A process that has not ended by then hangs."""

DYING = """
import os, sys
from torch.utils.data import get_worker_info
from ds2deploy.data import batches as data

read = data.read_audio

def die(*arguments):
    if get_worker_info() is not None:
        os.kill(os.getpid(), {number})
    return read(*arguments)

data.read_audio = die
from ds2deploy.cli.app import main
main()
"""


@pytest.fixture
def recipe(tone_recipe: Recipe) -> Recipe:
    return tone_recipe.changed("data", workers=2)


@pytest.fixture
def toml(recipe: Recipe, recipe_file: Callable[[Recipe, Path], Path], tmp_path: Path) -> Path:
    return recipe_file(recipe, tmp_path / "recipe.toml")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)


def assert_one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]  # a line of torch's own may come before
    assert line.startswith("ds2deploy: data.workers = 2: ")
    assert "data.workers=0" in line
    return line


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGBUS,
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(signal.SIGSEGV, marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_dies_by_a_signal_ends_the_training(number: signal.Signals, toml: Path):
    """SIGBUS comes from shared memory that is full, SIGKILL from a system without memory."""
    script = DYING.format(number=int(number))
    done = run(sys.executable, "-c", script, "train", str(toml))
    line = assert_one_line(done)
    assert "--shm-size" in line
    assert ("data.batch_size" in line) == (number != signal.SIGBUS)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["4k", "64k"])
def test_full_shared_memory_ends_the_training(size: str, toml: Path):
    """The real thing, where a process may mount a small /dev/shm for itself.

    4 KiB do not even take the semaphores of two processes, 64 KiB do not take a batch.
    """
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    if shutil.which("unshare") is None or run("unshare", "-rm", "sh", "-c", mount).returncode:
        pytest.skip("mounting is not allowed here; the test after this one simulates it")
    command = f'{mount} && exec "$@"'
    train_it = (sys.executable, "-m", "ds2deploy", "train", str(toml))
    line = assert_one_line(run("unshare", "-rm", "sh", "-c", command, "sh", *train_it))
    assert "--shm-size" in line


def test_shared_memory_that_cannot_be_had_is_named(recipe: Recipe, monkeypatch: pytest.MonkeyPatch):
    def fail(self: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </x>: No space left")

    monkeypatch.setattr(torch.Tensor, "share_memory_", fail)
    with pytest.raises(WorkerError, match=r"data\.workers = 2: .*--shm-size=.*data\.workers=0"):
        train(recipe)


@pytest.mark.parametrize(
    "number", [pytest.param(errno.ENOMEM, marks=pytest.mark.slow), errno.EAGAIN]
)
def test_a_worker_that_does_not_start_is_named(
    number: int, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
):
    def fail(self: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(multiprocessing.context.Process, "start", fail)
    with pytest.raises(WorkerError, match=rf"{os.strerror(number)}.*data\.workers=0"):
        train(recipe)


@pytest.mark.parametrize(
    ("error", "workers"),
    [
        (AlphabetError("a.wav: no label"), 0),
        (AlphabetError("a.wav: no label"), 2),
        (OSError(errno.EIO, "Input/output error", "a.wav"), 2),
    ],
)
def test_an_error_in_a_worker_arrives_as_it_was_raised(
    error: Exception, workers: int, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(data, "collate", fail)
    cuts = read_manifest(recipe.data.valid)
    with pytest.raises(type(error)) as caught:
        next(iter(evaluation_batches(cuts, recipe.changed("data", workers=workers))))
    assert str(caught.value) == str(error)


def test_workers_load_what_the_training_process_would(recipe: Recipe):
    cuts = read_manifest(recipe.data.valid)
    here, there = (
        list(evaluation_batches(cuts, recipe.changed("data", workers=workers)))
        for workers in (0, 2)
    )
    assert len(here) == len(there) > 0
    for left, right in zip(here, there, strict=True):
        for ours, theirs in zip(left, right, strict=True):
            same = torch.equal if isinstance(ours, torch.Tensor) else lambda a, b: a == b
            assert same(ours, theirs)


def test_errors_of_the_training_are_not_reported_as_a_workers(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("ds2deploy.training.loop.ctc_loss", fail)
    with pytest.raises(RuntimeError, match="shapes differ") as caught:
        train(recipe)
    assert not isinstance(caught.value, WorkerError)


class _Session:
    """Object in a cycle, as a session of ONNX Runtime may be: it notes who destroys it."""

    def __init__(self, log: Path) -> None:
        self.log, self.itself = log, self

    def __del__(self) -> None:
        with self.log.open("a") as file:
            file.write(f"{os.getpid()}\n")


class _Collecting(Dataset[tuple[torch.Tensor]]):
    def __getitem__(self, part: int) -> tuple[torch.Tensor]:
        assert gc.isenabled()
        gc.collect()
        return (torch.tensor(part),)


def test_workers_do_not_destroy_what_the_training_process_left(tmp_path: Path) -> None:
    """A session's threads do not exist in a forked process: to destroy it there never ends."""
    log = tmp_path / "destroyed"
    log.touch()
    gc.collect()
    gc.disable()  # the session stays garbage until the workers run
    try:
        _Session(log)
        items = [int(item) for (item,) in workers.load(_Collecting(), range(4), 2)]
        assert not gc.isenabled()
    finally:
        gc.enable()
    gc.collect()
    assert items == [0, 1, 2, 3]
    assert log.read_text() == f"{os.getpid()}\n"
