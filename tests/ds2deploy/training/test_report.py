"""What a person sees of a training: TensorBoard, the report, the hypotheses, the exported model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ds2deploy.cli.app import app
from ds2deploy.config import Recipe
from ds2deploy.data.cuts import audio_path, transcript
from ds2deploy.data.manifest import read_manifest
from ds2deploy.runtimes.onnx.session import OnnxSession
from ds2deploy.training.run_folder import RunFolder
from ds2deploy.training.scoring import Hypothesis, count_errors, worst_first
from ds2deploy.training.train import train


@pytest.fixture
def run(tone_recipe: Recipe, made_once: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of a training's folder, to change."""
    recipe = tone_recipe.changed("training", epochs=2, tensorboard=True, report=True)
    made = made_once("reported_run", lambda out: train(recipe.changed("training", run=str(out))))
    return Path(shutil.copytree(made, tmp_path / "run"))


def test_tensorboard_has_what_metrics_have(run: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    lines = RunFolder(run).metrics()
    for tag, kind, name in (
        ("train/loss", "train", "loss"),
        ("train/learning_rate", "train", "learning_rate"),
        ("train/gradient_norm", "train", "gradient_norm"),
        ("valid/wer", "valid", "wer"),
        ("valid/cer", "valid", "cer"),
        ("valid/valid_loss", "valid", "valid_loss"),
    ):
        curve = [(event.step, event.value) for event in events.Scalars(tag)]
        expected = [(line["step"], line[name]) for line in lines if line["kind"] == kind]
        assert len(curve) >= 2
        assert curve == [(step, pytest.approx(value, rel=1e-5)) for step, value in expected]
    assert len(events.Images("valid/spectrogram")) == 2
    (text, _) = events.Tensors("valid/heard/text_summary")
    assert b"reference `" in text.tensor_proto.string_val[0]


def test_the_best_hypotheses_are_kept(run: Path, tone_recipe: Recipe):
    folder = RunFolder(run)
    heard = {item.audio: item for item in folder.hypotheses()}
    cuts = list(read_manifest(tone_recipe.data.valid))
    assert {path: heard[path].reference for path in heard} == {
        audio_path(cut): transcript(cut) for cut in cuts
    }
    counted = count_errors(
        [item.reference for item in heard.values()], [item.hypothesis for item in heard.values()]
    )
    assert counted.wer == pytest.approx(folder.best_metrics()["wer"])


class Words(HTMLParser):
    """The text of a page, and whether every element was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("meta", "br", "use", "path", "rect"):
            self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("use", "path", "rect"):
            assert self.tags.pop() == tag

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_report(run: Path):
    page = (run / "report.html").read_text()
    parser = Words()
    parser.feed(page)
    assert parser.tags == []
    text = " ".join(" ".join(parser.words).split())
    best = RunFolder(run).best_metrics()
    assert f"WER {100 * best['wer']:.2f} %" in text
    wrong = worst_first(RunFolder(run).hypotheses())
    assert f"{len(wrong)} of 10 utterances have an error" in text
    assert wrong[0][0].reference in text
    assert wrong[0][0].audio in text
    assert page.count("<svg") == 5
    # It can be sent to somebody: nothing is fetched from elsewhere.
    assert not re.search(r'(?:src|href)="(?!#)', page)


def test_the_worst_come_first():
    items = [
        Hypothesis("a", "ABCD", "ABCD"),
        Hypothesis("b", "ABCD", "ABXD"),
        Hypothesis("c", "ABCD", ""),
        Hypothesis("d", "AB", "AB CD EF"),
    ]
    assert [item.audio for item, _ in worst_first(items)] == ["d", "c", "b"]


def test_markup_in_a_transcript_is_text(run: Path, tone_recipe: Recipe):
    from ds2deploy.training.report import write_report

    folder = RunFolder(run)
    folder.write_hypotheses([Hypothesis("<b>.wav", "<script>A</script>", "& B")])
    page = write_report(folder, tone_recipe).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;A&lt;/script&gt;" in page
    assert "&amp; B" in page


@pytest.mark.slow
def test_the_best_checkpoint_is_exported_at_the_end(tone_recipe: Recipe, tone_toml: Path, tmp_path):
    data, run = tone_recipe.data, tmp_path / "run"
    settings = [
        f"data.train={data.train}", f"data.valid={data.valid}", f"training.run={run}",
        "training.epochs=2", 'training.export=["fp32"]',
    ]  # fmt: skip
    call = ["train", str(tone_toml), "--json", *(p for s in settings for p in ("--set", s))]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["checkpoint"] == str(run / "best.ckpt")
    description = OnnxSession(run / "model.onnx").description
    assert description.source.name == "best.ckpt"
    assert description.parity is not None
    assert description.parity["passed"]
