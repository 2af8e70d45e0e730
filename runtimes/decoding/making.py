"""Conversion of the argument `decoder` of `load`: settings, functions, classes and files."""

from __future__ import annotations

from pathlib import Path

from ds2deploy.runtimes.decoding.decoder import MakeDecoder
from ds2deploy.runtimes.errors import ConfigError


def make_decoder(decoder: MakeDecoder | str | Path | None) -> MakeDecoder | None:
    """Return what makes the decoders: the settings, the class, or the content of a file.

    Raises:
        MissingFileError, ModelFileError: see `decoder_file.read_decoder_file`.
        ConfigError: the value cannot make a decoder; for example, it is a decoder already.
    """
    if isinstance(decoder, (str, Path)):
        # Not at the top: greedy decoding, the default, has no need of the beam search.
        from ds2deploy.runtimes.decoding.decoder_file import read_decoder_file

        return read_decoder_file(decoder)
    given: object = decoder  # of no type that is checked, where a program calls it
    if given is not None and not callable(given):
        name = type(given).__name__
        raise ConfigError(
            f"decoder: an instance of {name}; expected a class or function that makes a decoder "
            f"from the labels and the duration of a frame in seconds: load(..., decoder={name})"
        )
    return decoder
