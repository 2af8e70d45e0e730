"""Reads what an ONNX file says of itself, and nothing else of it.

An ONNX file is one message of protocol buffers: fields one after the other, each with its number
and its length. The graph, which is nearly all of the file, is stepped over, so that neither onnx
nor ONNX Runtime is needed, nor the memory for the weights (onnx.proto3, message ModelProto).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ds2deploy.runtimes.artifact import METADATA_KEY, ArtifactDescription, read_description
from ds2deploy.runtimes.errors import ModelFileError, missing_file

METADATA_PROPS = 14
"""Number of the field of ModelProto that holds pairs of key (1) and value (2)."""

AGAIN = "export it again, or copy it again and compare the sizes"
"""Remedy for a damaged file, which is often an incomplete copy."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def read_onnx_description(path: str | Path) -> ArtifactDescription:
    """Read the description inside an ONNX artifact of any precision.

    Raises:
        MissingFileError: no such file.
        ModelFileError: not an ONNX file, damaged, or not exported by ds2deploy.
    """
    path = Path(path)
    size = check_size(path)
    try:
        with path.open("rb") as file:
            document = _find(file, size)
    except (EOFError, UnicodeDecodeError) as error:
        raise unreadable_model(path, str(error)) from None
    if document is None:
        raise no_description(path)
    return read_description(document, str(path))


def check_size(path: Path) -> int:
    """Return the size of an ONNX file in bytes.

    Raises:
        MissingFileError: no such file.
        ModelFileError: the file is empty.
    """
    if not path.is_file():
        raise missing_file(path, "an ONNX artifact")
    size = path.stat().st_size
    if size == 0:
        raise ModelFileError(f"{path}: empty file (0 bytes); {AGAIN}")
    return size


def unreadable_model(path: Path, fault: str) -> ModelFileError:
    """Make the error for a file that a reader does not accept as an ONNX model."""
    return ModelFileError(f"{path}: damaged, or not an ONNX model ({fault.rstrip('.')}); {AGAIN}")


def no_description(path: Path) -> ModelFileError:
    """Make the error for a model that somebody else exported."""
    return ModelFileError(
        f"{path}: an ONNX model without a description of ds2deploy; export a checkpoint: "
        "ds2deploy export CHECKPOINT --out FOLDER"
    )


def fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int, int]]:
    """Walk the fields of a message, from where the file stands.

    Args:
        file: at the first field; it may be moved while a field is looked at.
        end: offset of the message's end in the file.

    Returns:
        For every field its number, its kind, and the value of a `VARINT`, or the size of what the
        file stands at.

    Raises:
        EOFError: the fields do not fill the message.
    """
    at = file.tell()
    while at < end:
        number, kind = divmod(_varint(file), 8)
        if kind not in (VARINT, BYTES, FIXED64, FIXED32):
            raise EOFError("unknown field type")
        value = {FIXED64: 8, FIXED32: 4}.get(kind) or _varint(file)
        at = file.tell() + (0 if kind == VARINT else value)
        if at > end:
            raise EOFError(f"it ends after {end} bytes, more were expected")
        yield number, kind, value
        file.seek(at)


def _find(file: BinaryIO, size: int) -> str | None:
    found = None
    for number, kind, length in fields(file, size):
        if number == METADATA_PROPS and kind == BYTES:
            found = _value(file, file.tell() + length) or found
    return found


def _value(file: BinaryIO, end: int) -> str | None:
    """Return the value of one pair, if its key is ours."""
    texts = {1: "", 2: ""}
    for number, kind, length in fields(file, end):
        if kind != BYTES:
            raise EOFError("unknown field type")
        texts[number] = file.read(length).decode("utf-8")
    return texts[2] if texts[1] == METADATA_KEY else None


def _varint(file: BinaryIO) -> int:
    """Read a number of 7 bits a byte, lowest first, the highest bit set on all but the last."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise EOFError("it ends within a field")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise EOFError("a number that is too long")
