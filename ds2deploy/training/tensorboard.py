"""A training on TensorBoard: curves, what was heard, and what the network sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ds2deploy.runtimes.errors import require
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.training.scoring import Hypothesis

PAIRS = 5
"""Utterances whose reference and hypothesis are shown after every validation."""


class TensorBoardLog:
    """Writes event files; a training that is resumed goes on in the same curves.

    Args:
        folder: for them.

    Raises:
        RuntimeUnavailableError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        require("tensorboard", "train")
        self._folder = folder
        self._writer: Any = None

    def open(self, step: int) -> None:
        """Begin, or go on, once; what a killed training wrote past this step is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            self._writer = SummaryWriter(str(self._folder), purge_step=step + 1)

    def add_step(self, step: int, values: Mapping[str, float]) -> None:
        """Points of the training's curves, such as `loss`."""
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def add_validation(
        self,
        step: int,
        values: Mapping[str, float],
        hypotheses: Sequence[Hypothesis],
        spectrogram: FloatArray | None,
    ) -> None:
        """Error rates, a few utterances, and a picture.

        Args:
            step: of the training.
            values: points of the validation's curves, such as `wer`.
            hypotheses: what was said and heard.
            spectrogram: features of an utterance, (bins, time); None for no picture.
        """
        for name, value in values.items():
            self._writer.add_scalar(f"valid/{name}", value, step)
        pairs = "\n\n".join(
            f"said {_code(item.reference)}\n\nheard {_code(item.hypothesis)}\n\n---"
            for item in hypotheses[:PAIRS]
        )
        self._writer.add_text("valid/heard", pairs, step)
        if spectrogram is not None:
            picture = spectrogram[::-1]  # low frequencies at the bottom
            low, high = float(picture.min()), float(picture.max())
            scaled = (picture - low) / max(high - low, 1e-6)
            self._writer.add_image("valid/spectrogram", scaled[None], step)
        self._writer.flush()

    def flush(self) -> None:
        """Write what is left; a validation may still come after the last step."""
        if self._writer is not None:
            self._writer.flush()


def _code(text: str) -> str:
    """As it stands: an empty hypothesis is told from none, and Markdown changes nothing."""
    return f"`{text}`" if text else "(nothing)"
