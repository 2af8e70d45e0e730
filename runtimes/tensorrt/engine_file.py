"""A TensorRT engine and the document beside it: read together, or not at all."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ds2deploy.runtimes.artifact import ArtifactDescription, read_description
from ds2deploy.runtimes.engine_description import EngineDescription
from ds2deploy.runtimes.errors import MissingFileError, ModelFileError, missing_file

SUFFIX = ".engine"


def description_path(engine: Path) -> Path:
    """Path of an engine's description: `model.engine.json` for `model.engine`."""
    return engine.with_name(f"{engine.name}.json")


def sealed(description: ArtifactDescription) -> ArtifactDescription:
    """Return the same description with the seal that its content demands."""
    import hashlib  # not at the top: ONNX files have no need of it

    assert description.engine is not None
    engine = msgspec.structs.replace(description.engine, seal="")
    blank = msgspec.structs.replace(description, engine=engine)
    # As it is read back: a whole number in a field of floats is written differently then.
    blank = read_description(blank.to_json(), description.source.name)
    assert blank.engine is not None
    seal = hashlib.sha256(blank.to_json().encode()).hexdigest()
    return msgspec.structs.replace(blank, engine=msgspec.structs.replace(blank.engine, seal=seal))


def read_engine_description(path: Path) -> tuple[ArtifactDescription, EngineDescription]:
    """Read what stands beside an engine, without the engine.

    Args:
        path: path of the engine.

    Returns:
        The whole description, and its part on the engine.

    Raises:
        MissingFileError: no engine, or no description beside it.
        ModelFileError: the description is damaged, edited, or not an engine's.
    """
    if not path.is_file():
        raise missing_file(path, "a TensorRT engine")
    beside = description_path(path)
    try:
        document = beside.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFileError(
            f"{beside}: no such file; an engine needs the description that was written with it: "
            "copy both files, or export the checkpoint again with --trt or --rtx"
        ) from None
    except UnicodeDecodeError:
        raise ModelFileError(
            f"{beside}: damaged (not UTF-8); copy it again, or export the checkpoint again with "
            "--trt or --rtx"
        ) from None
    description = read_description(document, str(beside))
    if description.engine is None:
        raise ModelFileError(
            f"{beside}: describes an ONNX file, not an engine; export the checkpoint again "
            "with --trt or --rtx"
        )
    size = path.stat().st_size
    if size != description.engine.size:
        raise _another(path, size, description.engine)
    if sealed(description).engine != description.engine:
        raise ModelFileError(
            f"{beside}: was edited after the export; build the engine again: "
            f"{description.engine.rebuild}"
        )
    return description, description.engine


def read_engine(path: Path) -> tuple[ArtifactDescription, EngineDescription, bytes]:
    """Read an engine and what stands beside it.

    Raises:
        MissingFileError: one of the two files is not there.
        ModelFileError: one of them is damaged, or they are not of one export.
    """
    description, engine = read_engine_description(path)
    return description, engine, read_blob(path, engine)


def read_blob(path: Path, engine: EngineDescription) -> bytes:
    """Return the engine of a description that was read already.

    Raises:
        ModelFileError: it is not the one that the description was written with.
    """
    import hashlib

    blob = path.read_bytes()
    if hashlib.sha256(blob).hexdigest() != engine.engine_sha256:
        raise _another(path, len(blob), engine)
    return blob


def _another(path: Path, size: int, engine: EngineDescription) -> ModelFileError:
    return ModelFileError(
        f"{path}: truncated, damaged, or from another export than its description ({size} bytes, "
        f"expected {engine.size}); copy both files again, or build it: {engine.rebuild}"
    )
