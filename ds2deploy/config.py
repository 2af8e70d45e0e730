"""The recipe of a training: frozen structs, read from TOML, stored in every checkpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import msgspec

from ds2deploy.runtimes.alphabet import ENGLISH, Alphabet
from ds2deploy.runtimes.artifact import ModelShape
from ds2deploy.runtimes.errors import DECODING_ERRORS, ConfigError, MissingFileError
from ds2deploy.runtimes.features import FeatureConfig
from ds2deploy.text_files import decode_text


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the recipe's sections."""


class DataConfig(_Section, frozen=True):
    """Where the speech is and how it becomes batches.

    Attributes:
        train: manifest of the training set.
        valid: manifest of the validation set.
        batch_size: utterances in a batch of one process, at most.
        batch_duration_s: seconds of audio in a batch, before any change of speed, at most.
        sortagrad: whether the first epoch goes from the shortest utterances to the longest, as in
            the DeepSpeech 2 paper (section 3.2).
        buckets: groups of similar duration from which batches are drawn.
        join: fewest and most utterances of one speaker that are joined into one, anew in
            every epoch; teaches a model of short recordings to read long ones.
        pause_s: shortest and longest silence between joined utterances, in seconds.
        silence_s: shortest and longest silence before and after a training utterance, in seconds,
            anew in every epoch; a model that only hears recordings cut at the speech makes words
            of a microphone's silence.
        workers: processes that load data; 0 loads it in the training process.
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
    """What is done to training audio, anew in every epoch; all of it is off by default.

    Attributes:
        speed: slowest and fastest playing speed; pitch moves along.
        tempo: slowest and fastest tempo; pitch stays.
        gain_db: weakest and strongest gain, in decibels.
        noise_snr_db: lowest and highest ratio of speech to added noise, in decibels.
        noise_folder: recordings of which parts are added; without one, noise is made, stationary
            and of random colour.
        noise_share: share of the utterances that get noise.
        frequency_masks: bands of bins that are set to the mean (SpecAugment).
        frequency_mask_bins: widest such band, in bins.
        time_masks: stretches of frames that are set to the mean (SpecAugment).
        time_mask_frames: longest such stretch, in frames.
    """

    speed: tuple[float, float] = (1.0, 1.0)
    tempo: tuple[float, float] = (1.0, 1.0)
    gain_db: tuple[float, float] = (0.0, 0.0)
    noise_snr_db: tuple[float, float] | None = None
    noise_folder: str = ""
    noise_share: float = 0.5
    frequency_masks: int = 0
    frequency_mask_bins: int = 20
    time_masks: int = 0
    time_mask_frames: int = 10

    def __post_init__(self) -> None:
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
        if not 0 <= self.noise_share <= 1:
            raise ConfigError(f"augment.noise_share = {self.noise_share}: expected 0 to 1")


class TrainingConfig(_Section, frozen=True):
    """How the weights are found.

    Attributes:
        run: folder for best.ckpt, last.ckpt and metrics.jsonl.
        epochs: passes over the training set.
        learning_rate: the highest one.
        schedule: `one-cycle` warms up and anneals to a ten-thousandth; `anneal` divides
            by `anneal` after every epoch, as deepspeech.pytorch does; `constant`.
        warm_up: share of the steps in which `one-cycle` rises.
        anneal: divisor per epoch.
        optimizer: `adamw`, or `sgd` with Nesterov momentum 0.9.
        weight_decay: of the optimizer.
        clip_norm: gradients are scaled down to this norm.
        accumulate: batches whose gradients are gathered for a step.
        batch_norm: whose statistics normalise: `batch`, those of a process's own batch;
            `synchronized`, of all processes' batches (GPU only); `frozen`, those that the network
            has, for going on from a trained one.
        precision: Lightning's name: `32-true`, `16-mixed` (GPU only), `bf16-mixed`.
        accelerator: `auto`, `cpu` or `gpu`.
        devices: how many of them; 0 takes all.
        nodes: machines, each with so many devices, started by torchrun or a scheduler.
        threads: of the CPU; 0 leaves torch's choice.
        seed: of weights, batches and augmentation.
        validate_every: epochs between validations.
        log_every: steps between lines in metrics.jsonl.
        checkpoint_minutes: between writings of last.ckpt within an epoch.
        max_steps: stop after so many, in the middle of an epoch if need be.
        tensorboard: whether event files for TensorBoard are written, to RUN/tensorboard.
        report: whether RUN/report.html is written at the end.
        export: precisions in which the best checkpoint is exported to ONNX at the end, to RUN;
            none by default. int8 is judged by the words of the validation set.
        start: checkpoint of ds2deploy or deepspeech.pytorch whose weights, and statistics of
            features, are begun with; random weights without one.
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
        if self.max_steps is not None and self.max_steps < 1:
            raise ConfigError(f"training.max_steps = {self.max_steps}: expected at least 1")


class Recipe(_Section, frozen=True):
    """A whole training.

    Attributes:
        labels: one character each, blank first.
        model: the network's dimensions.
        features: what it sees.
        data: manifests and batches.
        augment: what is done to training audio.
        training: optimisation.
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
        """The same with other values of a section: `recipe.changed("training", epochs=2)`.

        Raises:
            ConfigError: a value that cannot be.
        """
        part = msgspec.structs.replace(getattr(self, section), **values)
        return msgspec.structs.replace(self, **{section: part})


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        name: a TOML file, or the name of a recipe that comes with ds2deploy.
        overrides: `section.key=value`, the value as TOML has it; a bare word is a string.

    Raises:
        MissingFileError: neither a file nor a known name.
        ConfigError: not TOML, an unknown key, or a value of another type.
    """
    source, content = _read(name)
    try:
        document = msgspec.toml.decode(decode_text(content))
    except UnicodeDecodeError:
        raise ConfigError(f"{source}: not a text file; expected a recipe in TOML") from None
    except DECODING_ERRORS as error:
        raise ConfigError(f"{source}: not TOML ({error})") from None
    for override in overrides:
        _override(document, override)
    try:
        return msgspec.convert(document, Recipe)
    except UnicodeError:  # in an argument that is not UTF-8
        raise ConfigError(f"{source}: a word of --set is not UTF-8; expected text") from None
    except DECODING_ERRORS as error:
        raise ConfigError(_explain(error, source, overrides)) from None


def within_cores(recipe: Recipe, cores: int) -> tuple[Recipe, list[str]]:
    """Bound the threads and processes of a recipe by the cores that there are.

    Args:
        recipe: one that may have been written for a larger machine.
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


def recipe_names() -> list[str]:
    """Recipes that come with ds2deploy."""
    folder = resources.files("ds2deploy.recipes")
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".toml"))


def _read(name: str) -> tuple[str, bytes]:
    path = Path(name)
    if path.is_file():
        return name, path.read_bytes()
    if name in recipe_names():
        return name, (resources.files("ds2deploy.recipes") / f"{name}.toml").read_bytes()
    kind = "is a directory" if path.is_dir() else "no such file"
    raise MissingFileError(
        f"{name}: {kind}; expected a recipe in TOML, or one of {', '.join(recipe_names())}"
    )


def _override(document: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    *sections, key = name.strip().split(".")
    if not equals or not key:
        raise ConfigError(f"--set {override}: expected section.key=value")
    for section in sections:
        document = document.setdefault(section, {})
        if not isinstance(document, dict):
            raise ConfigError(f"--set {override}: {section} is a value, not a section")
    document[key] = _value(value)


def _value(text: str) -> Any:
    try:
        return msgspec.toml.decode(f"value = {text}")["value"]
    except RecursionError:
        raise ConfigError(f"--set: {text[:20]}... is nested too deeply; expected a value") from None
    except DECODING_ERRORS:
        return text


def _explain(error: Exception, source: str, overrides: Sequence[str]) -> str:
    """Msgspec's message with where it comes from and the key's path first, and what may be there.

    `my.toml: training.epochs: Expected ...`, or `--set training.epochs=x: Expected ...`.
    """
    message, _, place = str(error).partition(" - at `$")
    place = place.rstrip("`").lstrip(".")
    path = re.sub(r"\[.*", "", place)  # of a list the whole
    if "unknown field" in message:
        key = message.rpartition("field `")[2].rstrip("`")
        message = message.replace("Object contains unknown field", "unknown key")
        section = getattr(Recipe(), path) if path else Recipe()
        message += f"; known are {', '.join(section.__struct_fields__)}"
        path = f"{path}.{key}".lstrip(".")
    elif path:
        message += _what_may_be(path)
    if place and not message.startswith(f"{place}."):
        message = f"{place}: {message}"
    for override in overrides:
        name = override.partition("=")[0].strip()
        if (path and f"{name}.".startswith(f"{path}.")) or message.startswith(f"{name} "):
            source = f"--set {override}"
    return f"{source}: {message}"


def _what_may_be(path: str) -> str:
    """Of a key: the words that it may have, or what it is where nobody sets it."""
    *sections, key = path.split(".")
    section = getattr(Recipe(), sections[0]) if sections else Recipe()
    kind = get_type_hints(type(section)).get(key)
    parts = (kind, *get_args(kind))
    words = [word for part in parts for word in get_args(part) if isinstance(word, str)]
    if words:
        return f"; expected {', '.join(words)}"
    default = msgspec.json.encode(getattr(section, key, None)).decode()
    return "" if isinstance(getattr(section, key, None), msgspec.Struct) else f", such as {default}"


def _positive(section: str, struct: _Section, *names: str) -> None:
    for name in names:
        if getattr(struct, name) <= 0:
            raise ConfigError(f"{section}.{name} = {getattr(struct, name)}: expected above 0")


def _interval(name: str, pair: tuple[float, float], least: float = float("-inf")) -> None:
    if not least <= pair[0] <= pair[1]:
        floor = "" if least == float("-inf") else f", neither under {least:g}"
        raise ConfigError(f"{name} = {list(pair)}: expected the smaller first{floor}")
