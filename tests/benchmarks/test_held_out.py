"""Speakers held out of trainings: who is where, what differs, and what the table says."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import msgspec
import pytest
import soundfile

from ds2deploy.config import AugmentConfig, Recipe
from ds2deploy.data.cuts import audio_path, speaker
from ds2deploy.data.manifest import read_manifest
from ds2deploy.runtimes.errors import ConfigError, ManifestError, MissingFileError
from ds2deploy.training.run_folder import RunFolder
from ds2deploy.training.scoring import ErrorCounts

SPEAKERS = ("anna", "ben", "carla")


@pytest.fixture
def held_out(benchmark_module) -> ModuleType:
    return benchmark_module("held_out")


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Of three speakers, in every set."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for name in SPEAKERS:
        for digit in range(10):
            for index in (3, 20, 47):  # test, train, valid
                soundfile.write(folder / f"{digit}_{name}_{index}.wav", [0.1, -0.1] * 2000, 8000)
    return folder


def test_a_speaker_is_in_the_test_alone(held_out: ModuleType, recordings: Path, tmp_path: Path):
    held_out.write_sets(recordings, "ben", tmp_path / "sets", held_out.FULL)
    found = {
        name: read_manifest(tmp_path / "sets" / f"{name}.jsonl.gz")
        for name in ("train", "valid", "test")
    }
    assert {speaker(cut) for cut in found["test"]} == {"ben"}
    for name, index in (("train", 20), ("valid", 47)):
        assert {speaker(cut) for cut in found[name]} == {"anna", "carla"}
        assert {Path(audio_path(cut)).stem.split("_")[2] for cut in found[name]} == {str(index)}
    # Every recording of the one held out, once.
    assert sum(len(cut.supervisions) for cut in found["test"]) == 30


def test_nothing_but_augmentation_differs(held_out: ModuleType, tmp_path: Path):
    plain, augmented = (
        held_out.recipe_for(way, tmp_path, tmp_path / "run", held_out.FULL) for way in held_out.WAYS
    )
    assert plain.augment == AugmentConfig() != augmented.augment
    assert msgspec.structs.replace(augmented, augment=AugmentConfig()) == plain


def test_the_mean_over_speakers(held_out: ModuleType):
    def score(name: str, way: str, wrong: int) -> object:
        errors = ErrorCounts(word_errors=wrong, words=100, char_errors=0, chars=1)
        return held_out.Score(speaker=name, augment=way, errors=errors, known_wer=0.01, train_s=9.0)

    wrong = {"anna": (40, 20), "ben": (20, 25)}
    scores = [
        score(name, way, count)
        for name, counts in wrong.items()
        for way, count in zip(held_out.WAYS, counts, strict=True)
    ]
    result = held_out.report(scores, AugmentConfig(speed=(0.9, 1.1)), quick=False)
    (goal,) = result.goals
    assert goal.measured == pytest.approx(25.0)
    assert goal.status == "met"
    assert result.tables[0].rows[0][:4] == ["anna", "100", "40.0 %", "20.0 %"]
    assert result.tables[0].rows[2][2:4] == ["30.0 %", "22.5 %"]
    assert "speed (0.9, 1.1)" in result.notes[0]


@pytest.mark.thorough
def test_trained_and_not_trained_again(held_out: ModuleType, recordings: Path, tmp_path: Path):
    """Two speakers, a thread each; the second time, trainings that were finished are read."""
    for path in recordings.glob("*_carla_*"):
        path.unlink()
    first = held_out.measure(recordings, tmp_path / "runs", 2, held_out.QUICK)
    checkpoints = sorted((tmp_path / "runs").rglob("last.ckpt"))
    assert len(checkpoints) == 4
    written = [path.stat().st_mtime_ns for path in checkpoints]
    again = held_out.measure(recordings, tmp_path / "runs", 2, held_out.QUICK)
    assert [path.stat().st_mtime_ns for path in checkpoints] == written
    assert again.data == first.data
    assert [score["errors"]["words"] for score in first.data["scores"]] == [30] * 4
    for path in checkpoints:
        assert held_out.is_finished(RunFolder(path.parent), held_out.QUICK.epochs)
        assert not held_out.is_finished(RunFolder(path.parent), held_out.QUICK.epochs + 1)
    refused = r"last\.ckpt: .* another network or augmentation; choose"
    with pytest.raises(ConfigError, match=refused):
        held_out.check_begun(checkpoints[0], Recipe())


def test_a_missing_folder_and_a_single_speaker_are_refused(
    held_out: ModuleType, recordings: Path, tmp_path: Path
):
    with pytest.raises(MissingFileError, match=r"nothing: no such folder; .* Free Spoken"):
        held_out.measure(tmp_path / "nothing", tmp_path / "runs", 1, held_out.QUICK)
    for path in recordings.iterdir():
        if "_anna_" not in path.name:
            path.unlink()
    with pytest.raises(ManifestError, match=r"recordings: .*1 speaker; expected at least 2"):
        held_out.measure(recordings, tmp_path / "runs", 1, held_out.QUICK)
