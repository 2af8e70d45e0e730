"""Operations of the parsed network: as precise as float32 allows."""

from __future__ import annotations

import numpy as np

from ds2deploy.export.parsed_network.layers import Layer
from ds2deploy.export.parsed_network.operations import operation

HALF_ULP = 2.0**-24
"""Largest relative error of one rounding to float32."""


def test_a_gate_that_is_nearly_closed_keeps_its_digits() -> None:
    x = np.linspace(-80, 30, 5001, dtype=np.float32)
    sigmoid = operation(_activation("SIGMOID"))
    found = np.asarray(sigmoid([x]), np.float64)
    exact = 1 / (1 + np.exp(-x.astype(np.float64)))
    assert np.abs(found / exact - 1).max() < 6 * HALF_ULP
    assert sigmoid([x]).dtype == np.float32


def _activation(kind: str) -> Layer:
    return Layer(
        kind="ACTIVATION", name="gate", inputs=("x",), outputs=("y",),
        attributes={"type": kind, "alpha": 0.0, "beta": 0.0},
    )  # fmt: skip
