"""Training of a network on a CPU or one or more GPUs, in full or mixed precision."""

from __future__ import annotations

from pathlib import Path

import lightning
import msgspec
import torch
from lhotse import CutSet

from ds2deploy.config import Recipe
from ds2deploy.data.augmentation import check_noise
from ds2deploy.data.ctc_room import check_manifest_room
from ds2deploy.data.manifest import check_transcripts, read_manifest
from ds2deploy.data.statistics import global_statistics
from ds2deploy.data.workers import worker_failures
from ds2deploy.heartbeat import Heartbeat, heartbeat
from ds2deploy.model.checkpoint import Checkpoint
from ds2deploy.model.load import load_checkpoint
from ds2deploy.model.weights import build_network
from ds2deploy.output import print_error
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.artifact import is_compressed
from ds2deploy.runtimes.errors import ConfigError, require
from ds2deploy.runtimes.features import FeatureConfig
from ds2deploy.runtimes.session import usable_cores
from ds2deploy.training.hardware import check_hardware, is_main_process, silence_lightning, uses_gpu
from ds2deploy.training.loop import TrainingLoop
from ds2deploy.training.memory import bound_primitive_cache, keep_freed_memory
from ds2deploy.training.progress import TrainingProgress
from ds2deploy.training.recorder import BROKEN_SHARE
from ds2deploy.training.report import write_report
from ds2deploy.training.resuming import begin, begun_recipe, differences
from ds2deploy.training.run_folder import RunFolder, Stage
from ds2deploy.training.teacher import TEACHER, check_features, check_same_teacher, load_teacher


def train(recipe: Recipe, resume: bool = False, stage: Stage | None = None) -> dict[str, float]:
    """Train a network.

    Args:
        recipe: recipe of the training.
        resume: resume from `last.ckpt` in the folder of the run.
        stage: stage of a training that has several; `stages` trains all of them.

    Returns:
        The metrics of the best checkpoint: `wer`, `cer`, `valid_loss`, `epoch`.

    Raises:
        ConfigError: the folder of the run contains a training already, or one of another model.
        RuntimeUnavailableError: this machine lacks the hardware that the recipe asks for.
        StoppedError: a signal ended the training, with a checkpoint of its last step.
        OSError: the disk is full; the last checkpoint is kept.
        MissingFileError, ManifestError, AlphabetError, AudioError: the data cannot be used, or
            there is nothing to resume.
        TrainingError: the loss is not finite.
        WorkerError: a data-loading process died, or shared memory is full.
    """
    with heartbeat("training", wanted=is_main_process()) as lines:
        return _train(recipe, resume, RunFolder(Path(recipe.training.run), stage), lines)


def check_machine(recipe: Recipe) -> None:
    """Check that this machine has the devices, packages and noises that a recipe needs.

    Raises:
        RuntimeUnavailableError: a device or a package is missing.
        ConfigError, NoiseError: the folder of noises cannot be used.
    """
    silence_lightning()
    check_hardware(recipe)
    if recipe.training.report:
        require("matplotlib", "bench")
    if recipe.training.tensorboard:
        require("tensorboard", "train")
    check_noise(recipe.augment)


def _train(recipe: Recipe, resume: bool, folder: RunFolder, lines: Heartbeat) -> dict[str, float]:
    """Train a network, and report its steps through `lines`."""
    bound_primitive_cache()
    check_machine(recipe)
    begun = begun_recipe(folder) if resume else None
    start = _load_start(recipe) if begun is None else None
    if start is not None:
        begun = start.recipe
    if recipe.training.start and begun is not None:
        recipe = _with_compressed_shape(recipe, begun)
    teacher = load_teacher(recipe)
    features = begun.features if begun is not None else None
    if features is None and teacher is not None:
        features = teacher.features
    lines.tell("reading the data")
    cuts, recipe = _load_data(recipe, features)
    lines.tell("setting up")
    if teacher is not None:
        check_features(teacher, recipe)
    initial = begin(folder, recipe, resume)
    if initial.document is not None:
        check_same_teacher(teacher, recipe, initial.document.get(TEACHER))
    if recipe.training.threads:
        torch.set_num_threads(min(recipe.training.threads, usable_cores()))
    lightning.seed_everything(recipe.training.seed, workers=True, verbose=False)
    network = initial.network or build_network(recipe)
    if start is not None:
        network.load_state_dict(start.network.state_dict())
    if not uses_gpu(recipe):
        keep_freed_memory()
        # The memory format that both convolutions use, which avoids copies between them.
        network.conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    progress = TrainingProgress(recipe.training.epochs, lines, stage=folder.stage)
    with worker_failures(recipe.data.workers):
        TrainingLoop(recipe, network, cuts, folder, progress, initial, teacher).run()
    if recipe.training.report and is_main_process():
        write_report(folder, recipe)
    return folder.best_metrics()


def _load_start(recipe: Recipe) -> Checkpoint | None:
    """Read the checkpoint with the initial weights, if any, and check that it fits the recipe."""
    path = recipe.training.start
    if not path:
        return None
    start = load_checkpoint(path)
    if is_compressed(start.recipe.model):
        recipe = _with_compressed_shape(recipe, start.recipe, quiet=True)
    given = msgspec.structs.replace(start.recipe.model, norm_eps=recipe.model.norm_eps)
    for name, theirs, ours in (
        ("labels", start.recipe.labels, recipe.labels),
        ("model", given, recipe.model),
        ("features.bins", start.recipe.features.bins, recipe.features.bins),
    ):
        if differing := differences(name, theirs, ours):
            raise ConfigError(
                f"training.start = {path}: trained with another recipe: {differing}; change the "
                "recipe, or omit training.start"
            )
    return start


def _with_compressed_shape(recipe: Recipe, begun: Recipe, quiet: bool = False) -> Recipe:
    """Take the sizes of a compressed model, which a recipe written for the whole one has not."""
    sizes = {name: getattr(begun.model, name) for name in ("hidden", "ranks", "maps")}
    if not is_compressed(begun.model) or len(begun.model.units) != recipe.model.layers:
        return recipe
    changed = recipe.changed("model", **sizes)
    if changed.model != recipe.model and not quiet and is_main_process():
        taken = ", ".join(f"model.{name} = {value}" for name, value in sizes.items())
        print_error(f"training.start = {recipe.training.start}: its sizes are used: {taken}")
    return changed


def _load_data(
    recipe: Recipe, features: FeatureConfig | None
) -> tuple[tuple[CutSet, CutSet], Recipe]:
    """Read both manifests, and add feature statistics to the recipe: given ones or the data's."""
    alphabet = Alphabet(recipe.labels)
    cuts = []
    for name in ("train", "valid"):
        path = getattr(recipe.data, name)
        if not path:
            raise ConfigError(f"data.{name}: no manifest; add --set data.{name}=MANIFEST")
        cuts.append(read_manifest(path))
        check_transcripts(cuts[-1], alphabet, path)
        check_manifest_room(cuts[-1], recipe, path, BROKEN_SHARE)
    if recipe.features.normalize == "global" and recipe.features.mean is None:
        if features is not None and features.normalize == "global":
            mean, deviation = features.mean, features.deviation
        else:
            mean, deviation = global_statistics(cuts[0], recipe)
        recipe = recipe.changed("features", mean=mean, deviation=deviation)
    return (cuts[0], cuts[1]), recipe
