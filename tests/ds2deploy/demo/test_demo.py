"""The demo in small: every stage runs, and a network that learned nothing does not pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ds2deploy
from ds2deploy.demo.run import SPLITS, run_demo
from ds2deploy.demo.synthesis import TEST_VOICES, TRAIN_VOICES
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.training.run_folder import RunFolder


class StoppedError(Exception):
    """Ends a demo before its exports."""


pytest.importorskip("espeakng_loader", reason="pip install 'ds2deploy[demo]'")


def test_the_test_voices_are_never_heard_in_training():
    voices = {split.name: {voice.variant for voice in split.voices} for split in SPLITS}
    assert not voices["test"] & (voices["train"] | voices["valid"])
    assert len(voices["test"]) >= 6


@pytest.mark.slow
def test_every_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ds2deploy.heartbeat.SILENCE_S", 0.0)  # every line that may be due
    monkeypatch.setattr("ds2deploy.heartbeat.MOST_LINES", float("inf"))
    splits = (
        SPLITS[0]._replace(strings=12, voices=TRAIN_VOICES[:3]),
        SPLITS[1]._replace(strings=4, voices=TRAIN_VOICES[:2]),
        SPLITS[2]._replace(strings=4, voices=TEST_VOICES[:2]),
    )
    overrides = ["training.max_steps=2", "training.epochs=1", "model.hidden=16"]
    result = run_demo(tmp_path, splits=splits, overrides=overrides)
    captured = capsys.readouterr()
    assert captured.out == ""
    for heading in ("1. Synthesising", "2. Training", "3. Exporting", "4. Recognising"):
        assert heading in captured.err
    for step in (
        "speaking train: 11 of 12 strings",
        "training: epoch 1/1, step 1 of 1",
        "exporting: fp32: comparing batch 1 x 40 frames",
        "recognising with model.onnx: 4 of 4 strings",
        "measuring the speed: 3 of 4 clips",
    ):
        assert step in captured.err
    assert [Path(row.model).name for row in result.rows] == [
        "best.ckpt",
        "model.onnx",
        "model.fp16.onnx",
    ]
    assert all(row.speed > 0 and row.size > 0 for row in result.rows)
    assert not result.passed
    assert "word error rate" in result.failure()
    assert result.summary()["passed"] is False

    audio = sorted((tmp_path / "audio" / "test").glob("*.wav"))
    assert len(audio) == 4
    assert audio[0].with_suffix(".txt").read_text().split()
    texts = [ds2deploy.load(row.model).transcribe(audio[0]).text for row in result.rows[:2]]
    assert texts[0] == texts[1]

    first = losses(tmp_path)

    def stop(*_: object) -> list[Any]:
        raise StoppedError

    monkeypatch.setattr("ds2deploy.demo.run.export_onnx", stop)
    with pytest.raises(StoppedError):
        run_demo(tmp_path, splits=splits, overrides=overrides)
    assert losses(tmp_path) == first


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in RunFolder(out / "run").metrics() if line["kind"] == "train"]


def test_a_folder_of_other_work_is_left_alone(tmp_path: Path):
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "mine.wav").write_bytes(b"precious")
    with pytest.raises(ConfigError, match="contains other files"):
        run_demo(tmp_path)
    assert (tmp_path / "audio" / "mine.wav").read_bytes() == b"precious"
