"""bfloat16 on a processor that has none: slower, said so, and with the same numbers."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ds2deploy.config import Recipe
from ds2deploy.model.network import CELLS
from ds2deploy.training.hardware import check_hardware

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
"""A processor without AVX-512, for oneDNN and for torch."""

LAYERS = """
import torch
from ds2deploy.model.network import CELLS
from ds2deploy.model.recurrent import has_bfloat16_lstm, run_unpacked
assert not has_bfloat16_lstm()
for cell in CELLS.values():
    torch.manual_seed(0)
    rnn, x = cell(8, 16, bidirectional=True), torch.randn(30, 2, 8)
    exact = run_unpacked(rnn, x, torch.tensor([30, 20]))
    with torch.autocast("cpu", torch.bfloat16):
        found = run_unpacked(rnn, x, torch.tensor([30, 20])).float()
    found.square().sum().backward()
    print(float((found - exact)[:20].abs().max()))
"""

on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the variables are for x86")


@on_x86
def test_float32_features_under_autocast_without_avx512():
    """oneDNN's error would be "could not create a primitive descriptor", for an LSTM."""
    command = [sys.executable, "-c", LAYERS]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | AVX2)
    assert done.returncode == 0, done.stderr
    differences = [float(line) for line in done.stdout.split()]
    assert len(differences) == len(CELLS)
    assert 0 < max(differences) < 0.05  # the two to three digits of bfloat16


@pytest.mark.slow
@on_x86
def test_a_training_without_avx512_names_the_faster_precision(
    tone_recipe: Recipe, recipe_file: Callable[[Recipe, Path], Path], tmp_path: Path
):
    recipe = recipe_file(tone_recipe.changed("training", max_steps=1), tmp_path / "recipe.toml")
    command = [sys.executable, "-m", "ds2deploy", "train", str(recipe)]
    command += ["--set", "training.precision=bf16-mixed"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | AVX2)
    assert done.returncode == 0, done.stderr
    warned = [line for line in done.stderr.splitlines() if "training.precision" in line]
    assert len(warned) == 1
    assert "32-true" in warned[0]
    assert (tmp_path / "run" / "best.ckpt").is_file()


@pytest.mark.parametrize("has_it", [False, True])
def test_only_a_missing_lstm_is_warned_of(
    has_it: bool,
    tone_recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr("ds2deploy.training.hardware.has_bfloat16_lstm", lambda: has_it)
    check_hardware(tone_recipe)
    assert capsys.readouterr().err == ""
    check_hardware(tone_recipe.changed("training", precision="bf16-mixed"))
    assert capsys.readouterr().err.count("bf16-mixed") == (0 if has_it else 1)
