"""Training through Lightning: CPU, one GPU or several, full or mixed precision."""

from __future__ import annotations

import logging
import math
import warnings
from pathlib import Path
from typing import Any

import lightning
import msgspec
import torch
import torch.nn.functional as F
from lhotse import CutSet
from torch import Tensor
from torch.utils.data import DataLoader

from ds2deploy.checkpoint import (
    KEY,
    build_network,
    header,
    load_weights,
    read_document,
)
from ds2deploy.config import Recipe
from ds2deploy.data import Batch, evaluation_loader, global_statistics, training_loader
from ds2deploy.manifest import check_transcripts, read_manifest
from ds2deploy.run_folder import LAST, RunFolder
from ds2deploy.runtimes.alphabet import BLANK, Alphabet
from ds2deploy.runtimes.decoding import greedy_text
from ds2deploy.runtimes.errors import ConfigError, MissingFileError, RuntimeUnavailableError
from ds2deploy.scoring import ErrorCounts, count_errors
from ds2deploy.training_progress import TrainingProgress


class SpeechRecognition(lightning.LightningModule):
    """Loss, optimiser and validation of one network.

    Args:
        recipe: everything about the training.
        train: training utterances.
        valid: validation utterances.
    """

    def __init__(self, recipe: Recipe, train: CutSet, valid: CutSet) -> None:
        super().__init__()
        self.recipe = recipe
        self.network = build_network(recipe)
        self._train, self._valid = train, valid
        self._alphabet = Alphabet(recipe.labels)
        self._counts = ErrorCounts()
        self._valid_loss = (0.0, 0)

    def train_dataloader(self) -> DataLoader[Batch]:
        """The batches of the current epoch."""
        return training_loader(self._train, self.recipe, self.current_epoch)

    def val_dataloader(self) -> DataLoader[Batch]:
        """All validation utterances."""
        return evaluation_loader(self._valid, self.recipe)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """CTC loss, the mean over the utterances."""
        log_probs, output_lengths = self.network(batch.features, batch.lengths)
        return ctc_loss(log_probs, output_lengths, batch) / len(batch.lengths)

    def validation_step(self, batch: Batch, _: int) -> None:
        """Count the errors of greedy decoding."""
        log_probs, output_lengths = self.network(batch.features, batch.lengths)
        loss = float(ctc_loss(log_probs, output_lengths, batch))
        self._valid_loss = (self._valid_loss[0] + loss, self._valid_loss[1] + len(batch.lengths))
        frames = log_probs.float().cpu().numpy()
        hypotheses = [
            greedy_text(rows[:length], self._alphabet)
            for rows, length in zip(frames, output_lengths.tolist(), strict=True)
        ]
        self._counts += count_errors(batch.texts, hypotheses)

    def on_validation_epoch_end(self) -> None:
        """Sum over the processes and publish `wer`, `cer` and `valid_loss`."""
        counts = torch.tensor(
            [*msgspec.structs.astuple(self._counts), *self._valid_loss],
            dtype=torch.float64,
            device=self.device,
        )
        counts = self.trainer.strategy.reduce(counts, reduce_op="sum")
        *errors, loss, utterances = counts.tolist()
        total = ErrorCounts(*(int(count) for count in errors))
        self.log("wer", total.wer, rank_zero_only=True)
        self.log("cer", total.cer, rank_zero_only=True)
        self.log("valid_loss", loss / max(utterances, 1), rank_zero_only=True)
        self._counts, self._valid_loss = ErrorCounts(), (0.0, 0)

    def configure_optimizers(self) -> Any:
        """The optimiser and the learning rate of every step."""
        training = self.recipe.training
        parameters = self.network.parameters()
        rate, decay = training.learning_rate, training.weight_decay
        if training.optimizer == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(
                parameters, lr=rate, weight_decay=decay, momentum=0.9, nesterov=True
            )
        else:
            optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
        steps_per_epoch = max(1, sum(1 for _ in self.train_dataloader().sampler))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(self.recipe, step, steps_per_epoch)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store recipe and weights as every checkpoint of ours has them."""
        prefix = "network."
        checkpoint["state_dict"] = {
            name.removeprefix(prefix): value for name, value in checkpoint["state_dict"].items()
        }
        metrics = {name: float(v) for name, v in self.trainer.callback_metrics.items()}
        checkpoint[KEY] = header(self.recipe, metrics)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Undo the renaming of `on_save_checkpoint`."""
        checkpoint["state_dict"] = {
            f"network.{name}": value for name, value in checkpoint["state_dict"].items()
        }


def ctc_loss(log_probs: Tensor, output_lengths: Tensor, batch: Batch) -> Tensor:
    """Connectionist temporal classification, summed over the batch (Graves et al., 2006).

    An utterance with more labels than output frames counts as zero, as in deepspeech.pytorch.

    Args:
        log_probs: (batch, time, labels) float32.
        output_lengths: (batch,) int64.
        batch: its targets.
    """
    return F.ctc_loss(
        log_probs.transpose(0, 1),
        batch.targets,
        output_lengths,
        batch.target_lengths,
        blank=BLANK,
        reduction="sum",
        zero_infinity=True,
    )


def learning_rate_factor(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Share of the highest learning rate at a step, from 0 to 1."""
    training = recipe.training
    if training.schedule == "constant":
        return 1.0
    if training.schedule == "anneal":
        return float(training.anneal ** -(step // steps_per_epoch))
    steps = training.epochs * steps_per_epoch
    if training.max_steps is not None:
        steps = min(steps, training.max_steps)
    rise = training.warm_up * steps
    if step < rise:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * step / rise)) / 2
    done = min((step - rise) / max(steps - rise, 1), 1.0)
    return max((1 + math.cos(math.pi * done)) / 2, 1e-4)


def train(recipe: Recipe, resume: bool = False) -> dict[str, float]:
    """Train a network.

    Args:
        recipe: everything about it.
        resume: go on from `last.ckpt` in the run's folder.

    Returns:
        The metrics of the best checkpoint: `wer`, `cer`, `valid_loss`.

    Raises:
        ConfigError: the run's folder holds a training, or there is none to resume.
        MissingFileError, ManifestError, AlphabetError, AudioError: what is wrong with the data.
    """
    folder = RunFolder(Path(recipe.training.run))
    silence_lightning()
    check_hardware(recipe)
    cuts, recipe = _load_data(recipe)
    checkpoint = _claim(folder, recipe, resume)
    if recipe.training.threads:
        torch.set_num_threads(recipe.training.threads)
    lightning.seed_everything(recipe.training.seed, workers=True, verbose=False)
    module = SpeechRecognition(recipe, *cuts)
    if not torch.cuda.is_available():
        # oneDNN's convolutions run an eighth faster so.
        module.network.conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    recorder = folder.callback()
    trainer = make_trainer(recipe, [recorder, TrainingProgress()])
    trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
    if recorder.validated_step != trainer.global_step:  # it ended between two validations
        trainer.validate(module, verbose=False)
    return folder.best_metrics()


def make_trainer(recipe: Recipe, callbacks: list[lightning.Callback]) -> lightning.Trainer:
    """Lightning's trainer with our own checkpoints, metrics and progress bar."""
    training = recipe.training
    on_gpu = training.accelerator != "cpu" and torch.cuda.is_available()
    return lightning.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=training.devices or "auto",
        precision=training.precision,
        max_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        gradient_clip_val=training.clip_norm,
        check_val_every_n_epoch=training.validate_every,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )


def check_hardware(recipe: Recipe) -> None:
    """Refuse a recipe that this machine cannot train.

    Raises:
        RuntimeUnavailableError: the accelerator, or one for the precision, is not here.
    """
    if torch.cuda.is_available():
        return
    if recipe.training.accelerator == "gpu":
        raise RuntimeUnavailableError(
            f'training.accelerator = "gpu": torch {torch.__version__} sees no CUDA device; '
            "set it to cpu or auto"
        )
    if recipe.training.precision == "16-mixed":
        raise RuntimeUnavailableError(
            'training.precision = "16-mixed" needs a CUDA device, and torch sees none; '
            "use 32-true or bf16-mixed"
        )


def silence_lightning() -> None:
    """Keep Lightning's and torch's advertising and hints off a person's terminal."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", module=r"lhotse\..*", category=UserWarning)
    warnings.filterwarnings("ignore", module=r"torch\.utils\.data.*")


def _load_data(recipe: Recipe) -> tuple[tuple[CutSet, CutSet], Recipe]:
    alphabet = Alphabet(recipe.labels)
    cuts = []
    for name in ("train", "valid"):
        path = getattr(recipe.data, name)
        if not path:
            raise ConfigError(f"data.{name}: no manifest; --set data.{name}=MANIFEST")
        cuts.append(read_manifest(path))
        check_transcripts(cuts[-1], alphabet, path)
    if recipe.features.normalize == "global" and recipe.features.mean is None:
        mean, deviation = global_statistics(cuts[0], recipe)
        features = msgspec.structs.replace(recipe.features, mean=mean, deviation=deviation)
        recipe = msgspec.structs.replace(recipe, features=features)
    return (cuts[0], cuts[1]), recipe


def _claim(folder: RunFolder, recipe: Recipe, resume: bool) -> Path | None:
    """Decide between a fresh start and going on; never overwrite a training."""
    last = folder.path / LAST
    if not resume:
        if folder.holds_training():
            raise ConfigError(
                f"{folder.path}: holds a training; go on with --resume, "
                "or choose another folder with --set training.run=FOLDER"
            )
        folder.path.mkdir(parents=True, exist_ok=True)
        return None
    if not last.is_file() and folder.holds_training():  # it died before its first checkpoint
        folder.rewind(0)
        return None
    if not last.is_file():
        raise MissingFileError(f"{last}: no such file; nothing to resume, start without --resume")
    document = read_document(last)
    if document is None or "loops" not in document:
        raise ConfigError(f"{last}: not the last checkpoint of a training; nothing to resume")
    load_weights(build_network(recipe), document["state_dict"], last)
    folder.rewind(int(document["global_step"]))
    return last
