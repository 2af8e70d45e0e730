"""Cell states of LSTMs in training: what is measured, and that the loss keeps them small."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ds2deploy.config import Recipe
from ds2deploy.model.network import DeepSpeech2, RecurrentLayer
from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.training.cell_states import LIMIT, CellStates
from ds2deploy.training.run_folder import RunFolder
from ds2deploy.training.train import train

LENGTHS = torch.tensor([300, 300, 300])


def network(rnn: str = "lstm", bidirectional: bool = False) -> DeepSpeech2:
    """Make a network whose first layer adds up its input."""
    torch.manual_seed(0)
    shape = ModelShape(rnn=rnn, hidden=8, layers=2, bidirectional=bidirectional)
    made = DeepSpeech2(shape)
    with torch.no_grad():
        made.rnns[0].rnn.bias_ih_l0[: 3 * 8] = 4.0  # gates are open, and the cell's input is not 0
    return made.train()


def excess(made: DeepSpeech2) -> torch.Tensor:
    states = CellStates(made)
    torch.manual_seed(1)
    made(torch.randn(3, 1, 161, 300), LENGTHS)
    return states.excess()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_sequences_measure_the_same(bidirectional: bool):
    made = network(bidirectional=bidirectional)
    found = []
    for packed in (False, True):
        for layer in made.rnns:
            layer.packed = packed
        found.append(float(excess(made).detach()))
    assert min(found) > 0.1
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_padded_frames_do_not_count():
    made = network()
    lengths = torch.tensor([300, 290])  # one piece; the second utterance ends within it
    states = CellStates(made)
    made(torch.randn(2, 1, 161, 300), lengths)
    assert [cell.shape for cell in made.rnns[0].cells] == [(1, 1, 8)]
    states.excess()
    assert made.rnns[0].cells == []


def test_it_is_the_mean_above_the_limit():
    made = network()
    layer = made.rnns[0]
    assert isinstance(layer, RecurrentLayer)
    states = CellStates(made)
    layer.cells = [torch.tensor([[[LIMIT, -LIMIT - 3.0, 0.0, LIMIT + 1.0]]])]
    assert float(states.excess()) == pytest.approx(1.0)
    assert float(states.excess()) == 0.0  # forgotten


def test_nothing_is_collected_in_evaluation_or_without_cells():
    for made in (network().eval(), network("gru")):
        assert float(excess(made)) == 0.0


def test_descent_keeps_cells_small():
    made = network()
    optimizer = torch.optim.SGD(made.rnns.parameters(), lr=0.15)
    before = float(excess(made).detach())
    for _ in range(10):
        optimizer.zero_grad()
        excess(made).backward()
        optimizer.step()
    assert float(excess(made).detach()) < before / 4


def test_the_recipe_key_reaches_the_loss(
    tone_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(CellStates, "excess", lambda _: torch.tensor(0.5))
    recipe = tone_recipe.changed("training", max_steps=1).changed("model", rnn="lstm")
    losses = []
    for weight in (0.0, 1e6):
        run = tmp_path / f"{weight:g}"
        train(recipe.changed("training", run=str(run), cell_penalty=weight))
        lines = RunFolder(run).metrics()
        losses.append(next(line["loss"] for line in lines if line["kind"] == "train"))
    assert losses[1] == pytest.approx(losses[0] + 1e6 * 0.5)


def test_a_negative_weight_is_refused(tone_recipe: Recipe):
    with pytest.raises(ConfigError, match=r"cell_penalty"):
        tone_recipe.changed("training", cell_penalty=-1.0)
