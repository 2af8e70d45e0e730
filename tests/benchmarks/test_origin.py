"""The comparison with deepspeech.pytorch, on a small class that imports and is named as its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"

CLASS = """
import torch
from omegaconf import OmegaConf
from torch import nn
from warpctc_pytorch import CTCLoss

import pytorch_lightning as pl
from deepspeech_pytorch.configs.train_config import BiDirectionalConfig


class Layer(nn.Module):
    def __init__(self, inputs, hidden, kind, norm):
        super().__init__()
        if norm:
            self.batch_norm = nn.Sequential()
            self.batch_norm.add_module("module", nn.BatchNorm1d(inputs))
        self.rnn = kind(inputs, hidden, bidirectional=True, batch_first=True)

    def forward(self, x):
        if hasattr(self, "batch_norm"):
            x = self.batch_norm.module(x.transpose(1, 2)).transpose(1, 2)
        return self.rnn(x)[0].unflatten(2, (2, -1)).sum(2)


class Output(nn.Module):
    def __init__(self, hidden, labels):
        super().__init__()
        self.module = nn.Sequential(nn.BatchNorm1d(hidden), nn.Linear(hidden, labels, bias=False))

    def forward(self, x):
        return self.module(x.flatten(0, 1)).view(*x.shape[:2], -1)


class DeepSpeech(pl.LightningModule):
    def __init__(self, labels, model_cfg, optim_cfg, spect_cfg, precision):
        super().__init__()
        assert OmegaConf.get_type(model_cfg) is BiDirectionalConfig
        self.criterion = CTCLoss(blank=0)
        self.conv = nn.Module()
        self.conv.seq_module = nn.Sequential(
            nn.Conv2d(1, 32, (41, 11), (2, 2), (20, 5)), nn.BatchNorm2d(32), nn.Hardtanh(0, 20),
            nn.Conv2d(32, 32, (21, 11), (2, 1), (10, 5)), nn.BatchNorm2d(32), nn.Hardtanh(0, 20),
        )
        inputs = [32 * 41] + [model_cfg.hidden_size] * (model_cfg.hidden_layers - 1)
        kind = model_cfg.rnn_type.value
        self.rnns = nn.ModuleList(
            Layer(size, model_cfg.hidden_size, kind, norm=i > 0) for i, size in enumerate(inputs)
        )
        self.fc = nn.Sequential(Output(model_cfg.hidden_size, len(labels)))

    def forward(self, x, lengths):
        x = self.conv.seq_module(x).flatten(1, 2).transpose(1, 2)
        for rnn in self.rnns:
            x = rnn(x)
        return torch.softmax(self.fc[0](x), -1), (lengths - 1) // 2 + 1
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    (tmp_path / "deepspeech_pytorch").mkdir()
    (tmp_path / "deepspeech_pytorch" / "model.py").write_text(CLASS)
    return tmp_path


def refusal(clone: Path) -> str:
    command = [sys.executable, str(FOLDER / "origin.py"), str(clone), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert not done.stdout
    return done.stderr.splitlines()[-1]


@pytest.mark.thorough
def test_their_class_and_ours_take_turns(run_script, clone: Path):
    data = run_script("origin.py", str(clone), "--quick")["data"]
    models = {name.rsplit(", batch ", 1)[0] for name in data}
    assert len(models) == 5
    assert {f"{name}, batch {batch}" for name in models for batch in (1, 8)} == data.keys()
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in data.values())


@pytest.mark.thorough
def test_a_network_that_computes_something_else_is_refused(clone: Path):
    source = clone / "deepspeech_pytorch" / "model.py"
    source.write_text(CLASS.replace(".sum(2)", ".mean(2)"))
    assert "probabilities differ" in refusal(clone)


@pytest.mark.slow
def test_another_folder_is_refused(tmp_path: Path):
    assert str(tmp_path / "deepspeech_pytorch" / "model.py") in refusal(tmp_path)
