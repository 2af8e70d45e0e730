"""TF32 is off while a session computes on CUDA, and afterwards as it was. No GPU is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.backends import cuda, cudnn

from ds2deploy.model.precision import FLOAT32, Float32
from ds2deploy.model.session import TorchSession
from ds2deploy.runtimes.artifact import ArtifactDescription, ModelShape


def switches() -> tuple[str, str, str]:
    return cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, cuda.matmul.fp32_precision


def legacy() -> tuple[bool, bool]:
    """Read torch's older switches; that raises where the two generations differ."""
    return cudnn.allow_tf32, cuda.matmul.allow_tf32


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    cudnn.allow_tf32 = True
    cuda.matmul.allow_tf32 = False


def mixed() -> None:
    cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = "tf32", "ieee"


SETTINGS: dict[str, Callable[[], Any]] = {
    "torch's own": lambda: None,
    "off": lambda: setattr(cudnn, "allow_tf32", False),
    "products too": lambda: setattr(cuda.matmul, "allow_tf32", True),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "of one operation": mixed,
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_it_is_off_inside_and_as_before_outside(setting: str):
    SETTINGS[setting]()
    before = switches()
    with FLOAT32.on():
        assert "tf32" not in switches()
        assert legacy() == (False, False)
    assert switches() == before


def test_it_comes_back_after_an_error():
    before = switches()
    with pytest.raises(ZeroDivisionError), FLOAT32.on():
        raise ZeroDivisionError
    assert switches() == before


def test_it_stays_off_until_the_last_thread_is_done():
    guard, before = Float32(), switches()
    entered, leave = threading.Event(), threading.Event()

    def compute() -> None:
        with guard.on():
            entered.set()
            leave.wait()

    other = threading.Thread(target=compute)
    with guard.on():
        other.start()
        entered.wait()
    assert "tf32" not in switches()
    leave.set()
    other.join()
    assert switches() == before


class Looks(torch.nn.Module):
    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.seen = switches()
        return features, lengths


@pytest.mark.parametrize(("kind", "off"), [("cpu", False), ("cuda", True)])
def test_a_session_computes_with_it_off_on_cuda_only(
    kind: str, off: bool, describe: Callable[..., ArtifactDescription]
):
    """The module sees the switches; the device is called CUDA, and nothing is moved there."""
    module, description = Looks(), describe(ModelShape(hidden=4, layers=1))
    features = np.zeros((1, 1, description.features.bins, 8), np.float32)
    tensors = {"features": features, "lengths": np.array([8])}
    session = TorchSession(module, description)
    assert session.compute(tensors)
    session._device = SimpleNamespace(type=kind)  # type: ignore[assignment]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "to", lambda self, device: self)
        session.compute(tensors)
    assert ("tf32" not in module.seen) == off
