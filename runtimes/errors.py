"""Errors that a user can act on: each message names the file and the remedy, in one line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import msgspec

DECODING_ERRORS = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)
"""Errors of decoding JSON, TOML and text: syntax errors, bytes that are not UTF-8, numbers that are
too large, values that are nested too deeply."""


def system_reason(error: OSError) -> str:
    """Return the operating system's reason for an error, in words."""
    return error.strerror or type(error).__name__


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return the text of an error as part of a line, shortened to a number of characters."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


class Ds2Error(Exception):
    """Base class of all errors of ds2deploy."""


class MissingFileError(Ds2Error, FileNotFoundError):
    """A path does not exist, is not a file, or cannot be reached."""

    # OSError formats (errno, strerror) pairs; a single message must come out as it went in.
    def __str__(self) -> str:
        return str(self.args[0])


class AudioError(Ds2Error, ValueError):
    """A recording cannot be decoded, is damaged, or is too short to recognise."""


class NotAudioError(AudioError):
    """A file is not in a format that can be decoded, or is too damaged to detect its format."""


class AudioWarning(UserWarning):
    """A recording was read but is suspicious: silence, opposite channels, or a wrong scale."""


class TooLongError(AudioError):
    """A recording that is longer than the caller allows."""


class NoiseError(AudioError):
    """A recording of `augment.noise_folder` cannot be decoded."""


FILE_ERRORS = (AudioError, MissingFileError)
"""Errors of a single recording; other recordings can still be used."""


class AlphabetError(Ds2Error, ValueError):
    """A transcript or a hot word contains a character without a label."""


class ModelFileError(Ds2Error, ValueError):
    """A checkpoint, artifact or language model is damaged, of another kind, or too new."""


class ConfigError(Ds2Error, ValueError):
    """An option, a recipe key or an argument has an invalid value, or two exclude each other."""


class ManifestError(Ds2Error, ValueError):
    """A manifest or corpus is damaged, is empty, or names recordings that do not exist."""


class TextError(Ds2Error, ValueError):
    """Text for a language model cannot be read, or the labels can spell none of its lines."""


class RuntimeUnavailableError(Ds2Error, RuntimeError):
    """The requested runtime cannot run on this machine; no other one is tried."""


class FeaturesError(Ds2Error, ValueError):
    """A batch of features has a shape, type or lengths that the session does not accept."""


class TrainingError(Ds2Error, ArithmeticError):
    """A training failed because its loss is NaN or infinite."""


class WorkerError(Ds2Error, RuntimeError):
    """A process that loads data for a training could not start, or died."""


class StoppedError(Ds2Error):
    """A signal ended a training; `last.ckpt` was written first, if a step had been made.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal

    def __reduce__(self) -> tuple[type[StoppedError], tuple[str, int]]:
        return type(self), (str(self), self.signal)


class ParityError(Ds2Error, ArithmeticError):
    """An artifact does not compute what its checkpoint computes."""


class DeviceError(Ds2Error, RuntimeError):
    """A GPU or an engine failed while it ran, for example because memory ran out."""


class NotFiniteError(DeviceError):
    """A model computed log-probabilities that are NaN."""


class StreamError(Ds2Error, RuntimeError):
    """A stream is used after its end, or the model cannot stream."""


class OutputError(Ds2Error, OSError):
    """Standard output is closed, or cannot be written."""

    # See MissingFileError.
    def __str__(self) -> str:
        return str(self.args[0])


class BackPressureError(StreamError):
    """A pool is full: too much audio waits, or too many streams are open."""


def missing_file(path: Path, expected: str) -> MissingFileError:
    """Make the error of a path that is not a file.

    Args:
        path: path of a folder, or one that does not exist.
        expected: description of the expected file, with the remedy where there is one.
    """
    found = "is a directory" if path.is_dir() else "no such file"
    return MissingFileError(f"{path}: {found}; expected {expected}")


def require(module: str, extra: str) -> None:
    """Raise an error if a package is missing.

    Args:
        module: module to be imported.
        extra: extra of ds2deploy that installs it.

    Raises:
        RuntimeUnavailableError: the module is not installed; the message names the extra.
    """
    if importlib.util.find_spec(module) is None:
        raise RuntimeUnavailableError(
            f"this needs {module}, which is not installed: pip install 'ds2deploy[{extra}]'"
        )
