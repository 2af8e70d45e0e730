"""The walk-through runs from its first cell to its last, and shows what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ds2deploy.data.corpora.fsdd import DIGITS

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "walkthrough.ipynb"


@pytest.mark.slow
def test_the_walkthrough_runs():
    nbformat = pytest.importorskip("nbformat", reason="the extra notebook is not installed")
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs"), "it is kept without what a run of it printed"
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3
    assert "features (3, 1, " in printed
    assert "log-probabilities (batch, time, labels)" in printed
    assert "same text" in printed
    said = [line.partition(" ")[2].split() for line in printed.splitlines() if line[:5] == "said "]
    assert len(said) == 3
    assert all(set(words) <= set(DIGITS) for words in said)
    check_order(notebook)


def check_order(notebook: Any) -> None:
    """The paper's: what comes first in the network comes first on the page."""
    headings = [
        line.removeprefix("## ")
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("## ")
    ]
    assert headings == [
        "The spectrogram", "The mask", "Shapes, layer by layer", "CTC", "Greedy decoding",
        "The same batch in ONNX Runtime",
    ]  # fmt: skip
