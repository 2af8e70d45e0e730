"""Transcripts that CTC cannot align: they never look like a training that went well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import CutSet
from typer.testing import CliRunner

from ds2deploy.cli.app import app
from ds2deploy.config import Recipe
from ds2deploy.data.batches import SpeechDataset
from ds2deploy.data.ctc_room import check_manifest_room, check_room, frames_needed
from ds2deploy.data.cuts import make_cut
from ds2deploy.data.epoch_plan import ProcessBatch
from ds2deploy.data.manifest import read_manifest, write_manifest
from ds2deploy.data.utterance import Utterance
from ds2deploy.runtimes.errors import AudioError, ManifestError
from ds2deploy.runtimes.geometry import output_length
from ds2deploy.training.progress import TrainingProgress
from ds2deploy.training.run_folder import BROKEN, ResumePoint, RunFolder
from ds2deploy.training.train import train

RATE = 8000


def utterance(folder: Path, name: str, text: str, seconds: float) -> Utterance:
    path = folder / f"{name}.wav"
    noise = np.random.default_rng(0).standard_normal(round(seconds * RATE))
    soundfile.write(path, 0.1 * noise, RATE)
    return Utterance(path, text)


def manifest_of(folder: Path, good: int, too_long: int) -> Path:
    """A lhotse manifest that `prepare` never saw: utterances of 0.2 s, which have 11 output frames
    at 10 ms; six pairs of letters need 12 frames and 6 blanks, and 11 letters fit exactly.
    """
    listed = [utterance(folder, f"good{i}", "ABCDABCDABC", 0.2) for i in range(good)]
    listed += [utterance(folder, f"bad{i}", "AABBCCAABBCC", 0.2) for i in range(too_long)]
    path = folder / "own.jsonl.gz"
    write_manifest(CutSet.from_cuts(make_cut(item, folder) for item in listed), path)
    return path


@given(labels=st.lists(st.integers(1, 3), max_size=12))
@settings(max_examples=60, deadline=None)
def test_frames_needed_are_those_with_which_the_loss_is_finite(labels: list[int]):
    needed = max(frames_needed(labels), 1)
    for frames in (needed - 1, needed):
        if frames == 0:
            continue
        log_probs = torch.full((frames, 1, 4), 0.25).log()
        lengths = torch.tensor([frames]), torch.tensor([len(labels)])
        loss = F.ctc_loss(log_probs, torch.tensor([labels]), *lengths, reduction="sum")
        assert bool(loss.isfinite()) == (frames == needed)


def test_check_room_names_the_recording():
    check_room([1, 1, 2], frames=7, name="a.wav")  # 4 output frames
    with pytest.raises(AudioError, match=r"^a\.wav: .* need 4 output frames, .* has 3; "):
        check_room([1, 1, 2], frames=6, name="a.wav")


def test_the_recipes_features_decide(tone_recipe: Recipe, tmp_path: Path):
    """Eleven letters in 0.2 s: frames of 10 ms have room for them, frames of 20 ms do not."""
    cuts = read_manifest(manifest_of(tmp_path, good=2, too_long=0))
    check_manifest_room(cuts, tone_recipe, "own", most=0.0)
    coarse = tone_recipe.changed("features", stride_ms=20.0)
    with pytest.raises(ManifestError, match=r"^own: 2 of 2 .*good0\.wav, good1\.wav"):
        check_manifest_room(cuts, coarse, "own", most=0.0)


@pytest.mark.parametrize("of", ["train", "valid"])
def test_too_many_end_a_training_before_it_begins(
    of: str, tone_recipe: Recipe, recipe_file, tmp_path: Path
):
    """Without the check, such a training has a loss of 0.00, exit code 0 and a best.ckpt."""
    path = manifest_of(tmp_path, good=1, too_long=5)
    recipe = recipe_file(tone_recipe.changed("data", **{of: str(path)}), tmp_path / "r.toml")
    result = CliRunner().invoke(app, ["train", str(recipe)])
    assert result.exit_code == 2, (result.output, result.exception)
    (line,) = result.stderr.splitlines()
    for part in (str(path), "5 of 6", "bad0.wav", "and 2 more", "--leave-out"):
        assert part in line
    assert not (tmp_path / "run").exists()


def test_one_in_a_hundred_is_named_and_left_out(
    tone_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = manifest_of(tmp_path, good=100, too_long=1)
    recipe = tone_recipe.changed("data", train=str(path), batch_size=40)
    train(recipe.changed("training", epochs=2))
    reported = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(reported) == 1
    assert f"{tmp_path / 'bad0.wav'}: " in reported[0]
    assert [line["error"] for line in RunFolder(tmp_path / "run").broken()] == [
        reported[0].removeprefix("left out: ")
    ], BROKEN


@pytest.mark.parametrize("faster", ["speed", "tempo"])
def test_speaking_faster_leaves_room_for_the_transcript(
    faster: str, tone_recipe: Recipe, tmp_path: Path
):
    """Twice as fast it would not fit: then it stays as it was recorded."""
    recipe = tone_recipe.changed("augment", **{faster: (2.0, 2.0)})
    cuts = CutSet.from_cuts(
        make_cut(utterance(tmp_path, name, text, 0.2), tmp_path)
        for name, text in (("full", "ABCDABCDABC"), ("short", "AB"))
    )
    batch = SpeechDataset(recipe, augment=True)[ProcessBatch(cuts, 1.0)]
    assert batch.broken == ()
    full, short = (output_length(n) for n in batch.lengths.tolist())
    assert full == 11
    assert short < 8


@pytest.mark.slow
def test_a_batch_without_a_usable_utterance_does_not_lower_the_shown_loss(
    tone_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One of 101 batches of one utterance is of no use: its loss is 0."""
    path = manifest_of(tmp_path, good=100, too_long=1)
    recipe = tone_recipe.changed("data", train=str(path), batch_size=1)
    losses: list[tuple[float, float]] = []
    note_batch = TrainingProgress.note_batch

    def note(self: TrainingProgress, point: ResumePoint, loss: float | None) -> None:
        before = self.loss
        note_batch(self, point, loss)
        if RunFolder(tmp_path / "run").broken() and not losses:  # as soon as it was met
            losses.append((before, self.loss))

    monkeypatch.setattr(TrainingProgress, "note_batch", note)
    train(recipe.changed("training", epochs=1))
    ((before, after),) = losses
    assert after == pytest.approx(before, nan_ok=True)


def test_joined_utterances_without_room_for_the_space_between(tone_recipe: Recipe, tmp_path: Path):
    """Each fits, and with a space between them they do not: named, and none of the batch."""
    full = [make_cut(utterance(tmp_path, str(i), "ABCDABCDABC", 0.2), tmp_path) for i in range(2)]
    joined = full[0].mix(full[1], offset_other_by=0.2, allow_padding=True)
    batch = SpeechDataset(tone_recipe, augment=True)[ProcessBatch(CutSet.from_cuts([joined]), 1.0)]
    assert len(batch.broken) == 1
    assert "need 23 output frames" in batch.broken[0]
    assert batch.scale == 0
