"""TensorBoard's curves of a training, with recognised utterances and a spectrogram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ds2deploy.runtimes.features import FloatArray
from ds2deploy.training.scoring import Hypothesis

PAIRS = 5
"""Utterances whose reference and hypothesis are shown after every validation."""


class TensorBoardLog:
    """Writes event files; a training that is resumed continues the same curves.

    Args:
        folder: folder of the event files.
        step: last step that counts; what a killed training wrote past it is hidden.

    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1)

    def add_step(self, step: int, values: Mapping[str, float]) -> None:
        """Add points to the training's curves, such as `loss`."""
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def add_validation(
        self,
        step: int,
        values: Mapping[str, float],
        hypotheses: Sequence[Hypothesis],
        spectrogram: FloatArray | None,
    ) -> None:
        """Add error rates, a few utterances, and a picture.

        Args:
            step: step of the training.
            values: points of the validation's curves, such as `wer`.
            hypotheses: utterances with what was recognised.
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
        """Write what is left."""
        self._writer.flush()


def _code(text: str) -> str:
    """Quote a text, so that Markdown changes nothing, and an empty one is seen."""
    return f"`{text}`" if text else "(nothing)"
