"""Triton's own schema of `config.pbtxt`: to write it, and to read it back."""

from __future__ import annotations

from typing import Any

from ds2deploy.runtimes.errors import ParityError, RuntimeUnavailableError, require

TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64"}
"""Triton's names of the types of our tensors."""


def load_schema() -> Any:
    """Import the protobuf module of Triton's model configuration.

    Raises:
        RuntimeUnavailableError: tritonclient is not installed, or cannot be imported.
    """
    require("tritonclient", "triton")
    try:
        from tritonclient.grpc import model_config_pb2
    except Exception as error:  # without grpcio a RuntimeError; protobuf's has no common base
        raise RuntimeUnavailableError(
            f"tritonclient cannot be imported ({error}): pip install 'ds2deploy[triton]'"
        ) from None
    return model_config_pb2


def write_text(config: Any) -> str:
    """Write a configuration in protobuf's text format."""
    from google.protobuf import text_format

    text = text_format.MessageToString(config, use_short_repeated_primitives=True)
    assert isinstance(text, str)
    return text


def parse_config(text: str) -> Any:
    """Read a configuration by Triton's schema.

    Args:
        text: content of `config.pbtxt`.

    Raises:
        ParityError: not in the schema.
        RuntimeUnavailableError: see `load_schema`.
    """
    schema = load_schema()
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, schema.ModelConfig())
    except text_format.ParseError as error:
        raise ParityError(f"config.pbtxt: does not match Triton's schema: {error}") from None
