"""Cell states of LSTMs, whose growth makes a model fail in long streams.

A cell whose forget gate stays open adds up its input as long as a stream lasts. Utterances of some
seconds do not teach a network against it. In a streaming model of three layers of 320 units, the
largest cell state was 170 after 4 s of speech and 28,000 after 10 minutes, and from the fourth
minute on no word was recognised.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ds2deploy.model.network import DeepSpeech2, RecurrentLayer

LIMIT = 10.0
"""Magnitude that costs nothing. The output of a cell is its tanh, which is 1 from about 5 on."""


class CellStates:
    """Measures the cell states of a network in training.

    Args:
        network: network whose recurrent layers will report their cell states.
    """

    def __init__(self, network: DeepSpeech2) -> None:
        self._layers = [layer for layer in network.rnns if isinstance(layer, RecurrentLayer)]
        for layer in self._layers:
            layer.cells = []

    def excess(self) -> Tensor:
        """Compute the mean excess over the limit in the last forward pass, summed over the layers.

        Returns:
            () float32; 0 for a network without cells.
        """
        total = torch.zeros(())
        for layer in self._layers:
            if layer.cells:
                flat = torch.cat([cell.flatten() for cell in layer.cells]).float()
                total = total.to(flat.device) + F.relu(flat.abs() - LIMIT).mean()
            layer.cells = []
        return total
