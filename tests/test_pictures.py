"""The pictures and the program of docs/concepts.md: current, and true of the network."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ds2deploy.model.network import MaskedConvolutions
from ds2deploy.recipes import load_recipe
from ds2deploy.runtimes.artifact import ArtifactDescription, ModelShape, WeightsSource
from ds2deploy.runtimes.blocks import make_blocks
from ds2deploy.runtimes.features import FeatureConfig
from ds2deploy.runtimes.geometry import conv2_bins
from ds2deploy.runtimes.streaming.state import StreamState
from ds2deploy.runtimes.tensors import STATE, input_tensors

ROOT = Path(__file__).resolve().parents[1]
STREAMING = load_recipe("digits-streaming")


@pytest.fixture(scope="module")
def scripts() -> Any:
    """Import the scripts as `python docs/scripts/pictures.py` does."""
    folder = str(ROOT / "docs" / "scripts")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(folder)


def streaming_description() -> ArtifactDescription:
    return ArtifactDescription(
        kind="streaming",
        input="waveform",
        precision="fp32",
        labels="_ab",
        features=STREAMING.features,
        model=STREAMING.model,
        source=WeightsSource(name="a.ckpt", sha256="", kind="ds2deploy"),
        blocks=make_blocks(STREAMING.model, STREAMING.features, "waveform"),
    )


def test_the_pictures_are_current(scripts):
    for name, picture in scripts("pictures").draw_all().items():
        written = (ROOT / "docs" / "images" / name).read_text("utf-8")
        assert picture == written, "python docs/scripts/pictures.py docs/images"


def test_shapes_in_the_picture_are_those_of_the_network(scripts):
    found = scripts("network_picture").stages(ModelShape(), FeatureConfig(), 10)
    shapes = {stage.title: stage.shape for stage in found}
    convolutions = MaskedConvolutions(1e-5).eval()
    frames = FeatureConfig().frames(160_000)
    with torch.no_grad():
        first = convolutions.layers[0](torch.zeros(1, 1, 161, frames))
        second = convolutions(torch.zeros(1, 1, 161, frames), torch.tensor([501]))
    assert shapes["convolution 1"] == str(tuple(first.shape[1:]))
    assert shapes["convolution 2"] == str(tuple(second.shape[1:]))
    assert shapes["flatten"] == f"(501, {32 * conv2_bins(161)})"


def test_an_output_frame_sees_the_frames_of_the_picture_and_no_more(scripts):
    ahead = scripts("network_picture").seen_ahead()
    torch.manual_seed(1)
    convolutions = MaskedConvolutions(1e-5).eval()
    features, lengths = torch.rand(1, 1, 161, 101), torch.tensor([51])

    def output(changed: int) -> torch.Tensor:
        x = features.clone()
        if changed >= 0:
            x[..., changed] += 5.0
        with torch.no_grad():
            return convolutions(x, lengths)[..., 25]  # its middle is feature frame 50

    usual = output(-1)
    for sign in (-1, 1):
        assert not torch.equal(output(50 + sign * ahead), usual)
        torch.testing.assert_close(output(50 + sign * (ahead + 1)), usual, rtol=0, atol=1e-5)


def test_states_in_the_picture_are_those_of_the_artifact(scripts):
    rows = scripts("stream_picture").stream_rows(STREAMING.model, STREAMING.features)
    words = " ".join(row.state for row in rows)
    for tensor in input_tensors(streaming_description()):
        name = tensor.name.removeprefix(STATE)
        if tensor.name.startswith(STATE) and name != "position":
            assert name in words
            assert " x ".join(map(str, tensor.dims[1:])) in words


def test_rows_of_the_picture_are_the_frames_that_a_block_gives(scripts):
    script = scripts("stream_picture")
    description = streaming_description()
    rows = script.stream_rows(STREAMING.model, STREAMING.features)
    assert description.blocks is not None
    state = StreamState(description, script.BLOCK * description.blocks.frames)
    output_ms = 1000 * description.frame_s
    assert rows[-1].first == state._first_row * output_ms
    assert rows[-1].last - rows[-1].first == description.blocks.frames / 2 * output_ms


def test_the_program_of_the_page_shows_that_padding_is_exact():
    page = (ROOT / "docs" / "concepts.md").read_text("utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lengths, difference = done.stdout.rsplit(maxsplit=1)
    assert lengths == "[501 150]"
    assert 0 <= float(difference) < 1e-4
