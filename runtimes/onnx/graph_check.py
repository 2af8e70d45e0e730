"""Check that the description in an ONNX file is that of its graph."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.artifact import ArtifactDescription
from ds2deploy.runtimes.errors import ModelFileError
from ds2deploy.runtimes.features import FeatureExtractor
from ds2deploy.runtimes.tensors import Tensor, input_tensors, output_tensors

Signature = Sequence[tuple[str, list[int | str | None]]]
"""Names and dims of tensors; a dim that is not fixed is its name, or None where that is unknown."""


def check_description(
    description: ArtifactDescription, inputs: Signature, outputs: Signature, path: Path
) -> None:
    """Refuse at loading, and not in the middle of a run, a description that is not the graph's.

    Args:
        description: description in the file.
        inputs: inputs of the graph.
        outputs: outputs of the graph.
        path: path of the file, for the error.

    Raises:
        ModelFileError: they differ, or the description is damaged.
    """
    try:
        labels = len(Alphabet(description.labels))
        bins = FeatureExtractor(description.features).config.bins
    except ValueError as error:
        raise ModelFileError(
            f"{path}: its description is damaged ({error}); export it again"
        ) from None
    for names, tensors, found in (
        (description.inputs, input_tensors(description), inputs),
        (description.outputs, output_tensors(description), outputs),
    ):
        for name, tensor, there in zip_longest(names, tensors, found):
            if not _agrees(name, tensor, there):
                shown = f"{there[0]} {there[1]}" if there else f"no tensor {name}"
                raise ModelFileError(
                    f"{path}: its description ({bins} bins in, {labels} labels out) does not match "
                    f"its graph ({shown}); export it again"
                )


def _agrees(
    name: str | None, tensor: Tensor | None, found: tuple[str, list[int | str | None]] | None
) -> bool:
    if name is None or tensor is None or found is None or name != found[0]:
        return False
    told, dims = tensor.dims, found[1]
    return len(told) == len(dims) and all(
        isinstance(one, str) if other is None else one == other
        for one, other in zip(told, dims, strict=True)
    )
