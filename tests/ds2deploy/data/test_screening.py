"""Screening of utterances with the features and labels of a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds2deploy.data.screening import Screening
from ds2deploy.runtimes.features import FeatureConfig
from tests.ds2deploy.data.recordings import prepared, run, write_utterance


def test_screening_has_the_frames_of_the_recipe(tmp_path: Path):
    write_utterance(tmp_path / "in" / "good.wav", text="ONE")
    write_utterance(tmp_path / "in" / "fast.wav", text="ABCDEFGHIJKLMNOP" * 2)  # 50 frames at 10 ms
    assert len(prepared(tmp_path / "in")[0]) == 2
    features = FeatureConfig(sample_rate=8000, stride_ms=20)
    used, report = prepared(tmp_path / "in", screening=Screening(features=features))
    assert used == {"good.wav"}
    assert "too short for its transcript" in report.left_out[0]
    recipe = tmp_path / "slow.toml"
    recipe.write_text('labels = "_ENO "\n[features]\nsample_rate = 8000\nstride_ms = 20\n')
    command = ("prepare", tmp_path / "in", tmp_path / "mine", "--leave-out", "--recipe", recipe)
    document = json.loads(run(*command, "--json").stdout)
    assert document["used"] == 1
    assert document["labels"] == "_ENO "
    assert document["options"]["screening"]["features"]["sample_rate"] == 8000
    faster = ("--set", "features.stride_ms=5", "--labels", "_ABCDEFGHIJKLMNOP ")
    assert json.loads(run(*command, *faster, "--json").stdout)["used"] == 2
    line = run("prepare", tmp_path / "in", tmp_path / "x", *faster[:2], code=2).stderr
    assert "--recipe" in line


def test_samples_are_screened_at_the_rate_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import ds2deploy.data.screening as module

    write_utterance(tmp_path / "in" / "good.wav")
    rates: list[int] = []
    read = module.read_audio
    monkeypatch.setattr(
        module, "read_audio", lambda cut, rate: (rates.append(rate), read(cut, rate))[1]
    )
    features = FeatureConfig(sample_rate=8000)
    prepared(tmp_path / "in", screening=Screening(features=features, read=True))
    assert rates == [8000]


@pytest.mark.parametrize(
    ("text", "options", "helps", "does_not"),
    [
        ("CAFÉ", [], ["--normalize", "--labels auto"], []),
        ("TAKE-OFF", [], ["--normalize"], ["--labels"]),
        ("ПРИВЕТ", [], ["--labels auto"], ["--normalize"]),
        ("ROUTE 66", [], ["as they are spoken"], ["--normalize", "--labels"]),
        ("ROUTE 66", ["--labels", "auto"], ["as they are spoken"], ["--normalize", "--labels"]),
        ("ПРИВЕТ", ["--normalize"], ["--labels auto"], ["--normalize"]),
        ("Я" + "A" * 20_000, ["--labels", "auto"], ["--labels CHARACTERS"], ["--labels auto"]),
    ],
)
def test_a_character_without_a_label_names_the_options_that_help(
    text: str, options: list[str], helps: list[str], does_not: list[str], tmp_path: Path
):
    write_utterance(tmp_path / "in" / "a.wav", text=text)
    error = run("prepare", tmp_path / "in", tmp_path / "out", *options, code=2).stderr
    line = error.rpartition("; ")[2]
    assert line.startswith("correct the transcript")
    assert all(option in line for option in helps)
    assert not any(option in line for option in does_not)
    for option in (
        option.split() for option in helps if option in ("--normalize", "--labels auto")
    ):
        command = ("prepare", tmp_path / "in", tmp_path / "out", "--valid", "0", *options, *option)
        assert "no label for" not in run(*command).stderr
