"""The `.decoder` file: settings that were tuned for a model and its language models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.decoding.beam import BeamDecoder
from ds2deploy.runtimes.decoding.config import DecoderConfig, as_tuple, one_or_all
from ds2deploy.runtimes.errors import (
    DECODING_ERRORS,
    ConfigError,
    MissingFileError,
    ModelFileError,
    one_line,
    system_reason,
)
from ds2deploy.runtimes.files import file_sha256, whole_file

SUFFIX: Final = ".decoder"
FORMAT_VERSION = 1

TUNE = "ds2deploy tune MODEL MANIFEST --lm LM --out FILE.decoder"
"""Command that writes such a file."""


class DecoderFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Content of a `.decoder` file, as JSON.

    Attributes:
        format_version: version of this format.
        labels: labels of the model that the settings were tuned for.
        lm_sha256: SHA-256 of the language model's file, or of both files; None without one.
        settings: settings of the search; paths of language models are relative to this file.
        tuned: facts about the tuning, for readers.
    """

    format_version: int
    labels: str
    settings: DecoderConfig
    lm_sha256: str | tuple[str, ...] | None = None
    tuned: dict[str, float | int | str] = {}


class TunedConfig(DecoderConfig, frozen=True, kw_only=True):
    """Settings of a `.decoder` file, which only fit models with the same labels.

    Attributes:
        file: path of the file.
        labels: labels of the model that the settings were tuned for.
    """

    file: str
    labels: str

    def __call__(self, alphabet: Alphabet, frame_s: float) -> BeamDecoder:
        """Make the decoder of a model; see `DecoderConfig`.

        Raises:
            ConfigError: the model has other labels; the blank may be any character.
        """
        if alphabet.labels[1:] != self.labels[1:]:
            raise ConfigError(
                f"{self.file}: was tuned for the labels {self.labels[1:]!r}, but the model has "
                f"{alphabet.labels[1:]!r}; tune it for this model: {TUNE}"
            )
        return super().__call__(alphabet, frame_s)


def write_decoder_file(
    path: Path,
    settings: DecoderConfig,
    labels: str,
    tuned: Mapping[str, float | int | str] | None = None,
) -> None:
    """Write settings and the hashes of their language models.

    Args:
        path: file to write; the language models should lie beside it.
        settings: settings, with the language models' paths as they are now.
        labels: labels of the model.
        tuned: facts about the tuning.
    """
    folder = path.resolve().parent
    models = [model.resolve() for model in settings.lm_paths]
    names = [model.name if model.parent == folder else str(model) for model in models]
    content = DecoderFile(
        format_version=FORMAT_VERSION,
        labels=labels,
        settings=DecoderConfig(**(_fields(settings) | {"lm": one_or_all(names)})),
        lm_sha256=one_or_all([file_sha256(model) for model in models]),
        tuned=dict(tuned or {}),
    )
    with whole_file(path) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")


def _fields(settings: DecoderConfig) -> dict[str, Any]:
    """Return the settings of a search, without those of a file."""
    return {name: getattr(settings, name) for name in DecoderConfig.__struct_fields__}


def read_content(path: Path) -> DecoderFile:
    """Read a file without its language models.

    Raises:
        MissingFileError: no such file.
        ModelFileError: damaged, or of a newer format.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MissingFileError(
            f"{path}: {system_reason(error)}; expected a decoder file, made by: {TUNE}"
        ) from None
    try:
        found = msgspec.json.decode(content, type=DecoderFile)
        if len(as_tuple(found.settings.lm)) != len(as_tuple(found.lm_sha256)):
            raise ConfigError("expected one SHA-256 for each language model")
    except (*DECODING_ERRORS, ConfigError) as error:
        raise ModelFileError(
            f"{path}: damaged, or not a decoder file ({one_line(error)}); make it again: {TUNE}"
        ) from None
    if found.format_version != FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: decoder format {found.format_version}; this version of ds2deploy reads "
            f"format {FORMAT_VERSION}: pip install -U ds2deploy, or make the file again: {TUNE}"
        )
    return found


def read_decoder_file(path: str | Path) -> TunedConfig:
    """Read settings, and check that their language models are those that they were tuned with.

    Raises:
        MissingFileError: no such file, or a language model is not there.
        ModelFileError: damaged, of a newer format, or with another language model.
    """
    path = Path(path)
    found = read_content(path)
    models = [path.parent / model for model in found.settings.lm_paths]
    for model, digest in zip(models, as_tuple(found.lm_sha256), strict=True):
        if not model.is_file():
            raise MissingFileError(
                f"{path}: its language model {model} does not exist; copy it there"
            )
        if file_sha256(model) != digest:
            raise ModelFileError(
                f"{path}: {model} is not the language model that it was tuned with; copy that one, "
                f"or tune again: {TUNE}"
            )
    lm = one_or_all([str(model) for model in models])
    return TunedConfig(
        **(_fields(found.settings) | {"lm": lm}), file=str(path), labels=found.labels
    )
