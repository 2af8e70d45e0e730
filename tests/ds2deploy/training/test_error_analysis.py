"""Intervals, groups, confused words, and two evaluations compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import ds2deploy
from ds2deploy.cli.app import app
from ds2deploy.data.manifest import read_manifest
from ds2deploy.runtimes.errors import ConfigError
from ds2deploy.training.error_analysis import (
    Confusion,
    common_tags,
    compare,
    confusions,
    groups,
    wer_interval,
    word_errors,
)
from ds2deploy.training.evaluation import evaluate
from ds2deploy.training.scoring import Hypothesis

SAID = ["A B C", "A B", "D D D D", "B", "C A"]


def heard(*texts: str) -> list[Hypothesis]:
    speakers = ["ann", "bob"]
    return [
        Hypothesis(f"{i}.wav", said, text, 1.0 + 3 * i, {"speaker": speakers[i % 2]})
        for i, (said, text) in enumerate(zip(SAID, texts, strict=True))
    ]


def test_groups_have_the_errors_of_their_members():
    found = groups(heard("A B C", "A X", "D D D", "B", "C A"), ["speaker", "duration"])
    rows = {(one.by, one.value): (one.utterances, one.errors.word_errors) for one in found}
    assert rows == {
        ("speaker", "ann"): (3, 1),
        ("speaker", "bob"): (2, 1),
        ("duration", "0 to 2 s"): (1, 0),
        ("duration", "2 to 5 s"): (1, 1),
        ("duration", "5 to 10 s"): (1, 1),
        ("duration", "10 to 20 s"): (2, 0),
    }
    bob = next(one for one in found if one.value == "bob")
    assert bob.wer == pytest.approx(1 / 3)
    assert bob.interval[0] <= bob.wer <= bob.interval[1]


def test_a_tag_that_nobody_has():
    with pytest.raises(ConfigError, match="duration, speaker"):
        groups(heard(*SAID), ["age"])


def test_tags_with_a_value_for_each_utterance_make_no_group():
    many = [Hypothesis("a", "A", "A", 1.0, {"id": str(i), "sex": "f"}) for i in range(200)]
    assert common_tags(many) == ["duration", "sex"]


def test_confused_words():
    said = [Hypothesis("a", "A B C", "A X C"), Hypothesis("b", "A B", "A X")]
    said += [Hypothesis("c", "A B", "A"), Hypothesis("d", "A", "A Y"), Hypothesis("e", "", "Z")]
    assert confusions(said) == [
        Confusion("B", "X", 2), Confusion("", "Y", 1), Confusion("", "Z", 1), Confusion("B", "", 1),
    ]  # fmt: skip
    assert confusions(said, 1) == [Confusion("B", "X", 2)]


def test_the_interval_narrows_with_more_utterances():
    """And holds the rate that the errors are drawn with."""
    random = np.random.default_rng(0)
    widths = []
    for count in (50, 5000):
        words = np.full(count, 10)
        low, high = wer_interval(random.binomial(10, 0.1, count), words)
        assert low < 0.1 < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 5


def test_errors_of_an_utterance_stay_together():
    """The same number of errors in fewer utterances says less."""
    words = np.full(100, 10)
    spread, packed = np.ones(100, int), np.zeros(100, int)
    packed[:10] = 10
    assert wer_interval(spread, words) == (0.1, 0.1)
    low, high = wer_interval(packed, words)
    assert high - low > 0.1


def test_two_models_are_compared_utterance_by_utterance():
    random = np.random.default_rng(0)
    said = [" ".join(random.choice(["A", "B", "C"], 8)) for _ in range(200)]

    def model(rate: float, seed: int) -> list[Hypothesis]:
        choose = np.random.default_rng(seed)
        return [
            Hypothesis(f"{i}", text, "".join("X" if c != " " and r < rate else c
                       for c, r in zip(text, choose.random(len(text)), strict=True)))
            for i, text in enumerate(said)
        ]  # fmt: skip

    good, same, bad = model(0.1, 1), model(0.1, 2), model(0.2, 3)
    assert compare(good, bad, "bad").verdict == "better"
    assert compare(bad, good, "good").verdict == "worse"
    found = compare(good, same, "same")
    assert found.verdict == "cannot be told"
    assert found.interval[0] <= found.saved <= found.interval[1]
    # Of what only one has recognised, nothing is said.
    assert compare(good[:50], bad[20:], "bad").utterances == 30
    errors, words = word_errors(good[20:50])
    assert compare(good[:50], bad[20:], "bad").wer == pytest.approx(errors.sum() / words.sum())


def test_the_same_sentence_twice_in_one_file_is_two_utterances():
    twice = [Hypothesis("a", "A", "A"), Hypothesis("a", "A", "B")]
    assert compare(twice, twice[::-1], "x").saved == 0
    assert compare(twice, twice, "x").utterances == 2


def test_no_common_utterance():
    with pytest.raises(ConfigError, match="same"):
        compare([Hypothesis("a", "A", "A")], [Hypothesis("b", "A", "A")], "x")


def run(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (arguments, result.output, result.exception)
    return result


def test_the_command(digits_checkpoint: Path, tone_manifests: Path, tmp_path: Path):
    manifest, page = tone_manifests / "valid.jsonl.gz", tmp_path / "page.html"
    earlier = tmp_path / "earlier.json"
    earlier.write_text(run("evaluate", digits_checkpoint, manifest, "--json").stdout)
    result = run(
        "evaluate", digits_checkpoint, manifest, "--beam", "4", "--by", "duration",
        "--confusions", "3", "--against", earlier, "--html", page,
    )  # fmt: skip
    lines = result.stdout.splitlines()
    assert lines[0] == "by duration"
    assert sum(" -> " in line for line in lines) == 3
    assert lines[-1].endswith("(10 utterances)")
    text = page.read_text()
    assert all(part in text for part in ("By duration", "most confused", "worst utterances"))
    again = json.loads(
        run(
            "evaluate", digits_checkpoint, manifest, "--against", digits_checkpoint, "--json"
        ).stdout
    )
    assert again["comparison"]["verdict"] == "cannot be told"
    assert again["comparison"]["saved"] == 0
    assert again["interval"][0] <= again["wer"] <= again["interval"][1]


def test_small_letters_of_a_decoder_are_no_errors(digits_checkpoint: Path, tone_manifests: Path):
    manifest = tone_manifests / "valid.jsonl.gz"
    plain, lower = (
        evaluate(ds2deploy.load(digits_checkpoint, decoder=decoder), cuts, str(manifest))
        for cuts in [read_manifest(manifest)]
        for decoder in (None, ds2deploy.rewrite_words(None, str.lower))
    )
    assert lower.hypotheses == plain.hypotheses
    assert plain.hypotheses[0].hypothesis
    assert lower.wer == plain.wer


@pytest.mark.parametrize("content", [None, "[]", "{}", '{"hypotheses": [{"audio": 3}]}'])
def test_against_what_is_no_evaluation(
    digits_checkpoint: Path, tone_manifests: Path, tmp_path: Path, content: str | None
):
    other = tmp_path / "other.json"
    if content is not None:
        other.write_text(content)
    manifest = tone_manifests / "valid.jsonl.gz"
    result = run("evaluate", digits_checkpoint, manifest, "--against", other, code=2)
    [line] = result.stderr.splitlines()
    assert str(other) in line
    assert "ds2deploy evaluate --json" in line
