"""Training recipe as frozen structs.

`recipes` reads a recipe from TOML, and every checkpoint contains the one it was trained with.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ds2deploy.runtimes.alphabet import ENGLISH, Alphabet
from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.runtimes.features import FeatureConfig


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base class of the recipe's sections."""


class DataConfig(_Section, frozen=True):
    """Manifests and batches of a training.

    Attributes:
        train: manifest of the training set.
        valid: manifest of the validation set.
        batch_size: maximum number of utterances in the batch of one process.
        batch_duration_s: maximum total audio in a batch, in seconds, before any change of speed;
            None sets no limit.
        sortagrad: sort the first epoch from the shortest to the longest utterance, as in the
            DeepSpeech 2 paper (section 3.2).
        buckets: number of duration groups; each batch is drawn from one of them.
        join: minimum and maximum number of utterances of one speaker that are joined into one,
            drawn anew in every epoch. Joining teaches a model of short recordings to read long
            ones.
        pause_s: minimum and maximum silence between joined utterances, in seconds.
        silence_s: minimum and maximum silence added before and after a training utterance, in
            seconds, drawn anew in every epoch. A model that is trained only on tightly cut
            recordings recognises words in the silence of a microphone.
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
    """Augmentation of training audio, drawn anew in every epoch; off by default.

    Attributes:
        warm_up_epochs: number of epochs at the start without augmentation, joined utterances or
            added silence. Use it if the loss does not fall on augmented speech from the beginning.
        speed: minimum and maximum playing speed, as a factor; the pitch changes with it.
        tempo: minimum and maximum tempo, as a factor; the pitch stays the same.
        gain_db: minimum and maximum gain, in decibels.
        noise_snr_db: minimum and maximum ratio of speech to added noise, in decibels; None adds
            no noise.
        noise_folder: folder of noise recordings, of which random parts are added; empty adds
            synthetic stationary noise of random colour.
        noise_share: share of the utterances to which noise is added, 0 to 1.
        noise_music_share: share of the synthetic noises that are replaced by chords of tones,
            0 to 1.
        room_rt60_s: minimum and maximum reverberation time (RT60) of a simulated room, in seconds;
            None simulates no room.
        room_share: share of the utterances that are reverberated, 0 to 1.
        band_hz: minimum and maximum upper edge of a band-pass filter, in Hz; its lower edge is
            drawn between 0 and 300 Hz. A telephone's band ends at 3,400 Hz. None filters nothing.
        band_share: share of the utterances that are band-limited, noise included, 0 to 1.
        frequency_masks: number of frequency masks (SpecAugment), each of which sets a band of bins
            to the mean.
        frequency_mask_bins: maximum width of a frequency mask, in bins.
        time_masks: number of time masks (SpecAugment), each of which sets a range of frames to the
            mean.
        time_mask_frames: maximum length of a time mask, in frames.
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
                f"augment.noise_folder = {self.noise_folder}: requires a signal-to-noise ratio, "
                "such as augment.noise_snr_db = [5, 20]"
            )
        if self.noise_folder and self.noise_music_share:
            raise ConfigError(
                f"augment.noise_music_share = {self.noise_music_share}: only for synthetic noise; "
                "omit augment.noise_folder, or add recordings of music to that folder"
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
        run: folder (RUN) for best.ckpt, last.ckpt and metrics.jsonl.
        epochs: number of passes over the training set.
        learning_rate: maximum learning rate.
        schedule: learning-rate schedule. `one-cycle` warms up, then anneals to a ten-thousandth;
            `anneal` divides the rate by `anneal` after every epoch, as deepspeech.pytorch does;
            `constant` keeps it.
        warm_up: share of the training in which the rate of `one-cycle` rises, between 0 and 1.
        anneal: divisor of the learning rate after each epoch, for the schedule `anneal`.
        optimizer: `adamw`, or `sgd` with Nesterov momentum 0.9.
        weight_decay: weight decay of the optimizer.
        clip_norm: maximum norm of the gradients; larger gradients are scaled down to it.
        accumulate: number of batches whose gradients are summed for one optimisation step.
        batch_norm: statistics that batch norm uses. `batch` takes those of a process's own batch,
            `synchronized` those of the batches of all processes (GPU only). `frozen` keeps those
            that a trained network has, for fine-tuning.
        precision: numeric precision, as Lightning names it: `32-true`, `16-mixed` (GPU only) or
            `bf16-mixed`.
        accelerator: kind of device: `auto`, `cpu` or `gpu`.
        devices: number of devices per machine; 0 takes all.
        nodes: number of machines, each with the same number of devices; start the processes with
            torchrun or a scheduler.
        threads: number of CPU threads; 0 lets torch choose.
        seed: seed of the initial weights, batches and augmentation.
        validate_every: number of epochs between validations.
        log_every: number of steps between lines in metrics.jsonl.
        checkpoint_minutes: minutes between checkpoints (last.ckpt) within an epoch.
        max_steps: maximum number of optimisation steps; the training stops there, even within an
            epoch. None sets no limit.
        tensorboard: write TensorBoard event files to RUN/tensorboard.
        report: write RUN/report.html at the end.
        export: precisions in which the best checkpoint is exported to ONNX (in RUN) at the end;
            none by default. The int8 model is checked by its word errors on the validation set.
        start: checkpoint of ds2deploy or deepspeech.pytorch that provides the initial weights and
            feature statistics; empty starts from random weights. A compressed one also provides
            `model.hidden`, `model.ranks` and `model.maps`.
        teacher: checkpoint of a network to learn from; it must have the same labels and features.
            The loss then adds the divergence from its log-probabilities to the CTC loss.
        teacher_weight: weight of the divergence from the teacher in the loss.
        trace_norm: weight of the trace norm of the recurrent layers' input weights, which lowers
            their ranks. For input weights without a rank, each step computes a singular value
            decomposition.
        cell_penalty: weight of the mean by which cell states of LSTMs exceed 10 in magnitude. Cell
            states that grow without limit make a model fail in streams of minutes.
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
    cell_penalty: float = 0.0

    def __post_init__(self) -> None:
        _positive(
            "training", self, "epochs", "learning_rate", "anneal", "clip_norm", "nodes",
            "accumulate", "validate_every", "log_every", "checkpoint_minutes",
        )  # fmt: skip
        if not 0 < self.warm_up < 1:
            raise ConfigError(f"training.warm_up = {self.warm_up}: expected between 0 and 1")
        for name in (
            "devices", "threads", "seed", "weight_decay", "teacher_weight", "trace_norm",
            "cell_penalty",
        ):  # fmt: skip
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"training.{name} = {getattr(self, name)}: expected 0 or more")
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"training.max_steps = {self.max_steps}: expected at least 1")


class Recipe(_Section, frozen=True):
    """Recipe of a training.

    Attributes:
        labels: labels of the model, one character each, blank first.
        model: dimensions of the network.
        features: settings of feature extraction.
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
                f'training.export: int8 requires model.rnn = "lstm", not "{self.model.rnn}"; omit '
                "int8, or change model.rnn"
            )

    def changed(self, section: str, **values: object) -> Recipe:
        """Copy the recipe with other values in one section.

        Example: `recipe.changed("training", epochs=2)`.

        Raises:
            ConfigError: a value is out of its range.
        """
        part = msgspec.structs.replace(getattr(self, section), **values)
        return msgspec.structs.replace(self, **{section: part})


def within_cores(recipe: Recipe, cores: int) -> tuple[Recipe, list[str]]:
    """Limit the threads and processes of a recipe to the cores of this machine.

    Args:
        recipe: recipe, perhaps written for a larger machine.
        cores: number of cores that this process may use.

    Returns:
        The limited recipe, and one message for each value that changed.
    """
    changes = []
    most = {"data.workers": max(cores, DataConfig().workers), "training.threads": cores}
    for name, bound in most.items():
        section, _, key = name.partition(".")
        asked = getattr(getattr(recipe, section), key)
        if asked > bound:
            recipe = recipe.changed(section, **{key: bound})
            changes.append(
                f"{name} = {asked}: this process may use {cores} cores; {bound} are used"
            )
    return recipe, changes


def _positive(section: str, struct: _Section, *names: str) -> None:
    for name in names:
        if getattr(struct, name) <= 0:
            raise ConfigError(f"{section}.{name} = {getattr(struct, name)}: expected above 0")


def _interval(name: str, pair: tuple[float, float], least: float = float("-inf")) -> None:
    if not least <= pair[0] <= pair[1]:
        floor = "" if least == float("-inf") else f", both at least {least:g}"
        raise ConfigError(f"{name} = {list(pair)}: expected the smaller value first{floor}")
