"""Recording of a training: metrics.jsonl, broken.jsonl, best.ckpt and TensorBoard."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ds2deploy.config import Recipe
from ds2deploy.model.checkpoint import save_checkpoint
from ds2deploy.model.network import DeepSpeech2
from ds2deploy.runtimes.errors import AudioError, TrainingError
from ds2deploy.runtimes.features import FloatArray
from ds2deploy.training.hardware import is_main_process
from ds2deploy.training.run_folder import BEST, BROKEN, STAGE, ResumePoint, RunFolder, score
from ds2deploy.training.scoring import Hypothesis
from ds2deploy.training.validation import Validation

BROKEN_SHARE = 0.01
"""Maximum share of unusable recordings. A large corpus has some; in a small one, the first ends the
training."""

PAIRS = 5
"""Number of utterances that TensorBoard shows after every validation."""


class RunRecorder:
    """Writer of metrics, the best checkpoint, and the names of unusable recordings.

    Args:
        folder: folder of the run.
        recipe: recipe of the training.
        utterances: number of training and validation utterances.
        step: last recorded step; TensorBoard hides later ones of an interrupted run.

    Attributes:
        failure: error that ends the training if too many recordings are unusable; else None.
    """

    def __init__(self, folder: RunFolder, recipe: Recipe, utterances: int, step: int) -> None:
        self._folder, self._recipe, self._utterances = folder, recipe, utterances
        self._best = score(folder.best_metrics())
        # The total time of the training, including its earlier processes.
        elapsed_s = max((line["elapsed_s"] for line in folder.metrics()), default=0.0)
        self._started = time.monotonic() - elapsed_s
        self._broken = {line["error"] for line in folder.broken()}
        self.failure: AudioError | None = None
        self._tensorboard: TensorBoardLog | None = None
        if recipe.training.tensorboard and is_main_process():
            self._tensorboard = TensorBoardLog(folder.path / "tensorboard", step)

    def note_step(self, point: ResumePoint, values: dict[str, float]) -> None:
        """Write a metrics line with the values of a step, such as `loss`."""
        if is_main_process():
            self._write(point, kind="train", **values)
            if self._tensorboard is not None:
                self._tensorboard.add_step(point.step, values)

    def note_validation(self, point: ResumePoint, found: Validation, network: DeepSpeech2) -> None:
        """Write a metrics line, and `best.ckpt` if the validation is the best so far.

        Raises:
            TrainingError: the loss is not finite.
        """
        metrics = found.metrics
        if is_main_process():
            self._write(point, kind="valid", **metrics)
        if not math.isfinite(metrics["valid_loss"]):  # the same in all processes
            raise TrainingError(
                f"{self._folder.path}: the validation loss is {metrics['valid_loss']} at step "
                f"{point.step}; start again with a lower training.learning_rate"
            )
        if not is_main_process():
            return
        if self._tensorboard is not None:
            self._tensorboard.add_validation(point.step, *found)
        if score(metrics) < self._best:
            save_checkpoint(self._folder.path / BEST, network, self._recipe, metrics)
            self._folder.write_hypotheses(found.hypotheses)
            self._best = score(metrics)

    def note_broken(self, point: ResumePoint, errors: Sequence[str]) -> None:
        """Report unusable recordings, each once; sets `failure` if there are too many."""
        for error in errors:
            if error in self._broken:
                continue
            self._broken.add(error)
            self._folder.append({"step": point.step, "epoch": point.epoch, "error": error}, BROKEN)
            if len(self._broken) > BROKEN_SHARE * self._utterances:
                self.failure = AudioError(
                    f"{error} ({len(self._broken)} of {self._utterances} recordings cannot be "
                    f"used, the maximum is {BROKEN_SHARE:.0%}; {self._folder.path / BROKEN} lists "
                    "them, and `ds2deploy prepare --read --leave-out` leaves them out)"
                )
                return
            print(f"left out: {error}", file=sys.stderr)

    def flush(self) -> None:
        """Write buffered values to TensorBoard's files."""
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def _write(self, point: ResumePoint, **values: Any) -> None:
        elapsed_s = round(time.monotonic() - self._started, 2)
        stage = {STAGE: self._folder.stage.number} if self._folder.stage is not None else {}
        place = {**stage, "epoch": point.epoch, "step": point.step}
        self._folder.append({**place, **values, "elapsed_s": elapsed_s})


class TensorBoardLog:
    """Writer of TensorBoard event files; a resumed training continues the same curves.

    Args:
        folder: folder of the event files.
        step: last valid step; later values of a killed training are hidden.

    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1)

    def add_step(self, step: int, values: Mapping[str, float]) -> None:
        """Add points to the curves of the training, such as `loss`."""
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
            values: points of the validation curves, such as `wer`.
            hypotheses: utterances with the recognised texts.
            spectrogram: features of an utterance, (bins, time); None adds no picture.
        """
        for name, value in values.items():
            self._writer.add_scalar(f"valid/{name}", value, step)
        pairs = "\n\n".join(
            f"reference {_code(item.reference)}\n\nhypothesis {_code(item.hypothesis)}\n\n---"
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
        """Write buffered values."""
        self._writer.flush()


def _code(text: str) -> str:
    """Quote a text as Markdown code, so that it stays unchanged and an empty one is visible."""
    return f"`{text}`" if text else "(nothing)"
