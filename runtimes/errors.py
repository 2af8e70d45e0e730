"""Errors that a person can act on: each message names the file and the remedy, in one line."""

from __future__ import annotations

import importlib.util

import msgspec

DECODING_ERRORS = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError)
"""Errors of decoding JSON, TOML and text: bytes of another form or not UTF-8, numbers that are too
large, values that are nested too deeply."""


def system_reason(error: OSError) -> str:
    """Reason that the system gives for an error, in words."""
    return error.strerror or type(error).__name__


def one_line(error: BaseException, limit: int = 300) -> str:
    """Text of an error for the middle of a message, of at most so many characters."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


class Ds2Error(Exception):
    """Base of every error that ds2deploy raises on purpose."""


class MissingFileError(Ds2Error, FileNotFoundError):
    """A path that was given does not exist, or is not a file."""

    # OSError formats (errno, strerror) pairs; a single message must come out as it went in.
    def __str__(self) -> str:
        return str(self.args[0])


class AudioError(Ds2Error, ValueError):
    """A recording cannot be decoded, or holds nothing to recognise."""


class NotAudioError(AudioError):
    """A file is in no format that can be decoded, or so damaged that none is recognised."""


class AudioWarning(UserWarning):
    """A recording was read, but is probably not what was meant: silence, or a wrong scale."""


class TooLongError(AudioError):
    """A recording that is longer than the caller allows."""


class NoiseError(AudioError):
    """A recording of noise cannot be decoded."""


FILE_ERRORS = (AudioError, MissingFileError)
"""Are of one recording, and no reason to leave out the others."""


class AlphabetError(Ds2Error, ValueError):
    """A transcript holds a character for which the model has no label."""


class ModelFileError(Ds2Error, ValueError):
    """A checkpoint or an artifact is damaged, of another kind, or newer than this version."""


class ConfigError(Ds2Error, ValueError):
    """A recipe, or an option that overrides it, asks for something that does not exist."""


class ManifestError(Ds2Error, ValueError):
    """A list of utterances is damaged, or points at something that is not there."""


class TextError(Ds2Error, ValueError):
    """A text for a language model cannot be read, or holds no sentence in the labels."""


class RuntimeUnavailableError(Ds2Error, RuntimeError):
    """The runtime that was asked for cannot run on this machine; nothing else is tried instead."""


class FeaturesError(Ds2Error, ValueError):
    """A batch of features has a shape, a type or lengths that no session can take."""


class TrainingError(Ds2Error, ArithmeticError):
    """A training came to nothing: its loss is no longer a number."""


class WorkerError(Ds2Error, RuntimeError):
    """A process that loads data for a training could not start, or died."""


class StoppedError(Ds2Error):
    """A signal ended a training, which kept what it had done.

    Attributes:
        signal: its number.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal

    def __reduce__(self) -> tuple[type[StoppedError], tuple[str, int]]:
        return type(self), (str(self), self.signal)


class ParityError(Ds2Error, ArithmeticError):
    """An artifact does not compute what its checkpoint computes."""


class DeviceError(Ds2Error, RuntimeError):
    """A GPU that was there failed: out of memory, or an execution that it refused."""


class NotFiniteError(DeviceError):
    """A model computes log-probabilities that are not numbers."""


class StreamError(Ds2Error, RuntimeError):
    """A stream is used in a way that it cannot be: after its end, or of a model that has none."""


class OutputError(Ds2Error, OSError):
    """Standard output is closed, or cannot be written."""

    # See MissingFileError.
    def __str__(self) -> str:
        return str(self.args[0])


class BackPressureError(StreamError):
    """A pool is full: too much audio waits, or too many streams are open."""


def require(module: str, extra: str) -> None:
    """Refuse to go on without a package.

    Args:
        module: that is about to be imported.
        extra: of ds2deploy that brings it.

    Raises:
        RuntimeUnavailableError: it is not installed; names the extra.
    """
    if importlib.util.find_spec(module) is None:
        raise RuntimeUnavailableError(
            f"this needs {module}, which is not installed: pip install 'ds2deploy[{extra}]'"
        )
