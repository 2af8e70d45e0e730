"""The recipe of a training: frozen structs, stored in every checkpoint; `recipes` reads them."""

from __future__ import annotations

from typing import Literal

import msgspec

from ds2deploy.runtimes.alphabet import ENGLISH, Alphabet
from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.features import FeatureConfig


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the recipe's sections."""


class DataConfig(_Section, frozen=True):
    """Manifests of a training, and their batches.

    Attributes:
        train: manifest of the training set.
        valid: manifest of the validation set.
        batch_size: maximum of utterances in a batch of one process.
        batch_duration_s: maximum of audio in a batch, in seconds, before any change of speed.
        sortagrad: sort the first epoch from the shortest utterance to the longest, as in the
            DeepSpeech 2 paper (section 3.2).
        buckets: number of groups of similar duration from which batches are drawn.
        join: fewest and most utterances of one speaker that are joined into one, anew in
            every epoch; teaches a model of short recordings to read long ones.
        pause_s: shortest and longest silence between joined utterances, in seconds.
        silence_s: shortest and longest silence before and after a training utterance, in seconds,
            anew in every epoch; a model that was only trained on recordings cut at the speech makes
            words of a microphone's silence.
        workers: number of processes that load data; 0 loads it in the training process.
    """

    train: str = ""
    valid: str = ""
    batch_size: int = 16
    batch_duration_s: float | None = None
    sortagrad: bool = False
    buckets: int = 10
    join: tuple[int, int] = (1, 1)
    pause_s: tuple[float, float] = (0.02, 0.3)
    silence_s: tuple[float, float] = (0.0, 0.0)
    workers: int = 2

    def __post_init__(self) -> None:
        _positive("data", self, "batch_size", "buckets")
        _interval("data.join", self.join, least=1)
        _interval("data.pause_s", self.pause_s, least=0)
        _interval("data.silence_s", self.silence_s, least=0)
        if self.workers < 0:
            raise ConfigError(f"data.workers = {self.workers}: expected 0 or more")
        if self.batch_duration_s is not None and self.batch_duration_s <= 0:
            raise ConfigError(f"data.batch_duration_s = {self.batch_duration_s}: expected above 0")


class AugmentConfig(_Section, frozen=True):
    """Augmentation of training audio, anew in every epoch; all of it is off by default.

    Attributes:
        warm_up_epochs: number of epochs at the start without augmentation, without joined
            utterances and without added silence, in which a network that would learn nothing from
            such speech finds a beginning.
        speed: slowest and fastest playing speed; pitch moves along.
        tempo: slowest and fastest tempo; pitch stays.
        gain_db: weakest and strongest gain, in decibels.
        noise_snr_db: lowest and highest ratio of speech to added noise, in decibels.
        noise_folder: folder of recordings, parts of which are added; without one, the noise is
            synthetic, stationary and of random colour.
        noise_share: share of the utterances that get noise.
        noise_music_share: share of the synthetic noises that are chords of tones instead.
        room_rt60_s: shortest and longest reverberation time (RT60) of a simulated room, in
            seconds.
        room_share: share of the utterances that are spoken in a room.
        band_hz: lowest and highest upper edge of a narrow band, in Hz; its lower edge is between 0
            and 300 Hz. A telephone's band ends at 3,400 Hz.
        band_share: share of the utterances that are limited to a narrow band, noise included.
        frequency_masks: number of bands of bins that are set to the mean (SpecAugment).
        frequency_mask_bins: maximum width of such a band, in bins.
        time_masks: number of stretches of frames that are set to the mean (SpecAugment).
        time_mask_frames: maximum length of such a stretch, in frames.
    """

    warm_up_epochs: int = 0
    speed: tuple[float, float] = (1.0, 1.0)
    tempo: tuple[float, float] = (1.0, 1.0)
    gain_db: tuple[float, float] = (0.0, 0.0)
    noise_snr_db: tuple[float, float] | None = None
    noise_folder: str = ""
    noise_share: float = 0.5
    noise_music_share: float = 0.0
    room_rt60_s: tuple[float, float] | None = None
    room_share: float = 0.5
    band_hz: tuple[float, float] | None = None
    band_share: float = 0.5
    frequency_masks: int = 0
    frequency_mask_bins: int = 20
    time_masks: int = 0
    time_mask_frames: int = 10

    def __post_init__(self) -> None:
        if self.warm_up_epochs < 0:
            raise ConfigError(f"augment.warm_up_epochs = {self.warm_up_epochs}: expected 0 or more")
        _interval("augment.speed", self.speed, least=0.5)
        _interval("augment.tempo", self.tempo, least=0.5)
        _interval("augment.gain_db", self.gain_db)
        if self.noise_snr_db is not None:
            _interval("augment.noise_snr_db", self.noise_snr_db)
        if self.noise_folder and self.noise_snr_db is None:
            raise ConfigError(
                f"augment.noise_folder = {self.noise_folder}: say how loud, such as "
                "augment.noise_snr_db = [5, 20]"
            )
        if self.noise_folder and self.noise_music_share:
            raise ConfigError(
                "augment.noise_music_share is for synthetic noise; leave out augment.noise_folder, "
                "or add recordings of music to it"
            )
        if self.room_rt60_s is not None:
            _interval("augment.room_rt60_s", self.room_rt60_s, least=0.05)
        if self.band_hz is not None:
            _interval("augment.band_hz", self.band_hz, least=1000)
        for share in ("noise_share", "noise_music_share", "room_share", "band_share"):
            if not 0 <= getattr(self, share) <= 1:
                raise ConfigError(f"augment.{share} = {getattr(self, share)}: expected 0 to 1")


class TrainingConfig(_Section, frozen=True):
    """Optimisation of the weights.

    Attributes:
        run: folder for best.ckpt, last.ckpt and metrics.jsonl.
        epochs: number of passes over the training set.
        learning_rate: maximum of the learning rate.
        schedule: `one-cycle` warms up and anneals to a ten-thousandth; `anneal` divides
            by `anneal` after every epoch, as deepspeech.pytorch does; `constant`.
        warm_up: share of the training in which `one-cycle` rises.
        anneal: divisor per epoch.
        optimizer: `adamw`, or `sgd` with Nesterov momentum 0.9.
        weight_decay: weight decay of the optimizer.
        clip_norm: maximum norm of the gradients; longer ones are scaled down.
        accumulate: number of batches whose gradients are summed for a step.
        batch_norm: statistics that normalise: `batch`, those of a process's own batch;
            `synchronized`, those of all processes' batches (GPU only); `frozen`, those that the
            network has, to fine-tune a trained one.
        precision: Lightning's name: `32-true`, `16-mixed` (GPU only), `bf16-mixed`.
        accelerator: `auto`, `cpu` or `gpu`.
        devices: number of devices; 0 takes all.
        nodes: number of machines, each with so many devices, started by torchrun or a scheduler.
        threads: number of CPU threads; 0 leaves torch's choice.
        seed: seed of weights, batches and augmentation.
        validate_every: number of epochs between validations.
        log_every: number of steps between lines in metrics.jsonl.
        checkpoint_minutes: minutes between checkpoints (last.ckpt) within an epoch.
        max_steps: maximum of steps, at which the training stops, even within an epoch.
        tensorboard: write event files for TensorBoard, to RUN/tensorboard.
        report: write RUN/report.html at the end.
        export: precisions in which the best checkpoint is exported to ONNX at the end, to RUN;
            none by default. int8 is judged by the words of the validation set.
        start: checkpoint of ds2deploy or deepspeech.pytorch with the initial weights and
            statistics of features; random weights without one. A compressed one also gives
            `model.hidden`, `model.ranks` and `model.maps`.
        teacher: checkpoint whose log-probabilities are learnt beside the transcripts; of the same
            labels and features.
        teacher_weight: weight of the divergence from the teacher, beside the CTC loss.
        trace_norm: weight of the trace norm of the recurrent layers' input sides, which lowers
            their ranks; on a whole input side every step takes a singular value decomposition.
    """

    run: str = "runs/ds2"
    epochs: int = 20
    learning_rate: float = 1e-3
    schedule: Literal["one-cycle", "anneal", "constant"] = "one-cycle"
    warm_up: float = 0.25
    anneal: float = 1.1
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 1e-5
    clip_norm: float = 5.0
    accumulate: int = 1
    batch_norm: Literal["batch", "synchronized", "frozen"] = "batch"
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    nodes: int = 1
    threads: int = 0
    seed: int = 0
    validate_every: int = 1
    log_every: int = 10
    checkpoint_minutes: float = 10.0
    max_steps: int | None = None
    tensorboard: bool = False
    report: bool = False
    export: tuple[Literal["fp32", "fp16", "int8"], ...] = ()
    start: str = ""
    teacher: str = ""
    teacher_weight: float = 1.0
    trace_norm: float = 0.0

    def __post_init__(self) -> None:
        _positive(
            "training", self, "epochs", "learning_rate", "anneal", "clip_norm", "nodes",
            "accumulate", "validate_every", "log_every", "checkpoint_minutes",
        )  # fmt: skip
        if not 0 < self.warm_up < 1:
            raise ConfigError(f"training.warm_up = {self.warm_up}: expected between 0 and 1")
        if self.devices < 0 or self.threads < 0 or self.seed < 0 or self.weight_decay < 0:
            raise ConfigError(
                "training: devices, threads, seed and weight_decay must not be negative"
            )
        for name in ("teacher_weight", "trace_norm"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"training.{name} = {getattr(self, name)}: expected 0 or more")
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"training.max_steps = {self.max_steps}: expected at least 1")


class Recipe(_Section, frozen=True):
    """Recipe of a training.

    Attributes:
        labels: labels of the model, one character each, blank first.
        model: dimensions of the network.
        features: settings of its features.
        data: manifests and batches.
        augment: augmentation of training audio.
        training: optimisation of the weights.
    """

    labels: str = ENGLISH
    model: ModelShape = msgspec.field(default_factory=ModelShape)
    features: FeatureConfig = msgspec.field(default_factory=FeatureConfig)
    data: DataConfig = msgspec.field(default_factory=DataConfig)
    augment: AugmentConfig = msgspec.field(default_factory=AugmentConfig)
    training: TrainingConfig = msgspec.field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        Alphabet(self.labels)
        if "int8" in self.training.export and self.model.rnn != "lstm":
            raise ConfigError(
                f'training.export: int8 is for model.rnn = "lstm", this one is {self.model.rnn}'
            )

    def changed(self, section: str, **values: object) -> Recipe:
        """Copy a recipe with other values of a section: `recipe.changed("training", epochs=2)`.

        Raises:
            ConfigError: a value is out of its range.
        """
        part = msgspec.structs.replace(getattr(self, section), **values)
        return msgspec.structs.replace(self, **{section: part})


def within_cores(recipe: Recipe, cores: int) -> tuple[Recipe, list[str]]:
    """Limit the threads and processes of a recipe to the cores of this machine.

    Args:
        recipe: recipe that may have been written for a larger machine.
        cores: number of cores that this process may use.

    Returns:
        The bounded recipe, and a line for each value that changed.
    """
    changes = []
    most = {"data.workers": max(cores, DataConfig().workers), "training.threads": cores}
    for name, bound in most.items():
        section, _, key = name.partition(".")
        asked = getattr(getattr(recipe, section), key)
        if asked > bound:
            recipe = recipe.changed(section, **{key: bound})
            changes.append(
                f"{name} = {asked}: this process may use {cores} cores; {bound} are taken"
            )
    return recipe, changes


def _positive(section: str, struct: _Section, *names: str) -> None:
    for name in names:
        if getattr(struct, name) <= 0:
            raise ConfigError(f"{section}.{name} = {getattr(struct, name)}: expected above 0")


def _interval(name: str, pair: tuple[float, float], least: float = float("-inf")) -> None:
    if not least <= pair[0] <= pair[1]:
        floor = "" if least == float("-inf") else f", neither under {least:g}"
        raise ConfigError(f"{name} = {list(pair)}: expected the smaller first{floor}")
