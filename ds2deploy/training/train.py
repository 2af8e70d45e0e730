"""Training through Lightning: CPU, one GPU or several, full or mixed precision."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
import msgspec
import torch
from lhotse import CutSet
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only

from ds2deploy.config import Recipe
from ds2deploy.data.augmentation import check_noise
from ds2deploy.data.batches import global_statistics
from ds2deploy.data.ctc_room import check_manifest_room
from ds2deploy.data.manifest import check_transcripts, read_manifest
from ds2deploy.data.workers import worker_failures
from ds2deploy.heartbeat import Heartbeat, heartbeat
from ds2deploy.model.checkpoint import Checkpoint
from ds2deploy.model.load import load_checkpoint
from ds2deploy.model.recurrent import has_bfloat16_lstm
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.errors import ConfigError, RuntimeUnavailableError, require
from ds2deploy.runtimes.features import FeatureConfig
from ds2deploy.runtimes.session import usable_cores
from ds2deploy.training.callbacks import BoundedMemory
from ds2deploy.training.last_checkpoint import LastCheckpoint
from ds2deploy.training.lightning_module import SpeechRecognition
from ds2deploy.training.memory import bound_primitive_cache, keep_freed_memory
from ds2deploy.training.progress import TrainingProgress
from ds2deploy.training.report import write_report
from ds2deploy.training.resuming import begin, begun_features
from ds2deploy.training.run_folder import BROKEN_SHARE, LAST, RunFolder, RunRecorder
from ds2deploy.training.tensorboard import TensorBoardLog

TENSORBOARD = "tensorboard"
"""Folder of a run."""


def train(recipe: Recipe, resume: bool = False) -> dict[str, float]:
    """Train a network.

    Args:
        recipe: everything about it.
        resume: go on from `last.ckpt` in the run's folder.

    Returns:
        The metrics of the best checkpoint: `wer`, `cer`, `valid_loss`, `epoch`.

    Raises:
        ConfigError: the run's folder holds a training, or one of another model.
        RuntimeUnavailableError: the recipe asks for hardware that is not here.
        StoppedError: a signal ended it, with a checkpoint of its last step.
        OSError: the disk is full; the last checkpoint stands.
        MissingFileError, ManifestError, AlphabetError, AudioError: what is wrong with the data;
            there is nothing to resume.
        TrainingError: the loss is no longer a number.
        WorkerError: a process that loads data died, or has too little shared memory.
    """
    with heartbeat("training", wanted=is_main_process()) as beating:
        return _train(recipe, resume, beating)


def _train(recipe: Recipe, resume: bool, beating: Heartbeat) -> dict[str, float]:
    """Train a network, and tell the heartbeat of every step."""
    folder = RunFolder(Path(recipe.training.run))
    silence_lightning()
    bound_primitive_cache()
    check_hardware(recipe)
    if recipe.training.report:
        require("matplotlib", "bench")
    check_noise(recipe.augment)
    begun = begun_features(folder) if resume else None
    start = _load_start(recipe) if begun is None else None
    if start is not None:
        begun = start.recipe.features
    beating.tell("reading the data")
    cuts, recipe = _load_data(recipe, begun)
    beating.tell("setting up")
    beginning = begin(folder, recipe, resume)
    if recipe.training.threads:
        torch.set_num_threads(min(recipe.training.threads, usable_cores()))
    lightning.seed_everything(recipe.training.seed, workers=True, verbose=False)
    module = SpeechRecognition(recipe, *cuts)
    if start is not None:
        module.network.load_state_dict(start.network.state_dict())
    if not uses_gpu(recipe):
        keep_freed_memory()
        # As both convolutions take and give it: without copies in between.
        module.network.conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    board = TensorBoardLog(folder.path / TENSORBOARD) if recipe.training.tensorboard else None
    recorder = RunRecorder(folder, board, beginning.place)
    # It may end the training: what the others have to say of a step comes first.
    last = LastCheckpoint(folder.path / LAST, 60 * recipe.training.checkpoint_minutes)
    memory = [] if uses_gpu(recipe) else [BoundedMemory()]
    trainer = make_trainer(recipe, [recorder, TrainingProgress(beating), *memory, last])
    with worker_failures(recipe.data.workers):
        if beginning.unvalidated:
            trainer.validate(
                module, ckpt_path=beginning.checkpoint, verbose=False, weights_only=True
            )
        if not beginning.finished:
            trainer.fit(module, ckpt_path=beginning.checkpoint, weights_only=True)
            if recorder.validated_step != trainer.global_step:  # it ended between two validations
                trainer.validate(module, verbose=False)
    if recipe.training.report and trainer.is_global_zero:
        write_report(folder, recipe)
    return folder.best_metrics()


def make_trainer(recipe: Recipe, callbacks: list[lightning.Callback]) -> lightning.Trainer:
    """Lightning's trainer with our own checkpoints, metrics and progress bar."""
    training = recipe.training
    # Under Slurm, Lightning would answer signals by queueing the job again, by itself.
    slurm: list[Any] = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    return lightning.Trainer(
        accelerator="gpu" if uses_gpu(recipe) else "cpu",
        devices=training.devices or "auto",
        num_nodes=training.nodes,
        precision=training.precision,
        max_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        accumulate_grad_batches=training.accumulate,
        sync_batchnorm=training.batch_norm == "synchronized",
        plugins=slurm,
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


def is_main_process() -> bool:
    """Whether this is the one process of a distributed training that reports."""
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


def uses_gpu(recipe: Recipe) -> bool:
    """Whether the recipe trains on a GPU on this machine."""
    return recipe.training.accelerator != "cpu" and torch.cuda.is_available()


def check_hardware(recipe: Recipe) -> None:
    """Refuse a recipe that this machine cannot train.

    Raises:
        RuntimeUnavailableError: the accelerator, or one for the precision, is not here.
    """
    training = recipe.training
    if uses_gpu(recipe):
        if training.devices > torch.cuda.device_count():
            raise RuntimeUnavailableError(
                f"training.devices = {training.devices}: this machine has "
                f"{torch.cuda.device_count()} CUDA devices; 0 takes all of them"
            )
        return
    if training.accelerator == "gpu":
        raise RuntimeUnavailableError(
            f'training.accelerator = "gpu": torch {torch.__version__} sees no CUDA device; '
            "set it to cpu or auto"
        )
    if training.batch_norm == "synchronized":
        raise RuntimeUnavailableError(
            'training.batch_norm = "synchronized": torch synchronises it on CUDA devices only; '
            "take batch, or frozen"
        )
    if training.precision == "16-mixed":
        raise RuntimeUnavailableError(
            'training.precision = "16-mixed" needs a CUDA device; on a CPU use 32-true or '
            "bf16-mixed"
        )
    if training.precision == "bf16-mixed" and is_main_process() and not has_bfloat16_lstm():
        print(
            'training.precision = "bf16-mixed": this processor computes bfloat16 step by step, '
            "several times slower than 32-true",
            file=sys.stderr,
        )


def silence_lightning() -> None:
    """Keep Lightning's and torch's advertising and hints off a person's terminal."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", module=r"lhotse\..*", category=UserWarning)
    warnings.filterwarnings("ignore", module=r"torch\.utils\.data.*")


def _load_start(recipe: Recipe) -> Checkpoint | None:
    """The checkpoint to begin with, if there is one; its network must be the recipe's."""
    path = recipe.training.start
    if not path:
        return None
    start = load_checkpoint(path)
    given = msgspec.structs.replace(start.recipe.model, norm_eps=recipe.model.norm_eps)
    for name, theirs, ours in (
        ("labels", start.recipe.labels, recipe.labels),
        ("model", given, recipe.model),
        ("bins", start.recipe.features.bins, recipe.features.bins),
    ):
        if theirs != ours:
            raise ConfigError(
                f"training.start = {path}: its {name} is {theirs}, the recipe's {ours}; make them "
                "the same, or leave training.start out"
            )
    return start


def _load_data(recipe: Recipe, begun: FeatureConfig | None) -> tuple[tuple[CutSet, CutSet], Recipe]:
    """The manifests, and the recipe with statistics: those of `begun`, if it has some."""
    alphabet = Alphabet(recipe.labels)
    cuts = []
    for name in ("train", "valid"):
        path = getattr(recipe.data, name)
        if not path:
            raise ConfigError(f"data.{name}: no manifest; --set data.{name}=MANIFEST")
        cuts.append(read_manifest(path))
        check_transcripts(cuts[-1], alphabet, path)
        check_manifest_room(cuts[-1], recipe, path, BROKEN_SHARE)
    if recipe.features.normalize == "global" and recipe.features.mean is None:
        if begun is not None and begun.normalize == "global":
            mean, deviation = begun.mean, begun.deviation
        else:
            mean, deviation = global_statistics(cuts[0], recipe)
        recipe = recipe.changed("features", mean=mean, deviation=deviation)
    return (cuts[0], cuts[1]), recipe
