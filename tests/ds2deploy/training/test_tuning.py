"""Weights are chosen on one half, measured on the other, and refused where they do not help."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ds2deploy.inspection import inspect_file
from ds2deploy.language_models.make import LanguageModelOptions, make_language_model
from ds2deploy.runtimes.alphabet import ENGLISH, Alphabet
from ds2deploy.runtimes.decoding.config import DecoderConfig
from ds2deploy.runtimes.decoding.decoder_file import read_decoder_file, write_decoder_file
from ds2deploy.runtimes.decoding.greedy import greedy_text
from ds2deploy.runtimes.errors import ManifestError, MissingFileError, ModelFileError
from ds2deploy.training.kept_log_probs import Utterance, decode_kept
from ds2deploy.training.tuning import PAIR_WEIGHTS, Trial, _steadiest, tune, word_error_rate

ALPHABET = Alphabet(ENGLISH)
WORDS = ["ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE"]
FRAME_S = 0.02


def spoken(text: str, random: np.random.Generator, noise: float) -> Utterance:
    """Log-probabilities of a text, three frames for a letter, with noise on the logits."""
    path = [label for letter in ALPHABET.encode(text) for label in (letter, letter, 0)]
    logits = noise * random.standard_normal((len(path), len(ALPHABET)))
    logits[np.arange(len(path)), path] += 4.0
    rows = (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)
    return Utterance(rows, FRAME_S * len(path), text, greedy_text(rows, ALPHABET))


@pytest.fixture(scope="module")
def noisy() -> list[Utterance]:
    random = np.random.default_rng(3)
    texts = [" ".join(random.choice(WORDS, random.integers(2, 5))) for _ in range(60)]
    return [spoken(text, random, 1.2) for text in texts]


def model_of(folder: Path, sentences: list[str], kind: str = "words") -> str:
    text, out = folder / "text.txt", folder / f"{kind}.lm"
    text.write_text("\n".join(sentences))
    options = LanguageModelOptions(kind=kind, order=None, prune=())  # type: ignore[arg-type]
    make_language_model([text], out, ALPHABET, options)
    return str(out)


def digits(count: int) -> list[str]:
    random = np.random.default_rng(8)
    return [" ".join(random.choice(WORDS, random.integers(2, 5))) for _ in range(count)]


@pytest.mark.parametrize("kind", ["words", "characters"])
def test_a_model_of_what_is_said_is_better(noisy: list[Utterance], tmp_path: Path, kind: str):
    lm = model_of(tmp_path, digits(300), kind)
    seen: list[tuple[int, int]] = []
    settings = DecoderConfig(lm=lm, beam=8)
    result = tune(noisy, ALPHABET, FRAME_S, settings, lambda *done: seen.append(done))
    assert result.better
    assert result.wer < result.greedy_wer / 2
    low, high = result.interval
    assert low <= result.gain <= high
    assert result.gain == pytest.approx(result.greedy_wer - result.wer)
    assert result.utterances == 30
    assert seen[-1] == (len(result.tried), len(result.tried))
    assert result.settings.lm_weight in {trial.lm_weight for trial in result.tried}
    assert result.settings.character_lm_weight is None
    assert not result.all_equal


@pytest.mark.slow
def test_the_weights_of_two_models_are_searched_together(noisy: list[Utterance], tmp_path: Path):
    models = tuple(model_of(tmp_path, digits(300), kind) for kind in ("words", "characters"))
    random = np.random.default_rng(4)
    noisier = [spoken(one.reference, random, 2.0) for one in noisy[:40]]
    settings = DecoderConfig(lm=models, beam=8)
    result = tune(noisier, ALPHABET, FRAME_S, settings)
    assert result.better
    pairs = {(trial.lm_weight, trial.character_lm_weight) for trial in result.tried}
    assert pairs == set(itertools.product(PAIR_WEIGHTS, PAIR_WEIGHTS))
    best = result.settings
    assert (best.lm_weight, best.character_lm_weight) in pairs
    assert best.lm == models
    wers = {(t.lm_weight, t.character_lm_weight, t.word_score): t.wer for t in result.tried}
    for weights in ((1.0, 0.0, 1.0), (0.0, 1.0, -1.0)):
        names = ("lm_weight", "character_lm_weight", "word_score")
        same = msgspec.structs.replace(settings, **dict(zip(names, weights, strict=True)))
        texts = [one.text for one in decode_kept(noisier[::2], same(ALPHABET, FRAME_S))]
        assert word_error_rate(noisier[::2], texts) == wers[weights] != wers[0.0, 0.0, 0.0]


def test_equal_settings_are_reported(tmp_path: Path):
    random = np.random.default_rng(1)
    clear = [spoken("ONE TWO", random, 0.0) for _ in range(20)]
    settings = DecoderConfig(lm=model_of(tmp_path, ["ONE TWO"] * 30, "characters"), beam=8)
    assert tune(clear, ALPHABET, FRAME_S, settings).all_equal


def test_a_model_of_something_else_is_refused(noisy: list[Utterance], tmp_path: Path):
    lm = model_of(tmp_path, ["PARIS VIENNA", "ROME OSLO PRAGUE", "MADRID BERNE"] * 20)
    settings = DecoderConfig(lm=lm, beam=8, unknown_letter=None)
    result = tune(noisy, ALPHABET, FRAME_S, settings)
    assert not result.better
    assert result.wer >= result.greedy_wer


@pytest.mark.parametrize("second", [(None,), (0.0, 0.5, 1.0), (0.0, 0.2, 0.5, 1.0)])
def test_the_best_by_chance_is_not_chosen(second: tuple[float | None, ...]):
    grid = list(itertools.product((0.1, 0.2, 0.4, 0.8, 1.6), second, (-1.0, 0.0, 1.0)))

    def chosen(wers: dict[tuple[float, float], float]) -> Trial:
        flat = {(w, s): 0.2 if w > 1 else 0.1 for w, _, s in grid}
        found = _steadiest([Trial(w, c, s, (flat | wers)[w, s]) for w, c, s in grid])
        assert found.character_lm_weight == second[len(second) // 2]
        return found

    best = chosen({})
    assert (best.lm_weight, best.word_score) == (0.2, 0.0)  # in the middle of all that are equal
    lucky = chosen({(1.6, 1.0): 0.095})
    assert (lucky.lm_weight, lucky.word_score) == (0.2, 0.0)
    better = chosen({(0.4, score): 0.05 for score in (-1.0, 0.0, 1.0)})
    assert (better.lm_weight, better.word_score) == (0.4, 0.0)


def test_too_few_utterances(noisy: list[Utterance], tmp_path: Path):
    settings = DecoderConfig(lm=model_of(tmp_path, digits(30)))
    with pytest.raises(ManifestError, match="tuning needs at least"):
        tune(noisy[:10], ALPHABET, FRAME_S, settings)


def test_a_decoder_file_finds_its_language_model_beside_it(tmp_path: Path):
    lm = model_of(tmp_path, digits(30))
    path = tmp_path / "words.decoder"
    settings = DecoderConfig(lm=lm, lm_weight=0.3, hot_words={"NINE": 1.0})
    write_decoder_file(path, settings, ENGLISH, {"wer": 0.1})
    moved = tmp_path / "device"
    moved.mkdir()
    for file in (path, Path(lm)):
        file.rename(moved / file.name)
    found = read_decoder_file(moved / path.name)
    assert found.lm == str(moved / "words.lm")
    assert (found.lm_weight, found.hot_words) == (0.3, {"NINE": 1.0})
    facts = inspect_file(moved / path.name)
    assert facts["language model"] == "words.lm"
    assert facts["details"]["tuned"] == {"wer": 0.1}
    assert facts["details"]["settings"]["lm_weight"] == 0.3


def test_a_decoder_file_holds_two_language_models(tmp_path: Path):
    models = tuple(model_of(tmp_path, digits(30), kind) for kind in ("words", "characters"))
    path = tmp_path / "two.decoder"
    settings = DecoderConfig(lm=models, lm_weight=0.3, character_lm_weight=0.2)
    write_decoder_file(path, settings, ENGLISH)
    found = read_decoder_file(path)
    fields = {name: getattr(found, name) for name in DecoderConfig.__struct_fields__}
    assert DecoderConfig(**fields) == settings
    again = tmp_path / "again.decoder"
    write_decoder_file(again, found, ENGLISH)
    assert again.read_bytes() == path.read_bytes()
    assert inspect_file(path)["language model"] == "words.lm, characters.lm"
    model_of(tmp_path, digits(31), "characters")
    with pytest.raises(ModelFileError, match=rf"{path}.*characters\.lm.*tune again"):
        read_decoder_file(path)
    Path(models[0]).unlink()
    with pytest.raises(MissingFileError, match=rf"{path}.*words\.lm.*copy"):
        read_decoder_file(path)
    path.write_text(path.read_text().replace('    "characters.lm"', '    "characters.lm", "x.lm"'))
    with pytest.raises(ModelFileError, match=rf"{path}.*ds2deploy tune"):
        read_decoder_file(path)


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda path: path.unlink(), MissingFileError),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), ModelFileError),
        (lambda path: path.write_text("[]"), ModelFileError),
        (
            lambda path: path.write_text(path.read_text().replace('version": 1', 'version": 9')),
            ModelFileError,
        ),
        (
            lambda path: path.write_text(path.read_text().replace('"beam": 64', '"beam": 0')),
            ModelFileError,
        ),
        (lambda path: path.with_name("words.lm").unlink(), MissingFileError),
        (lambda path: model_of(path.parent, digits(31)), ModelFileError),
    ],
    ids=["missing", "truncated", "a list", "newer", "no beam", "no model", "another model"],
)
def test_damaged_decoder_files(tmp_path: Path, damage, error: type[Exception]):
    path = tmp_path / "words.decoder"
    write_decoder_file(path, DecoderConfig(beam=64, lm=model_of(tmp_path, digits(30))), ENGLISH)
    damage(path)
    with pytest.raises(error, match=str(path)):
        read_decoder_file(path)
