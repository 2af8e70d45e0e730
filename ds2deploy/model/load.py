"""Loading of checkpoints of ds2deploy and of other projects."""

from __future__ import annotations

from pathlib import Path

from ds2deploy.model.checkpoint import KEY, Checkpoint, read_document, read_header
from ds2deploy.model.deepspeech_pytorch import import_checkpoint
from ds2deploy.model.weights import load_network
from ds2deploy.runtimes.artifact import WeightsSource
from ds2deploy.runtimes.errors import ModelFileError
from ds2deploy.runtimes.files import file_sha256


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of ds2deploy or of deepspeech.pytorch.

    No class that the file names is unpickled.

    Raises:
        MissingFileError: the file does not exist.
        ModelFileError: the file is damaged, comes from another project, or is newer than this
            version.
    """
    path = Path(path)
    if path.suffix == ".onnx" and path.is_file():
        raise ModelFileError(f"{path}: an ONNX file; expected the checkpoint that it was made from")
    document = read_document(path)
    if document is None:
        return import_checkpoint(path)
    recipe, metrics = read_header(document[KEY], path)
    network = load_network(recipe, document.get("state_dict"), path)
    return Checkpoint(
        network=network.eval(),
        recipe=recipe,
        source=WeightsSource(name=path.name, sha256=file_sha256(path), kind="ds2deploy"),
        metrics=metrics,
    )
