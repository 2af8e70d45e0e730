"""What is done to training audio is what its name says, and can be heard and seen."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from ds2deploy.cli.app import app
from ds2deploy.config import AugmentConfig, Recipe
from ds2deploy.data.acoustics import limit_band, reverberate
from ds2deploy.data.augmentation import add_noise, augment_audio, change_tempo, mask_features
from ds2deploy.data.batches import SpeechDataset
from ds2deploy.data.epoch_plan import ProcessBatch, plan_training
from ds2deploy.data.manifest import read_manifest
from ds2deploy.runtimes.errors import AudioError, ConfigError
from ds2deploy.training.train import train

RATE = 16_000


def tone(frequency: float, seconds: float, rate: int = RATE) -> np.ndarray:
    time = np.arange(int(rate * seconds)) / rate
    return (0.3 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def pitch(samples: np.ndarray, rate: int = RATE) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * rate / len(samples))


def augmented(samples: np.ndarray, seed: int = 0, **keys: Any) -> np.ndarray:
    return augment_audio(samples, RATE, AugmentConfig(**keys), np.random.default_rng(seed))


def test_everything_is_off_by_default():
    samples = tone(440, 0.5)
    np.testing.assert_array_equal(augmented(samples), samples)


@pytest.mark.parametrize("speed", [0.8, 1.25])
def test_speed_moves_the_pitch(speed: float):
    samples = tone(1000, 2.0)
    changed = augmented(samples, speed=(speed, speed + 1e-6))
    assert len(changed) == pytest.approx(len(samples) / speed, rel=1e-3)
    assert pitch(changed) == pytest.approx(1000 * speed, rel=0.01)


@pytest.mark.parametrize("rate", [8000, 16_000])
@pytest.mark.parametrize("tempo", [0.7, 0.9, 1.1, 1.5])
def test_tempo_does_not(tempo: float, rate: int):
    samples = np.concatenate([tone(300, 1.0, rate), tone(900, 1.0, rate)])
    changed = change_tempo(samples, rate, tempo)
    assert changed.dtype == np.float32
    assert len(changed) == round(len(samples) / tempo)
    middle = len(changed) // 2
    gap = rate // 20
    assert pitch(changed[: middle - gap], rate) == pytest.approx(300, abs=4)
    assert pitch(changed[middle + gap :], rate) == pytest.approx(900, abs=4)
    # As loud as before, without holes.
    loud = np.sqrt(np.mean(changed[gap : middle - gap].astype(float) ** 2))
    assert loud == pytest.approx(0.3 / np.sqrt(2), rel=0.1)


def test_the_same_tempo_is_the_same_sound(random: np.random.Generator):
    samples = random.standard_normal(12_345).astype(np.float32)
    np.testing.assert_allclose(change_tempo(samples, RATE, 1.0), samples, atol=1e-5)


@pytest.mark.parametrize("count", [1, 160, 480, 500])
def test_a_tempo_of_next_to_nothing(count: int):
    assert len(change_tempo(np.ones(count, np.float32), RATE, 1.1)) == max(1, round(count / 1.1))


def test_gain():
    samples = tone(440, 0.5)
    changed = augmented(samples, gain_db=(6.0, 6.0))
    np.testing.assert_allclose(changed, samples * 10 ** (6 / 20), rtol=1e-5)


def test_a_range_of_one_value_is_that_value():
    samples = tone(440, 1.0)
    for keys in ({"speed": (1.25, 1.25)}, {"tempo": (1.25, 1.25)}):
        assert len(augmented(samples, **keys)) == pytest.approx(len(samples) / 1.25, abs=2)


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 30.0])
def test_noise_is_as_loud_as_it_says(snr_db: float, random: np.random.Generator):
    samples = tone(440, 1.0)
    noise = random.standard_normal(len(samples)).astype(np.float32)
    added = (add_noise(samples, noise, snr_db) - samples).astype(float)
    ratio = np.mean(samples.astype(float) ** 2) / np.mean(added**2)
    assert 10 * np.log10(ratio) == pytest.approx(snr_db, abs=0.01)


def noise_folder(folder: Path) -> Path:
    """A hum at another rate, in stereo, shorter than an utterance; and a long whistle."""
    (folder / "deep").mkdir(parents=True)
    hum = np.stack([tone(200, 0.3, 44_100)] * 2, axis=1)
    soundfile.write(folder / "hum.wav", hum, 44_100)
    soundfile.write(folder / "deep" / "whistle.flac", tone(3000, 20.0, RATE), RATE)
    return folder


def test_noise_from_a_folder(tmp_path: Path):
    keys = {"noise_snr_db": (5.0, 5.1), "noise_share": 1.0}
    folder = str(noise_folder(tmp_path / "noise"))
    samples = tone(1000, 2.0)
    heard = {
        round(pitch(augmented(samples, seed, noise_folder=folder, **keys) - samples), -2)
        for seed in range(12)
    }
    assert heard == {200.0, 3000.0}
    again = augmented(samples, 3, noise_folder=folder, **keys)
    np.testing.assert_array_equal(again, augmented(samples, 3, noise_folder=folder, **keys))


def test_noise_of_unknown_length_whose_name_is_not_utf8(tmp_path: Path):
    """A pipe's writer puts the largest number into the header, in the place of the length."""
    path = tmp_path / os.fsdecode(b"caf\xe9.au")
    soundfile.write(os.fsencode(path), tone(3000, 8.0), RATE, format="AU", subtype="PCM_16")
    content = bytearray(path.read_bytes())
    content[8:12] = b"\xff" * 4
    path.write_bytes(content)
    samples = tone(1000, 2.0)
    keys = {"noise_snr_db": (5.0, 5.1), "noise_share": 1.0}
    added = augmented(samples, 1, noise_folder=str(tmp_path), **keys) - samples
    assert round(pitch(added), -2) == 3000


def test_noise_in_a_share_of_the_utterances():
    samples = tone(440, 0.2)
    noisy = [
        not np.array_equal(augmented(samples, seed, noise_snr_db=(5, 6), noise_share=0.3), samples)
        for seed in range(200)
    ]
    assert 0.2 < np.mean(noisy) < 0.4


def with_augment(recipe: Recipe, **keys: Any) -> Recipe:
    return recipe.changed("augment", **keys)


def test_a_noise_folder_that_is_none_is_told_before_the_training(
    tone_recipe: Recipe, tmp_path: Path
):
    keys: dict[str, Any] = {"noise_snr_db": (5.0, 20.0)}
    missing = with_augment(tone_recipe, noise_folder=str(tmp_path / "nowhere"), **keys)
    with pytest.raises(ConfigError, match="no such folder; expected recordings of noise"):
        train(missing)
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="contains no audio"):
        train(with_augment(tone_recipe, noise_folder=str(tmp_path / "none"), **keys))
    folder = noise_folder(tmp_path / "noise")
    (folder / "broken.wav").write_bytes(b"RIFF of no use")
    with pytest.raises(AudioError, match=r"broken.wav: not readable audio"):
        train(with_augment(tone_recipe, noise_folder=str(folder), **keys))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="requires a signal-to-noise ratio"):
        with_augment(tone_recipe, noise_folder=str(folder))


def test_noise_that_is_broken_further_on_leaves_the_utterance(tone_recipe: Recipe, tmp_path: Path):
    """Its header is good, so nobody sees it before it is drawn."""
    folder = tmp_path / "noise"
    folder.mkdir()
    soundfile.write(folder / "hum.flac", tone(200, 3.0, RATE), RATE)
    content = (folder / "hum.flac").read_bytes()
    (folder / "hum.flac").write_bytes(content[:200] + bytes(len(content) - 200))
    keys = {"noise_snr_db": (5.0, 5.0), "noise_share": 1.0, "noise_folder": str(folder)}
    noisy = with_augment(tone_recipe, **keys)
    cuts = read_manifest(tone_recipe.data.train).subset(first=4)
    batch = SpeechDataset(noisy, augment=True)[ProcessBatch(cuts, 0.25)]
    quiet = SpeechDataset(tone_recipe, augment=True)[ProcessBatch(cuts, 0.25)]
    assert batch.texts == quiet.texts
    assert torch.equal(batch.features, quiet.features)
    assert len(batch.broken) == 4
    assert all("hum.flac" in error and "remove it from" in error for error in batch.broken)


def octave_db(samples: np.ndarray, low: float, high: float) -> float:
    spectrum = np.abs(np.fft.rfft(samples.astype(float))) ** 2
    hz = np.fft.rfftfreq(len(samples), 1 / RATE)
    return float(10 * np.log10(spectrum[(hz >= low) & (hz < high)].mean() + 1e-20))


@pytest.mark.parametrize("rt60_s", [0.2, 0.6])
def test_reverberation_decays_by_60_db_in_its_time(rt60_s: float):
    """Schroeder's backward integration of the response to a click, -5 to -25 dB."""
    measured = []
    for seed in range(8):
        click = np.zeros(2 * RATE, np.float32)
        click[0] = 1.0
        room = reverberate(click, RATE, rt60_s, np.random.default_rng(seed)).astype(float)
        assert room[0] == pytest.approx(1.0, abs=1e-3)
        tail = np.cumsum(room[1:][::-1] ** 2)[::-1]
        level = 10 * np.log10(tail / tail[0] + 1e-12)
        first, last = np.argmax(level < -5), np.argmax(level < -25)
        measured.append(3 * (last - first) / RATE)
    assert np.mean(measured) == pytest.approx(rt60_s, rel=0.1)


def test_reverberation_keeps_length_and_is_causal(random: np.random.Generator):
    samples = np.concatenate([np.zeros(RATE), tone(440, 1.0)]).astype(np.float32)
    room = augmented(samples, 3, room_rt60_s=(0.3, 0.5), room_share=1.0)
    assert room.shape == samples.shape
    assert np.abs(room[: RATE - 1]).max() < 1e-5
    assert not np.allclose(room, samples)


def test_a_narrow_band_loses_what_lies_outside(random: np.random.Generator):
    noise = random.standard_normal(4 * RATE).astype(np.float32)
    narrow = limit_band(noise, RATE, 300, 3400)
    assert octave_db(narrow, 500, 2500) == pytest.approx(octave_db(noise, 500, 2500), abs=0.5)
    assert octave_db(narrow, 3500, 8000) < octave_db(noise, 3500, 8000) - 60
    assert octave_db(narrow, 10, 200) < octave_db(noise, 10, 200) - 60
    whole = limit_band(noise, RATE, 0, RATE / 2)
    assert octave_db(whole, 10, 200) == pytest.approx(octave_db(noise, 10, 200), abs=0.1)


def test_music_has_harmonics_and_noise_has_none():
    keys: dict[str, Any] = {"noise_snr_db": (0.0, 0.0), "noise_share": 1.0}
    silence = tone(440, 2.0) * 1e-3

    def crest(share: float) -> float:
        """Peak of the spectrum between 400 and 1600 Hz over its median, on average."""
        found = []
        for seed in range(8):
            added = augmented(silence, seed, noise_music_share=share, **keys) - silence
            spectrum = np.abs(np.fft.rfft(added.astype(float)))[800:3200]
            found.append(spectrum.max() / np.median(spectrum))
        return float(np.mean(found))

    assert crest(1.0) > 3 * crest(0.0)


@pytest.mark.parametrize("key", ["room", "band"])
def test_rooms_and_bands_in_a_share_of_the_utterances(key: str):
    keys: dict[str, Any] = {"room_rt60_s": (0.3, 0.4)} if key == "room" else {"band_hz": (2e3, 3e3)}
    samples = tone(440, 0.2) + tone(3500, 0.2)
    changed = [
        not np.array_equal(augmented(samples, seed, **keys, **{f"{key}_share": 0.3}), samples)
        for seed in range(200)
    ]
    assert 0.2 < np.mean(changed) < 0.4


@pytest.mark.parametrize(
    "keys",
    [
        {"room_rt60_s": (0.0, 0.3)}, {"band_hz": (500.0, 4000.0)}, {"room_share": 1.5},
        {"noise_music_share": -0.1}, {"warm_up_epochs": -1},
        {"noise_folder": "n", "noise_snr_db": (5.0, 9.0), "noise_music_share": 0.5},
    ],
)  # fmt: skip
def test_augmentation_that_cannot_be_is_refused(keys: dict[str, Any]):
    with pytest.raises(ConfigError, match=rf"augment\.({'|'.join(keys)})"):
        AugmentConfig(**keys)


def test_epochs_of_the_warm_up_are_not_augmented(tone_recipe: Recipe):
    recipe = with_augment(tone_recipe, warm_up_epochs=2, gain_db=(-20.0, -10.0))
    recipe = recipe.changed("data", silence_s=(0.2, 0.3), join=(2, 3))
    cuts = read_manifest(tone_recipe.data.train).subset(first=4)
    planned = ProcessBatch(cuts, 0.25)
    plain = SpeechDataset(tone_recipe, augment=False)[planned]
    for epoch, is_plain in enumerate([True, True, False]):
        batch = SpeechDataset(recipe, augment=True, epoch=epoch)[planned]
        assert torch.equal(batch.lengths, plain.lengths) == is_plain
        assert sum(map(len, plan_training(cuts, recipe, epoch))) == (4 if is_plain else 2)


def test_masks(random: np.random.Generator):
    features = np.ones((81, 200), np.float32)
    config = AugmentConfig(frequency_masks=2, frequency_mask_bins=9, time_masks=1)
    masked = mask_features(features.copy(), config, random)
    bands = int((masked == 0).all(axis=1).sum())
    stretches = int((masked == 0).all(axis=0).sum())
    assert 0 < bands <= 18
    assert stretches <= 10
    assert set(np.unique(masked)) == {0.0, 1.0}


def test_preview_writes_audio_and_pictures(tone_manifests: Path, tone_toml: Path, tmp_path: Path):
    noise_folder(tmp_path / "noise")
    settings = [
        "augment.speed=[0.8,0.81]", "augment.tempo=[0.5,0.51]", "augment.gain_db=[-20,-19]",
        "augment.noise_snr_db=[0,1]", f"augment.noise_folder={tmp_path / 'noise'}",
        "augment.time_masks=2",
    ]  # fmt: skip
    manifest = tone_manifests / "train.jsonl.gz"
    call = ["prepare", str(manifest), str(tmp_path / "heard"), "--preview", str(tone_toml)]
    call += [part for s in settings for part in ("--set", s)]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    written = sorted(Path(line) for line in done.stdout.splitlines())
    assert written == sorted((tmp_path / "heard").iterdir())
    labels = ["0-before", "1-speed", "2-tempo", "4-gain", "5-noise", "7-masks", "9-all"]
    stem = written[0].name.removesuffix(".0-before.png")
    names = [f"{stem}.{label}" for label in labels]
    assert [p.stem for p in written if p.suffix == ".png" and p.name.startswith(stem)] == names
    sounds = {
        path.stem.rpartition(".")[2]: soundfile.read(path)[0]
        for path in written
        if path.suffix == ".wav" and path.name.startswith(stem)
    }
    assert sounds.keys() == set(labels) - {"7-masks"}
    before = sounds["0-before"]
    assert len(sounds["1-speed"]) == pytest.approx(len(before) / 0.805, rel=0.02)
    assert len(sounds["2-tempo"]) == pytest.approx(len(before) / 0.505, rel=0.02)
    assert np.abs(sounds["4-gain"]).max() == pytest.approx(0.106 * np.abs(before).max(), rel=0.1)
    added = sounds["5-noise"] - before
    assert np.sqrt(np.mean(added**2) / np.mean(before**2)) == pytest.approx(
        0.945, abs=0.06
    )  # 0.5 dB
    for path in written:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")


def test_a_recipe_without_augmentation_has_nothing_to_show(
    tone_manifests: Path, tone_toml: Path, tmp_path: Path
):
    manifest = str(tone_manifests / "train.jsonl.gz")
    call = ["prepare", manifest, str(tmp_path / "heard"), "--preview", str(tone_toml)]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 2
    assert "the recipe has no augmentation; turn some on" in done.stderr
    assert not (tmp_path / "heard").exists()
