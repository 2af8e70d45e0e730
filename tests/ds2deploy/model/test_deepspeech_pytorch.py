"""I4: a checkpoint of deepspeech.pytorch gives that project's own numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch

import ds2deploy
from ds2deploy.config import TrainingConfig
from ds2deploy.data.batches import Batch
from ds2deploy.export.artifacts import export_onnx
from ds2deploy.export.verification import verify_artifact
from ds2deploy.model.deepspeech_pytorch import parameter_name
from ds2deploy.model.load import load_checkpoint
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.audio.loading import load_audio
from ds2deploy.runtimes.features import FeatureExtractor, pad_features
from ds2deploy.runtimes.recognizer import Recognizer
from ds2deploy.training.optimization import ctc_loss, make_optimizer

TOLERANCE = 1e-4  # of probabilities and of the relative loss
MODELS = ["digits-bigru128x2", "digits-unilstm160x2"]
RUNTIMES = ["torch", "onnxruntime"]


class Reference(NamedTuple):
    """What deepspeech.pytorch computed, and our readings of its checkpoint."""

    checkpoint: Path
    folder: Path
    arrays: dict[str, np.ndarray]
    expected: dict[str, Any]
    onnx: Path

    def recognizer(self, runtime: str) -> Recognizer:
        return ds2deploy.load(self.checkpoint if runtime == "torch" else self.onnx)


@pytest.fixture(scope="module", params=MODELS)
def reference(
    request: pytest.FixtureRequest,
    reference_checkpoints: Path,
    made_once: Callable[..., Path],
) -> Reference:
    checkpoint = reference_checkpoints / f"{request.param}.ckpt"

    def write(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ds2deploy.export.parity.check.FRAMES", (40, 120))
            export_onnx(checkpoint, folder)

    return Reference(
        checkpoint,
        reference_checkpoints,
        dict(np.load(reference_checkpoints / f"{request.param}.npz")),
        json.loads((reference_checkpoints / "expected.json").read_text())[request.param],
        made_once(request.param, write) / "model.onnx",
    )


def largest_difference(
    reference: Reference, run: Callable[..., Any], features: np.ndarray, lengths: np.ndarray
) -> float:
    log_probs, output_lengths = run(features, lengths)
    assert output_lengths.tolist() == reference.arrays["output_lengths"].tolist()
    return max(
        float(np.abs(np.exp(ours[:length]) - theirs[:length]).max())
        for ours, theirs, length in zip(
            log_probs, reference.arrays["probabilities"], output_lengths, strict=True
        )
    )


@pytest.mark.slow
def test_the_artifact_is_verified_on_the_whole_grid(reference: Reference):
    report = verify_artifact(reference.onnx, reference.checkpoint)
    assert report.passed, report.failure()
    assert max(case.frames for case in report.cases) == 2000


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_probabilities_from_its_features(reference: Reference, runtime: str):
    run = reference.recognizer(runtime).log_probs
    arrays = reference.arrays
    assert largest_difference(reference, run, arrays["features"], arrays["lengths"]) < TOLERANCE


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_probabilities_from_the_recordings(reference: Reference, runtime: str):
    recognizer = reference.recognizer(runtime)
    extract = FeatureExtractor(recognizer.description.features)
    utterances = reference.expected["utterances"]
    features, lengths = pad_features(
        [extract(load_audio(reference.folder / item["audio"], 16_000)) for item in utterances]
    )
    assert largest_difference(reference, recognizer.log_probs, features, lengths) < TOLERANCE


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_hypotheses_from_the_recordings(reference: Reference, runtime: str):
    utterances = reference.expected["utterances"]
    transcripts = reference.recognizer(runtime).transcribe(
        [reference.folder / item["audio"] for item in utterances]
    )
    assert [t.text for t in transcripts] == [item["hypothesis"] for item in utterances]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_hypotheses_from_its_features(reference: Reference, runtime: str):
    from ds2deploy.export.parity.reference import decode_all

    arrays = reference.arrays
    features = [
        row[0, :, :length]
        for row, length in zip(arrays["features"], arrays["lengths"], strict=True)
    ]
    texts = decode_all(reference.recognizer(runtime).session, features)
    assert texts == [item["hypothesis"] for item in reference.expected["utterances"]]


def training_batch(reference: Reference, labels: str) -> Batch:
    """The utterances of the reference's training step."""
    arrays, alphabet = reference.arrays, Alphabet(labels)
    texts = [item["reference"] for item in reference.expected["utterances"]]
    targets = [alphabet.encode(text) for text in texts]
    return Batch(
        torch.tensor(arrays["features"]),
        torch.tensor(arrays["lengths"]),
        torch.tensor([label for labels in targets for label in labels]),
        torch.tensor([len(labels) for labels in targets]),
        texts,
    )


def test_training_loss_and_gradients(reference: Reference):
    """In training mode: batch statistics, padded frames counted as the original counts them."""
    checkpoint = load_checkpoint(reference.checkpoint)
    network = checkpoint.network.train()
    batch = training_batch(reference, checkpoint.recipe.labels)
    loss = ctc_loss(*network(batch.features, batch.lengths), batch)
    loss.backward()
    assert loss.item() == pytest.approx(float(reference.arrays["train_loss"]), rel=TOLERANCE)

    gradients = {name: float(p.grad.norm()) for name, p in network.named_parameters()}
    expected = reference.expected["gradient_norms"]
    assert {parameter_name(name) for name in expected} == gradients.keys()
    small = 1e-4 * max(expected.values())
    for name, norm in expected.items():
        ours = gradients[parameter_name(name) or ""]
        if norm > small:
            assert ours == pytest.approx(norm, rel=1e-3), name
        else:
            assert ours == pytest.approx(norm, abs=small), name


def test_description_says_where_it_came_from(reference: Reference):
    description = reference.recognizer("onnxruntime").description
    assert description.source.kind == "deepspeech.pytorch"
    assert description.source.name == reference.checkpoint.name
    assert description.labels == "_'ABCDEFGHIJKLMNOPQRSTUVWXYZ "


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_one_update(reference: Reference, optimizer: Literal["adamw", "sgd"]):
    """From those gradients, as the papers have it, in float64: AdamW's first step goes by the sign
    of the gradient; Nesterov's momentum adds nine tenths of the first step to it."""
    checkpoint = load_checkpoint(reference.checkpoint)
    network = checkpoint.network.train()
    batch = training_batch(reference, checkpoint.recipe.labels)
    loss = ctc_loss(*network(batch.features, batch.lengths), batch) / len(batch.texts)
    loss.backward()
    training = TrainingConfig(optimizer=optimizer, learning_rate=1.5e-2, weight_decay=1e-2)
    before = {n: p.detach().double().clone() for n, p in network.named_parameters()}
    slopes = {n: p.grad.double() for n, p in network.named_parameters() if p.grad is not None}
    assert slopes.keys() == before.keys()

    make_optimizer(network, training).step()
    rate, decay = training.learning_rate, training.weight_decay
    for name, parameter in network.named_parameters():
        old, slope = before[name], slopes[name]
        if optimizer == "adamw":
            expected = old - rate * decay * old - rate * slope / (slope.abs() + 1e-8)
        else:
            expected = old - rate * 1.9 * (slope + decay * old)
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-5, atol=1e-6, msg=name)
