"""I1 and I3 on the trained model and on real speech, in PyTorch and in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ds2deploy
from ds2deploy.export.artifacts import export_onnx
from ds2deploy.export.parity.speech import speech_features
from ds2deploy.runtimes.features import FeatureConfig, pad_features
from ds2deploy.runtimes.session import Session

TOLERANCE = 1e-4  # of log-probabilities above -10, in fp32
SPEECH = speech_features(FeatureConfig(), utterances=6, frames=150)


@pytest.fixture(scope="module")
def sessions(digits_checkpoint: Path, digits_onnx: Path):
    return {name: ds2deploy.load(path).session for name, path in
            (("torch", digits_checkpoint), ("onnxruntime", digits_onnx))}  # fmt: skip


padded_batches = given(
    lengths=st.lists(st.integers(1, 150), min_size=2, max_size=8),
    stretch=st.floats(1, 4),
    garbage=st.sampled_from([0.0, 7.0, float("nan")]),
)


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
@padded_batches
@settings(max_examples=6)
def test_padding(sessions, runtime: str, lengths: list[int], stretch: float, garbage: float):
    """I1: alone, or in a batch with up to four times its length of padding, whatever is in it."""
    check_padding(sessions[runtime], lengths, stretch, garbage)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
@padded_batches
@settings(max_examples=20)
def test_padding_in_many_batches(
    sessions, runtime: str, lengths: list[int], stretch: float, garbage: float
):
    check_padding(sessions[runtime], lengths, stretch, garbage)


def check_padding(session: Session, lengths: list[int], stretch: float, garbage: float) -> None:
    utterances = [SPEECH[i % len(SPEECH)][:, :length] for i, length in enumerate(lengths)]
    features, counts = pad_features(utterances)
    padding = int(max(lengths) * (stretch - 1))
    features = np.pad(features, ((0, 0), (0, 0), (0, 0), (0, padding)))
    for row, length in zip(features, lengths, strict=True):
        row[:, :, length:] = garbage
    together, output_lengths = session.run(features, counts)
    for i, utterance in enumerate(utterances):
        alone, valid = session.run(*pad_features([utterance]))
        assert output_lengths[i] == valid[0]
        decisive = alone[0] > -10
        difference = np.abs(together[i, : valid[0]] - alone[0])[decisive].max()
        assert difference <= TOLERANCE, (i, lengths[i])


@pytest.mark.slow
def test_words_of_real_speech(digits_checkpoint: Path, digit_strings: Path, tmp_path: Path):
    """I3 on the digit test strings: fp32 exact, fp16 within 0.2 % of the words."""
    fp32, fp16 = export_onnx(digits_checkpoint, tmp_path, ["fp32", "fp16"], digit_strings)
    assert fp32.report.words is not None
    assert fp32.report.words.words > 500
    assert fp32.report.words.different == 0
    assert fp32.report.max_difference <= TOLERANCE
    assert all(case.argmax_share == 1.0 for case in fp32.report.cases)
    assert fp16.report.words is not None
    assert fp16.report.words.different <= 0.002 * fp16.report.words.words
    assert fp16.size < 0.55 * fp32.size


@pytest.mark.parametrize("runtime", [pytest.param("torch", marks=pytest.mark.slow), "onnxruntime"])
def test_word_error_rate(
    digits_checkpoint: Path, digits_onnx: Path, digit_strings: Path, runtime: str
):
    """The trained model of the repository is a good one: at most 2 % on strings it never heard."""
    from ds2deploy.data.manifest import read_manifest
    from ds2deploy.training.evaluation import evaluate

    recognizer = ds2deploy.load(digits_checkpoint if runtime == "torch" else digits_onnx)
    result = evaluate(recognizer, read_manifest(digit_strings), str(digit_strings))
    assert result.errors.words == 600
    assert result.wer <= 0.02
