"""The reference network block by block gives what it gives to the whole utterance."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ds2deploy
from ds2deploy.config import Recipe
from ds2deploy.data.manifest import read_manifest
from ds2deploy.data.statistics import LEAST_DEVIATION, global_statistics, pooled_statistics
from ds2deploy.export.parity.speech import speech_features
from ds2deploy.model.checkpoint import Checkpoint
from ds2deploy.model.load import load_checkpoint
from ds2deploy.model.session import TorchSession
from ds2deploy.model.streaming import StreamingNetwork, streaming_description, torch_session
from ds2deploy.recipes import load_recipe
from ds2deploy.runtimes.artifact import ModelShape, WeightsSource
from ds2deploy.runtimes.errors import ConfigError, StreamError
from ds2deploy.runtimes.features import FeatureConfig, pad_features
from ds2deploy.runtimes.streaming.state import run_in_blocks
from ds2deploy.training.train import train

CONFIG = FeatureConfig(normalize="global", mean=(0.1,) * 161, deviation=(0.3,) * 161)
SPEECH = speech_features(CONFIG, utterances=4, frames=120)
TOLERANCE = 1e-5


def checkpoint_of(network, shape: ModelShape, features: FeatureConfig = CONFIG) -> Checkpoint:
    return Checkpoint(
        network=network,
        recipe=Recipe(model=shape, features=features),
        source=WeightsSource(name="test.ckpt", sha256="0" * 64, kind="ds2deploy"),
    )


@pytest.fixture(scope="module")
def checkpoints(lively_network) -> dict[tuple[str, int], Checkpoint]:
    made = {}
    for cell in ("lstm", "gru", "rnn"):
        for lookahead in (1, 6):
            shape = ModelShape(
                rnn=cell, hidden=16, layers=2, bidirectional=False, lookahead=lookahead
            )
            made[cell, lookahead] = checkpoint_of(lively_network(shape), shape)
    return made


KINDS = [("lstm", 6), ("gru", 6), ("rnn", 6), ("gru", 1)]

streams = given(
    lengths=st.lists(st.integers(1, 120), min_size=1, max_size=4),
    block=st.sampled_from([1, 2, 7, 16, 100]),
    stagger=st.integers(0, 3),
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5)
@streams
def test_any_blocks_give_the_whole(
    checkpoints, kind: tuple[str, int], lengths: list[int], block: int, stagger: int
):
    """I2 in torch: every kind of cell, streams at other places, blocks shorter than the delay."""
    check_blocks(checkpoints[kind], lengths, block, stagger)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@streams
def test_many_blocks_give_the_whole(
    checkpoints, kind: tuple[str, int], lengths: list[int], block: int, stagger: int
):
    check_blocks(checkpoints[kind], lengths, block, stagger)


def check_blocks(checkpoint: Checkpoint, lengths: list[int], block: int, stagger: int) -> None:
    whole = torch_session(checkpoint)
    description = streaming_description(checkpoint.description(), "features", 20.0 * block)
    session = TorchSession(StreamingNetwork(checkpoint.network, description), description)
    utterances = [SPEECH[i][:, :length] for i, length in enumerate(lengths)]
    found, counts = run_in_blocks(session, *pad_features(utterances), stagger)
    for i, utterance in enumerate(utterances):
        expected, valid = whole.run(*pad_features([utterance]))
        assert counts[i] == valid[0]
        assert np.abs(found[i, : counts[i]] - expected[0]).max() <= TOLERANCE


def test_frames_after_the_end_are_ignored(checkpoints):
    session = torch_session(checkpoints["gru", 6]).streaming()
    features, lengths = pad_features([SPEECH[0][:, :50], SPEECH[1][:, :90]])
    expected = run_in_blocks(session, features, lengths)
    features[0, ..., 50:] = np.nan
    found = run_in_blocks(session, features, lengths)
    np.testing.assert_array_equal(found[0], expected[0])


def test_models_that_cannot_stream_say_what_to_do(lively_network, digits_checkpoint: Path):
    both_ways = ds2deploy.load(digits_checkpoint)
    with pytest.raises(StreamError, match=r"bidirectional .* ds2deploy train digits-streaming"):
        both_ways.stream()
    with pytest.raises(StreamError, match="bidirectional"):
        both_ways.pool()
    shape = ModelShape(hidden=8, layers=1, bidirectional=False)
    session = torch_session(checkpoint_of(lively_network(shape), shape, FeatureConfig()))
    with pytest.raises(StreamError, match="--streaming --statistics-from MANIFEST"):
        ds2deploy.Recognizer(session).stream()


# Statistics of the training data ----------------------------------------------------------------


def test_statistics_are_gathered_before_the_first_epoch_and_kept(
    tone_manifests: Path, tone_toml: Path, tmp_path: Path
):
    sets = {
        "data.train": tone_manifests / "train.jsonl.gz",
        "data.valid": tone_manifests / "valid.jsonl.gz",
        "training.run": tmp_path / "run",
        "training.max_steps": 2,
        "features.normalize": "global",
        "features.scale": "100.0",
        "model.bidirectional": "false",
    }
    recipe = load_recipe(str(tone_toml), [f"{key}={value}" for key, value in sets.items()])
    assert recipe.features.mean is None
    train(recipe)
    features = load_checkpoint(tmp_path / "run" / "best.ckpt").recipe.features
    cuts = read_manifest(tone_manifests / "train.jsonl.gz")
    mean, deviation = global_statistics(cuts, recipe)
    assert features.mean == mean
    assert features.deviation == deviation
    assert len(mean) == 41
    # Resumed, it goes on with those, though the data have become others.
    sets |= {"training.max_steps": 4, "data.train": tone_manifests / "valid.jsonl.gz"}
    resumed = load_recipe(str(tone_toml), [f"{key}={value}" for key, value in sets.items()])
    train(resumed, resume=True)
    last = load_checkpoint(tmp_path / "run" / "last.ckpt").recipe.features
    assert (last.mean, last.deviation) == (mean, deviation)
    recognizer = ds2deploy.load(tmp_path / "run" / "best.ckpt")
    with recognizer.stream(8000) as stream:
        stream.accept(np.zeros(4000, np.float32))
        assert stream.finish().duration == 0.5


def test_statistics_are_those_of_the_spectrogram(tone_manifests: Path, tone_recipe: Recipe):
    from ds2deploy.data.cuts import read_audio
    from ds2deploy.runtimes.features import FeatureExtractor

    cuts = read_manifest(tone_manifests / "train.jsonl.gz")
    extract = FeatureExtractor(msgspec.structs.replace(tone_recipe.features, normalize="none"))
    everything = np.concatenate([extract(read_audio(cut, 8000)) for cut in cuts], axis=1)
    mean, deviation = global_statistics(cuts, tone_recipe)
    np.testing.assert_allclose(mean, everything.mean(axis=1), rtol=1e-4)
    own = everything.std(axis=1)
    least = LEAST_DEVIATION * np.sqrt((own**2).mean())
    assert (own < least).any()  # bins between the tones
    np.testing.assert_allclose(deviation, np.maximum(own, least), rtol=1e-3)
    pooled = pooled_statistics(cuts, tone_recipe)
    np.testing.assert_allclose(pooled, (everything.mean(), everything.std()), rtol=1e-4)


def test_a_training_that_begins_with_another_ones_weights(
    per_bin_training: Path, tone_manifests: Path, tone_toml: Path, tmp_path: Path
):
    """The first loss is that of the weights; the statistics are theirs too."""
    begun = load_checkpoint(per_bin_training / "best.ckpt")
    sets = {
        "data.train": tone_manifests / "valid.jsonl.gz",  # whose statistics would be others
        "data.valid": tone_manifests / "valid.jsonl.gz",
        "training.run": tmp_path / "on",
        "training.start": per_bin_training / "best.ckpt",
        "training.max_steps": 1,
        "training.learning_rate": 1e-9,
        "features.normalize": "global",
        "model.norm_eps": 1e-3,
    }
    recipe = load_recipe(str(tone_toml), [f"{key}={value}" for key, value in sets.items()])
    train(recipe)
    found = load_checkpoint(tmp_path / "on" / "best.ckpt")
    assert found.recipe.features.mean == begun.recipe.features.mean
    assert found.recipe.model.norm_eps == 1e-3
    name = "rnns.0.rnn.weight_hh_l0"
    weights = [checkpoint.network.state_dict()[name].numpy() for checkpoint in (found, begun)]
    np.testing.assert_allclose(*weights, atol=1e-6)
    for change, key in (
        ("model.hidden=8", "model.hidden"),
        ('labels="_ABC "', "labels"),
        ("features.sample_rate=16000", "features.bins"),
    ):
        other = load_recipe(
            str(tone_toml),
            [*(f"{k}={v}" for k, v in sets.items()), f"training.run={tmp_path / 'no'}", change],
        )
        message = rf"best\.ckpt: .*{re.escape(key)} = .*; .*omit training\.start"
        with pytest.raises(ConfigError, match=message):
            train(other)
    assert not (tmp_path / "no").exists()


@pytest.fixture
def per_bin_training(tone_manifests: Path, tone_toml: Path, tmp_path: Path) -> Path:
    sets = {
        "data.train": tone_manifests / "train.jsonl.gz",
        "data.valid": tone_manifests / "valid.jsonl.gz",
        "training.run": tmp_path / "first",
        "training.max_steps": 3,
        "features.normalize": "global",
    }
    train(load_recipe(str(tone_toml), [f"{key}={value}" for key, value in sets.items()]))
    return tmp_path / "first"
